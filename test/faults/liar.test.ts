/** A worker that lies: each lie ends in a coded error for the caller, in time, and in nothing else. */
import type { Socket } from 'node:net';
import { expect } from 'vitest';
import { createDistributedContext, type DistributedContext } from '../../lib/index.js';
import { greedyTokens, until } from '../support/contexts.js';
import { type Asked, FakeWorker, frame, type Lie, u32, u64 } from '../support/fake-worker.js';
import { expectPromptly, faultLoop, halfOn, shortTimeouts, storyPrompt } from '../support/faults.js';
import { type CommandName, hasAnswer, isGraph, isRead, isWeight } from '../support/rpc-frames.mjs';

/** Deadlines of `shortTimeouts`, graphs and a busy machine. */
const DEADLINE_MS = 10_000;
const HUGE = 0xffff_ffff_ffff_fff0n;

/** Answers a command with these bytes instead. */
function answering(command: CommandName, answer: Buffer | ((asked: Asked) => Buffer)): Lie {
  return (asked, _honest, socket) => {
    if (asked.command !== command) return undefined;
    socket.write(typeof answer === 'function' ? answer(asked) : answer);
    return 'lied';
  };
}

/** Does something in place of every answer to a read, when a graph is behind it. */
function readingBack(lie: (honest: Buffer, socket: Socket) => void): Lie {
  return ({ command }, honest, socket) => {
    if (!isRead(command) || !honest) return undefined;
    lie(honest, socket);
    return 'lied';
  };
}

function dribble(bytes: Buffer, socket: Socket): void {
  let sent = 0;
  const timer = setInterval(() => {
    if (sent === bytes.length || socket.destroyed) clearInterval(timer);
    else socket.write(bytes.subarray(sent, ++sent));
  }, 100);
}

function notice(reason: number, text: Buffer, size = text.length): Buffer {
  return Buffer.concat([u64(0xffff_ffff_ffff_ffffn), u32(reason, size), text]);
}

const version = (major: number, minor: number) => {
  const answer = Buffer.alloc(28);
  answer[0] = major;
  answer[1] = minor;
  return frame(answer);
};

const NONSENSE = /^DROID_WORKER_PROTOCOL$/;
const LOST = /^DROID_WORKER_LOST$/;
const MEMORY = /^DROID_(WORKER_)?OUT_OF_MEMORY$/;
const HANDSHAKE = /^DROID_(VERSION_MISMATCH|WORKER_PROTOCOL)$/;

interface Case {
  readonly lie: Lie;
  readonly code: RegExp;
  readonly extended?: boolean;
}

