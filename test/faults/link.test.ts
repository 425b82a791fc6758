/** A link that falls silent: no packet arrives and nobody is told, as when a phone walks out of range. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createDistributedContext } from '../../lib/index.js';
import { createToken } from '../../lib/transport/token.js';
import { settled, until } from '../support/contexts.js';
import {
  closePromptly,
  expectContextLost,
  expectStreamLost,
  expectUsable,
  faultLoop,
  halfOn,
  longTimeouts,
  Scope,
  storyPrompt,
  storyTokens,
  TokenStream,
  undisturbedTokens,
} from '../support/faults.js';
import { guideModel } from '../support/guide.js';
import { isWeight } from '../support/rpc-frames.mjs';
import { SilentLink } from '../support/silent-link.js';

/** TCP's own deadlines are in whole seconds; the answer's is far off, so that it is TCP that notices. */
const timeouts = {
  connectMs: 2000,
  handshakeMs: 2000,
  answerMs: 60_000,
  keepAliveIdleMs: 1000,
  keepAliveIntervalMs: 1000,
  userTimeoutMs: 2000,
};
const NOTICED_MS = 15_000;

const unavailable = SilentLink.unavailable();
// In CI a missing tool is a failure, not a reason to look away.
if (unavailable && process.env.CI) it('can be cut here', () => expect(unavailable).toBeUndefined());

