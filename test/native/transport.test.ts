import { createHash } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addon } from '../../lib/addon.js';
import { startTransport } from '../../lib/transport/tls-transport.js';
import { createToken } from '../../lib/transport/token.js';
import type { Transport } from '../../lib/transport/transport.js';
import {
  closed,
  connectPair,
  descriptors,
  readAll,
  socketOf,
  Transports,
  until,
  Wiretap,
} from '../support/transports.js';

const transports = new Transports();

beforeEach(() => {
  addon();
});
afterEach(() => transports.closeAll());

/** Sends that many bytes and ends; resolves with their hash. */
async function send(socket: Socket, bytes: number, seed: number): Promise<string> {
  const hash = createHash('sha256');
  // A block that is no multiple of a TLS record, and differs each time.
  const block = Buffer.alloc(99_991, seed);
  for (let sent = 0; sent < bytes; ) {
    const part = Buffer.from(block.subarray(0, Math.min(block.length, bytes - sent)));
    part.writeUInt32LE(sent % 2 ** 32, 0);
    hash.update(part);
    sent += part.length;
    if (!socket.write(part)) await once(socket, 'drain');
  }
  socket.end();
  return hash.digest('hex');
}

async function receive(socket: Socket): Promise<{ bytes: number; hash: string }> {
  const hash = createHash('sha256');
  let bytes = 0;
  socket.on('data', (chunk: Buffer) => {
    hash.update(chunk);
    bytes += chunk.length;
  });
  await once(socket, 'end');
  return { bytes, hash: hash.digest('hex') };
}