/** Lies that the master meets while it loads, and which fail the load. */
const whileLoading: Record<string, Case> = {
  'it speaks version 6': { lie: answering('hello', version(6, 0)), code: /^DROID_VERSION_MISMATCH$/ },
  'it speaks version 7.200': { lie: answering('hello', version(7, 200)), code: /^DROID_VERSION_MISMATCH$/ },
  'its greeting is too short': { lie: answering('hello', frame(Buffer.from([7, 0, 0]))), code: HANDSHAKE },
  'its greeting is too long': {
    lie: answering('hello', frame(Buffer.concat([Buffer.from([7]), Buffer.alloc(99)]))),
    code: HANDSHAKE,
  },
  'its greeting claims to be endless': { lie: answering('hello', frame(Buffer.alloc(28), HUGE)), code: HANDSHAKE },
  'it has no devices': { lie: answering('device_count', frame(u32(0))), code: HANDSHAKE },
  'it has four billion devices': { lie: answering('device_count', frame(u32(0xffffffff))), code: HANDSHAKE },
  'its free memory is all there can be': {
    lie: answering('get_device_memory', frame(u64(0xffff_ffff_ffff_ffffn, 0xffff_ffff_ffff_ffffn))),
    code: HANDSHAKE,
  },
  'its alignment is 0': { lie: answering('get_alignment', frame(u64(0))), code: NONSENSE },
  'its alignment is 3': { lie: answering('get_alignment', frame(u64(3))), code: NONSENSE },
  'its alignment is 2⁶³': { lie: answering('get_alignment', frame(u64(1n << 63n))), code: NONSENSE },
  'its largest buffer is 0': {
    lie: answering('get_max_size', frame(u64(0))),
    code: /^DROID_WORKER_(PROTOCOL|OUT_OF_MEMORY)$/,
  },
  'a buffer’s base is 0': { lie: answering('buffer_get_base', frame(u64(0))), code: NONSENSE },
  'a buffer ends beyond the address space': { lie: answering('buffer_get_base', frame(u64(HUGE))), code: NONSENSE },
  'a base is not aligned': { lie: answering('buffer_get_base', frame(u64(0x10_0000_0001n))), code: NONSENSE },
  'it has no memory after all': { lie: answering('alloc_buffer', frame(u64(0, 0))), code: MEMORY },
  'a buffer is smaller than asked for': {
    lie: answering('alloc_buffer', ({ count }) => frame(u64(count, 16))),
    code: NONSENSE,
  },
  'an answer is four bytes of eight': { lie: answering('get_alignment', frame(u32(64))), code: NONSENSE },
  'an answer is longer than it can be': {
    lie: answering('buffer_get_base', frame(Buffer.alloc(4096))),
    code: NONSENSE,
  },
  'an answer claims to be endless': { lie: answering('alloc_buffer', frame(Buffer.alloc(64), HUGE)), code: NONSENSE },
  'an answer comes twice': {
    lie: answering('alloc_buffer', ({ count, payload }) => {
      const answer = frame(Buffer.concat([u64(count), payload.subarray(4, 12)]));
      return Buffer.concat([answer, answer]);
    }),
    code: NONSENSE,
  },
  'it hangs up in the middle of an answer': {
    lie: ({ command }, honest, socket) => {
      if (command !== 'alloc_buffer' || !honest) return undefined;
      socket.end(honest.subarray(0, 11));
      return 'lied';
    },
    code: LOST,
  },
  'it hangs up in the middle of the weights': {
    lie: ({ command, count }, _honest, socket) => {
      if (!isWeight(command) || count !== 5) return undefined;
      socket.destroy();
      return 'lied';
    },
    code: LOST,
  },
  'it says nothing after the handshake': {
    lie: ({ command }) => (command === 'alloc_buffer' ? 'lied' : undefined),
    code: LOST,
  },
  'its answers come a byte at a time': {
    lie: ({ command }, honest, socket) => {
      if (command !== 'alloc_buffer' || !honest) return undefined;
      dribble(honest, socket);
      return 'lied';
    },
    code: LOST,
  },
  'it talks HTTP': {
    lie: answering('alloc_buffer', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'.padEnd(64))),
    code: NONSENSE,
  },
  'its notice has no reason that exists': {
    lie: answering('alloc_buffer', notice(77, Buffer.from('because'))),
    code: /^DROID_WORKER_(PROTOCOL|REFUSED)$/,
    extended: true,
  },
  'its notice is endless': {
    lie: answering('alloc_buffer', notice(1, Buffer.alloc(64), 0xffff_ffff)),
    code: NONSENSE,
    extended: true,
  },
  'its notice is no text': {
    lie: answering('alloc_buffer', notice(1, Buffer.from([0xff, 0xfe, 0, 0x1b, 0x5b, 0x32, 0x4a]))),
    code: /^DROID_WORKER_(PROTOCOL|REFUSED)$/,
    extended: true,
  },
  'its notice ends early': {
    lie: ({ command }, _honest, socket) => {
      if (command !== 'alloc_buffer') return undefined;
      socket.end(notice(1, Buffer.from('be'), 100));
      return 'lied';
    },
    code: /^DROID_WORKER_(LOST|PROTOCOL)$/,
    extended: true,
  },
  'it refuses': {
    lie: answering('alloc_buffer', notice(1, Buffer.from('not for you'))),
    code: /^DROID_WORKER_REFUSED$/,
    extended: true,
  },
  'it has all weights and none of them twice': {
    lie: answering('offer', ({ payload }) => frame(Buffer.alloc(payload.length / 40 + 1, 1))),
    code: NONSENSE,
    extended: true,
  },
};

/** Lies about a graph's result: the context is loaded when they are told, or loading met them at its first graph. */
const whileGenerating: Record<string, Case> = {
  'a result is too short': { lie: readingBack((_, socket) => socket.write(frame(Buffer.alloc(4)))), code: NONSENSE },
  'a result is too long': {
    lie: readingBack((honest, socket) => socket.write(frame(Buffer.alloc(honest.length + 4096)))),
    code: NONSENSE,
  },
  'a result claims to be endless': {
    lie: readingBack((honest, socket) => socket.write(Buffer.concat([u64(HUGE), honest]))),
    code: NONSENSE,
  },
  'it hangs up in the middle of a result': {
    lie: readingBack((honest, socket) => socket.end(honest.subarray(0, honest.length / 2))),
    code: LOST,
  },
  'a result never comes': { lie: readingBack(() => {}), code: LOST },
  'a result comes a byte at a time': { lie: readingBack(dribble), code: LOST },
  'a graph is answered, which has no answer': {
    lie: ({ command }, _honest, socket) => {
      if (!isGraph(command)) return undefined;
      socket.write(frame(Buffer.alloc(3)));
      return 'lied';
    },
    code: NONSENSE,
  },
};

async function outcome(endpoint: string): Promise<{ code?: string; message: string }> {
  let ctx: DistributedContext | undefined;
  try {
    ctx = await createDistributedContext(
      halfOn(endpoint, { timeouts: { ...shortTimeouts, connectMs: shortTimeouts.answerMs } }),
    );
    for await (const _ of ctx.complete({ prompt: storyPrompt, max_tokens: 8, temperature: 0 }));
    return { message: 'nothing was noticed' };
  } catch (error) {
    return error as Error;
  } finally {
    await ctx?.close();
  }
}

for (const [name, { lie, code, extended = false }] of Object.entries({ ...whileLoading, ...whileGenerating })) {
  faultLoop(name, async (scope) => {
    const worker = await FakeWorker.start(lie, { extended });
    scope.defer(() => worker[Symbol.asyncDispose]());
    const start = performance.now();
    const error = await outcome(worker.endpoint);
    expect(worker.lied).toBeGreaterThan(0);
    expect(error.code ?? error.message).toMatch(code);
    expect(error.message).toContain(worker.endpoint);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: a worker must not write to the master's terminal
    expect(error.message).not.toMatch(/[\x00-\x08\x0b-\x1f]/);
    expect(performance.now() - start, 'milliseconds until it was noticed').toBeLessThan(DEADLINE_MS);
    await until('the master has hung up', () => worker.connections === 0);
  });
}

faultLoop('and one that does not lie is believed', async (scope, i) => {
  const worker = await FakeWorker.start(undefined, { extended: i % 2 === 1 });
  scope.defer(() => worker[Symbol.asyncDispose]());
  const ctx = await scope.context(worker.endpoint);
  // It computes nothing: the tokens are those of zeros, and there are as many as were asked for.
  expect(await greedyTokens(ctx, storyPrompt, 8)).toHaveLength(8);
  expect(worker.count('graph_compute') + worker.count('graph_recompute')).toBeGreaterThan(8);
  await expectPromptly('the context is closed', () => ctx.close());
});

/** Bytes of a xorshift, so that a failing iteration can be run again. */
function noise(seed: number, bytes: number): Buffer {
  let state = seed | 1;
  const buffer = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    buffer[i] = state;
  }
  return buffer;
}

faultLoop('from some answer on it sends noise', async (scope, i) => {
  let answers = 0;
  const lie: Lie = ({ command }, _honest, socket) => {
    if (!hasAnswer(command) || ++answers < 4 + (i % 12)) return undefined;
    socket.write(noise(i + 1, 512));
    return 'lied';
  };
  const worker = await FakeWorker.start(lie, { extended: i % 2 === 1 });
  scope.defer(() => worker[Symbol.asyncDispose]());
  const error = await outcome(worker.endpoint);
  expect(worker.lied).toBeGreaterThan(0);
  expect(error.code ?? error.message).toMatch(/^DROID_(WORKER_(LOST|PROTOCOL|REFUSED)|VERSION_MISMATCH)$/);
});
