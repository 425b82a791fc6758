import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { createServer, type Server } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import type { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { addon } from '../../lib/addon.js';
import { startRpcServer } from '../../lib/rpc-server.js';
import { DialErrors } from '../../lib/transport/dial-errors.js';
import { connectPair, descriptors, readAll, Transports, until } from '../support/transports.js';

/** The threads that were started. */
const { threads } = vi.hoisted(() => ({ threads: [] as Worker[] }));
vi.mock('node:worker_threads', async (original) => {
  const module = await original<typeof import('node:worker_threads')>();
  class KnownWorker extends module.Worker {
    constructor(...options: ConstructorParameters<typeof Worker>) {
      super(...options);
      threads.push(this);
    }
  }
  return { ...module, Worker: KnownWorker };
});

const transports = new Transports();
const servers: Server[] = [];

afterEach(async () => {
  await transports.closeAll();
  await Promise.all(servers.splice(0).map((server) => new Promise((resolve) => server.close(resolve))));
});

async function open(server: Server): Promise<{ host: string; port: number; connections: () => number }> {
  servers.push(server);
  let connections = 0;
  server.on('connection', (socket) => {
    connections++;
    socket.on('error', () => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { host: '127.0.0.1', port: (server.address() as { port: number }).port, connections: () => connections };
}

describe('dial', () => {
  it('tells a port where nothing listens', async () => {
    const address = await open(createServer());
    await new Promise((resolve) => servers.pop()?.close(resolve));
    await expect((await transports.start()).dial(address, 'rpc')).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_REFUSED',
      message: expect.stringMatching(/^127\.0\.0\.1:\d+: .* nothing listens .* start droid-llama there/),
    });
  });

  it('tells who accepts and then says nothing', async () => {
    const address = await open(createServer((socket) => socket.resume()));
    const transport = await transports.start();
    await expect(transport.dial(address, 'rpc', { timeoutMs: 200 })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_TIMEOUT',
      message: expect.stringMatching(/accepted the connection but did not prove within 200 ms/),
    });
  });

  it('tells a name that does not resolve, and takes one that does', async () => {
    const listening = await transports.listen({ host: 'localhost' });
    const transport = await transports.start();
    await expect(transport.dial({ host: 'no-such-phone.invalid', port: 1 }, 'rpc')).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_UNREACHABLE',
      message: expect.stringMatching(/name does not resolve; try its IP address/),
    });
    const { near, far, dialled } = await connectPair(transport, { ...listening, host: 'localhost' });
    expect(dialled.remote.host).toMatch(/^127\.0\.0\.1$|^::1$/);
    near.destroy();
    far.destroy();
  });

  it('speaks IPv6, and calls an IPv4 member by its own address where both arrive', async () => {
    const listening = await transports.listen({ host: '::' });
    const transport = await transports.start();
    for (const host of ['::1', '127.0.0.1']) {
      const { near, far, dialled, accepted } = await connectPair(transport, { ...listening, host });
      expect(dialled.remote).toEqual({ host, port: listening.port });
      expect(accepted.remote.host).toBe(host);
      expect(accepted.localAddress).toBe(host);
      near.destroy();
      far.destroy();
    }
  });

  it('takes a plain worker, a web server and another TLS server for what they are: no members', async () => {
    const transport = await transports.start();
    const worker = await startRpcServer({ threads: 1 });
    const web = await open(createHttpServer());
    const tls = await open(createTlsServer({ minVersion: 'TLSv1.3' }));
    const banner = await open(createServer((socket) => socket.resume().end('SSH-2.0-phone\r\n')));
    try {
      for (const { port } of [worker, web, tls, banner]) {
        await expect(transport.dial({ host: '127.0.0.1', port }, 'rpc', { timeoutMs: 5000 })).rejects.toMatchObject({
          code: 'DROID_TOKEN_REJECTED',
          message: expect.stringMatching(/no droid-llama with a token/),
        });
      }
    } finally {
      await worker.close();
    }
  });

  it('tries again where somebody hangs up without a word, and then gives up', async () => {
    const address = await open(createServer((socket) => socket.destroy()));
    const transport = await transports.start();
    await expect(transport.dial(address, 'rpc')).rejects.toMatchObject({ code: 'DROID_TOKEN_REJECTED' });
    expect(address.connections()).toBe(4);
    await expect(transport.dial(address, 'rpc', { timeoutMs: 20 })).rejects.toMatchObject({
      code: expect.stringMatching(/DROID_ENDPOINT_TIMEOUT|DROID_TOKEN_REJECTED/),
    });
  });

  it('says that a kind is not served', async () => {
    const listening = await transports.listen({ kinds: ['control'] });
    await expect((await transports.start()).dial(listening, 'http')).rejects.toMatchObject({
      code: 'DROID_VERSION_MISMATCH',
      message: expect.stringMatching(/does not serve http streams/),
    });
    expect(listening.warnings).toEqual([expect.stringMatching(/a stream that is not served here/)]);
    expect(listening.streams).toEqual([]);
  });

  it('is given up when its signal aborts, and leaves nothing behind', async () => {
    const transport = await transports.start();
    const listening = await transports.listen();
    const silent = await open(createServer((socket) => socket.resume()));
    // The first connections make Node open descriptors that it keeps.
    const warm = await connectPair(transport, listening);
    warm.near.destroy();
    warm.far.destroy();
    await until('no stream is open', () => transport.stats().open + listening.transport.stats().open === 0);
    const before = descriptors();
    const reason = new Error('changed my mind');
    await expect(transport.dial(silent, 'rpc', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const abort = new AbortController();
    const dialling = transport.dial(silent, 'rpc', { signal: abort.signal });
    dialling.catch(() => {});
    await until('it is connected', () => silent.connections() === 1);
    abort.abort(reason);
    await expect(dialling).rejects.toBe(reason);
    // At every moment of a dial that would have come about.
    for (let delay = 0; delay < 10; delay++) {
      const late = new AbortController();
      const outcome = transport.dial(listening, 'rpc', { signal: late.signal }).then(
        ({ fd }) => addon().closeDescriptor(fd),
        (error) => expect(error).toBe(reason),
      );
      setTimeout(() => late.abort(reason), delay);
      await outcome;
    }
    await until('no stream is open', () => {
      for (const { fd } of listening.streams.splice(0)) addon().closeDescriptor(fd);
      return transport.stats().open + listening.transport.stats().open === 0;
    });
    await until('the descriptors are as before', () => descriptors() <= before);
  });

  it.each([
    ['no host', { host: '', port: 1 }, 'rpc', {}],
    ['no port', { host: '127.0.0.1', port: 0 }, 'rpc', {}],
    ['an unknown kind', { host: '127.0.0.1', port: 1 }, 'telnet', {}],
    ['no time', { host: '127.0.0.1', port: 1 }, 'rpc', { timeoutMs: 0 }],
    ['a long preamble', { host: '127.0.0.1', port: 1 }, 'rpc', { preamble: new Uint8Array(2000) }],
  ])('refuses %s', async (_what, address, kind, options) => {
    await expect((await transports.start()).dial(address, kind as 'rpc', options)).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
    });
  });
});