describe('a stream', () => {
  it('tells its kind and addresses, and takes the preamble off', async () => {
    const listening = await transports.listen({ preambleBytes: { rpc: 16 } });
    const dialler = await transports.start();
    const preamble = Buffer.from('0123456789abcdef');
    const { dialled, accepted, near, far } = await connectPair(dialler, listening, 'rpc', { preamble });
    expect(dialled).toMatchObject({ kind: 'rpc', localAddress: '127.0.0.1' });
    expect(dialled.remote).toEqual({ host: '127.0.0.1', port: listening.port });
    expect(dialled.preamble).toHaveLength(0);
    expect(accepted).toMatchObject({ kind: 'rpc', localAddress: '127.0.0.1', remote: { host: '127.0.0.1' } });
    expect(Buffer.from(accepted.preamble)).toEqual(preamble);
    near.end('after it');
    expect((await readAll(far)).toString()).toBe('after it');
    far.end();
    expect(await readAll(near)).toHaveLength(0);
    await Promise.all([closed(near), closed(far)]);
    await until('no stream is open', () => dialler.stats().open + listening.transport.stats().open === 0);
    expect(dialler.stats().handshakes).toBe(1);
    expect(listening.transport.stats()).toEqual({ open: 0, handshakes: 1, rejected: 0 });
    expect(listening.warnings).toEqual([]);
  });

  it('carries what was sent together with the preamble, and one that comes in pieces', async () => {
    const listening = await transports.listen({ preambleBytes: { reverse: 1000 } });
    const dialler = await transports.start();
    const preamble = Buffer.alloc(999, 1);
    const dialled = socketOf(
      await dialler.dial({ host: listening.host, port: listening.port }, 'reverse', { preamble }),
    );
    expect(listening.streams).toHaveLength(0);
    dialled.end(`${'\x01'}and the rest`);
    const accepted = await listening.next();
    expect(Buffer.from(accepted.preamble)).toEqual(Buffer.alloc(1000, 1));
    const far = socketOf(accepted);
    expect((await readAll(far)).toString()).toBe('and the rest');
    far.end();
  });

  it('carries 64 MiB each way at once, unchanged', async () => {
    const bytes = 64 * 1024 * 1024;
    const { near, far } = await connectPair(await transports.start(), await transports.listen());
    const [up, atFar, down, atNear] = await Promise.all([
      send(near, bytes, 1),
      receive(far),
      send(far, bytes, 2),
      receive(near),
    ]);
    expect(atFar).toEqual({ bytes, hash: up });
    expect(atNear).toEqual({ bytes, hash: down });
    expect(up).not.toBe(down);
  });

  it('holds a sender back whose receiver does not read, and loses nothing', async () => {
    const { near, far } = await connectPair(await transports.start(), await transports.listen());
    let sent = 0;
    const block = Buffer.alloc(65_536, 7);
    // Whatever the system's buffers take; without back-pressure it would all go into this process' memory.
    while (sent < 256 * 1024 * 1024) {
      const flushed = new Promise<boolean>((resolve) => {
        near.write(block, () => resolve(true));
        setTimeout(() => resolve(false), 1000).unref();
      });
      sent += block.length;
      if (!(await flushed)) break;
    }
    expect(sent).toBeLessThan(32 * 1024 * 1024);
    near.end();
    expect((await receive(far)).bytes).toBe(sent);
  });

  it.each(['near', 'far'] as const)('goes on in one direction when the other one has ended (%s ends)', async (who) => {
    const pair = await connectPair(await transports.start(), await transports.listen());
    const [first, second] = who === 'near' ? [pair.near, pair.far] : [pair.far, pair.near];
    first.end('question');
    expect((await readAll(second)).toString()).toBe('question');
    // More than fits any buffer, and some time after the end.
    const answered = send(second, 20_000_000, 3);
    expect((await receive(first)).hash).toBe(await answered);
    await Promise.all([closed(first), closed(second)]);
  });

  it.each(['near', 'far'] as const)('ends on both sides when an owner closes it (%s closes)', async (who) => {
    const listening = await transports.listen();
    const dialler = await transports.start();
    const pair = await connectPair(dialler, listening);
    const [first, second] = who === 'near' ? [pair.near, pair.far] : [pair.far, pair.near];
    first.write('last words');
    first.destroySoon();
    await closed(first);
    expect((await readAll(second)).toString()).toBe('last words');
    // The second one never ends its direction: that the first one is gone must be enough for its side.
    await until('the closed side is gone', () => {
      return (who === 'near' ? dialler : listening.transport).stats().open === 0;
    });
    const broken = closed(second);
    const writing = setInterval(() => second.write('anybody there?'), 5);
    await broken;
    clearInterval(writing);
    await until('both sides are gone', () => dialler.stats().open + listening.transport.stats().open === 0);
  });

  it.each(['near', 'far'] as const)('ends on both sides when %s goes with unread bytes', async (who) => {
    const listening = await transports.listen();
    const dialler = await transports.start();
    const pair = await connectPair(dialler, listening);
    const [first, second] = who === 'near' ? [pair.near, pair.far] : [pair.far, pair.near];
    const sending = send(second, 200 * 1024 * 1024, 5).catch(() => {});
    await once(first, 'readable');
    first.destroy();
    await closed(second);
    second.destroy();
    void sending;
    await until('both sides are gone', () => dialler.stats().open + listening.transport.stats().open === 0);
  });

  it('ends on both sides when the network breaks it', async () => {
    const listening = await transports.listen();
    const dialler = await transports.start();
    const tap = await Wiretap.start(listening.port);
    try {
      const { near, far } = await connectPair(dialler, listening, 'control', { port: tap.port });
      near.write('hello');
      await once(far, 'data');
      tap.reset();
      await Promise.all([readAll(near), readAll(far)]);
      near.destroy();
      far.destroy();
      await until('both sides are gone', () => dialler.stats().open + listening.transport.stats().open === 0);
    } finally {
      await tap.close();
    }
  });

  it('is cut by its number, whoever holds the descriptor', async () => {
    const listening = await transports.listen();
    const dialler = await transports.start();
    const kept = await connectPair(dialler, listening);
    const { dialled, accepted, near, far } = await connectPair(dialler, listening);
    expect(dialled.id).not.toBe(kept.dialled.id);
    expect(accepted.id).not.toBe(kept.accepted.id);
    listening.transport.cut(accepted.id);
    await Promise.all([readAll(near), readAll(far)]);
    listening.transport.cut(accepted.id);
    listening.transport.cut(12345);
    near.destroy();
    far.destroy();
    await until('one stream is left', () => dialler.stats().open === 1 && listening.transport.stats().open === 1);
    kept.near.end('still here');
    expect((await readAll(kept.far)).toString()).toBe('still here');
  });
});

