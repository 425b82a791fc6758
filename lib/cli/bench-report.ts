/** A benchmark's report as text: tables for people, Markdown for a page, CSV for a spreadsheet. */
import type { BenchCase, BenchLink, BenchReport, GenerationResult, Spread, WorkerResult } from '../bench/index.js';
import { layerRanges, tableWithin } from './format.js';

export type BenchFormat = 'table' | 'json' | 'csv' | 'md';

/** One table of a report. */
export interface Section {
  readonly title: string;
  readonly rows: readonly (readonly string[])[];
  /** Columns of numbers. */
  readonly right: readonly number[];
}

/** The report in the wanted form, without a line end. */
export function formatReport(report: BenchReport, format: BenchFormat, columns = 80): string {
  if (format === 'json') return JSON.stringify(report);
  if (format === 'csv') return csv(report);
  const sections = reportSections(report);
  return format === 'md' ? markdown(report, sections) : tables(report, sections, columns);
}

function tables(report: BenchReport, sections: readonly Section[], columns: number): string {
  const parts = [...headLines(report).map(plain)];
  for (const { title, rows, right } of sections) {
    const clean = rows.map((row) => row.map(plain));
    parts.push('', `${title}:`, tableWithin(columns, clean, right));
  }
  if (report.notes.length > 0) parts.push('', ...report.notes.map((note) => `- ${plain(note)}`));
  return parts.join('\n');
}

