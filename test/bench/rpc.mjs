// @ts-check
// Our two ends of the RPC protocol against upstream's, on loopback, in one run.
//
//   node test/bench/rpc.mjs [--rounds 5] [--tiny]   prints a table in Markdown
//   node test/bench/rpc.mjs --json                  every sample, for a program to read
//   node test/bench/rpc.mjs --write                 writes the table to docs/rpc-speed.md, too
//
// Wants dist and the addon built; builds upstream's programs when they are missing.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { writeGuideModel } from '../models/guide-model.mjs';
import { ensureUpstream } from '../upstream/build.mjs';
import { countTraffic, measureRounds, PAIRS } from './rpc-measure.mjs';
import { separateCores } from './rpc-programs.mjs';
import { report } from './rpc-report.mjs';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
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
const note = (/** @type {string} */ line) => process.stderr.write(`${line}\n`);

await ensureUpstream();
const model = values.tiny ? { path: join(root, 'models/droid-tiny.gguf'), layers: 6 } : await guideModel();
const separate = separateCores();
if (!separate) note('master and worker may share a core');
const speeds = await measureRounds(model, rounds, note);
const traffic = new Map();
for (const pair of PAIRS) traffic.set(pair, await countTraffic(model, pair));

if (values.json) {
  const runs = PAIRS.map((pair) => ({ ...pair, speeds: speeds.get(pair), traffic: traffic.get(pair) }));
  console.log(JSON.stringify({ model: relative(root, model.path), rounds, runs }, null, 2));
} else {
  const text = report({
    speeds,
    traffic,
    model: relative(root, model.path),
    layers: model.layers,
    rounds,
    separate,
    date: new Date().toISOString().slice(0, 10),
    processor: `${cpus()[0]?.model.trim()}, ${cpus().length} cores`,
    versions: await versions(),
    command: ['node test/bench/rpc.mjs', ...process.argv.slice(2)].join(' '),
  });
  console.log(text);
  if (values.write) {
    await mkdir(join(root, 'docs'), { recursive: true });
    await writeFile(join(root, 'docs/rpc-speed.md'), `${text}\n`);
  }
}

async function guideModel() {
  const path = join(root, 'build/test/guide-model.gguf');
  await mkdir(dirname(path), { recursive: true });
  await writeGuideModel(path);
  return { path, layers: 24 };
}

async function versions() {
  const own = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  const lock = JSON.parse(await readFile(join(root, 'vendor/llama.lock.json'), 'utf8'));
  return `droid-llama ${own.version}, llama.cpp ${lock.tag}, Node ${process.versions.node}`;
}
