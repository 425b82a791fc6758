/** Where the time of one token goes: a bar for each case, stacked from what its devices and the network took. */
import type { Breakdown } from '../types.js';
import { type Box, color, NETWORK_COLOR } from './style.js';
import { element, line, shorten, text, textWidth, ticks } from './svg.js';

export interface TimeBar {
  readonly name: string;
  readonly breakdown: Breakdown;
  /** Milliseconds of the floor; null without one. */
  readonly floorMs: number | null;
}

interface Part {
  readonly label: string;
  readonly color: string;
  readonly ms: number;
}

const LABEL_CHARACTERS = 30;
const MARGIN = { left: 214, right: 70, top: 30, bottom: 44 };
const ROW = { height: 30, bar: 18 };
const LEGEND_ROW = 20;

export function timeChartHeight(bars: readonly TimeBar[], width: number): number {
  return MARGIN.top + bars.length * ROW.height + MARGIN.bottom + legendRows(legendOf(bars), width).length * LEGEND_ROW;
}

export function timeChart(box: Box, title: string, bars: readonly TimeBar[]): string {
  const left = box.x + MARGIN.left;
  const width = box.width - MARGIN.left - MARGIN.right;
  const top = box.y + MARGIN.top;
  const height = bars.length * ROW.height;
  const marks = ticks(Math.max(...bars.map(({ breakdown, floorMs }) => Math.max(breakdown.totalMs, floorMs ?? 0))), 6);
  const longest = marks.at(-1) as number;
  const x = (ms: number) => left + (width * ms) / longest;

  const parts = [text(box.x, box.y + 14, title, { 'font-weight': '600' })];
  for (const mark of marks) {
    parts.push(line(x(mark), top, x(mark), top + height, mark === 0 ? 'axis' : 'grid'));
    parts.push(text(x(mark), top + height + 16, String(mark), { class: 'tick', 'text-anchor': 'middle' }));
  }
  parts.push(
    text(left + width / 2, top + height + 34, 'milliseconds per token', { class: 'unit', 'text-anchor': 'middle' }),
  );
  const workers = workerNames(bars);
  bars.forEach(({ name, breakdown, floorMs }, row) => {
    const y = top + row * ROW.height + (ROW.height - ROW.bar) / 2;
    const label = shorten(name, LABEL_CHARACTERS);
    parts.push(text(left - 8, y + ROW.bar - 5, label, { 'text-anchor': 'end' }));
    let from = 0;
    for (const { ms, color: fill } of partsOf(breakdown, workers)) {
      // What was measured by two clocks can add up to a little more than the whole.
      const to = Math.min(from + ms, breakdown.totalMs);
      if (to > from) parts.push(element('rect', { x: x(from), y, width: x(to) - x(from), height: ROW.bar, fill }));
      from = Math.max(from, to);
    }
    if (floorMs !== null) parts.push(line(x(floorMs), y - 4, x(floorMs), y + ROW.bar + 4, 'floor'));
    const total = `${number(breakdown.totalMs)} ms`;
    const end = x(breakdown.totalMs);
    // Behind the mark of the floor where there is no room before it.
    const floorX = floorMs === null ? 0 : x(floorMs);
    const blocked = floorX > end - 2 && floorX < end + textWidth(total) + 12;
    parts.push(text((blocked ? floorX : end) + 7, y + ROW.bar - 5, total));
  });
  parts.push(legend(box, top + height + MARGIN.bottom + 12, legendOf(bars)));
  return parts.join('\n');
}

/** In the order in which a token passes them; the network last, where all ways are added up. */
function partsOf({ masterMs, workers }: Breakdown, names: readonly string[]): Part[] {
  const computing = workers.map(({ endpoint, waitMs, computeMs }) => ({
    // A worker that does not tell what it computed has all of the waiting for it.
    label: computeMs === null ? `waiting for ${endpoint}` : `${endpoint} computing`,
    color: color(1 + names.indexOf(endpoint)),
    ms: computeMs ?? waitMs,
  }));
  const networkMs = workers.reduce((sum, worker) => sum + (worker.networkMs ?? 0), 0);
  return [
    { label: 'master', color: color(0), ms: masterMs },
    ...computing,
    { label: 'network', color: NETWORK_COLOR, ms: networkMs },
  ];
}

function workerNames(bars: readonly TimeBar[]): string[] {
  return [...new Set(bars.flatMap(({ breakdown }) => breakdown.workers.map(({ endpoint }) => endpoint)))];
}

/** Each thing that is drawn, once. */
function legendOf(bars: readonly TimeBar[]): { label: string; color: string | null }[] {
  const names = workerNames(bars);
  const all = new Map<string, string | null>();
  for (const { breakdown } of bars) {
    for (const part of partsOf(breakdown, names)) if (part.ms > 0) all.set(part.label, part.color);
  }
  const network = all.get('network');
  all.delete('network');
  if (network) all.set('network', network);
  if (bars.some(({ floorMs }) => floorMs !== null)) all.set('floor', null);
  return [...all].map(([label, fill]) => ({ label: shorten(label, 40), color: fill }));
}

function entryWidth(label: string): number {
  return 20 + textWidth(label) + 18;
}

function legendRows<Entry extends { label: string }>(entries: readonly Entry[], width: number): Entry[][] {
  const rows: Entry[][] = [];
  let left = 0;
  for (const entry of entries) {
    const needed = entryWidth(entry.label);
    if (rows.length === 0 || needed > left) {
      rows.push([]);
      left = width;
    }
    rows.at(-1)?.push(entry);
    left -= needed;
  }
  return rows;
}

function legend(box: Box, y: number, entries: readonly { label: string; color: string | null }[]): string {
  return legendRows(entries, box.width)
    .flatMap((row, i) => {
      let x = box.x;
      return row.map(({ label, color: fill }) => {
        const at = y + i * LEGEND_ROW;
        const mark =
          fill === null
            ? line(x + 6, at - 12, x + 6, at + 2, 'floor')
            : element('rect', { x, y: at - 10, width: 12, height: 12, fill });
        const drawn = `${mark}\n${text(x + 20, at, label)}`;
        x += entryWidth(label);
        return drawn;
      });
    })
    .join('\n');
}

function number(ms: number): string {
  return ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2);
}
