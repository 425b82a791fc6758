/** Speed over the part of the layers that the master holds. */
import type { Spread } from '../types.js';
import { type Box, color } from './style.js';
import { element, line, polyline, text, textWidth, ticks } from './svg.js';

export interface SweepPoint {
  /** 0 to 1. */
  readonly masterShare: number;
  readonly measured: Spread;
  readonly predicted: number | null;
}

export interface SweepSeries {
  /** Empty where there is only one. */
  readonly name: string;
  readonly points: readonly SweepPoint[];
}

const MARGIN = { left: 52, right: 12, top: 30, bottom: 44 };
const SHARES = [0, 0.25, 0.5, 0.75, 1];

export function sweepChart(box: Box, title: string, series: readonly SweepSeries[]): string {
  const left = box.x + MARGIN.left;
  const width = box.width - MARGIN.left - MARGIN.right;
  const top = box.y + MARGIN.top;
  const height = box.height - MARGIN.top - MARGIN.bottom;
  const values = series.flatMap(({ points }) => points.flatMap((p) => [p.measured.max, p.predicted ?? 0]));
  const marks = ticks(Math.max(...values), 5);
  const highest = marks.at(-1) as number;
  const x = (share: number) => left + share * width;
  const y = (value: number) => top + height * (1 - value / highest);

  const parts = [text(box.x, box.y + 14, title, { 'font-weight': '600' })];
  for (const mark of marks) {
    parts.push(line(left, y(mark), left + width, y(mark), mark === 0 ? 'axis' : 'grid'));
    parts.push(text(left - 6, y(mark) + 4, String(mark), { class: 'tick', 'text-anchor': 'end' }));
  }
  for (const share of SHARES) {
    const anchor = share === 1 ? 'end' : 'middle';
    parts.push(line(x(share), top + height, x(share), top + height + 4, 'axis'));
    parts.push(text(x(share), top + height + 18, `${100 * share} %`, { class: 'tick', 'text-anchor': anchor }));
  }
  parts.push(
    text(left + width / 2, top + height + 36, 'layers on the master', { class: 'unit', 'text-anchor': 'middle' }),
  );
  series.forEach(({ points }, index) => {
    const sorted = [...points].sort((a, b) => a.masterShare - b.masterShare);
    const stroke = color(index);
    const predicted = sorted.flatMap((p) =>
      p.predicted === null ? [] : [[x(p.masterShare), y(p.predicted)] as const],
    );
    parts.push(polyline(predicted, { fill: 'none', stroke, 'stroke-width': 1, 'stroke-dasharray': '4 3' }));
    const measured = sorted.map((p) => [x(p.masterShare), y(p.measured.median)] as const);
    parts.push(polyline(measured, { fill: 'none', stroke, 'stroke-width': 2.5 }));
    for (const point of sorted) {
      const at = x(point.masterShare);
      const range = {
        x1: at,
        x2: at,
        y1: y(point.measured.min),
        y2: y(point.measured.max),
        stroke,
        'stroke-width': 1.5,
      };
      parts.push(element('line', range));
      parts.push(element('circle', { cx: at, cy: y(point.measured.median), r: 3.5, fill: stroke }));
    }
  });
  return parts.join('\n');
}

/** One line of what the lines mean. */
export function sweepLegend(x: number, y: number, series: readonly SweepSeries[]): string {
  const parts: string[] = [];
  let at = x;
  const entry = (label: string, stroke: string, dashed: boolean) => {
    parts.push(
      element('line', {
        x1: at,
        x2: at + 22,
        y1: y - 4,
        y2: y - 4,
        stroke,
        'stroke-width': dashed ? 1 : 2.5,
        ...(dashed && { 'stroke-dasharray': '4 3' }),
      }),
    );
    parts.push(text(at + 28, y, label));
    at += 28 + textWidth(label) + 20;
  };
  for (const [i, { name }] of series.entries()) entry(name || 'measured, median and range', color(i), false);
  if (series.some(({ points }) => points.some(({ predicted }) => predicted !== null))) {
    entry('predicted', color(0), true);
  }
  return parts.join('\n');
}
