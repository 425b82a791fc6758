/** The splits of a sweep: from everything on the master to every layer on the workers. */

/** Digits of a share; enough for the layers' boundaries to be found again. */
const DIGITS = 4;

/**
 * In `steps` equal steps, on whole layers; the rest is shared equally by the workers. The first split leaves everything
 * on the master.
 * @param layerBytes bytes of each layer, in order
 * @returns shares of the layers' bytes, master first; they come out as these layers
 */
export function sweepSplits(layerBytes: readonly number[], workers: number, steps: number): number[][] {
  const layers = layerBytes.length;
  const counts = new Set(Array.from({ length: steps + 1 }, (_, i) => Math.round(layers * (1 - i / steps))));
  return [...counts].map((master) => byteShares(layerBytes, [master, ...equalParts(layers - master, workers)]));
}

function equalParts(total: number, parts: number): number[] {
  return Array.from(
    { length: parts },
    (_, i) => Math.floor((total * (i + 1)) / parts) - Math.floor((total * i) / parts),
  );
}

function byteShares(layerBytes: readonly number[], counts: readonly number[]): number[] {
  const total = layerBytes.reduce((a, b) => a + b, 0);
  let first = 0;
  return counts.map((count) => {
    const bytes = layerBytes.slice(first, first + count).reduce((a, b) => a + b, 0);
    first += count;
    return Number((bytes / total).toFixed(DIGITS));
  });
}