describe('DialErrors', () => {
  const errors = new DialErrors({ host: 'fe80::1', port: 60000 }, 'rpc');
  const failed = (code: string): unknown => errors.connectFailed(Object.assign(new Error(code), { code }));

  it.each([
    ['ECONNREFUSED', 'DROID_ENDPOINT_REFUSED', /nothing listens/],
    ['ETIMEDOUT', 'DROID_ENDPOINT_TIMEOUT', /Android/],
    ['EHOSTUNREACH', 'DROID_ENDPOINT_UNREACHABLE', /no route.*EHOSTUNREACH/],
    ['EACCES', 'DROID_ENDPOINT_UNREACHABLE', /local network permission/],
    ['EAI_AGAIN', 'DROID_ENDPOINT_UNREACHABLE', /does not resolve/],
    ['EMFILE', 'DROID_ENDPOINT_UNREACHABLE', /no file descriptors left/],
  ])('reads %s', (code, expected, message) => {
    expect(failed(code)).toMatchObject({ code: expected, message: expect.stringMatching(message) });
    expect(failed(code)).toMatchObject({ message: expect.stringMatching(/^\[fe80::1\]:60000: /) });
  });

  it('says what Android does when nothing answers', () => {
    expect(errors.expired('connecting', 3000)).toMatchObject({
      code: 'DROID_ENDPOINT_TIMEOUT',
      message: expect.stringMatching(/did not answer within 3000 ms\. Android drops incoming .* let that phone dial/),
    });
    expect(errors.expired('resolving', 3000)).toMatchObject({ code: 'DROID_ENDPOINT_UNREACHABLE' });
  });

  it('takes the most telling error of a name with several addresses', () => {
    const parts = ['ENETUNREACH', 'ECONNREFUSED'].map((code) => Object.assign(new Error(code), { code }));
    expect(errors.connectFailed(new AggregateError(parts))).toMatchObject({ code: 'DROID_ENDPOINT_REFUSED' });
  });
});

describe('a thread that dies', () => {
  it('is reported, and whatever waits for it is rejected', async () => {
    const before = descriptors();
    const listening = await transports.listen();
    const thread = threads.at(-1) as Worker;
    const silent = await open(createServer((socket) => socket.resume()));
    const { near, far } = await connectPair(await transports.start(), listening);
    const dialling = listening.transport.dial(silent, 'rpc');
    dialling.catch(() => {});
    await until('it is connected', () => silent.connections() === 1);
    await thread.terminate();
    await expect(dialling).rejects.toMatchObject({ code: 'DROID_CLOSED', message: expect.stringMatching(/thread/) });
    await Promise.all([readAll(near), readAll(far)]);
    expect(listening.warnings).toEqual([
      expect.stringMatching(/thread that encrypts failed.*All its streams are closed/),
    ]);
    expect(listening.transport.stats().open).toBe(0);
    await expect(listening.transport.dial(silent, 'rpc')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    listening.transport.cut(1);
    await listening.transport.close();
    near.destroy();
    far.destroy();
    await transports.closeAll();
    await until('the descriptors are as before', () => descriptors() <= before + 1);
  });
});
