// @ts-check
// What the benchmarks of the RPC protocol share: their options, their model, what they say of themselves, their document.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { writeGuideModel } from '../models/guide-model.mjs';

/** @import { BenchModel } from './rpc-measure.d.mts' */

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** Reads [--rounds 5] [--tiny] [--json] [--write] from the command line. */
export function readOptions() {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '5' },
      tiny: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      write: { type: 'boolean', default: false },
    },
  });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds ${values.rounds} is no count`);
  return { ...values, rounds };
}

/** @param {string} line */
export function note(line) {
  process.stderr.write(`${line}\n`);
}

/** @param {boolean} tiny @returns {Promise<BenchModel>} */
export async function benchModel(tiny) {
  if (tiny) return { path: join(root, 'models/droid-tiny.gguf'), layers: 6 };
  const path = join(root, 'build/test/guide-model.gguf');
  await mkdir(dirname(path), { recursive: true });
  await writeGuideModel(path);
  return { path, layers: 24 };
}

/** @param {BenchModel} model */
export function nameOf(model) {
  return relative(root, model.path);
}

/** @param {string} script as it is started from the root of the project */
export async function describeRun(script) {
  const own = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  const lock = JSON.parse(await readFile(join(root, 'vendor/llama.lock.json'), 'utf8'));
  return {
    command: [`node ${script}`, ...process.argv.slice(2)].join(' '),
    date: new Date().toISOString().slice(0, 10),
    processor: `${cpus()[0]?.model.trim()}, ${cpus().length} cores`,
    versions: `droid-llama ${own.version}, llama.cpp ${lock.tag}, Node ${process.versions.node}`,
  };
}

/** Prints the text, and writes it to docs where that is wanted. @param {string} text @param {string | false} document */
export async function publish(text, document) {
  console.log(text);
  if (!document) return;
  await mkdir(join(root, 'docs'), { recursive: true });
  await writeFile(join(root, 'docs', document), `${text}\n`);
}
