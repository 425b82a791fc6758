import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { DroidLlamaError } from '../../lib/errors.js';
import { startAdoptingRpcServer, startRpcServer } from '../../lib/rpc-server.js';
import type { ListenOptions, Transport } from '../../lib/transport/transport.js';

const { made, log, adopted, tls } = vi.hoisted(() => ({
  made: [] as object[],
  log: [] as string[],
  adopted: [] as [fd: number, peer: string][],
  tls: {
    token: '',
    listening: undefined as ListenOptions | undefined,
    refuse: undefined as Error | undefined,
    open: 0,
  },
}));
vi.mock('../../lib/transport/tls-transport.js', () => ({
  startTransport: async ({ token }: { token: string }): Promise<Partial<Transport>> => {
    tls.token = token;
    log.push('transport starts');
    return {
      listen: async (options) => {
        tls.listening = options;
        if (tls.refuse) throw tls.refuse;
        return { host: options.host, port: 4242 };
      },
      stats: () => ({ open: tls.open, handshakes: 0, rejected: 5 }),
      close: async () => void log.push('transport closes'),
    };
  },
}));
vi.mock('../../lib/addon.js', async (original) => ({
  ...(await original<typeof import('../../lib/addon.js')>()),
  addon: () => ({
    RpcServer: class {
      readonly port = 1234;
      constructor(options: object) {
        made.push(options);
      }
      devices() {
        return [];
      }
      stats() {
        return { clientsRefused: 2 };
      }
      adopt(fd: number, peer: string) {
        adopted.push([fd, peer]);
      }
      async close() {
        log.push('worker closes');
      }
    },
  }),
}));

beforeEach(() => {
  made.length = log.length = adopted.length = 0;
  Object.assign(tls, { token: '', listening: undefined, refuse: undefined, open: 0 });
});

describe('startRpcServer', () => {
  it('leaves limits to the native side unless told', async () => {
    await startRpcServer({ threads: 2 });
    expect(made).toEqual([
      {
        host: '127.0.0.1',
        port: 0,
        threads: 2,
        maxClients: 8,
        memoryLimit: 0,
        clientMemoryLimit: 0,
        cacheDir: '',
        cacheLimit: 0,
        handshakeTimeoutMs: 10_000,
        verbose: false,
      },
    ]);
  });

  it('hands limits over in bytes', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'droid-options-'));
    onTestFinished(() => rm(dir, { recursive: true }));
    const limits = { memoryLimit: 2 ** 33, clientMemoryLimit: 2 ** 33, cacheLimit: 2 ** 40, handshakeTimeoutMs: 5 };
    await startRpcServer({ ...limits, cacheDir: join(dir, 'weights') });
    expect(made).toMatchObject([{ ...limits, cacheDir: join(dir, 'weights') }]);
  });

  it.each([
    [{ memoryLimit: 0 }, /memoryLimit is 0; it must be a whole number from 1/],
    [{ memoryLimit: '2G' }, /memoryLimit is "2G"/],
    [{ clientMemoryLimit: 1.5 }, /clientMemoryLimit is 1\.5/],
    [{ memoryLimit: 10, clientMemoryLimit: 11 }, /clientMemoryLimit is 11, more than all .*memoryLimit is 10/],
    [{ cacheLimit: 10 }, /cacheLimit is given, but there is no cacheDir/],
    [{ cacheLimit: -1, cacheDir: '/tmp' }, /cacheLimit is -1/],
    [{ handshakeTimeoutMs: 0 }, /handshakeTimeoutMs is 0/],
    [{ memorylimit: 1 }, /did you mean memoryLimit/],
    [{ onEvent: 1 }, /onEvent must be a function/],
    [{ token: 'short' }, /The token has 5 characters/],
    [{ token: 7 }, /token is no string/],
    [{ token: 'a'.repeat(22), insecure: true }, /token and insecure are both given/],
    [{ insecure: 1 }, /insecure is 1/],
  ])('refuses %j', async (options, message) => {
    await expect(startRpcServer(options as object)).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
    expect(made).toEqual([]);
  });
});

