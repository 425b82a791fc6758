import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { DialFailed, DialMe } from '../../lib/cluster/control/messages.js';
import { peerIdToBytes } from '../../lib/cluster/control/peer-id.js';
import { type Route, StreamOpener } from '../../lib/cluster/streams.js';
import { DroidLlamaError } from '../../lib/errors.js';
import type { EndpointAddress } from '../../lib/probe.js';
import type { DialOptions, SecureStream, StreamKind } from '../../lib/transport/transport.js';
import { idOf } from '../support/peers.js';

const near: EndpointAddress = { host: '10.0.0.2', port: 60_000 };
const far: EndpointAddress = { host: '10.0.0.3', port: 60_000 };

const MEMBERS = ['b', 'm1', 'm2', 'm3', 'm4', 'm5'];

let numbers = 0;
function streamOf(kind: StreamKind, preamble: Uint8Array = new Uint8Array()): SecureStream {
  numbers++;
  return { id: numbers, kind, fd: 1000 + numbers, remote: near, localAddress: '10.0.0.1', preamble };
}

type Dial = (address: EndpointAddress, kind: StreamKind, options: DialOptions) => Promise<SecureStream>;

const dropped: Dial = (_, __, { timeoutMs = 0, signal }) =>
  new Promise((_, reject) => {
    const timer = setTimeout(() => reject(new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', 'nothing came')), timeoutMs);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
const refused: Dial = async () => {
  throw new DroidLlamaError('DROID_ENDPOINT_REFUSED', 'nobody listens');
};

function rig(dial: Dial, route: Partial<Route> | undefined = {}) {
  const sent: (DialMe | DialFailed)[] = [];
  const dials: { host: string; kind: StreamKind; preamble: string }[] = [];
  const discarded: SecureStream[] = [];
  const opener = new StreamOpener({
    id: idOf('a'),
    discard: (stream) => discarded.push(stream),
    transport: {
      dial: (address, kind, options = {}) => {
        dials.push({ host: address.host, kind, preamble: Buffer.from(options.preamble ?? []).toString('hex') });
        return dial(address, kind, options);
      },
    },
    route: (id) =>
      MEMBERS.some((name) => idOf(name) === id)
        ? { name: 'b', endpoints: [near], reverseFirst: false, send: (message) => sent.push(message) > 0, ...route }
        : undefined,
  });
  /** The stream that `b` would dial for the last ticket it got. */
  const reverse = (from = 'b', change = (ticket: Buffer): Buffer => ticket): SecureStream => {
    const ask = sent.findLast((message) => message.type === 'dial-me');
    const ticket = change(Buffer.from(ask?.ticket ?? '', 'base64url'));
    return streamOf('reverse', Buffer.concat([peerIdToBytes(idOf(from)), ticket]));
  };
  return { opener, sent, dials, discarded, reverse };
}

const open: Dial = async (_, kind) => streamOf(kind);
const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);
const codeOf = (code: string) => expect.objectContaining({ code });

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
});
afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

describe('opening a stream', () => {
  it('dials, and says who it is', async () => {
    const { opener, dials, sent } = rig(open);
    const stream = await opener.open(idOf('b'), 'rpc');
    expect(stream.kind).toBe('rpc');
    expect(dials).toEqual([{ host: near.host, kind: 'rpc', preamble: peerIdToBytes(idOf('a')).toString('hex') }]);
    expect(sent).toEqual([]);
  });

  it('tries the other endpoints, then asks to be dialled', async () => {
    const { opener, dials, sent, reverse } = rig(refused, { endpoints: [near, far] });
    const opening = opener.open(idOf('b'), 'http');
    await pass(0);
    expect(dials.map(({ host }) => host)).toEqual([near.host, far.host]);
    expect(sent).toMatchObject([{ type: 'dial-me', kind: 'http' }]);
    expect(opener.redeem(reverse())).toBe(true);
    expect((await opening).kind).toBe('http');
  });

  it('leaves half of the time to the other way when nothing answers', async () => {
    const { opener, sent, reverse } = rig(dropped, { endpoints: [near, far] });
    const opening = opener.open(idOf('b'), 'rpc', { timeoutMs: 4000 });
    await pass(1990);
    expect(sent).toEqual([]);
    await pass(20);
    expect(sent).toHaveLength(1);
    opener.redeem(reverse());
    await opening;
  });

  it('asks first where that is what works, and dials when it fails', async () => {
    const { opener, sent, dials } = rig(open, { reverseFirst: true });
    const opening = opener.open(idOf('b'), 'rpc');
    await pass(0);
    const ask = sent[0];
    if (ask?.type !== 'dial-me') throw new Error('it did not ask');
    expect(dials).toEqual([]);
    opener.dialFailed(idOf('c'), { type: 'dial-failed', ticket: ask.ticket, reason: 'not mine to say' });
    await pass(0);
    expect(dials).toEqual([]);
    opener.dialFailed(idOf('b'), { type: 'dial-failed', ticket: ask.ticket, reason: 'no way' });
    expect((await opening).kind).toBe('rpc');
  });

  it('dials at once when the control connection is lost meanwhile', async () => {
    const { opener } = rig(open, { reverseFirst: true });
    const opening = opener.open(idOf('b'), 'rpc');
    await pass(0);
    opener.hungUp(idOf('c'));
    opener.hungUp(idOf('b'));
    expect((await opening).kind).toBe('rpc');
  });

  it.each<[string, Dial, Partial<Route>, string, RegExp]>([
    [
      'refuses',
      refused,
      { send: undefined },
      'DROID_ENDPOINT_REFUSED',
      /No rpc stream to b: dialling 10.0.0.2:60000: nobody/,
    ],
    ['drops', dropped, { send: undefined }, 'DROID_ENDPOINT_TIMEOUT', /nothing came/],
    ['drops, and does not dial', dropped, {}, 'DROID_ENDPOINT_TIMEOUT', /nothing came; it was asked to dial/],
    ['cannot be asked', refused, { send: () => false }, 'DROID_ENDPOINT_REFUSED', /was cut/],
    ['has no endpoint', open, { endpoints: [], send: undefined }, 'DROID_ENDPOINT_UNREACHABLE', /no way/],
  ])('fails within its time when the member %s', async (_, dial, route, code, message) => {
    const { opener } = rig(dial, route);
    const failed = opener.open(idOf('b'), 'rpc', { timeoutMs: 3000 }).catch((error: unknown) => error);
    await pass(3001);
    expect(await failed).toEqual(codeOf(code));
    expect(((await failed) as Error).message).toMatch(message);
  });

  it('fails for who is no member', async () => {
    const { opener } = rig(open);
    await expect(opener.open(idOf('z'), 'rpc')).rejects.toEqual(codeOf('DROID_ENDPOINT_UNREACHABLE'));
  });

  it.each([
    ['dials', false],
    ['waits to be dialled', true],
  ])('ends with the reason of its signal while it %s', async (_, reverseFirst) => {
    const { opener, reverse, discarded } = rig(dropped, { reverseFirst });
    const controller = new AbortController();
    const failed = opener.open(idOf('b'), 'rpc', { signal: controller.signal }).catch((error: unknown) => error);
    await pass(10);
    const reason = new Error('never mind');
    controller.abort(reason);
    expect(await failed).toBe(reason);
    if (reverseFirst) {
      const late = reverse();
      expect(opener.redeem(late)).toBe(false);
      expect(discarded).toEqual([late]);
    }
    await expect(opener.open(idOf('b'), 'rpc', { signal: controller.signal })).rejects.toBe(reason);
  });

  it('closes a stream that comes after the abort', async () => {
    let finish = (_: SecureStream): void => {};
    const { opener, discarded } = rig(() => new Promise((resolve) => (finish = resolve)));
    const controller = new AbortController();
    const failed = opener.open(idOf('b'), 'rpc', { signal: controller.signal }).catch((error: unknown) => error);
    await pass(0);
    controller.abort(new Error('never mind'));
    const late = streamOf('rpc');
    finish(late);
    expect(await failed).toEqual(new Error('never mind'));
    expect(discarded).toEqual([late]);
  });

  it('ends with DROID_CLOSED when the opener is closed, then and later', async () => {
    const { opener } = rig(dropped, { reverseFirst: true });
    const failed = opener.open(idOf('b'), 'rpc').catch((error: unknown) => error);
    await pass(0);
    opener.close();
    expect(await failed).toEqual(codeOf('DROID_CLOSED'));
    await expect(opener.open(idOf('b'), 'rpc')).rejects.toEqual(codeOf('DROID_CLOSED'));
  });
});

describe('a ticket', () => {
  const asked = async () => {
    const made = rig(open, { endpoints: [] });
    const opening = made.opener.open(idOf('b'), 'rpc', { timeoutMs: 60_000 }).catch((error: unknown) => error);
    await pass(0);
    return { ...made, opening };
  };

  it('works once', async () => {
    const { opener, reverse, opening, discarded } = await asked();
    const stream = reverse();
    expect(opener.redeem(stream)).toBe(true);
    expect(await opening).toMatchObject({ fd: stream.fd, kind: 'rpc' });
    expect(opener.redeem(reverse())).toBe(false);
    expect(discarded).toHaveLength(1);
  });

  it('works for no other member, and in no other form', async () => {
    const { opener, reverse, discarded } = await asked();
    expect(opener.redeem(reverse('c'))).toBe(false);
    expect(opener.redeem(reverse('b', (ticket) => Buffer.from(ticket.map((byte) => byte ^ 1))))).toBe(false);
    expect(opener.redeem(reverse('b', (ticket) => ticket.subarray(1)))).toBe(false);
    expect(opener.redeem(reverse('b', (ticket) => Buffer.concat([ticket, ticket])))).toBe(false);
    expect(opener.redeem(reverse('b', () => Buffer.alloc(0)))).toBe(false);
    expect(discarded).toHaveLength(5);
    expect(opener.redeem(reverse())).toBe(true);
  });

  it('expires after 10 s, whatever time there is', async () => {
    const { opener, reverse, opening, discarded } = await asked();
    await pass(10_001);
    expect(await opening).toEqual(codeOf('DROID_ENDPOINT_TIMEOUT'));
    expect(opener.redeem(reverse())).toBe(false);
    expect(discarded).toHaveLength(1);
  });

  it('is another one each time', async () => {
    const { opener, sent } = rig(open, { endpoints: [] });
    const tickets = (): number => new Set(sent.map(({ ticket }) => ticket)).size;
    const ask = (name: string): Promise<unknown>[] =>
      Array.from({ length: 100 }, () => opener.open(idOf(name), 'rpc').catch((error: unknown) => error));
    const openings = ask('b');
    await pass(0);
    // No more than so many are waited for, of one member and of all.
    expect(tickets()).toBe(64);
    openings.push(...MEMBERS.flatMap(ask));
    await pass(0);
    expect(tickets()).toBe(256);
    opener.close();
    await Promise.all(openings);
  });
});

describe('dialling for a member', () => {
  const ask: DialMe = { type: 'dial-me', kind: 'http', ticket: idOf('ticket') };

  it('gives the ticket back', async () => {
    const { opener, dials } = rig(open);
    expect(await opener.answer(idOf('b'), ask)).toMatchObject({ kind: 'http' });
    const preamble = Buffer.concat([peerIdToBytes(idOf('a')), Buffer.from(ask.ticket, 'base64url')]).toString('hex');
    expect(dials).toEqual([{ host: near.host, kind: 'reverse', preamble }]);
  });

  it.each<[string, Dial, Partial<Route>, RegExp]>([
    ['it cannot be dialled', refused, {}, /nobody listens/],
    ['it has no endpoint', open, { endpoints: [] }, /no address/],
  ])('tells the member when %s', async (_, dial, route, reason) => {
    const { opener, sent } = rig(dial, route);
    expect(await opener.answer(idOf('b'), ask)).toBeUndefined();
    expect(sent).toEqual([{ type: 'dial-failed', ticket: ask.ticket, reason: expect.stringMatching(reason) }]);
  });

  it('happens 16 times at once for one and 32 times for all, no more', async () => {
    const { opener, sent, dials } = rig(dropped);
    const answer = (name: string) => Array.from({ length: 20 }, () => opener.answer(idOf(name), ask));
    const answers = answer('b');
    await pass(0);
    expect([dials.length, sent.length]).toEqual([16, 4]);
    answers.push(...answer('m1'), ...answer('m2'));
    await pass(0);
    expect([dials.length, sent.length]).toEqual([32, 28]);
    // What has ended makes room for others.
    await pass(60_000);
    answers.push(...answer('b'));
    await pass(0);
    expect(dials).toHaveLength(48);
    opener.close();
    await Promise.all(answers);
  });

  it('is not done for who is no member', async () => {
    const { opener, dials } = rig(open);
    expect(await opener.answer(idOf('z'), ask)).toBeUndefined();
    expect(dials).toEqual([]);
  });
});
