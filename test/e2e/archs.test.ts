/** Every architecture that upstream tests, on a worker: the server takes its graphs and the logits are the CPU's. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { buildArchs } from '../archs/build.mjs';

const execute = promisify(execFile);
const MINUTE = 60_000;

/** Those that upstream's own test leaves out, in any configuration. */
const leftOut = [
  'arwkv7',
  'bert',
  'chameleon',
  'clip',
  'deepseek2-ocr',
  'dflash',
  'eagle3',
  'eurobert',
  'gemma-embedding',
  'gemma4',
  'gemma4-assistant',
  'gptj',
  'graniteswitch',
  'jina-bert-v2',
  'jina-bert-v3',
  'llama-embed',
  'modern-bert',
  'neo-bert',
  'nomic-bert',
  'nomic-bert-moe',
  'plm',
  'rwkv6',
  'rwkv6qwen2',
  'rwkv7',
  't5encoder',
  'wavtokenizer-dec',
];

/** Output over the embeddings' weights, which are on the master: one split more. */
const outputOnMaster = ['bitnet'];

/** Those that llama.cpp computes in more pieces when only the last layer is on the worker. */
const backAndForth: Readonly<Record<string, number>> = {
  bailingmoe3: 4,
  gemma3n: 4,
  granitehybrid: 4,
  hrm_text: 12,
  jamba: 4,
  'kimi-k3': 4,
  lfm2: 4,
  lfm2moe: 4,
  mamba: 4,
  mamba2: 4,
  plamo2: 4,
};

interface Run {
  arch: string;
  layers: string;
  /** Of upstream's table: the NMSE column of the rows of the worker's device. */
  states: string[];
  splits: number[];
  refusedOps: string[];
}

let program: string;

async function runArch(arch: string): Promise<{ code: number; output: string }> {
  try {
    const { stdout, stderr } = await execute(program, [arch], { timeout: 3 * MINUTE, killSignal: 'SIGKILL' });
    return { code: 0, output: stdout + stderr };
  } catch (error) {
    const { code, signal, stdout, stderr } = error as { [key: string]: string };
    return { code: Number(code ?? 1) || 1, output: `${stdout}${stderr}\n${signal ?? `exit code ${code}`}` };
  }
}

function parse(arch: string, output: string): Run[] {
  const runs: Run[] = [];
  // biome-ignore lint/suspicious/noControlCharactersInRegex: upstream colours its table
  for (const line of output.replace(/\x1b\[[0-9;]*m/g, '').split('\n')) {
    const begin = /^\S+: (all layers|the last layer)$/.exec(line);
    if (begin?.[1]) runs.push({ arch, layers: begin[1], states: [], splits: [], refusedOps: [] });
    const run = runs.at(-1);
    if (!run) continue;
    const row = /^\| *\S+\|127\.0\.0\.1:\d+\| *\w+\| *(\w+)/.exec(line);
    if (row?.[1]) run.states.push(row[1]);
    const splits = /^\S+: \d+ graphs, \d+ bytes sent, splits(.*)$/.exec(line);
    if (splits?.[1]) run.splits.push(...splits[1].trim().split(/\s+/).filter(Boolean).map(Number));
    const op = /^\S+: not for the worker: (.*)$/.exec(line);
    if (op?.[1]) run.refusedOps.push(op[1]);
  }
  return runs;
}

beforeAll(async () => {
  program = await buildArchs();
}, 30 * MINUTE);

describe('model architectures on a worker', () => {
  it(
    'give the logits of the CPU, without a node that the worker does not take',
    async () => {
      const names = (await execute(program, ['--list'])).stdout.trim().split('\n');
      expect(names.filter((name) => leftOut.includes(name)).sort()).toEqual(leftOut);
      const failures: string[] = [];
      const tested: string[] = [];
      for (const arch of names) {
        const { code, output } = await runArch(arch);
        const runs = parse(arch, output);
        const states = runs.flatMap((run) => run.states);
        if (code !== 0) failures.push(`${arch}: ${output}`);
        else if (leftOut.includes(arch)) {
          if (states.some((state) => state !== 'SKIP')) failures.push(`${arch}: tested by upstream now`);
        } else {
          tested.push(arch);
          if (runs.length !== 2 || runs.some((run) => run.states.length === 0 || run.states.some((s) => s !== 'OK'))) {
            failures.push(`${arch}: not tested\n${output}`);
          }
          // What is not the worker's goes back and forth over the network for every token.
          const most = outputOnMaster.includes(arch) ? 3 : 2;
          const all = runs.find((run) => run.layers === 'all layers');
          if (all?.splits.some((count) => count > most)) failures.push(`${arch}: ${all.splits.join(', ')} splits`);
          const last = runs.find((run) => run.layers === 'the last layer');
          if (last?.splits.some((count) => count > (backAndForth[arch] ?? most))) {
            failures.push(`${arch}: ${last.splits.join(', ')} splits with the last layer on the worker`);
          }
          for (const run of runs) for (const op of run.refusedOps) failures.push(`${arch}: master keeps ${op}`);
        }
      }
      expect(failures.join('\n')).toBe('');
      expect(tested.length).toBe(names.length - leftOut.length);
    },
    20 * MINUTE,
  );
});
