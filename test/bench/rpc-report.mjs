// @ts-check
import { median } from '../../dist/statistics.js';
import { describePair, GENERATED_TOKENS, medianSpeed, PAIRS, PROMPT_TOKENS, ratios } from './rpc-measure.mjs';
import { upstreamMasterArgs } from './rpc-programs.mjs';

/** @import { Pair, Speed } from './rpc-measure.d.mts' */
/** @import { Report } from './rpc-report.d.mts' */

/** The measurements as a page of Markdown. @param {Report} run */
export function report(run) {
  const upstream = /** @type {Pair} */ (PAIRS.at(-1));
  const args = upstreamMasterArgs({ path: run.model, layers: run.layers }, 'HOST:PORT').map(quote).join(' ');
  return [
    '# Speed of the RPC protocol’s two ends',
    '',
    `As it came out of \`${run.command}\` on ${run.date}, on ${run.processor}; ${run.versions}.`,
    '',
    `Master and worker are two processes on loopback with one compute thread each${run.separate ? ', each on a core of its own' : ''}.`,
    `The model is \`${run.model}\`, half of its ${run.layers} layers on the worker, the output head on the master.`,
    `Medians of ${run.rounds} rounds, in brackets the smallest and the largest; the four pairs take turns within a round. A round is`,
    `one load, and the best of three prompts of ${PROMPT_TOKENS} tokens and of three generations of ${GENERATED_TOKENS}.`,
    '',
    table(
      ['master', 'worker', 'load s', 'prompt t/s', 'generation t/s'],
      PAIRS.map((pair) => {
        const all = samples(run, pair);
        return [
          ...names(pair),
          spread(all, (speed) => speed.loadSeconds, 2),
          spread(all, (speed) => speed.promptPerSecond, 1),
          spread(all, (speed) => speed.generatedPerSecond, 1),
        ];
      }),
    ),
    '',
    'How many times as fast as both of upstream’s:',
    '',
    table(
      ['master', 'worker', 'load', 'prompt', 'generation'],
      PAIRS.filter((pair) => pair !== upstream).map((pair) => {
        const { load, prompt, generation } = ratios(
          medianSpeed(samples(run, pair)),
          medianSpeed(samples(run, upstream)),
        );
        return [...names(pair), load.toFixed(2), prompt.toFixed(2), generation.toFixed(2)];
      }),
    ),
    '',
    'What passes between the two for one generated token, counted by a proxy in a run of its own:',
    '',
    table(
      ['master', 'worker', 'requests', 'answers', 'bytes up', 'bytes down'],
      PAIRS.map((pair) => {
        const traffic = run.traffic.get(pair);
        if (!traffic) throw new Error(`no traffic of ${describePair(pair)}`);
        const { messagesSent, messagesReceived, bytesSent, bytesReceived } = traffic;
        return [
          ...names(pair),
          messagesSent.toFixed(2),
          messagesReceived.toFixed(2),
          bytesSent.toFixed(0),
          bytesReceived.toFixed(0),
        ];
      }),
    ),
    '',
    'llama-server ran with the same placement:',
    '',
    '```',
    `llama-server ${args}`,
    '```',
    '',
    'Its load includes the start of its process; ours is `createDistributedContext()` in a process that runs already.',
  ].join('\n');
}

/** @param {Report} run @param {Pair} pair */
function samples(run, pair) {
  return run.speeds.get(pair) ?? [];
}

/** @param {Pair} pair */
function names(pair) {
  return describePair(pair).split(' with ');
}

/** @param {readonly Speed[]} speeds @param {(speed: Speed) => number} value @param {number} digits */
function spread(speeds, value, digits) {
  const all = speeds.map(value);
  const [middle, least, most] = [median(all), Math.min(...all), Math.max(...all)].map((n) => n.toFixed(digits));
  return `${middle} (${least}–${most})`;
}

/** @param {string[]} head @param {string[][]} rows */
function table(head, rows) {
  const line = (/** @type {string[]} */ cells) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i < 2 ? '---' : '---:'))), ...rows.map(line)].join('\n');
}

/** @param {string} word */
function quote(word) {
  return /^[\w./:=-]+$/.test(word) ? word : `'${word}'`;
}
