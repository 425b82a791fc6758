/** The models that the files of a repository are: one for each quantization, some of them split over several files. Pure. */

export interface ModelFile {
  /** Within the repository, with `/`. */
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** Hex; null where it is not known, as of a file that is small enough to lie in git itself. */
  readonly sha256: string | null;
}

export interface Variant {
  /** As {@link variantName} has it. */
  readonly name: string;
  /** In order; a model is loaded by the first. */
  readonly files: readonly ModelFile[];
  /** Of all files. */
  readonly bytes: number;
}

/** What llama.cpp takes as well where nothing is asked for. */
const USUAL = 'Q4_K_M';
const QUANTIZATION = /(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))$/i;
const SPLIT = /-(\d{5})-of-(\d{5})$/;
/** Characters; a reference holds no more. */
const LONGEST = 96;
/** GGUF files that are no model of their own. */
const COMPANION = /mmproj|imatrix/i;

/**
 * In capitals, `Q4_K_M`; without a quantization in the file's name, that name, with `-` for what a reference cannot hold.
 * Undefined for a file that is no model.
 */
export function variantName(path: string): string | undefined {
  const stem = /([^/]+)\.gguf$/i.exec(path)?.[1];
  if (stem === undefined || COMPANION.test(path)) return undefined;
  const base = stem.replace(SPLIT, '');
  const name = QUANTIZATION.exec(base)?.[1]?.toUpperCase() ?? base.replace(/[^\w.-]+/g, '-');
  return name.slice(0, LONGEST) || undefined;
}

/** In the order of the files' names. What lacks a part of a split model is left out. */
export function variantsOf(files: readonly ModelFile[]): Variant[] {
  const whole = new Map<string, { name: string; parts: Map<number, ModelFile>; count: number }>();
  for (const file of [...files].sort((a, b) => (a.path < b.path ? -1 : 1))) {
    const name = variantName(file.path);
    if (name === undefined) continue;
    const stem = file.path.replace(/\.gguf$/i, '');
    const [split, part, count] = SPLIT.exec(stem) ?? [];
    const key = split === undefined ? stem : `${stem.slice(0, -split.length)}*${count}`;
    const entry = whole.get(key) ?? { name, parts: new Map<number, ModelFile>(), count: Number(count ?? 1) };
    entry.parts.set(Number(part ?? 1), file);
    whole.set(key, entry);
  }
  return [...whole.values()].flatMap(({ name, parts, count }) => {
    const inOrder = Array.from({ length: Math.min(count, 1000) }, (_, i) => parts.get(i + 1));
    if (inOrder.some((file) => file === undefined) || inOrder.length !== count) return [];
    const all = inOrder as ModelFile[];
    return [{ name, files: all, bytes: all.reduce((total, { size }) => total + size, 0) }];
  });
}

/** The variant of that name, capitals aside; without one the usual one, else the first. */
export function chooseVariant(variants: readonly Variant[], wanted: string | undefined): Variant | undefined {
  const named = (name: string) => variants.find((variant) => variant.name.toUpperCase() === name.toUpperCase());
  return wanted === undefined ? (named(USUAL) ?? variants[0]) : named(wanted);
}
