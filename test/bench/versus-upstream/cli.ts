/** The command: what it is told, what it runs, and what it prints. */
import { execFile } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { guideModel } from '../../support/guide.js';
import { cliMain, projectRoot, tinyModel } from '../../support/paths.js';
import { Phones } from '../../support/phones.js';
import { ensureUpstream } from '../../upstream/build.mjs';
import { describeRun, readShape, takePriority } from './about.js';
import { CONTENDERS, type Contender, type Programs, UBATCHES } from './contenders.js';
import { type BenchLink, LINKS } from './links.js';
import { Measurements } from './measurements.js';
import { report } from './report.js';
import { LinkRun, type Schedule } from './schedule.js';
import { summarize } from './summary.js';
import { SPLITS } from './targets.js';
import { commitTraffic, countedTraffic } from './traffic.js';

const OUT = join(projectRoot, 'docs/bench');
const TRAFFIC_LINKS = ['loopback', 'hotspot'];

/** Resolves with the exit status: 1 when something could not be measured. */
export async function runCli(args: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: 'string', default: '5' },
      links: { type: 'string' },
      only: { type: 'string' },
      ubatches: { type: 'string' },
      tiny: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      write: { type: 'boolean', default: false },
      'update-traffic': { type: 'boolean', default: false },
      report: { type: 'string' },
    },
  });
  if (values.report !== undefined) return print(Measurements.read(values.report), values);
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds ${values.rounds} is no count`);
  const unavailable = Phones.unavailable();
  if (unavailable) throw new Error(unavailable);
  endWithSignals();

  const update = values['update-traffic'];
  const links = chosen('--links', update ? TRAFFIC_LINKS.join() : values.links, LINKS, ({ name }) => name);
  const contenders = chosen('--only', update ? SPLITS.plain : values.only, CONTENDERS, ({ id }) => id);
  const tiny = values.tiny || update;
  const file = join(projectRoot, 'build/versus-upstream', `${new Date().toISOString().replaceAll(':', '-')}.jsonl`);
  const measurements = new Measurements(file);
  const ubatches = ubatchesOf(values.ubatches) ?? (tiny ? [512] : UBATCHES);
  const schedule = await prepare({ contenders, rounds, ubatches, measurements }, tiny);
  note(`what is measured is kept in ${relative(process.cwd(), file)}`);
  if (update) {
    for (const link of links) await LinkRun.onlyTraffic(link, schedule);
    const counted = countedTraffic(measurements, TRAFFIC_LINKS);
    console.log(`${relative(process.cwd(), commitTraffic(counted))}: ${JSON.stringify(counted)}`);
    return 0;
  }
  measurements.add(await describeRun(schedule, links, args));
  for (const link of links) await LinkRun.all(link, schedule);
  return print(measurements, values);
}

async function prepare(
  run: Pick<Schedule, 'contenders' | 'rounds' | 'ubatches' | 'measurements'>,
  tiny: boolean,
): Promise<Schedule> {
  const upstream = await ensureUpstream();
  const dist = join(projectRoot, 'dist');
  const { createToken } = await import('../../../dist/transport/token.js');
  const programs: Programs = { ...upstream, droidLlama: cliMain };
  const shape = await readShape(tiny ? tinyModel : await guideModel());
  note(takePriority());
  return {
    ...run,
    shape,
    programs,
    dist,
    benchMain: process.env.DROID_LLAMA_BENCH_MAIN ?? cliMain,
    token: createToken(),
    note,
  };
}

async function print(measurements: Measurements, { json, write }: { json: boolean; write: boolean }): Promise<number> {
  const summary = summarize(measurements);
  const text = report(summary);
  const data = JSON.stringify({ ...summary, measurements: measurements.all.slice(1) }, null, 1);
  console.log(json ? data : text);
  if (write) {
    await mkdir(OUT, { recursive: true });
    const file = join(OUT, 'versus-upstream.json');
    await writeFile(file, `${data}\n`);
    // It is committed, so it is laid out as the linter wants.
    await promisify(execFile)(join(projectRoot, 'node_modules/.bin/biome'), ['format', '--write', file]);
    await writeFile(join(OUT, 'versus-upstream.md'), `${text.trimEnd()}\n`);
    note(`written to ${relative(process.cwd(), OUT)}`);
  }
  for (const line of summary.missing) note(`not measured: ${line}`);
  return summary.missing.length > 0 ? 1 : 0;
}

function ubatchesOf(list: string | undefined): number[] | undefined {
  const sizes = list?.split(',').map(Number);
  if (sizes?.some((size) => !Number.isInteger(size) || size < 1)) throw new Error(`--ubatches ${list} are no sizes`);
  return sizes;
}

/** Those that a comma-separated list names, in the order of `all`. */
function chosen<T extends BenchLink | Contender>(
  flag: string,
  list: string | undefined,
  all: readonly T[],
  name: (each: T) => string,
): T[] {
  if (list === undefined) return [...all];
  const names = list.split(',');
  const unknown = names.find((wanted) => !all.some((each) => name(each) === wanted));
  if (unknown !== undefined) {
    throw new Error(`${flag} ${unknown} is not there; there are ${all.map(name).join(', ')}`);
  }
  return all.filter((each) => names.includes(name(each)));
}

/** An exit takes the phones down, with all that runs on them. */
function endWithSignals(): void {
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
  ] as const) {
    process.once(signal, () => process.exit(128 + number));
  }
}

function note(line: string): void {
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${line}\n`);
}
