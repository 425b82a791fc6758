import { afterEach, describe, expect, it } from 'vitest';
import { checkOptions, type DistributedContextOptions } from '../../lib/context-options.js';
import { defaultThreads } from '../../lib/cpu.js';

const check = (options: object) => checkOptions({ model: 'm.gguf', ...options } as DistributedContextOptions, 15);

describe('timeouts', () => {
  const defaults = {
    connectMs: 10_000,
    handshakeMs: 10_000,
    answerMs: 15_000,
    keepAliveIdleMs: 5_000,
    keepAliveIntervalMs: 2_000,
    userTimeoutMs: 15_000,
  };

  it('have defaults, of which any may be replaced', () => {
    expect(check({}).timeouts).toEqual(defaults);
    expect(check({ timeouts: {} }).timeouts).toEqual(defaults);
    expect(check({ timeouts: { answerMs: 1, userTimeoutMs: 2 ** 31 - 1, connectMs: undefined } }).timeouts).toEqual({
      ...defaults,
      answerMs: 1,
      userTimeoutMs: 2 ** 31 - 1,
    });
  });

  it.each([0, -1, 1.5, 2 ** 31, Number.NaN, Number.POSITIVE_INFINITY, '5', null])('refuse %j', (value) => {
    for (const name of Object.keys(defaults)) {
      expect(() => check({ timeouts: { [name]: value } })).toThrow(
        expect.objectContaining({
          code: 'DROID_INVALID_ARGUMENT',
          message: expect.stringMatching(new RegExp(`^timeouts\\.${name} is .*from 1 to 2147483647`)),
        }),
      );
    }
  });

  it('refuse what is no timeout', () => {
    expect(() => check({ timeouts: { connectms: 5 } })).toThrow(/timeouts has no option "connectms".*connectMs\?/);
    expect(() => check({ timeouts: 5 })).toThrow(/timeouts is 5; it must be an object/);
    expect(() => check({ timeouts: null })).toThrow(/it must be an object/);
  });
});

describe('callbacks', () => {
  it.each(['onProgress', 'onWorkerLost'])('%s must be a function', (name) => {
    expect(() => check({ [name]: 'x' })).toThrow(`${name} must be a function.`);
    expect(check({})).toMatchObject({ [name]: expect.any(Function) });
  });
});

describe('activations', () => {
  it('are exact unless f16 is asked for', () => {
    expect(check({}).halfActivations).toBe(false);
    expect(check({ activations: 'f32' }).halfActivations).toBe(false);
    expect(check({ activations: 'f16' }).halfActivations).toBe(true);
    expect(() => check({ activations: 'bf16' })).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringContaining('activations') }),
    );
  });
});

describe('threads of a master', () => {
  const real = Object.getOwnPropertyDescriptor(process, 'platform') as PropertyDescriptor;
  afterEach(() => void Object.defineProperty(process, 'platform', real));
  const on = (platform: string) => Object.defineProperty(process, 'platform', { ...real, value: platform });

  it('are llama.cpp’s choice, and on Android the fast cores, at most four', () => {
    on('linux');
    expect(check({}).threads).toBe(0);
    on('android');
    expect(check({}).threads).toBe(defaultThreads());
    expect(defaultThreads()).toBeGreaterThan(0);
    expect(defaultThreads()).toBeLessThanOrEqual(4);
    expect(check({ threads: 7 }).threads).toBe(7);
  });
});
