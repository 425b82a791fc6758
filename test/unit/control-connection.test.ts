import { Duplex } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { type ConnectionEnd, ControlConnection, type Refusal } from '../../lib/cluster/control/control-connection.js';
import { encodeFrame, FrameDecoder } from '../../lib/cluster/control/frames.js';
import { hello, type MemberMessage } from '../../lib/cluster/control/messages.js';
import type { Peer } from '../../lib/cluster/types.js';
import { idOf, peerOf } from '../support/peers.js';

/** One end of a connection in memory; bytes reach the other end in the next turn, unless the wire is cut. */
class Wire extends Duplex {
  other: Wire | undefined;
  cut = false;
  /** Calls of write that are not done, while the other end does not read. */
  stalled: (() => void)[] | undefined;

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    const arrive = (): void => {
      if (!this.cut && !this.other?.destroyed) this.other?.push(chunk);
      done();
    };
    if (this.stalled) this.stalled.push(arrive);
    else setImmediate(arrive);
  }

  override _final(done: () => void): void {
    setImmediate(() => {
      if (!this.cut && !this.other?.destroyed) this.other?.push(null);
      done();
    });
  }
}

function wires(): [Wire, Wire] {
  const [near, far] = [new Wire({ allowHalfOpen: false }), new Wire({ allowHalfOpen: false })];
  near.other = far;
  far.other = near;
  return [near, far];
}

interface End {
  connection: ControlConnection;
  messages: MemberMessage[];
  ends: ConnectionEnd[];
  established: number;
  records: Map<string, Peer>;
}

interface EndOptions {
  build?: string;
  refusal?: Refusal;
  records?: readonly Peer[];
}

function end(socket: Duplex, peer: Peer, dialled: boolean, options: EndOptions = {}): End {
  const records = new Map((options.records ?? []).map((record) => [record.id, record]));
  const made: Omit<End, 'connection'> = { messages: [], ends: [], established: 0, records };
  const connection = new ControlConnection({
    socket,
    dialled,
    address: { host: '10.0.0.1', port: 60_000 },
    hello: () => hello(options.build ?? 'build', peer),
    record: (id) => records.get(id),
    heartbeatMs: 1000,
    lostAfterMs: 4000,
    gossipMs: 100,
    handlers: {
      admit: () => options.refusal,
      established: () => {
        made.established++;
      },
      message: (_, message) => made.messages.push(message),
      ended: (_, how) => made.ends.push(how),
    },
  });
  connection.start();
  return Object.assign(made, { connection });
}

function pair(accepting: EndOptions = {}, dialling: EndOptions = {}): { a: End; b: End; near: Wire; far: Wire } {
  const [near, far] = wires();
  return { a: end(near, peerOf('a'), true, dialling), b: end(far, peerOf('b'), false, accepting), near, far };
}

/** The acceptor, and a socket that anything can be sent from. */
function raw(): { b: End; socket: Wire; received: () => string[] } {
  const [socket, far] = wires();
  const decoder = new FrameDecoder();
  const frames: string[] = [];
  socket.on('data', (chunk: Buffer) => decoder.push(chunk, (frame) => frames.push(frame.toString()) > 0));
  return { b: end(far, peerOf('b'), false), socket, received: () => frames };
}

const send = (socket: Duplex, message: unknown): boolean => socket.write(encodeFrame(JSON.stringify(message)));
const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => {
  vi.useFakeTimers({
    toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'setImmediate', 'performance'],
  });
});