function markdown(report: BenchReport, sections: readonly Section[]): string {
  const cell = (text: string) => plain(text).replace(/[\\|<*_`[\]]/g, '\\$&');
  const parts = headLines(report).map((text) => `${cell(text)}  `);
  for (const { title, rows, right } of sections) {
    const [head = [], ...body] = rows;
    const written = (row: readonly string[]) => `| ${row.map(cell).join(' | ')} |`;
    const rule = `| ${head.map((_, i) => (right.includes(i) ? '---:' : '---')).join(' | ')} |`;
    parts.push('', `**${title}**`, '', written(head), rule, ...body.map(written));
  }
  if (report.notes.length > 0) parts.push('', ...report.notes.map((note) => `- ${cell(note)}`));
  return parts.join('\n');
}

function headLines({ droidLlama, node, machine, model, repetitions }: BenchReport): string[] {
  const runs = repetitions === 1 ? 'one run of each test' : `medians of ${repetitions} runs (smallest–largest)`;
  return [
    `${model ?? 'a model that the server does not name'}; ${runs}`,
    `droid-llama ${droidLlama}, Node ${node}, ${machine.processor}, ${machine.cores} cores, ` +
      `${gibibytes(machine.memory)} GiB, ${machine.platform} ${machine.arch}`,
  ];
}

/** The tables that there is something to say in. */
export function reportSections(report: BenchReport): Section[] {
  const { cases, links } = report;
  const sections: Section[] = [
    { title: 'Links to the workers', rows: [LINK_HEAD, ...links.map(linkRow)], right: [1, 2, 3] },
    { title: 'Placement', rows: [PLACEMENT_HEAD, ...cases.flatMap(placementRows)], right: [3] },
    { title: 'Loading', rows: [LOAD_HEAD, ...cases.flatMap(loadRows)], right: [2, 3, 4] },
    { title: 'Speed in tokens/s', rows: [SPEED_HEAD, ...cases.flatMap(speedRows)], right: [2, 4, 5, 6] },
    {
      title: 'Where one token spends its milliseconds',
      rows: [TIME_HEAD, ...cases.flatMap(timeRows)],
      right: [2, 3, 4, 5],
    },
    { title: 'The least it could take', rows: [FLOOR_HEAD, ...cases.flatMap(floorRows)], right: [2, 3, 4, 5] },
    { title: 'Workers', rows: [WORKER_HEAD, ...cases.flatMap(workerRows)], right: [2, 3, 4, 5] },
    { title: 'On the wire for one token', rows: [WIRE_HEAD, ...cases.flatMap(wireRows)], right: [2, 3, 4, 5] },
    { title: 'Several streams at once', rows: [STREAM_HEAD, ...cases.flatMap(streamRows)], right: [1, 2, 4] },
    {
      title: 'Milliseconds to the first token and to the next',
      rows: [WAIT_HEAD, ...cases.flatMap(waitRows)],
      right: [1, 2, 3, 4, 5],
    },
  ];
  return sections.filter(({ rows }) => rows.length > 1);
}

const LINK_HEAD = ['worker', 'round trip ms', 'up Mbit/s', 'down Mbit/s'];
const linkRow = ({ endpoint, roundTripMs, upBytesPerSecond, downBytesPerSecond }: BenchLink): string[] => [
  endpoint,
  number(roundTripMs),
  megabits(upBytesPerSecond),
  megabits(downBytesPerSecond),
];

const PLACEMENT_HEAD = ['case', 'device', 'layers', 'MiB', 'head'];
const placementRows = ({ name, placement }: BenchCase): string[][] =>
  (placement ?? []).map(({ device, layers, head, bytes }) => [
    name,
    device,
    layerRanges(layers),
    mebibytes(bytes),
    head ? 'yes' : '',
  ]);

const LOAD_HEAD = ['case', 'load', 's', 'sent MiB', 'reused MiB'];
const loadRows = ({ name, loads }: BenchCase): string[][] =>
  loads.map(({ kind, seconds, weightsSent, weightsReused }) => [
    name,
    kind,
    number(seconds),
    mebibytes(weightsSent),
    mebibytes(weightsReused),
  ]);

const SPEED_HEAD = ['case', 'test', 't/s', 'range', 'predicted', 'floor', 'of floor'];
const speedRows = ({ name, prompts, generations }: BenchCase): string[][] => [
  ...prompts.map(({ tokens, tokensPerSecond, predicted }) => [
    name,
    `pp${tokens}`,
    number(tokensPerSecond.median),
    range(tokensPerSecond),
    number(predicted),
    '',
    '',
  ]),
  ...generations.map(({ tokens, tokensPerSecond, predicted, floor }) => [
    name,
    `tg${tokens}`,
    number(tokensPerSecond.median),
    range(tokensPerSecond),
    number(predicted),
    floor ? number(floor.tokensPerSecond) : '',
    floor ? `${(100 * floor.share).toFixed(0)} %` : '',
  ]),
];

const TIME_HEAD = ['case', 'test', 'all', 'master', 'workers', 'network'];
const timeRows = ({ name, generations }: BenchCase): string[][] =>
  generations.flatMap(({ tokens, breakdown }: GenerationResult) => {
    if (!breakdown) return [];
    const { totalMs, masterMs, workers } = breakdown;
    const [computing, network] =
      workers.length === 0
        ? ['', '']
        : [sum(workers.map(({ computeMs }) => computeMs)), sum(workers.map(({ networkMs }) => networkMs))].map(number);
    return [[name, `tg${tokens}`, number(totalMs), number(masterMs), computing ?? '', network ?? '']];
  });

const FLOOR_HEAD = ['case', 'test', 'all', 'computing', 'round trips', 'transfer'];
const floorRows = ({ name, generations }: BenchCase): string[][] =>
  generations.flatMap(({ tokens, floor }: GenerationResult) => {
    if (!floor) return [];
    const { tokensPerSecond, computeMs, roundTripMs, transferMs } = floor;
    return [[name, `tg${tokens}`, ...[1000 / tokensPerSecond, computeMs, roundTripMs, transferMs].map(number)]];
  });

const WORKER_HEAD = ['case', 'worker', 'memory MiB', 'round trips', 'computing ms', 'network ms'];
const workerRows = ({ name, workers }: BenchCase): string[][] =>
  workers.map((worker: WorkerResult) => [
    name,
    worker.endpoint,
    worker.memoryBytes === null ? '-' : mebibytes(worker.memoryBytes),
    worker.roundTripsPerToken.toFixed(2),
    number(worker.computeMsPerToken),
    number(worker.networkMsPerToken),
  ]);

const WIRE_HEAD = ['case', 'worker', 'bytes up', 'bytes down', 'messages up', 'down'];
const wireRows = ({ name, workers }: BenchCase): string[][] =>
  workers.map((worker: WorkerResult) => [
    name,
    worker.endpoint,
    worker.bytesSentPerToken.toFixed(0),
    worker.bytesReceivedPerToken.toFixed(0),
    worker.messagesSentPerToken.toFixed(2),
    worker.messagesReceivedPerToken.toFixed(2),
  ]);

const STREAM_HEAD = ['case', 'streams', 't/s', 'range', 'each t/s'];
const streamRows = ({ name, streams }: BenchCase): string[][] =>
  streams.map(({ streams: count, tokensPerSecond, perStream }) => [
    name,
    String(count),
    number(tokensPerSecond.median),
    range(tokensPerSecond),
    number(perStream.median),
  ]);

const WAIT_HEAD = ['case', 'streams', 'first p50', 'first p95', 'next p50', 'next p95'];
const waitRows = ({ name, streams }: BenchCase): string[][] =>
  streams.map(({ streams: count, firstTokenMs, tokenMs }) => [
    name,
    String(count),
    ...[firstTokenMs.p50, firstTokenMs.p95, tokenMs.p50, tokenMs.p95].map(number),
  ]);

/** One line for each number: what it is of, what it is, its unit, and what belongs to it. */
function csv({ date, model, cases, links }: BenchReport): string {
  const head = ['case', 'ubatch', 'threads', 'device', 'test', 'unit', 'median', 'min', 'max', 'predicted', 'floor'];
  const rows: Cell[][] = [];
  for (const { endpoint, ...link } of links) {
    for (const [test, unit, value] of [
      ['round trip', 'ms', link.roundTripMs],
      ['up', 'bytes/s', link.upBytesPerSecond],
      ['down', 'bytes/s', link.downBytesPerSecond],
    ] as const) {
      rows.push([null, null, null, endpoint, test, unit, value, null, null, null, null]);
    }
  }
  for (const entry of cases) rows.push(...caseLines(entry));
  // Files of several runs are put together, on other days and of other models.
  const lines = [['date', 'model', ...head], ...rows.map((row) => [date, model, ...row])];
  return lines.map((line) => line.map(csvCell).join(',')).join('\n');
}

type Cell = string | number | null;

function caseLines(entry: BenchCase): Cell[][] {
  const { name, ubatchSize, threads } = entry;
  const lines: Cell[][] = [];
  const add = (device: string | null, test: string, unit: string, values: Cell[]) =>
    lines.push([name, ubatchSize, threads, device, test, unit, ...values, ...Array(5 - values.length).fill(null)]);
  const spreadOf = ({ median, min, max }: Spread) => [median, min, max];
  for (const [i, { kind, seconds, weightsSent, weightsReused }] of entry.loads.entries()) {
    const load = `load ${i + 1}, ${kind}`;
    add(null, load, 's', [seconds]);
    add(null, `${load}, weights sent`, 'bytes', [weightsSent]);
    add(null, `${load}, weights reused`, 'bytes', [weightsReused]);
  }
  for (const { tokens, tokensPerSecond, predicted } of entry.prompts) {
    add(null, `pp${tokens}`, 'tokens/s', [...spreadOf(tokensPerSecond), predicted]);
  }
  for (const { tokens, tokensPerSecond, predicted, floor, breakdown } of entry.generations) {
    add(null, `tg${tokens}`, 'tokens/s', [...spreadOf(tokensPerSecond), predicted, floor?.tokensPerSecond ?? null]);
    if (breakdown) add('master', `tg${tokens}, master`, 'ms/token', [breakdown.masterMs]);
  }
  for (const worker of entry.workers) {
    for (const [test, unit, value] of [
      ['sent', 'bytes/token', worker.bytesSentPerToken],
      ['received', 'bytes/token', worker.bytesReceivedPerToken],
      ['sent', 'messages/token', worker.messagesSentPerToken],
      ['received', 'messages/token', worker.messagesReceivedPerToken],
      ['round trips', '1/token', worker.roundTripsPerToken],
      ['computing', 'ms/token', worker.computeMsPerToken],
      ['network', 'ms/token', worker.networkMsPerToken],
      ['memory', 'bytes', worker.memoryBytes],
    ] as const) {
      add(worker.endpoint, test, unit, [value]);
    }
  }
  for (const { streams, tokensPerSecond, perStream, firstTokenMs, tokenMs } of entry.streams) {
    const test = `${streams} ${streams === 1 ? 'stream' : 'streams'}`;
    add(null, test, 'tokens/s', spreadOf(tokensPerSecond));
    add(null, `${test}, each`, 'tokens/s', spreadOf(perStream));
    add(null, `${test}, first token p50`, 'ms', [firstTokenMs.p50]);
    add(null, `${test}, first token p95`, 'ms', [firstTokenMs.p95]);
    add(null, `${test}, next token p50`, 'ms', [tokenMs.p50]);
    add(null, `${test}, next token p95`, 'ms', [tokenMs.p95]);
  }
  return lines;
}

/** A cell as RFC 4180 has it. */
export function csvCell(value: Cell): string {
  if (value === null) return '';
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Names come from files and from other devices, and end up on a terminal. */
function plain(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ');
}

function range({ min, max, samples }: Spread): string {
  return samples.length > 1 ? `(${number(min)}–${number(max)})` : '';
}

function number(value: number | null): string {
  if (value === null) return '-';
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function sum(values: readonly (number | null)[]): number | null {
  return values.reduce<number | null>((all, value) => (all === null || value === null ? null : all + value), 0);
}

function megabits(bytesPerSecond: number | null): string {
  return bytesPerSecond === null ? '-' : number((bytesPerSecond * 8) / 1e6);
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}

function gibibytes(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(1);
}
