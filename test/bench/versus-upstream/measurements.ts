/** What is measured, one record each, and the file that keeps them while a run lasts. */
import { appendFileSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { z } from 'zod';

const amount = z.number().nonnegative();
const of = { link: z.string(), contender: z.string() };
const round = z.number().int().positive();

const measurement = z.discriminatedUnion('kind', [
  /** The run itself: once, first. */
  z.object({
    kind: z.literal('about'),
    date: z.string(),
    command: z.string(),
    machine: z.string(),
    versions: z.string(),
    model: z.string(),
    layers: round,
    width: round,
    links: z.array(z.string()),
    contenders: z.array(z.string()),
    rounds: round,
    promptTokens: round,
    generatedTokens: round,
    /** Words: with what priority, on which cores, how busy the machine was. */
    conditions: z.array(z.string()),
    /** The command lines of each contender. */
    commands: z.record(z.string(), z.object({ master: z.string(), worker: z.string().nullable() })),
  }),
  /** The link itself, by plain TCP. */
  z.object({
    kind: z.literal('link'),
    link: z.string(),
    round,
    roundTripMs: amount,
    shortestMs: amount,
    upBytesPerSecond: amount,
    downBytesPerSecond: amount,
    /** Of the machine, over the last minute. */
    loadAverage: amount,
  }),
  z.object({ kind: z.literal('ubatch'), ...of, ubatch: round, promptPerSecond: amount }),
  z.object({ kind: z.literal('load'), ...of, round, load: z.enum(['cold', 'warm']), seconds: amount }),
  z.object({
    kind: z.literal('speed'),
    ...of,
    round,
    ubatch: round.nullable(),
    promptPerSecond: amount.nullable(),
    generatedPerSecond: amount.nullable(),
    generatedTokens: round.nullable(),
    /** Of n-gram lookup, in a completion of its own. */
    drafted: amount.nullable(),
    accepted: amount.nullable(),
  }),
  z.object({
    kind: z.literal('streams'),
    ...of,
    round,
    streams: round,
    tokensPerSecond: amount,
    perStream: amount,
    firstTokenMs: amount,
  }),
  /** For each generated token, counted between the two; requests are sent, answers received. */
  z.object({
    kind: z.literal('traffic'),
    ...of,
    messagesSent: amount,
    messagesReceived: amount,
    bytesSent: amount,
    bytesReceived: amount,
  }),
  /** For each generated token: the worker by its own clock, the network what the master waited beyond that. */
  z.object({
    kind: z.literal('breakdown'),
    ...of,
    round,
    totalMs: amount,
    masterMs: z.number(),
    workerMs: amount,
    networkMs: z.number(),
    waits: amount,
    writes: amount,
  }),
  z.object({ kind: z.literal('failure'), ...of, what: z.string(), message: z.string() }),
]);

export type Measurement = z.infer<typeof measurement>;
export type MeasurementOf<Kind extends Measurement['kind']> = Extract<Measurement, { kind: Kind }>;

/** In memory, and line by line in a file, so that a run that dies leaves what it had. */
export class Measurements {
  readonly #file: string | undefined;
  readonly #all: Measurement[] = [];

  constructor(file?: string) {
    this.#file = file;
    if (file !== undefined) mkdirSync(dirname(file), { recursive: true });
  }

  static read(file: string): Measurements {
    const measurements = new Measurements();
    for (const line of readFileSync(file, 'utf8').split('\n').filter(Boolean)) {
      measurements.#all.push(measurement.parse(JSON.parse(line)));
    }
    return measurements;
  }

  add(record: Measurement): void {
    const checked = measurement.parse(record);
    this.#all.push(checked);
    if (this.#file !== undefined) appendFileSync(this.#file, `${JSON.stringify(checked)}\n`);
  }

  get all(): readonly Measurement[] {
    return this.#all;
  }

  of<Kind extends Measurement['kind']>(kind: Kind, link: string, contender?: string): MeasurementOf<Kind>[] {
    return this.#all.filter(
      (record): record is MeasurementOf<Kind> =>
        record.kind === kind &&
        'link' in record &&
        record.link === link &&
        (contender === undefined || !('contender' in record) || record.contender === contender),
    );
  }
}
