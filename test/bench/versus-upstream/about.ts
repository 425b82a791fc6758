/** What a run says about itself: machine, versions, model, conditions and commands. */
import { readFile } from 'node:fs/promises';
import { cpus, getPriority, loadavg, release, setPriority, totalmem } from 'node:os';
import { join, relative } from 'node:path';
import { projectRoot } from '../../support/paths.js';
import { type Contender, type ModelShape, masterCommand, WORKER_PORT, workerCommand } from './contenders.js';
import type { BenchLink } from './links.js';
import type { MeasurementOf } from './measurements.js';
import { twoCores } from './rig.js';
import { GENERATED_TOKENS, PROMPT_TOKENS, type Schedule } from './schedule.js';

const HIGHEST_PRIORITY = -20;

export async function readShape(path: string): Promise<ModelShape> {
  const { addon } = await import('../../../dist/addon.js');
  const { layerBytes, embeddingLength } = await addon().inspectModel(path);
  return { path, layers: layerBytes.length, width: embeddingLength };
}

/** Before everything else that wants to run, where that is allowed; returns in words what it came to. */
export function takePriority(): string {
  try {
    setPriority(HIGHEST_PRIORITY);
  } catch {
    // Needs a right that not everybody has.
  }
  return `priority (nice) ${getPriority()}`;
}

export async function describeRun(
  { contenders, shape, programs, rounds }: Schedule,
  links: readonly BenchLink[],
  args: readonly string[],
): Promise<MeasurementOf<'about'>> {
  const own = JSON.parse(await readFile(join(projectRoot, 'package.json'), 'utf8'));
  const lock = JSON.parse(await readFile(join(projectRoot, 'vendor/llama.lock.json'), 'utf8'));
  const [masterCore, workerCore] = twoCores();
  const cores =
    masterCore === workerCore
      ? `Master and worker share core ${masterCore}, since there is no other.`
      : `Master and worker are two network namespaces (one on loopback), with core ${masterCore} and core ${workerCore} to themselves and ` +
        'everything that belongs to them, and one compute thread each; between them a process emulates the link.';
  const commandOf = (contender: Contender) => {
    // The link is another one each time, and the ubatch what is best there.
    const launch = { shape, endpoint: `B:${WORKER_PORT}`, streams: 1, ubatch: undefined };
    const ubatch = contender.ubatch === 'own' ? '' : ' -ub UBATCH';
    const word = contender.encrypted ? 'DROID_LLAMA_TOKEN=… ' : '';
    return {
      master: word + shortCommand(masterCommand(contender, programs, launch)) + ubatch,
      worker: contender.worker ? word + shortCommand(workerCommand(contender, programs, '0.0.0.0')) : null,
    };
  };
  return {
    kind: 'about',
    date: new Date().toISOString(),
    command: ['npm run bench:versus-upstream', ...(args.length > 0 ? ['--', ...args] : [])].join(' '),
    machine:
      `${cpus()[0]?.model.trim()}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, ` +
      `Linux ${release()}`,
    versions: `droid-llama ${own.version}, llama.cpp ${lock.tag}, Node ${process.versions.node}`,
    model: relative(projectRoot, shape.path),
    layers: shape.layers,
    width: shape.width,
    links: links.map(({ name }) => name),
    contenders: contenders.map(({ id }) => id),
    rounds,
    promptTokens: PROMPT_TOKENS,
    generatedTokens: GENERATED_TOKENS,
    conditions: [
      cores,
      `All of it ran with priority (nice) ${getPriority()}. The machine’s load average was ${loadavg()[0]?.toFixed(1)} before.`,
    ],
    commands: Object.fromEntries(contenders.map((contender) => [contender.id, commandOf(contender)])),
  };
}

/** As one would type it. */
function shortCommand(command: readonly string[]): string {
  const short = (word: string) => {
    if (word === process.execPath) return 'node';
    const inside = relative(projectRoot, word);
    return word.startsWith('/') && !inside.startsWith('..') ? inside : word;
  };
  return command.map((word) => (/^[\w./:=,-]+$/.test(word) ? short(word) : `'${word}'`)).join(' ');
}