describe('a token', () => {
  const token = 'AbCdEfGhIjKlMnOpQrStUv';

  it('takes the port away from the native side, which gets the streams of the transport', async () => {
    const server = await startRpcServer({ host: '0.0.0.0', port: 60000, token, threads: 2 });
    expect(made).toMatchObject([{ host: '', port: 0, threads: 2 }]);
    expect(made[0]).not.toHaveProperty('token');
    expect(tls).toMatchObject({
      token,
      listening: { host: '0.0.0.0', port: 60000, kinds: ['rpc'], preambleBytes: { rpc: 16 } },
    });
    expect(server).toMatchObject({ host: '0.0.0.0', port: 4242, endpoint: '0.0.0.0:4242', encrypted: true });
    const remote = { host: 'fd00::7', port: 9 };
    tls.listening?.onStream({
      id: 1,
      kind: 'rpc',
      fd: 99,
      remote,
      localAddress: 'fd00::1',
      preamble: new Uint8Array(16),
    });
    expect(adopted).toEqual([[99, '[fd00::7]:9']]);
  });

  it('counts who did not prove it among the refused', async () => {
    const server = await startRpcServer({ token });
    expect(server.stats()).toEqual({ clientsRefused: 2 + 5 });
    const plain = await startRpcServer();
    expect(plain.stats()).toEqual({ clientsRefused: 2 });
    expect(plain.encrypted).toBe(false);
  });

  it('ends with the worker, which has the last word', async () => {
    const server = await startRpcServer({ token });
    tls.open = 1;
    const closing = server.close();
    await vi.waitUntil(() => log.includes('worker closes'));
    expect(log).not.toContain('transport closes');
    tls.open = 0;
    await Promise.all([closing, server.close()]);
    expect(log).toEqual(['transport starts', 'worker closes', 'transport closes']);
  });

  it('leaves nothing behind when the port is taken or the start is aborted', async () => {
    tls.refuse = new DroidLlamaError('DROID_PORT_IN_USE', 'taken');
    await expect(startRpcServer({ token })).rejects.toBe(tls.refuse);
    expect(log.sort()).toEqual(['transport closes', 'transport starts', 'worker closes']);
    log.length = 0;
    const abort = new AbortController();
    const starting = startRpcServer({ token, signal: abort.signal });
    abort.abort(new Error('changed my mind'));
    await expect(starting).rejects.toThrow('changed my mind');
    expect(log.filter((line) => line === 'transport closes')).toHaveLength(1);
  });

  it('or a word is needed on any address but loopback', async () => {
    for (const host of ['0.0.0.0', '::', '192.168.1.5', 'phone.local']) {
      await expect(startRpcServer({ host })).rejects.toMatchObject({ code: 'DROID_INSECURE' });
    }
    expect(made).toEqual([]);
    for (const host of ['localhost', '127.0.0.2', '::1']) await startRpcServer({ host });
    await startRpcServer({ host: '0.0.0.0', insecure: true });
    expect(made).toHaveLength(4);
    expect(log).toEqual([]);
  });
});

describe('startAdoptingRpcServer', () => {
  it('has no port, and takes what it is given', async () => {
    const server = await startAdoptingRpcServer({ threads: 3 });
    expect(made).toMatchObject([{ host: '', port: 0, threads: 3 }]);
    expect(server).toMatchObject({ host: '', port: 0, endpoint: '', encrypted: false });
    server.adopt(7, 'phone A');
    expect(adopted).toEqual([[7, 'phone A']]);
  });

  it.each(['host', 'port', 'token', 'insecure'])('has no option %s', async (name) => {
    await expect(startAdoptingRpcServer({ [name]: 1 })).rejects.toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
  });
});
