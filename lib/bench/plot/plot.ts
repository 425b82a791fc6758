/** A report as a picture: an SVG document without anything that would have to be fetched. */
import { invalid } from '../../validate.js';
import type { BenchCase, BenchReport } from '../types.js';
import { STYLE } from './style.js';
import { element, escapeXml, shorten, text } from './svg.js';
import { type SweepSeries, sweepChart, sweepLegend } from './sweep-chart.js';
import { type TimeBar, timeChart, timeChartHeight } from './time-chart.js';

const WIDTH = 760;
const MARGIN = 24;
const INNER = WIDTH - 2 * MARGIN;
const GAP = 20;
const CHART_HEIGHT = 250;
const HEAD_HEIGHT = 72;

/**
 * Draws the longest prompt and the longest generation over the part of the layers that the master holds, where several
 * splits were measured, and for each case the time of a token by what took it.
 * @returns an SVG document, readable on light and on dark pages
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT` when the report has neither
 */
export function plotReport(report: BenchReport): string {
  const charts = [
    { title: 'Prompt, tokens/s', series: sweepSeries(report, 'prompts') },
    { title: 'Generation, tokens/s', series: sweepSeries(report, 'generations') },
  ].filter(({ series }) => series.length > 0);
  const bars = timeBars(report);
  if (charts.length === 0 && bars.length === 0) {
    invalid('The report has nothing to draw: measure several splits, or a generation.');
  }
  const parts: string[] = [];
  let y = HEAD_HEIGHT;
  if (charts.length > 0) {
    const width = (INNER - GAP) / 2;
    charts.forEach(({ title, series }, i) => {
      parts.push(sweepChart({ x: MARGIN + i * (width + GAP), y, width, height: CHART_HEIGHT }, title, series));
    });
    y += CHART_HEIGHT + 16;
    parts.push(sweepLegend(MARGIN, y, charts[0]?.series ?? []));
    y += 30;
  }
  if (bars.length > 0) {
    const height = timeChartHeight(bars, INNER);
    parts.push(timeChart({ x: MARGIN, y, width: INNER, height }, 'Time of one generated token', bars));
    y += height;
  }
  const height = y + MARGIN / 2;
  const title = `droid-llama bench: ${report.model ?? 'a model'}`;
  return `${[
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img">`,
    element('title', {}, escapeXml(title)),
    element('style', {}, STYLE),
    element('rect', { class: 'page', x: 0, y: 0, width: WIDTH, height }),
    text(MARGIN, 32, shorten(title, 80), { class: 'title' }),
    text(MARGIN, 52, shorten(subtitle(report), 105), { class: 'subtitle' }),
    ...parts,
    '</svg>',
  ].join('\n')}\n`;
}

function subtitle({ machine, repetitions, date, droidLlama }: BenchReport): string {
  const runs = repetitions === 1 ? 'one run' : `medians of ${repetitions} runs`;
  return `${machine.processor}, ${runs}, ${date.slice(0, 10)}, droid-llama ${droidLlama}`;
}

/** The longest test of each case; one line for each size of the physical batch. */
function sweepSeries(report: BenchReport, kind: 'prompts' | 'generations'): SweepSeries[] {
  const points = report.cases.flatMap((entry) => {
    const longest = [...entry[kind]].sort((a, b) => b.tokens - a.tokens)[0];
    if (!longest || entry.masterShare === null) return [];
    const { tokensPerSecond: measured, predicted } = longest;
    return [{ ubatchSize: entry.ubatchSize, point: { masterShare: entry.masterShare, measured, predicted } }];
  });
  if (new Set(points.map(({ point }) => point.masterShare)).size < 2) return [];
  const sizes = [...new Set(points.map(({ ubatchSize }) => ubatchSize))];
  return sizes.map((size) => ({
    name: sizes.length > 1 ? `ubatch ${size ?? 'default'}` : '',
    points: points.filter(({ ubatchSize }) => ubatchSize === size).map(({ point }) => point),
  }));
}

function timeBars({ cases }: BenchReport): TimeBar[] {
  return cases.flatMap((entry: BenchCase) => {
    const longest = [...entry.generations].sort((a, b) => b.tokens - a.tokens)[0];
    if (!longest?.breakdown) return [];
    const floorMs = longest.floor ? 1000 / longest.floor.tokensPerSecond : null;
    return [{ name: entry.name, breakdown: longest.breakdown, floorMs }];
  });
}