afterEach(() => {
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

/** Ends both, and lets the goodbyes through. */
async function finish(...ends: End[]): Promise<void> {
  for (const { connection } of ends) connection.end('leaving', 'done');
  await pass(1000);
  await Promise.all(ends.map(({ connection }) => connection.closed));
}

describe('a control connection', () => {
  it('stands once both ends know each other, and times its exchanges', async () => {
    const { a, b } = pair();
    await pass(10);
    expect([a.established, b.established]).toEqual([1, 1]);
    expect([a.connection.id, b.connection.id]).toEqual([idOf('b'), idOf('a')]);
    await pass(1100);
    expect(a.connection.roundTripMs).toBeLessThan(20);
    expect(b.connection.roundTripMs).toBeLessThan(20);
    await pass(60_000);
    expect([a.ends, b.ends]).toEqual([[], []]);
    await finish(a, b);
  });

  it('is dead after 4 s of silence, and not before', async () => {
    const { a, b, near, far } = pair();
    await pass(10_000);
    near.cut = true;
    far.cut = true;
    await pass(2900);
    expect([a.ends, b.ends]).toEqual([[], []]);
    await pass(1200);
    expect(a.ends).toEqual([{ code: 'silent', reason: 'nothing came for 4 s', by: 'us', established: true }]);
    expect(b.ends).toHaveLength(1);
    await finish(a, b);
  });

  it('lives on when one direction of the heartbeats is all that comes', async () => {
    const { b, socket } = raw();
    send(socket, hello('build', peerOf('a')));
    for (let second = 0; second < 20; second++) {
      await pass(1000);
      send(socket, { type: 'heartbeat', sequence: second });
    }
    expect(b.ends).toEqual([]);
    expect(b.connection.roundTripMs).toBeNull();
    await finish(b);
  });

  it('ends at once with a goodbye, and when it is cut', async () => {
    const first = pair();
    await pass(10);
    first.a.connection.end('leaving', 'it goes');
    await pass(10);
    expect(first.b.ends).toEqual([{ code: 'leaving', reason: 'it goes', by: 'them', established: true }]);
    const second = pair();
    await pass(10);
    second.near.destroy();
    second.far.destroy();
    await pass(10);
    expect(second.b.ends).toMatchObject([{ code: 'hung-up', by: 'them', established: true }]);
    await finish(first.a, first.b, second.a, second.b);
  });

  it.each([
    ['refuses', { refusal: { code: 'duplicate', reason: 'enough' } as const }, {}, 'them', 'us'],
    ['is refused', {}, { refusal: { code: 'duplicate', reason: 'enough' } as const }, 'us', 'them'],
  ])('never stands at either end when the end that accepted %s', async (_, accepting, dialling, ofA, ofB) => {
    const { a, b } = pair(accepting, dialling);
    await pass(10);
    expect([a.established, b.established]).toEqual([0, 0]);
    expect(a.ends).toMatchObject([{ code: 'duplicate', reason: 'enough', by: ofA, established: false }]);
    expect(b.ends).toMatchObject([{ code: 'duplicate', reason: 'enough', by: ofB, established: false }]);
    await finish(a, b);
  });

  it('tells both ends which builds they are', async () => {
    const { a, b } = pair({ build: 'new' }, { build: 'old' });
    await pass(10);
    expect(a.ends).toMatchObject([{ code: 'version', by: 'us' }]);
    expect(b.ends).toMatchObject([{ code: 'version', by: 'us' }]);
    expect(a.ends[0]?.reason).toMatch(/it runs .*build new.*this device .*build old.*same version/);
    expect(b.ends[0]?.reason).toMatch(/it runs .*build old.*this device .*build new/);
    await finish(a, b);
  });

  it('names the version of an end that speaks another protocol', async () => {
    const { b, socket, received } = raw();
    send(socket, { type: 'hello', protocol: 2, version: '2.0.0', build: 'x', anything: true });
    await pass(10);
    expect(b.ends).toMatchObject([{ code: 'version', by: 'us', established: false }]);
    expect(JSON.parse(received().at(-1) ?? '')).toMatchObject({ type: 'goodbye', code: 'version' });
    await finish(b);
  });

  it('gives the other end 5 s to greet', async () => {
    const { b } = raw();
    await pass(4900);
    expect(b.ends).toEqual([]);
    await pass(200);
    expect(b.ends).toMatchObject([{ code: 'silent', reason: 'no hello came in time' }]);
    await finish(b);
  });

  it.each<[string, (socket: Duplex) => void, RegExp]>([
    ['no frames', (socket) => socket.write(Buffer.alloc(100, 0xff)), /length/],
    ['no JSON', (socket) => socket.write(encodeFrame('{')), /no JSON/],
    ['no hello', (socket) => send(socket, { type: 'heartbeat', sequence: 0 }), /hello/],
    ['a record that is none', (socket) => send(socket, { ...hello('build', peerOf('a')), peer: {} }), /record/],
    ['a record of nobody', (socket) => send(socket, hello('build', { ...peerOf('a'), id: 'x' })), /at id/],
  ])('is cut when the other end greets with %s', async (_, act, reason) => {
    const { b, socket, received } = raw();
    act(socket);
    await pass(10);
    expect(b.ends).toMatchObject([{ code: 'protocol', by: 'us', established: false }]);
    expect(b.ends[0]?.reason).toMatch(reason);
    // The other end learns why.
    expect(JSON.parse(received().at(-1) ?? '')).toMatchObject({ type: 'goodbye', code: 'protocol' });
    await finish(b);
  });

  it.each<[string, (socket: Duplex) => void, RegExp]>([
    ['garbage', (socket) => socket.write(Buffer.alloc(100, 0x20)), /length/],
    ['a frame that is too long', (socket) => socket.write(Buffer.from([0, 0x20, 0, 0])), /length/],
    ['a malformed message', (socket) => send(socket, { type: 'records', peers: [{}] }), /malformed/],
    ['a second hello', (socket) => send(socket, hello('build', peerOf('a'))), /malformed/],
    [
      'a flood of messages',
      (socket) => {
        const frame = encodeFrame('{"type":"heartbeat","sequence":1}');
        socket.write(Buffer.concat(Array(600).fill(frame)));
      },
      /too many messages/,
    ],
    [
      'a flood of bytes',
      (socket) => {
        const frame = encodeFrame(JSON.stringify({ type: 'echo', sequence: 1, more: 'x'.repeat(1_000_000) }));
        for (let count = 0; count < 18; count++) socket.write(frame);
      },
      /too much/,
    ],
  ])('is cut when a member sends %s', async (_, act, reason) => {
    const { b, socket } = raw();
    send(socket, hello('build', peerOf('a')));
    await pass(10);
    expect(b.established).toBe(1);
    act(socket);
    await pass(100);
    expect(b.ends).toMatchObject([{ code: 'protocol', by: 'us', established: true }]);
    expect(b.ends[0]?.reason).toMatch(reason);
    await finish(b);
  });

  it('hears nothing more after its end', async () => {
    const { b, socket } = raw();
    send(socket, hello('build', peerOf('a')));
    await pass(10);
    const frames = [
      { type: 'goodbye', code: 'leaving', reason: '' },
      { type: 'outdated', incarnation: 1 },
    ];
    socket.write(Buffer.concat(frames.map((frame) => encodeFrame(JSON.stringify(frame)))));
    await pass(10);
    expect(b.messages).toEqual([]);
    expect(b.ends).toHaveLength(1);
    await finish(b);
  });
});

describe('gossip', () => {
  const many = Array.from({ length: 10 }, (_, number) => peerOf(`p${number}`));
  const namesIn = (messages: readonly MemberMessage[]): string[][] =>
    messages.flatMap((message) => (message.type === 'records' ? [message.peers.map(({ name }) => name)] : []));

  it('goes together, at most every 100 ms, with the newest of each', async () => {
    const { a, b } = pair({ records: many });
    await pass(10);
    for (let revision = 2; revision < 12; revision++) {
      b.records.set(idOf('p0'), peerOf('p0', { revision }));
      b.connection.gossip.tell([idOf('p0')]);
      await pass(30);
    }
    await pass(200);
    const told = namesIn(a.messages);
    expect(told.length).toBeGreaterThan(1);
    expect(told.length).toBeLessThanOrEqual(5);
    expect(a.messages.at(-1)).toMatchObject({ peers: [{ name: 'p0', revision: 11 }] });
    await finish(a, b);
  });

  it('does not go back to where it came from, unless it is newer', async () => {
    const { a, b } = pair({ records: many });
    await pass(10);
    b.connection.gossip.heard(peerOf('p1'));
    b.connection.gossip.tell([idOf('p1'), idOf('p2')]);
    b.connection.gossip.tell([idOf('p2')]);
    await pass(300);
    b.connection.gossip.tell([idOf('p2')]);
    await pass(300);
    expect(namesIn(a.messages)).toEqual([['p2']]);
    b.records.set(idOf('p1'), peerOf('p1', { revision: 2 }));
    b.connection.gossip.tell([idOf('p1')]);
    await pass(300);
    expect(namesIn(a.messages)).toEqual([['p2'], ['p1']]);
    await finish(a, b);
  });

  it('waits in no memory for an end that does not read', async () => {
    const reason = 'x'.repeat(1000);
    const plan = { fits: false, missingBytes: 1, parts: [], contextSize: 0, batchSize: 0, ubatchSize: 0 };
    const lead = { epoch: 1, state: 'waiting', progress: 0, reason, measured: null } as const;
    const large = Array.from({ length: 60 }, (_, number) =>
      peerOf(`p${number}`, {
        lead: { ...lead, plan: { ...plan, prediction: null, leftOut: [], reasons: Array(64).fill(reason) } },
      }),
    );
    const { a, b, far } = pair({ records: large });
    await pass(10);
    far.stalled = [];
    b.connection.gossip.tell(large.map(({ id }) => id));
    await pass(500);
    expect(far.writableLength).toBeGreaterThan(200_000);
    expect(far.writableLength).toBeLessThan(1_500_000);
    const stalled = far.stalled;
    far.stalled = undefined;
    for (const done of stalled) done();
    await pass(2000);
    expect(namesIn(a.messages).flat()).toHaveLength(60);
    expect(b.ends).toEqual([]);
    await finish(a, b);
  });
});
