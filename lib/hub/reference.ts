/** What a text such as `Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M` names. */
import { invalid, show } from '../validate.js';

export interface ModelReference {
  /** `owner/name` on the hub. */
  readonly repo: string;
  /** Which of its models, by the name of the quantization; the repository's usual one without it. */
  readonly variant?: string;
}

// The hub's own rule for names, which also keeps `..` out of the paths that are made of them.
const NAME = '[A-Za-z0-9][\\w.-]{0,95}';
const REPO = new RegExp(`^${NAME}/${NAME}$`);
const REFERENCE = new RegExp(`^(?:hf://|https://huggingface\\.co/)?(${NAME}/${NAME})(?::([\\w.-]{1,96}))?/?$`);

/** Whether {@link parseReference} takes it, without a variant. */
export function isRepo(text: string): boolean {
  return REPO.test(text) && !text.includes('..');
}

/** Throws `DROID_INVALID_ARGUMENT`. */
export function parseReference(text: string): ModelReference {
  const [, repo, variant] = REFERENCE.exec(text) ?? [];
  if (!repo || !isRepo(repo)) {
    invalid(
      `${show(text)} names no model of the Hugging Face hub; it is owner/name or owner/name:quantization, e.g. ` +
        'Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M.',
    );
  }
  return { repo, variant };
}

export function formatReference({ repo, variant }: ModelReference): string {
  return variant === undefined ? repo : `${repo}:${variant}`;
}
