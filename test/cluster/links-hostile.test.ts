import { Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { LinkProber } from '../../lib/cluster/links.js';
import { ProbeClient } from '../../lib/cluster/probe/client.js';
import {
  decodeFrame,
  encodeFrame,
  encodeGreeting,
  FRAME_BYTES,
  idBytes,
  MAX_TRANSFER_BYTES,
  OP,
} from '../../lib/cluster/probe/protocol.js';
import type { Link } from '../../lib/cluster/types.js';
import type { SecureStream } from '../../lib/transport/transport.js';
import { createId, peerRecord, twoIds, until } from '../support/cluster-peers.js';
import { FakeNetwork, type FakeTransport } from '../support/fake-transport.js';

const PORT = 60000;
const ADDRESS = { host: '10.0.0.2', port: PORT };

const open: { close(): void | Promise<void> }[] = [];
afterEach(async () => {
  for (const each of open.splice(0)) await each.close();
});

const wrap = (stream: SecureStream): Socket => {
  const socket = new Socket({ fd: stream.fd, readable: true, writable: true, allowHalfOpen: true });
  socket.on('error', () => {});
  return socket;
};

/** A prober whose only peer answers its probes like this. */
async function probeLiar(
  answer: (socket: Socket, id: string) => void,
): Promise<{ link: () => Link; near: FakeTransport }> {
  const [self, liar] = twoIds();
  const network = new FakeNetwork();
  const near = network.transport(['10.0.0.1']);
  const far = network.transport(['10.0.0.2']);
  await far.listen({
    host: '0.0.0.0',
    port: PORT,
    kinds: ['probe'],
    preambleBytes: { probe: 16 },
    onStream: (stream) => answer(wrap(stream), liar),
  });
  const peers = [peerRecord({ id: liar, addresses: ['10.0.0.2'], port: PORT })];
  const prober = LinkProber.start({ transport: near, id: self, peers: () => peers });
  open.push(prober, near, far);
  await until('the first look', () => prober.links().length === 1);
  return { link: () => prober.links()[0] as Link, near };
}

/** Answers each frame of an honest client by this. */
function onFrames(socket: Socket, answer: (op: number, a: number) => Buffer | null): void {
  let pending = Buffer.alloc(0);
  let skip = 0;
  socket.on('data', (chunk) => {
    pending = Buffer.concat([pending, chunk]);
    for (;;) {
      const skipped = Math.min(skip, pending.length);
      skip -= skipped;
      pending = pending.subarray(skipped);
      if (skip > 0 || pending.length < FRAME_BYTES) return;
      const { op, a } = decodeFrame(pending.subarray(0, FRAME_BYTES));
      pending = pending.subarray(FRAME_BYTES);
      if (op === OP.upload) skip = a;
      const reply = answer(op, a);
      if (reply) socket.write(reply);
    }
  });
}

const honest = (op: number, a: number): Buffer | null => {
  if (op === OP.ping) return encodeFrame(OP.ping, a);
  return op === OP.start ? encodeFrame(OP.start, 1) : null;
};

describe('LinkProber and a peer that answers wrong', () => {
  it.each<[string, Link['dial'], (socket: Socket, id: string) => void]>([
    ['stays silent', 'timeout', () => {}],
    ['is another one', 'unknown', (socket) => socket.write(encodeGreeting(createId(), 0))],
    [
      'speaks something else',
      'unknown',
      (socket) => socket.write('HTTP/1.1 400 Bad Request\r\n\r\n and a lot more text'),
    ],
    ['hangs up', 'unreachable', (socket) => socket.destroy()],
    ['hangs up after its greeting', 'unreachable', (socket, id) => socket.end(encodeGreeting(id, 0))],
    [
      'floods',
      'unknown',
      (socket) => {
        const flood = (): void => {
          while (!socket.destroyed && socket.write(Buffer.alloc(65536, 1)));
        };
        socket.on('drain', flood);
        flood();
      },
    ],
    [
      'answers with other numbers',
      'unknown',
      (socket, id) => {
        socket.write(encodeGreeting(id, 0));
        onFrames(socket, (_op, a) => encodeFrame(OP.ping, a + 1));
      },
    ],
  ])('%s: %s', async (_name, dial, answer) => {
    const { link, near } = await probeLiar(answer);
    await until('the probe failed', () => link().endpoint !== null);
    expect(link()).toMatchObject({ dial, roundTripMs: null, bytesPerSecond: null });
    await until('nothing is left open', () => near.stats().open === 0);
  });

  it('keeps the link when only the transfers fail', async () => {
    const { link, near } = await probeLiar((socket, id) => {
      socket.write(encodeGreeting(id, 0));
      // A transfer gets no answer.
      onFrames(socket, honest);
    });
    await until('it can be dialled', () => link().dial === 'open');
    await until('the transfer was given up', () => near.stats().open === 0);
    expect(link()).toMatchObject({ dial: 'open', bytesPerSecond: null });
    expect(link().roundTripMs).toBeGreaterThan(0);
  });

  it('is not told fairy tales about its throughput', async () => {
    const { link } = await probeLiar((socket, id) => {
      socket.write(encodeGreeting(id, 0));
      onFrames(socket, (op, a) => {
        if (op === OP.upload) return encodeFrame(OP.upload, 1, a);
        return op === OP.download ? Buffer.alloc(a) : honest(op, a);
      });
    });
    await until('it is measured', () => link().bytesPerSecond !== null);
    // A microsecond for all of it would be 500 GB/s; the whole exchange took longer than that.
    expect(link().bytesPerSecond).toBeLessThan(10e9);
  });
});

describe('LinkProber and a member that asks wrong', () => {
  async function served(): Promise<{
    network: FakeNetwork;
    id: string;
    far: FakeTransport;
    ask: (preamble?: Uint8Array) => Promise<Socket>;
    works: () => Promise<void>;
  }> {
    const network = new FakeNetwork();
    const id = createId();
    const near = network.transport(['10.0.0.1']);
    const far = network.transport(['10.0.0.2']);
    const prober = LinkProber.start({ transport: far, id, peers: () => [] });
    await far.listen({
      host: '0.0.0.0',
      port: PORT,
      kinds: ['probe'],
      preambleBytes: { probe: 16 },
      onStream: (stream) => prober.serve(stream),
    });
    open.push(prober, near, far);
    const ask = async (preamble: Uint8Array = idBytes(createId())): Promise<Socket> =>
      wrap(await near.dial(ADDRESS, 'probe', { preamble }));
    const works = async (): Promise<void> => {
      const options = { address: ADDRESS, self: createId(), peer: id, signal: new AbortController().signal };
      const client = await ProbeClient.open(near, options);
      const throughput = await client.measureThroughput(64 * 1024);
      await client.finish(throughput);
      expect(throughput?.up).toBeGreaterThan(0);
      expect(throughput?.down).toBeGreaterThan(0);
    };
    return { network, id, far, ask, works };
  }

  const received = (socket: Socket): { bytes: () => number; ended: () => boolean } => {
    let bytes = 0;
    let ended = false;
    socket.on('data', (chunk) => {
      bytes += chunk.length;
    });
    socket.on('end', () => {
      ended = true;
    });
    socket.on('close', () => {
      ended = true;
    });
    return { bytes: () => bytes, ended: () => ended };
  };

  const start = encodeFrame(OP.start);
  it.each<[string, Buffer]>([
    ['a huge download', Buffer.concat([start, encodeFrame(OP.download, 2 ** 32 - 1)])],
    ['a huge upload', Buffer.concat([start, encodeFrame(OP.upload, MAX_TRANSFER_BYTES + 1)])],
    ['an empty one', Buffer.concat([start, encodeFrame(OP.upload, 0)])],
    ['a download without leave', encodeFrame(OP.download, 1024)],
    ['what there is not', Buffer.alloc(FRAME_BYTES, 77)],
    ['text', Buffer.from('GET / HTTP/1.1\r\nHost: example\r\n\r\n')],
    ['one thing for ever', Buffer.concat(Array.from({ length: 1000 }, () => encodeFrame(OP.ping, 1)))],
  ])('hangs up on %s', async (_name, frames) => {
    const { ask, works, far } = await served();
    const socket = await ask();
    const { bytes, ended } = received(socket);
    socket.write(frames);
    await until('it hung up', ended);
    expect(bytes()).toBeLessThan(1024);
    socket.destroy();
    await works();
    await until('all are closed', () => far.stats().open === 0);
  });

  it('sends no more than its share, however often it is asked', async () => {
    const { ask, works } = await served();
    const socket = await ask();
    const { bytes, ended } = received(socket);
    socket.write(start);
    for (let i = 0; i < 50; i++) socket.write(encodeFrame(OP.download, MAX_TRANSFER_BYTES));
    await until('it hung up', ended);
    expect(bytes()).toBeLessThan(4.1 * 1024 * 1024);
    await works();
  });

  it('leaves who is silent, and who does not read, and lets others in meanwhile', async () => {
    const { ask, works, far } = await served();
    const silent = received(await ask());
    const deaf = await ask();
    deaf.pause();
    deaf.write(Buffer.concat([start, encodeFrame(OP.download, MAX_TRANSFER_BYTES)]));
    await until('the deaf one holds the transfers', () => far.stats().open === 2);
    await until('the silent one is left', silent.ended);
    deaf.resume();
    await until('all are closed', () => far.stats().open === 0);
    await works();
  }, 30_000);

  it('tells the ninth at a time that it is one too many', async () => {
    const { id, network, ask, far } = await served();
    for (let i = 0; i < 8; i++) await ask();
    const near = network.transport(['10.0.0.9']);
    const options = { address: ADDRESS, self: createId(), peer: id, signal: new AbortController().signal };
    const client = await ProbeClient.open(near, options);
    expect(client.roundTripMs).toBeNull();
    client.destroy();
    // Far more than that are not even greeted.
    const many = await Promise.all(Array.from({ length: 40 }, async () => received(await ask())));
    await until('the rest is hung up on', () => many.filter((each) => each.ended()).length >= 30);
    await until('the rest is closed', () => far.stats().open <= 16);
  });
});
