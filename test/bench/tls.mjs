// @ts-check
// What TLS costs: a master and a worker on loopback with a token and without one, in one run.
//
//   node test/bench/tls.mjs [--rounds 5] [--tiny]   prints a table in Markdown
//   node test/bench/tls.mjs --json                  every sample, for a program to read
//   node test/bench/tls.mjs --write                 writes the table to docs/tls-speed.md, too
//
// Wants dist and the addon built.
import { median } from '../../dist/statistics.js';
import { createToken } from '../../dist/transport/token.js';
import { GENERATED_TOKENS, PROMPT_TOKENS } from './rpc-measure.mjs';
import { separateCores, startOurMaster, startOurWorker } from './rpc-programs.mjs';
import { benchModel, describeRun, nameOf, note, publish, readOptions } from './rpc-run.mjs';

/** @import { Master, Speed } from './rpc-measure.d.mts' */

const LINKS = /** @type {const} */ (['plain', 'tls']);
/** @typedef {typeof LINKS[number]} Link */
/** Times that both are measured in a round, one right after the other. */
const REPEATS = 6;

const { rounds, tiny, json, write } = readOptions();
const model = await benchModel(tiny);
const separate = separateCores();
if (!separate) note('master and worker may share a core');

/** @type {Record<Link, Speed[]>} */
const samples = { plain: [], tls: [] };
/** How many times as fast with TLS as without, of two measurements one right after the other: that bears a busy machine. */
const compared = {
  load: /** @type {number[]} */ ([]),
  prompt: /** @type {number[]} */ ([]),
  generation: /** @type {number[]} */ ([]),
};
for (let round = 0; round < rounds; round++) {
  const speeds = await measureRound(round);
  for (const link of LINKS) {
    samples[link].push(speeds[link]);
    const { loadSeconds, promptPerSecond, generatedPerSecond } = speeds[link];
    note(
      `round ${round + 1} of ${rounds}, ${link}: load ${loadSeconds.toFixed(2)} s, prompt ` +
        `${promptPerSecond.toFixed(1)} t/s, generation ${generatedPerSecond.toFixed(2)} t/s`,
    );
  }
}

if (json) {
  console.log(JSON.stringify({ model: nameOf(model), rounds, samples, ratios: costs() }, null, 2));
} else {
  await publish(await report(), write && 'tls-speed.md');
}

/**
 * Both pairs of a master and a worker run at once, and the one that is not measured idles: what the machine does beside
 * hits both alike.
 *
 * @param {number} round
 * @returns {Promise<Record<Link, Speed>>}
 */
async function measureRound(round) {
  const order = round % 2 === 0 ? LINKS : [...LINKS].reverse();
  /** @type {(() => Promise<unknown>)[]} */
  const stops = [];
  try {
    /** @type {Partial<Record<Link, Master>>} */
    const masters = {};
    for (const link of order) {
      const options = link === 'tls' ? { token: createToken() } : {};
      const worker = await startOurWorker(options);
      stops.unshift(worker.stop);
      const master = await startOurMaster(model, worker.port, options);
      stops.unshift(master.stop);
      masters[link] = master;
      await master.complete(completion(16, 4)); // sets up the graphs
    }
    /** @param {Link} link */
    const masterOf = (link) => /** @type {Master} */ (masters[link]);
    compared.load.push(masterOf('plain').loadSeconds / masterOf('tls').loadSeconds);
    /** @type {Record<Link, { prompt: number[], generated: number[] }>} */
    const all = { plain: { prompt: [], generated: [] }, tls: { prompt: [], generated: [] } };
    for (let i = 0; i < REPEATS; i++) {
      const turn = i % 2 === 0 ? order : [...order].reverse();
      for (const link of turn) {
        const prompt = await masterOf(link).complete(completion(PROMPT_TOKENS, 1));
        all[link].prompt.push(prompt.timings.prompt_per_second);
      }
      for (const link of turn) {
        const generation = await masterOf(link).complete(completion(16, GENERATED_TOKENS));
        if (generation.timings.predicted_n !== GENERATED_TOKENS) throw new Error('the generation ended early');
        all[link].generated.push(generation.timings.predicted_per_second);
      }
      compared.prompt.push((all.tls.prompt[i] ?? 0) / (all.plain.prompt[i] ?? 0));
      compared.generation.push((all.tls.generated[i] ?? 0) / (all.plain.generated[i] ?? 0));
    }
    /** @param {Link} link */
    const speed = (link) => ({
      loadSeconds: masterOf(link).loadSeconds,
      promptPerSecond: median(all[link].prompt),
      generatedPerSecond: median(all[link].generated),
    });
    return { plain: speed('plain'), tls: speed('tls') };
  } finally {
    for (const stop of stops) await stop();
  }
}

/** Ids of ordinary tokens. @param {number} promptTokens @param {number} tokens */
function completion(promptTokens, tokens) {
  const prompt = Array.from({ length: promptTokens }, (_, i) => 100 + ((i * 37) % 800));
  return { prompt, n_predict: tokens, temperature: 0, ignore_eos: true, cache_prompt: false };
}

/** Medians of what was compared. */
function costs() {
  return { load: median(compared.load), prompt: median(compared.prompt), generation: median(compared.generation) };
}

async function report() {
  const { command, date, processor, versions } = await describeRun('test/bench/tls.mjs');
  const { load, prompt, generation } = costs();
  return [
    '# What TLS costs',
    '',
    `As it came out of \`${command}\` on ${date}, on ${processor}; ${versions}.`,
    '',
    `Master and worker are two processes on loopback with one compute thread each${separate ? ', each on a core of its own, which it shares with its TLS thread' : ''}.`,
    `The model is \`${nameOf(model)}\`, half of its ${model.layers} layers on the worker, the output head on the master.`,
    `Medians of ${rounds} rounds, in brackets the smallest and the largest. A round loads both ways, and then measures both in`,
    `turn, ${REPEATS} prompts of ${PROMPT_TOKENS} tokens and ${REPEATS} generations of ${GENERATED_TOKENS} each. The last line is the median of the ratios of`,
    'measurements made one right after the other.',
    '',
    '| link | load s | prompt t/s | generation t/s |',
    '| --- | ---: | ---: | ---: |',
    row('plain TCP (`insecure`)', samples.plain),
    row('TLS with a token', samples.tls),
    `| **TLS, times as fast** | ${load.toFixed(2)} | ${prompt.toFixed(3)} | ${generation.toFixed(3)} |`,
    '',
    'On a network slower than loopback the difference is smaller: TLS adds time to each message, not to each metre.',
  ].join('\n');
}

/** @param {string} name @param {readonly Speed[]} speeds */
function row(name, speeds) {
  /** @param {(speed: Speed) => number} value @param {number} digits */
  const spread = (value, digits) => {
    const all = speeds.map(value);
    const [middle, least, most] = [median(all), Math.min(...all), Math.max(...all)].map((n) => n.toFixed(digits));
    return `${middle} (${least}–${most})`;
  };
  const cells = [
    spread((speed) => speed.loadSeconds, 2),
    spread((speed) => speed.promptPerSecond, 1),
    spread((speed) => speed.generatedPerSecond, 2),
  ];
  return `| ${[name, ...cells].join(' | ')} |`;
}