describe('close', () => {
  it('cuts every stream, frees every descriptor and may be called twice', async () => {
    const warm = await transports.listen();
    await connectPair(await transports.start(), warm).then(({ near, far }) => [near.destroy(), far.destroy()]);
    await transports.closeAll();
    const before = descriptors();
    for (let round = 0; round < 3; round++) {
      const listening = await transports.listen();
      const dialler = await transports.start();
      const pairs = await Promise.all(Array.from({ length: 5 }, () => connectPair(dialler, listening)));
      expect(descriptors()).toBeGreaterThan(before + 40);
      const ended = pairs.flatMap(({ near, far }) => [readAll(near), readAll(far)]);
      await Promise.all([dialler.close(), dialler.close(), listening.transport.close()]);
      await dialler.close();
      await Promise.all(ended);
      for (const { near, far } of pairs) {
        near.destroy();
        far.destroy();
      }
      expect(dialler.stats().open).toBe(0);
      await expect(dialler.dial(listening, 'rpc')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
      await expect(listening.transport.listen({ ...LOCAL, onStream: () => {} })).rejects.toMatchObject({
        code: 'DROID_CLOSED',
      });
    }
    await until('the descriptors are as before', () => descriptors() <= before);
  });

  it('frees the descriptors of streams that nobody has got yet', async () => {
    const before = descriptors();
    const listening = await transports.listen();
    const dialler = await transports.start();
    const dials = Array.from({ length: 10 }, () => dialler.dial(listening, 'control').then(() => 'open', code));
    // Some are through in the thread by now, but their messages have not been read here.
    const busyUntil = Date.now() + 200;
    while (Date.now() < busyUntil);
    const closing = Promise.all([dialler.close(), listening.transport.close()]);
    expect(await Promise.all(dials)).toEqual(Array(10).fill('DROID_CLOSED'));
    await closing;
    for (const { fd } of listening.streams) addon().closeDescriptor(fd);
    await until('the descriptors are as before', () => descriptors() <= before);
  });

  it('lets the process end when nothing listens, and not when something does', async () => {
    const { spawn } = await import('node:child_process');
    const dist = new URL('../../dist/transport/tls-transport.js', import.meta.url).href;
    const run = async (script: string): Promise<string> => {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'pipe' });
      let output = '';
      child.stdout.on('data', (chunk) => {
        output += chunk;
      });
      child.stderr.on('data', (chunk) => {
        output += chunk;
      });
      const [exitCode] = await once(child, 'close');
      return `${output}${exitCode}`;
    };
    const start = `import { startTransport } from '${dist}'; const t = await startTransport({ token: 'A'.repeat(22) });`;
    const listen = `await t.listen({ host: '127.0.0.1', port: 0, kinds: ['rpc'], onStream() {} });`;
    expect(await run(`${start} console.log('started')`)).toBe('started\n0');
    expect(await run(`${start} ${listen} setTimeout(() => process.exit(3), 300).unref()`)).toBe('3');
    expect(await run(`${start} ${listen} await t.close(); console.log('closed')`)).toBe('closed\n0');
  });
});

const LOCAL = { host: '127.0.0.1', port: 0, kinds: ['rpc'] as const };
const code = (error: { code?: unknown }): unknown => error.code;

describe('listen', () => {
  it('says when the port is taken, and may be tried again then', async () => {
    const { port } = await transports.listen();
    const second = await transports.start();
    const options = { ...LOCAL, onStream: () => {} };
    await expect(second.listen({ ...options, port })).rejects.toMatchObject({
      code: 'DROID_PORT_IN_USE',
      message: expect.stringMatching(/127\.0\.0\.1:\d+: another program uses that port/),
    });
    expect((await second.listen(options)).port).toBeGreaterThan(0);
    await expect(second.listen(options)).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
  });

  it.each([
    ['an address of nobody here', { host: '192.0.2.1' }],
    ['no port', { port: 70_000 }],
    ['no kind', { kinds: [] }],
    ['an unknown kind', { kinds: ['telnet' as 'rpc'] }],
    ['a long preamble', { preambleBytes: { rpc: 1_000_000 } }],
  ])('refuses %s', async (_what, options) => {
    const transport = await transports.start();
    await expect(transport.listen({ ...LOCAL, onStream: () => {}, ...options })).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
    });
  });

  it('goes on after a listener has failed', async () => {
    let calls = 0;
    const taken: number[] = [];
    const listening = await transports.listen({
      onStream: ({ fd }) => {
        taken.push(fd);
        if (++calls === 1) throw new Error('no thanks');
      },
    });
    const dialler = await transports.start();
    const first = socketOf(await dialler.dial(listening, 'rpc'));
    await readAll(first);
    expect(listening.warnings).toEqual([
      expect.stringMatching(/rpc stream from 127\.0\.0\.1 was not taken: no thanks/),
    ]);
    const second = socketOf(await dialler.dial(listening, 'rpc'));
    await until('both were offered', () => taken.length === 2);
    first.destroy();
    second.destroy();
    for (const fd of taken) addon().closeDescriptor(fd);
  });
});

describe('several transports in one process', () => {
  it('do not mix: each lets in its own token alone', async () => {
    const token = createToken();
    const seen: string[] = [];
    const make = async (its: string, name: string): Promise<{ transport: Transport; port: number }> => {
      const transport = await startTransport({ token: its });
      const onStream = ({ fd }: { fd: number }): void => {
        seen.push(name);
        addon().closeDescriptor(fd);
      };
      return { transport, port: (await transport.listen({ ...LOCAL, onStream })).port };
    };
    const [a, b] = [await make(token, 'a'), await make(createToken(), 'b')];
    try {
      const member = await transports.start(token);
      const stream = await member.dial({ host: '127.0.0.1', port: a.port }, 'rpc');
      addon().closeDescriptor(stream.fd);
      await expect(member.dial({ host: '127.0.0.1', port: b.port }, 'rpc')).rejects.toMatchObject({
        code: 'DROID_TOKEN_REJECTED',
      });
      // One may dial itself, too; who talks to whom is not the transport's to know.
      const own = await a.transport.dial({ host: '127.0.0.1', port: a.port }, 'rpc');
      addon().closeDescriptor(own.fd);
      await until('both streams were announced', () => seen.length === 2);
      expect(seen).toEqual(['a', 'a']);
    } finally {
      await Promise.all([a.transport.close(), b.transport.close()]);
    }
  });
});
