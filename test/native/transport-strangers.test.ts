import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { ADMISSION_LIMITS, Admission } from '../../lib/transport/admission.js';
import { type Incoming, Listener } from '../../lib/transport/listener.js';
import { alpnName, CONTEXT_OPTIONS } from '../../lib/transport/psk-tls.js';
import { createToken, derivePsk } from '../../lib/transport/token.js';
import { closed, connectPair, type Listening, readAll, Transports, until, Wiretap } from '../support/transports.js';

const transports = new Transports();
const strangers: Socket[] = [];
const HALF_A_RECORD = 400;

afterEach(async () => {
  vi.useRealTimers();
  for (const socket of strangers.splice(0)) socket.destroy();
  await transports.closeAll();
});

async function stranger(port: number, says?: string | Uint8Array): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  strangers.push(socket);
  await once(socket, 'connect');
  if (says !== undefined) socket.write(says);
  return socket;
}

/** A member still gets in, and its bytes arrive. */
async function memberGetsIn(listening: Listening): Promise<number> {
  const start = performance.now();
  const { near, far } = await connectPair(await transports.start(), listening);
  near.end('a member');
  expect((await readAll(far)).toString()).toBe('a member');
  far.end();
  return performance.now() - start;
}

/** The first flight of a TLS client, with the suite and the protocol of a member. */
async function clientHello(): Promise<Buffer> {
  const { port, close, received } = await sink();
  const tls = connectTls({ port, host: '127.0.0.1', ...memberTls(randomBytes(32)) });
  tls.on('error', () => {});
  await until('a client hello', () => received().length > 50);
  tls.destroy();
  close();
  return received();
}

