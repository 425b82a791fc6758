/** Workers compute as fast as a master would: with weights laid out for the processor, wherever a master's are. */
import { spawn } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { greedyTokens, openContext, openWorker } from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { projectRoot, tinyModel, tinyModelQ8 } from '../support/paths.js';

/** Whether llama.cpp repacks some of the model's layers when it loads them here; it says so in its log. */
async function isRepackedHere(model: string): Promise<boolean> {
  const script = `
    import { createDistributedContext } from ${JSON.stringify(`${projectRoot}/dist/index.js`)};
    const ctx = await createDistributedContext({
      model: ${JSON.stringify(model)}, threads: 1, contextSize: 256, mmap: false, logLevel: 'debug' });
    await ctx.close();
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
  let log = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk) => {
      log += chunk;
    });
  }
  const code = await new Promise((resolve) => child.on('close', resolve));
  expect(code, log).toBe(0);
  expect(log).toContain('model buffer size');
  // It also names the type for tensors that it did not put there.
  return /CPU_(REPACK|INTERLEAVED) model buffer size/.test(log);
}

describe.each([
  ['F16', async () => tinyModel, '<|im_start|>user\nTell me a story.<|im_end|>\n'],
  ['Q8_0', async () => tinyModelQ8, '<|im_start|>user\nTell me a story.<|im_end|>\n'],
  ['Q4_K', guideModel, 'Once upon a time'],
] as const)('a worker’s %s weights', (type, path, prompt) => {
  it('are repacked when a master’s are, and give the same tokens', async () => {
    const model = await path();
    const repacked = await isRepackedHere(model);
    if (type === 'F16') expect(repacked).toBe(false);
    const options = { model, contextSize: 256, mmap: false };
    const tokens = type === 'Q4_K' ? 8 : 48;
    const alone = await openContext(options);
    const expected = await greedyTokens(alone, prompt, tokens);
    await alone.close();
    for (const tensorSplit of [
      [0.5, 0.5],
      [0, 1],
    ]) {
      const worker = await openWorker();
      const ctx = await openContext({ ...options, rpc: [worker.endpoint], tensorSplit });
      const { bytesRepacked, bytesWeights } = worker.stats();
      expect(bytesRepacked > 0, `split ${tensorSplit}: ${bytesRepacked} of ${bytesWeights} repacked`).toBe(repacked);
      expect(await greedyTokens(ctx, prompt, tokens), `split ${tensorSplit}`).toEqual(expected);
      await ctx.close();
    }
  }, 120_000);
});

it('a reader that is slow for a moment gets every line of llama.cpp’s log', async () => {
  const loads = 6;
  const script = `
    import { createDistributedContext } from ${JSON.stringify(`${projectRoot}/dist/index.js`)};
    for (let i = 0; i < ${loads}; i++) {
      const ctx = await createDistributedContext({
        model: ${JSON.stringify(tinyModel)}, threads: 1, contextSize: 256, logLevel: 'debug' });
      await ctx.close();
    }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'ignore', 'pipe'] });
  let log = '';
  child.stderr.on('data', (chunk) => {
    // Longer than it takes to fill what lies between the two.
    if (log === '') setTimeout(() => child.stderr.resume(), 1500);
    if (log === '') child.stderr.pause();
    log += chunk;
  });
  const code = await new Promise((resolve) => child.on('close', resolve));
  expect(code).toBe(0);
  for (const line of [/^llama_model_loader: - kv +0:/gm, /model buffer size/g, /: max token length/g]) {
    expect(log.match(line)?.length ?? 0, String(line)).toBe(loads);
  }
});
