/** The commands that a Markdown document tells people to type. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { projectRoot } from './paths.js';

export interface CodeBlock {
  /** What stands behind the opening fence: the language, and whatever more words there are. */
  readonly info: string;
  readonly text: string;
}

export class TypedDocument {
  readonly #text: string;
  readonly blocks: readonly CodeBlock[];

  constructor(text: string) {
    this.#text = text;
    this.blocks = [...text.matchAll(/^```(\w[^\n]*)\n([\s\S]*?)^```/gm)].map(([, info = '', code = '']) => ({
      info: info.trim(),
      text: code,
    }));
  }

  /** `path` is relative to the project. */
  static async read(path: string): Promise<TypedDocument> {
    return new TypedDocument(await readFile(join(projectRoot, path), 'utf8'));
  }

  get text(): string {
    return this.#text;
  }

  /** The code of the blocks that are opened by exactly this. */
  code(info: string): string[] {
    return this.blocks.filter((block) => block.info === info).map(({ text }) => text);
  }

  /** The commands of the blocks that are opened by this, with continued lines joined. */
  commands(info: string): string[] {
    return this.code(info).flatMap(commandLines);
  }
}

export function commandLines(code: string): string[] {
  return code
    .replace(/\\\n\s*/g, '')
    .trim()
    .split('\n');
}
