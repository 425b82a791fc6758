// @ts-check
// Our two ends of the RPC protocol against upstream's, on loopback, in one run.
//
//   node test/bench/rpc.mjs [--rounds 5] [--tiny]   prints a table in Markdown
//   node test/bench/rpc.mjs --json                  every sample, for a program to read
//   node test/bench/rpc.mjs --write                 writes the table to docs/rpc-speed.md, too
//
// Wants dist and the addon built; builds upstream's programs when they are missing.
import { ensureUpstream } from '../upstream/build.mjs';
import { countTraffic, measureRounds, PAIRS } from './rpc-measure.mjs';
import { separateCores } from './rpc-programs.mjs';
import { report } from './rpc-report.mjs';
import { benchModel, describeRun, nameOf, note, publish, readOptions } from './rpc-run.mjs';

const { rounds, tiny, json, write } = readOptions();

await ensureUpstream();
const model = await benchModel(tiny);
const separate = separateCores();
if (!separate) note('master and worker may share a core');
const speeds = await measureRounds(model, rounds, note);
const traffic = new Map();
for (const pair of PAIRS) traffic.set(pair, await countTraffic(model, pair));

if (json) {
  const runs = PAIRS.map((pair) => ({ ...pair, speeds: speeds.get(pair), traffic: traffic.get(pair) }));
  console.log(JSON.stringify({ model: nameOf(model), rounds, runs }, null, 2));
} else {
  const about = await describeRun('test/bench/rpc.mjs');
  const text = report({ ...about, speeds, traffic, model: nameOf(model), layers: model.layers, rounds, separate });
  await publish(text, write && 'rpc-speed.md');
}
