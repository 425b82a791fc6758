// @ts-check
// Where the time of a generated token goes, by the master's own counters.
//
//   breakdown.mjs DIST MODEL TOKENS OPTIONS   OPTIONS as JSON, for createDistributedContext
//   {event: breakdown, totalMs, masterMs, workerMs, networkMs, waits, writes}, each for one token
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';

const [dist = '', model = '', tokens = '', options = '{}'] = process.argv.slice(2);
const { createDistributedContext } = await import(pathToFileURL(join(dist, 'index.js')).href);
const context = await createDistributedContext({ model, ...JSON.parse(options) });
try {
  /** @param {number} count */
  const generate = async (count) => {
    const before = context.stats().workers[0];
    const start = performance.now();
    const prompt = Array.from({ length: 16 }, (_, i) => 100 + ((i * 37) % 800));
    const response = await context.request('POST', '/completion', {
      prompt,
      n_predict: count,
      temperature: 0,
      ignore_eos: true,
      cache_prompt: false,
    });
    if (response.status !== 200) throw new Error(`the completion failed with ${response.status}`);
    for await (const _chunk of response.body);
    const ms = performance.now() - start;
    const after = context.stats().workers[0];
    /** @param {'waitMs' | 'computeMs' | 'waits' | 'writes'} name */
    const more = (name) => after[name] - before[name];
    return { ms, waitMs: more('waitMs'), computeMs: more('computeMs'), waits: more('waits'), writes: more('writes') };
  };
  await generate(8); // sets up the graphs
  // The difference is the generation's alone: both have the prompt, and the start and the end of a request.
  const short = await generate(2);
  const long = await generate(2 + Number(tokens));
  /** @param {'ms' | 'waitMs' | 'computeMs' | 'waits' | 'writes'} name */
  const perToken = (name) => (long[name] - short[name]) / Number(tokens);
  const [totalMs, waitMs, workerMs] = [perToken('ms'), perToken('waitMs'), perToken('computeMs')];
  const event = {
    event: 'breakdown',
    totalMs,
    masterMs: totalMs - waitMs,
    workerMs,
    networkMs: waitMs - workerMs,
    waits: perToken('waits'),
    writes: perToken('writes'),
  };
  process.stdout.write(`${JSON.stringify(event)}\n`);
} finally {
  await context.close();
}
