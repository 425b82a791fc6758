import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { startRpcServer } from '../../lib/rpc-server.js';

const { made } = vi.hoisted(() => ({ made: [] as object[] }));
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
      async close() {}
    },
  }),
}));

beforeEach(() => {
  made.length = 0;
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
  ])('refuses %j', async (options, message) => {
    await expect(startRpcServer(options as object)).rejects.toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
    expect(made).toEqual([]);
  });
});
