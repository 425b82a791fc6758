import type { Placement, RpcDevice } from '../types.js';

const MIB = 1024 * 1024;

/** Ascending indices as ranges: `[0, 1, 2, 5]` is `'0-2,5'`, none is `'none'`. */
export function layerRanges(layers: readonly number[]): string {
  const ranges: string[] = [];
  let first: number | undefined;
  layers.forEach((layer, i) => {
    first ??= layer;
    if (layers[i + 1] === layer + 1) return;
    ranges.push(first === layer ? `${layer}` : `${first}-${layer}`);
    first = undefined;
  });
  return ranges.length === 0 ? 'none' : ranges.join(',');
}

/** A table, or where that is too wide, each row as a paragraph of its own: its first cell, then the others by name. */
export function tableWithin(
  columns: number,
  rows: readonly (readonly string[])[],
  right: readonly number[] = [],
): string {
  const wide = table(rows, right);
  const [head = [], ...body] = rows;
  if (wide.split('\n').every((line) => line.length <= columns)) return wide;
  const paragraph = ([first = '', ...cells]: readonly string[]): string =>
    [first, ...cells.flatMap((cell, i) => (cell === '' ? [] : [`  ${head[i + 1] ?? ''}: ${cell}`]))].join('\n');
  return body.map(paragraph).join('\n');
}

/** Columns separated by two spaces; `right` lists the columns whose cells end at the same place. */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, cell.length);
  }
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return rows.map(line).join('\n');
}

/**
 * Paragraphs broken into lines of at most `width` columns. Lines that are indented, as commands and JSON are, stay as
 * they are: a copy of a broken command would not run.
 */
export function wrapText(text: string, width: number): string {
  return text.replace(/(?:^\S.*\n?)+/gm, (paragraph) => {
    const lines: string[] = [];
    for (const word of paragraph.trim().split(/\s+/)) {
      const last = lines.at(-1);
      if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
      else lines.push(word);
    }
    return `${lines.join('\n')}${paragraph.endsWith('\n') ? '\n' : ''}`;
  });
}

/** Device, layers, head, MiB of weights and share of the bytes, one line a device. */
export function placementTable(placement: readonly Placement[]): string {
  const total = placement.reduce((sum, part) => sum + part.bytes, 0);
  const rows = placement.map((part) => [
    part.device,
    layerRanges(part.layers),
    part.head ? 'yes' : 'no',
    (part.bytes / MIB).toFixed(2),
    `${(total === 0 ? 0 : (100 * part.bytes) / total).toFixed(1)}%`,
  ]);
  return table([['device', 'layers', 'head', 'MiB', 'share'], ...rows], [3, 4]);
}

export function mebibytes(bytes: number): string {
  return `${Math.floor(bytes / MIB)} MiB`;
}

/** One indented line a device, with its memory in whole MiB. */
export function deviceLines(devices: readonly RpcDevice[]): string[] {
  return devices.map(
    ({ name, description, memoryTotal, memoryFree }) =>
      `  ${name}: ${description} (${mebibytes(memoryTotal)}, ${mebibytes(memoryFree)} free)`,
  );
}