async function sink(): Promise<{ port: number; received: () => Buffer; close: () => void }> {
  const { createServer } = await import('node:net');
  const chunks: Buffer[] = [];
  const server = createServer((socket) => {
    strangers.push(socket);
    socket.on('error', () => {});
    socket.on('data', (chunk) => chunks.push(chunk));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  return { port, received: () => Buffer.concat(chunks), close: () => server.close() };
}

function memberTls(psk: Uint8Array): ConnectionOptions {
  return {
    ...CONTEXT_OPTIONS,
    ALPNProtocols: [alpnName('control')],
    pskCallback: () => ({ psk, identity: 'droid-llama' }),
    checkServerIdentity: () => undefined,
  };
}

async function failureOf(port: number, options: ConnectionOptions): Promise<string> {
  const socket = connectTls({ port, host: '127.0.0.1', ...options });
  strangers.push(socket);
  const failure = new Promise<string>((resolve) => {
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.on('end', () => resolve('end'));
    socket.on('close', () => resolve('close'));
  });
  return failure;
}

describe('a stranger', () => {
  it('with another token is told nothing but that, and the user of the port once', async () => {
    const listening = await transports.listen({ preambleBytes: { control: 16 } });
    const dialler = await transports.start(createToken());
    for (let i = 0; i < 3; i++) {
      await expect(dialler.dial(listening, 'control', { preamble: Buffer.alloc(16) })).rejects.toMatchObject({
        code: 'DROID_TOKEN_REJECTED',
        message: expect.stringMatching(/another join token/),
      });
    }
    expect(listening.transport.stats()).toEqual({ open: 0, handshakes: 0, rejected: 3 });
    expect(dialler.stats()).toEqual({ open: 0, handshakes: 0, rejected: 0 });
    expect(listening.streams).toEqual([]);
    expect(listening.warnings).toEqual(['turned away 127.0.0.1: it does not have the token']);
  });

  it('is kept out after too many wrong tokens, and a member is not', async () => {
    const listening = await transports.listen();
    const member = await connectPair(await transports.start(), listening);
    const dialler = await transports.start(createToken());
    const codes = await Promise.all(
      Array.from({ length: 40 }, () => dialler.dial(listening, 'control').catch((error) => error.code)),
    );
    expect(new Set(codes)).toEqual(new Set(['DROID_TOKEN_REJECTED']));
    await memberGetsIn(listening);
    member.near.destroy();
    member.far.destroy();
    await until('no member is there', () => listening.transport.stats().open === 0);
    // Now its address has spent everything, and with no member there the door is closed before TLS.
    const bytes = await readAll(await stranger(listening.port, await clientHello()));
    expect(bytes).toHaveLength(0);
  });

  it.each([
    ['HTTP', 'GET / HTTP/1.1\r\nHost: phone\r\n\r\n'],
    ['a line of text', 'hello, is anybody there?\n'],
    ['random bytes', randomBytes(100_000)],
    ['a TLS record of the wrong kind', Buffer.concat([Buffer.from('1703030100', 'hex'), randomBytes(256)])],
    ['half a record', Buffer.concat([Buffer.from('1603013fff', 'hex'), randomBytes(HALF_A_RECORD - 5)])],
  ])('that sends %s gets no application byte, and others go on', async (_what, bytes) => {
    const listening = await transports.listen();
    const member = await connectPair(await transports.start(), listening);
    const socket = await stranger(listening.port, bytes);
    if (bytes.length === HALF_A_RECORD) socket.end();
    const answer = await readAll(socket);
    // At most a TLS alert: 7 bytes of a record of type 21.
    expect(answer.length).toBeLessThanOrEqual(7);
    if (answer.length > 0) expect(answer[0]).toBe(21);
    await until('it was turned away', () => listening.transport.stats().rejected === 1);
    expect(listening.streams).toEqual([]);
    // Who hangs up in the middle of a record was not turned away.
    await until('it was told', () => listening.warnings.length === (bytes.length === HALF_A_RECORD ? 0 : 1));
    for (const line of listening.warnings) expect(line).toMatch(/^turned away 127\.0\.0\.1: what it sent is not from/);
    member.near.end('still here');
    expect((await readAll(member.far)).toString()).toBe('still here');
    await memberGetsIn(listening);
  });

  it('that only looks whether the port is open is not worth a word', async () => {
    const listening = await transports.listen();
    for (let i = 0; i < 100; i++) (await stranger(listening.port)).destroy();
    for (let i = 0; i < 100; i++) (await stranger(listening.port)).end();
    await memberGetsIn(listening);
    await Promise.all(strangers.map(closed));
    expect(listening.transport.stats().rejected).toBe(0);
    expect(listening.warnings).toEqual([]);
  });

  it.each([
    ['no protocol name', { ALPNProtocols: undefined }, true],
    ['another protocol name', { ALPNProtocols: ['h2'] }, true],
    ['a kind that is not served', { ALPNProtocols: [alpnName('rpc')] }, true],
    ['another name of the key', { pskCallback: undefined }, false],
    ['another suite', { ciphers: 'PSK-AES128-GCM-SHA256' }, true],
    ['TLS 1.3 alone', { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3', ciphers: undefined }, true],
  ] as const)('with %s is refused, even with the token', async (_what, options, right) => {
    const listening = await transports.listen({ kinds: ['control'] });
    const psk = derivePsk(transports.token);
    const other = right ? {} : { pskCallback: () => ({ psk, identity: 'somebody' }) };
    await failureOf(listening.port, { ...memberTls(psk), ...(options as ConnectionOptions), ...other });
    await until('it was turned away', () => listening.transport.stats().rejected === 1);
    expect(listening.streams).toEqual([]);
    await memberGetsIn(listening);
  });
});

describe('a flood of half-open connections', () => {
  it.each([
    ['silent', 0],
    ['that begin a handshake', 1],
    ['that stop in the middle of a record', 0.5],
  ])('(%s) does not keep a member out', async (_what, part) => {
    const listening = await transports.listen();
    const warm = await memberGetsIn(listening);
    const hello = await clientHello();
    const says = part > 0 ? hello.subarray(0, Math.ceil(hello.length * part)) : undefined;
    for (let i = 0; i < 300; i++) (await stranger(listening.port, says)).resume();
    const member = transports.start();
    const start = performance.now();
    const { near, far } = await connectPair(await member, listening);
    near.end('a member');
    expect((await readAll(far)).toString()).toBe('a member');
    far.end();
    expect(performance.now() - start, `${warm} ms without`).toBeLessThan(2000);
    const open = (): number => strangers.filter((socket) => !socket.destroyed).length;
    await until('most were dropped', () => open() <= ADMISSION_LIMITS.halfOpenPerAddress);
  });

  it('does not keep a member out while it goes on', async () => {
    const listening = await transports.listen();
    let flooding = true;
    const flood = (async () => {
      while (flooding) {
        await stranger(listening.port);
        if (strangers.length > 500) strangers.shift()?.destroy();
      }
    })();
    try {
      for (let i = 0; i < 5; i++) expect(await memberGetsIn(listening)).toBeLessThan(3000);
    } finally {
      flooding = false;
      await flood;
    }
  });
});

describe('somebody on the wire', () => {
  it('reads neither what is said nor who says it', async () => {
    const listening = await transports.listen({ preambleBytes: { control: 16 } });
    const tap = await Wiretap.start(listening.port);
    try {
      const preamble = Buffer.from('the-dialler-s-id');
      const { near, far } = await connectPair(await transports.start(), listening, 'control', {
        preamble,
        port: tap.port,
      });
      const marker = 'the quick brown fox';
      near.end(marker.repeat(1000));
      far.end(marker.repeat(1000));
      expect((await Promise.all([readAll(near), readAll(far)])).map(String)).toEqual(
        Array(2).fill(marker.repeat(1000)),
      );
      const wire = Buffer.concat([...tap.fromClient, ...tap.fromServer]);
      expect(wire.length).toBeGreaterThan(2 * 1000 * marker.length);
      for (const secret of [marker, preamble, transports.token, derivePsk(transports.token)]) {
        expect(wire.includes(secret)).toBe(false);
      }
    } finally {
      await tap.close();
    }
  });

  it('gets nowhere with a recorded stream', async () => {
    const listening = await transports.listen();
    const tap = await Wiretap.start(listening.port);
    try {
      const { near, far } = await connectPair(await transports.start(), listening, 'control', { port: tap.port });
      near.end('pay 100');
      far.end('paid');
      await Promise.all([readAll(near), readAll(far)]);
      // At once, and one flight after the other.
      for (const paced of [false, true]) {
        const socket = await stranger(listening.port);
        const answer = readAll(socket);
        for (const flight of paced ? tap.fromClient : [Buffer.concat(tap.fromClient)]) {
          socket.write(flight);
          if (paced) await Promise.race([new Promise((resolve) => socket.once('data', resolve)), answer]);
        }
        expect((await answer).includes('paid')).toBe(false);
      }
      await until('both were turned away', () => listening.transport.stats().rejected === 2);
      expect(listening.streams).toEqual([]);
      expect(listening.transport.stats().handshakes).toBe(1);
      expect(listening.warnings).toEqual(['turned away 127.0.0.1: it does not have the token']);
      await memberGetsIn(listening);
    } finally {
      await tap.close();
    }
  });

  it('cannot change a byte unnoticed', async () => {
    const listening = await transports.listen();
    const { createServer } = await import('node:net');
    let broken = false;
    const server = createServer((client) => {
      const upstream = connect(listening.port, '127.0.0.1');
      strangers.push(client, upstream);
      for (const socket of [client, upstream]) socket.on('error', () => {});
      client.on('data', (chunk) => {
        if (broken) chunk.writeUInt8(chunk.readUInt8(chunk.length - 1) ^ 1, chunk.length - 1);
        upstream.write(chunk);
      });
      upstream.on('data', (chunk) => client.write(chunk));
      upstream.on('close', () => client.destroy());
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    const { near, far } = await connectPair(await transports.start(), listening, 'control', { port });
    near.write('fine');
    expect(String(await once(far, 'data'))).toBe('fine');
    broken = true;
    near.write('changed');
    expect((await readAll(far)).toString()).toBe('');
    far.destroy();
    await readAll(near);
    near.destroy();
    server.close();
  });
});

describe('Listener', () => {
  /** Until it is true, without timers, which are not real here. */
  async function turns(done: () => boolean): Promise<void> {
    while (!done()) await new Promise((resolve) => setImmediate(resolve));
  }

  async function open(preambleBytes = 0): Promise<{
    port: number;
    incoming: Incoming[];
    warnings: string[];
    admission: Admission;
    close: () => void;
  }> {
    const incoming: Incoming[] = [];
    const warnings: string[] = [];
    const admission = new Admission(ADMISSION_LIMITS, () => performance.now());
    const { listener, port } = await Listener.open(
      { type: 'listen', host: '127.0.0.1', port: 0, kinds: ['control'], preambleBytes: { control: preambleBytes } },
      {
        psk: derivePsk(transports.token),
        admission,
        onStream: (stream) => incoming.push(stream),
        onWarning: (line) => warnings.push(line),
        count: () => {},
      },
    );
    return { port, incoming, warnings, admission, close: () => listener.close() };
  }

  it('gives 10 s to prove the token', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { port, warnings, admission, close } = await open();
    const socket = await stranger(port);
    const ended = readAll(socket);
    await turns(() => admission.halfOpen === 1);
    vi.advanceTimersByTime(9999);
    expect(admission.halfOpen).toBe(1);
    vi.advanceTimersByTime(1);
    expect(admission.halfOpen).toBe(0);
    expect(await ended).toHaveLength(0);
    expect(warnings).toEqual(['turned away 127.0.0.1: it did not say anything']);
    close();
  });

  it('gives a member as long for its preamble, in which it counts as a stranger no more', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const { port, incoming, warnings, admission, close } = await open(16);
    const member = connectTls({ port, host: '127.0.0.1', ...memberTls(derivePsk(transports.token)) });
    member.on('error', () => {});
    strangers.push(member);
    const ended = readAll(member);
    await once(member, 'secureConnect');
    member.write('15 bytes of it.');
    await turns(() => admission.halfOpen === 0);
    vi.advanceTimersByTime(10_000);
    expect(await ended).toHaveLength(0);
    expect(incoming).toEqual([]);
    expect(warnings).toEqual([]);
    close();
  });
});