describe.skipIf(unavailable)('a link cut without a word', () => {
  let link: SilentLink;
  let cut = false;
  beforeAll(async () => {
    link = await SilentLink.open();
  });
  afterAll(() => link?.[Symbol.asyncDispose]());

  async function setCut(value: boolean): Promise<void> {
    if (value !== cut) await (value ? link.cut() : link.restore());
    cut = value;
  }

  faultLoop('during generation', async (scope, i) => {
    const worker = await scope.worker({ host: link.address, namespace: link.namespace, insecure: true });
    scope.defer(() => setCut(false));
    const ctx = await scope.context(worker.endpoint, { timeouts });
    const stream = new TokenStream(ctx, storyPrompt, storyTokens);
    await until('tokens are delivered', () => stream.tokens.length > 3 + i);
    const start = performance.now();
    await setCut(true);
    expect(worker.alive).toBe(true);
    await expectStreamLost(stream, worker.endpoint, await undisturbedTokens());
    expect(performance.now() - start, 'milliseconds until it was noticed').toBeLessThan(NOTICED_MS);
    await expectContextLost(ctx, worker.endpoint);
    await closePromptly(ctx);
    await expect(createDistributedContext(halfOn(worker.endpoint, { timeouts }))).rejects.toMatchObject({
      code: expect.stringMatching(/^DROID_ENDPOINT_(TIMEOUT|UNREACHABLE)$/),
    });
    await setCut(false);
    await expectUsable(scope, worker.endpoint);
  });

  it('during a long prompt is noticed long before the prompt would be done', async () => {
    await using scope = new Scope();
    const worker = await scope.worker({ host: link.address, namespace: link.namespace, insecure: true });
    scope.defer(() => setCut(false));
    const ctx = await scope.context(worker.endpoint, { model: await guideModel(), contextSize: 1024, timeouts });
    const graphs = () => ctx.stats().workers[0]?.graphs ?? 0;
    const before = graphs();
    const answer = ctx.request('POST', '/completion', { prompt: 'a '.repeat(400), n_predict: 4 });
    await until('the worker was given the prompt', () => graphs() > before);
    const start = performance.now();
    await setCut(true);
    expect((await answer).status).toBeGreaterThanOrEqual(500);
    expect(performance.now() - start, 'milliseconds until it was noticed').toBeLessThan(NOTICED_MS);
    await expectContextLost(ctx, worker.endpoint);
    expect(ctx.failure?.message).toContain('network');
    await closePromptly(ctx);
  }, 60_000);

  faultLoop('while idle', async (scope) => {
    const worker = await scope.worker({ host: link.address, namespace: link.namespace, insecure: true });
    scope.defer(() => setCut(false));
    const lost: string[] = [];
    const ctx = await scope.context(worker.endpoint, { timeouts, onWorkerLost: (_, endpoint) => lost.push(endpoint) });
    expect(ctx.stats().engine.activeRequests).toBe(0);
    const start = performance.now();
    await setCut(true);
    // Nobody sends anything: TCP asks on its own.
    await until('the loss is reported', () => lost.length > 0, NOTICED_MS);
    expect(performance.now() - start).toBeGreaterThan(timeouts.keepAliveIdleMs / 2);
    await expectContextLost(ctx, worker.endpoint);
    await closePromptly(ctx);
    await setCut(false);
    await expectUsable(scope, worker.endpoint);
  });

  faultLoop('while it loads', async (scope, i) => {
    const worker = await scope.worker({ host: link.address, namespace: link.namespace, insecure: true });
    scope.defer(() => setCut(false));
    const proxy = await scope.proxy({ host: link.address, port: worker.port });
    const stop = proxy.stopAt(({ command, count }) => isWeight(command) && count === 1 + 6 * (i % 5));
    // Through a proxy on this side, which TCP keeps answering: here the answer's deadline has to notice.
    const loading = createDistributedContext(halfOn(proxy.endpoint, { timeouts: { ...timeouts, answerMs: 1000 } }));
    loading.catch(() => {});
    await Promise.race([stop.reached, loading]);
    expect(stop.request).toBeDefined();
    await setCut(true);
    proxy.resume();
    await expect(loading).rejects.toMatchObject({ code: 'DROID_WORKER_LOST' });
    await setCut(false);
    await expectUsable(scope, worker.endpoint);
  });

  faultLoop('for a moment only slows generation down', async (scope, i) => {
    const worker = await scope.worker({ host: link.address, namespace: link.namespace, insecure: true });
    scope.defer(() => setCut(false));
    const ctx = await scope.context(worker.endpoint, { timeouts: { ...timeouts, userTimeoutMs: 60_000 } });
    const stream = new TokenStream(ctx, storyPrompt, storyTokens);
    await until('tokens are delivered', () => stream.tokens.length > 3 + i);
    await setCut(true);
    expect(await settled(() => stream.tokens.length)).toBeLessThan(storyTokens);
    expect(stream.over).toBe(false);
    await setCut(false);
    await stream.ended;
    expect(stream.errorEvent).toBeUndefined();
    expect(stream.tokens).toEqual(await undisturbedTokens());
  });

  describe('under an encrypted stream', () => {
    const token = createToken();
    /** TLS runs over TCP of its own, which asks an idle peer after 5 s and then ten times. */
    const IDLE_NOTICED_MS = 20_000;

    it.each(['during generation', 'while idle'])(
      '%s',
      async (state) => {
        await using scope = new Scope();
        const worker = await scope.worker({ host: link.address, namespace: link.namespace, token });
        scope.defer(() => setCut(false));
        const lost: string[] = [];
        const secure = { token, insecure: false, onWorkerLost: (_: Error, endpoint: string) => lost.push(endpoint) };
        const idle = state === 'while idle';
        const ctx = await scope.context(worker.endpoint, {
          ...secure,
          timeouts: idle ? longTimeouts : { ...longTimeouts, answerMs: 2000 },
        });
        const stream = idle ? undefined : new TokenStream(ctx, storyPrompt, storyTokens);
        await until('tokens are delivered', () => !stream || stream.tokens.length > 3);
        const start = performance.now();
        await setCut(true);
        await until('the loss is reported', () => lost.length > 0, idle ? IDLE_NOTICED_MS : 10_000);
        expect(performance.now() - start).toBeGreaterThan(idle ? 4000 : 1000);
        if (stream) await expectStreamLost(stream, worker.endpoint, await undisturbedTokens());
        await expectContextLost(ctx, worker.endpoint);
        await closePromptly(ctx);
        const again = { ...halfOn(worker.endpoint), token, insecure: false };
        await expect(createDistributedContext({ ...again, timeouts: { connectMs: 1000 } })).rejects.toMatchObject({
          code: expect.stringMatching(/^DROID_ENDPOINT_(TIMEOUT|UNREACHABLE)$/),
        });
        await setCut(false);
        const ctx2 = await scope.context(worker.endpoint, { token, insecure: false });
        expect(ctx2.placement[1]?.layers).toHaveLength(3);
      },
      60_000,
    );
  });
});
