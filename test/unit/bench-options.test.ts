/** What a benchmark can be told, in the library and on the command line. */
import { describe, expect, it } from 'vitest';
import { type CheckedBench, caseList } from '../../lib/bench/bench-options.js';
import { parseClusterStatus } from '../../lib/bench/index.js';
import { checkTests, slotsNeeded, tokensNeeded } from '../../lib/bench/options.js';
import { wantsJson } from '../../lib/cli/bench.js';
import { BenchDisplay } from '../../lib/cli/bench-progress.js';
import { createProgram, prepareArgs } from '../../lib/cli/program.js';

describe('the tests', () => {
  it('are those of llama-bench unless told otherwise', () => {
    expect(checkTests({})).toMatchObject({ promptTokens: [512], generatedTokens: [128], streams: [], repetitions: 5 });
  });

  it.each([
    [{ promptTokens: [], generatedTokens: [] }, /nothing to measure/],
    [{ promptTokens: [0] }, /promptTokens\[0\] is 0/],
    [{ promptTokens: 512 }, /must be an array/],
    [{ generatedTokens: [1] }, /from 2/],
    [{ streams: [1, 2.5] }, /streams\[1\] is 2.5/],
    [{ streams: [4, 4] }, /streams has 4 twice/],
    [{ repetitions: 0 }, /repetitions is 0/],
    [{ signal: 'now' }, /AbortSignal/],
    [{ onReport: true }, /onReport must be a function/],
  ])('refuse %j', (options, message) => {
    expect(() => checkTests(options as object)).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });

  it('need room for the longest of them, and a slot for each stream', () => {
    const tests = checkTests({ promptTokens: [100, 300], generatedTokens: [64, 32], streams: [2, 8] });
    expect(tests.streamTokens).toBe(64);
    expect(slotsNeeded(tests)).toBe(8);
    expect(tokensNeeded(tests)).toBe(308);
    expect(tokensNeeded(checkTests({ promptTokens: [8], generatedTokens: [64] }))).toBe(73);
  });
});

describe('the cases', () => {
  const list = (more: Partial<CheckedBench>) => {
    const checked = { rpc: ['a:1'], splits: undefined, sweep: undefined, ubatchSizes: [null], single: true, loads: 2 };
    return caseList({ ...checked, ...more } as CheckedBench, [1, 1, 1, 1]).map(
      ({ name, loads }) => `${name} ×${loads}`,
    );
  };

  it('begin with this device alone', () => {
    expect(list({ rpc: [] })).toEqual(['one device ×2']);
    expect(list({})).toEqual(['one device ×2', 'by free memory ×2']);
    expect(
      list({
        splits: [
          [0.5, 0.5],
          [0, 1],
        ],
      }),
    ).toEqual(['one device ×2', '[0.5, 0.5] ×2', '[0, 1] ×2']);
    expect(list({ splits: [[1, 2]], single: false, loads: 1 })).toEqual(['[1, 2] ×1']);
    expect(list({ sweep: 2 })).toEqual(['one device ×2', '[0.5, 0.5] ×2', '[0, 1] ×2']);
  });

  it('load once more only for the first ubatch', () => {
    expect(list({ splits: [[1, 1]], ubatchSizes: [64, 512] })).toEqual([
      'one device, ub 64 ×2',
      'one device, ub 512 ×1',
      '[1, 1], ub 64 ×2',
      '[1, 1], ub 512 ×1',
    ]);
  });
});

describe('the command line', () => {
  it("takes llama.cpp's short flags", () => {
    expect(prepareArgs(createProgram(), ['bench', '-m', 'x', '-ub', '64', '-ts', '1,0', '--', '-ub'])).toEqual([
      ...['bench', '-m', 'x', '--ubatch-size', '64', '--tensor-split', '1,0', '--', '-ub'],
    ]);
  });

  it.each([
    [['bench', '-o', 'json'], true],
    [['bench', '-ojson'], true],
    [['bench', '--output', 'json'], true],
    [['bench', '--output=json', '--url', 'x'], true],
    [['bench', '-o', 'json', '-o', 'csv'], false],
    [['bench', '-o', 'csv'], false],
    [['bench', '-m', 'json'], false],
    [['serve', '-o', 'json'], false],
  ])('%j asks for JSON: %s', (args, wanted) => {
    expect(wantsJson(args)).toBe(wanted);
  });

  it('shows progress in one line on a terminal, and as a line for each case elsewhere', () => {
    const shown = (isTTY: boolean) => {
      let text = '';
      const display = new BenchDisplay({
        write: (chunk: string) => {
          text += chunk;
          return true;
        },
        isTTY,
        columns: 30,
      } as never);
      display.update({ case: 0, cases: 2, name: 'w:1', test: 'link', run: 1, runs: 1 });
      display.update({ case: 1, cases: 1, name: 'http://x', test: 'answer', run: 1, runs: 1 });
      for (const run of [1, 2]) display.update({ case: 1, cases: 2, name: 'one device', test: 'pp512', run, runs: 2 });
      display.load({ stage: 'text_model', fraction: 0.5 });
      display.clear();
      display.clear();
      return text;
    };
    expect(shown(false)).toBe('measuring the link to w:1\nwaiting for http://x to answer\n1 of 2: one device\n');
    expect(shown(true).split('\r\x1b[2K')).toEqual([
      '',
      'measuring the link to w:1',
      'waiting for http://x to answer'.slice(0, 29),
      '1 of 2: one device, pp512 1/2',
      '1 of 2: one device, pp512 2/2',
      '1 of 2: one device, pp512 2/2',
      '',
    ]);
  });
});

it('the status of a cluster is checked', () => {
  const status = { self: { role: 'master' }, state: 'ready', url: 'http://x', peers: [], links: [], plan: null };
  expect(parseClusterStatus({ ...status, more: 1 })).toEqual(status);
  expect(parseClusterStatus({ ...status, url: undefined }).url).toBeNull();
  for (const wrong of [null, {}, { ...status, peers: [{ id: 1 }] }, { ...status, plan: { fits: true } }]) {
    expect(() => parseClusterStatus(wrong)).toThrow(expect.objectContaining({ code: 'DROID_VERSION_MISMATCH' }));
  }
});
