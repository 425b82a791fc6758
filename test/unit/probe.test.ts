import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import type { DroidLlamaError } from '../../lib/errors.js';
import { parseEndpoint, probeEndpoint, probeLink } from '../../lib/probe.js';

const MIB = 1024 * 1024;
const open: { server: Server; sockets: Set<Socket> }[] = [];

afterEach(async () => {
  for (const { server, sockets } of open.splice(0)) {
    for (const socket of sockets) socket.destroy();
    server.close();
    await once(server, 'close');
  }
});

async function listen(onSocket: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    onSocket(socket);
  });
  open.push({ server, sockets });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

interface FakeWorker {
  version?: [number, number, number];
  /** Free and total bytes per device. */
  devices?: [bigint, bigint][];
  deviceCount?: number;
  /** Hang up when the n-th command arrives. */
  closeAt?: number;
  /** Send answers byte by byte, as a slow network may cut them. */
  dribble?: boolean;
  commands?: number[];
  /** What HELLO is answered with behind the version. Default: zeros, as upstream's server without RDMA. */
  capabilities?: Buffer;
  /** Sent in place of the answer to the n-th command, followed by a hang-up. */
  noticeAt?: { command: number; bytes: Buffer };
  /** Hang up after the answer to HELLO. */
  hangUp?: boolean;
}

/** Capabilities as a droid-llama worker fills them. */
function extension(status: number, version = 1): Buffer {
  const capabilities = Buffer.alloc(24);
  capabilities.write('drdl', 4);
  capabilities.set([version, status], 8);
  return capabilities;
}

function notice(reason: number, text: string, textBytes = Buffer.byteLength(text)): Buffer {
  const head = Buffer.alloc(16, 0xff);
  head.writeUInt32LE(reason, 8);
  head.writeUInt32LE(textBytes, 12);
  return Buffer.concat([head, Buffer.from(text)]);
}

/** Speaks as much of the protocol as a probe needs. */
function fakeWorker(options: FakeWorker): (socket: Socket) => void {
  const { version = [7, 0, 0], devices = [[1n, 2n]], deviceCount = devices.length, closeAt, dribble } = options;
  return (socket) => {
    let pending = Buffer.alloc(0);
    let seen = 0;
    const answer = (body: Buffer): void => {
      const size = Buffer.alloc(8);
      size.writeBigUInt64LE(BigInt(body.length));
      const message = Buffer.concat([size, body]);
      if (dribble) for (const byte of message) socket.write(Buffer.of(byte));
      else socket.write(message);
    };
    const capabilities = options.capabilities ?? Buffer.alloc(24);
    const handlers: Record<number, { bytes: number; run: (payload: Buffer) => void }> = {
      14: {
        bytes: 24,
        run: (payload) => {
          // Upstream's end takes the first four bytes for the number of an RDMA queue pair: 0 is TCP.
          expect(payload.toString('latin1')).toBe(`\0\0\0\0drdl\x01${'\0'.repeat(15)}`);
          answer(Buffer.concat([Buffer.from([...version, 0]), capabilities]));
          if (options.hangUp) socket.end();
        },
      },
      15: {
        bytes: 0,
        run: () => {
          const body = Buffer.alloc(4);
          body.writeUInt32LE(deviceCount);
          answer(body);
        },
      },
      11: {
        bytes: 4,
        run: (payload) => {
          const [free, total] = devices[payload.readUInt32LE()] ?? [0n, 0n];
          const body = Buffer.alloc(16);
          body.writeBigUInt64LE(free, 0);
          body.writeBigUInt64LE(total, 8);
          answer(body);
        },
      },
    };
    socket.on('data', (chunk: Buffer) => {
      pending = Buffer.concat([pending, chunk]);
      while (pending.length >= 9) {
        const command = pending.readUInt8(0);
        const size = Number(pending.readBigUInt64LE(1));
        if (pending.length < 9 + size) return;
        const payload = pending.subarray(9, 9 + size);
        pending = pending.subarray(9 + size);
        options.commands?.push(command);
        if (++seen === closeAt) {
          socket.end();
          return;
        }
        if (seen === options.noticeAt?.command) {
          socket.end(options.noticeAt.bytes);
          return;
        }
        expect(size).toBe(handlers[command]?.bytes);
        handlers[command]?.run(payload);
      }
    });
  };
}

async function failure(promise: Promise<unknown>): Promise<DroidLlamaError> {
  return promise.then(
    () => expect.fail('the probe succeeded'),
    (error: DroidLlamaError) => error,
  );
}

describe('parseEndpoint', () => {
  it.each([
    ['192.168.37.219:60000', '192.168.37.219', 60000],
    ['phone.local:1', 'phone.local', 1],
    ['[::1]:65535', '::1', 65535],
    ['[fe80::1%wlan0]:50052', 'fe80::1%wlan0', 50052],
  ])('reads %s', (endpoint, host, port) => {
    expect(parseEndpoint(endpoint)).toEqual({ host, port });
  });

  it.each([
    ['', /port is missing/],
    ['phone', /port is missing/],
    [':50052', /host is missing/],
    ['phone:', /port must be/],
    ['phone:0', /port must be/],
    ['phone:65536', /port must be/],
    ['phone:5e3', /port must be/],
    ['phone:-1', /port must be/],
    ['a:1,b:2', /not understood/],
    ['::1', /brackets/],
    ['[phone]:1', /not an IPv6 address/],
    ['[::1]', /not understood/],
    ['http://phone:1', /not a URL/],
    ['pho ne:1', /not a name/],
  ])('refuses %j', (endpoint, message) => {
    expect(() => parseEndpoint(endpoint)).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });
});

describe('probeEndpoint', () => {
  it('tells version, devices and times', async () => {
    const commands: number[] = [];
    const devices: [bigint, bigint][] = [
      [BigInt(100 * MIB), BigInt(11358 * MIB)],
      [0n, 0n],
    ];
    const endpoint = await listen(fakeWorker({ devices, commands }));
    const info = await probeEndpoint(endpoint, { roundTrips: 3 });
    expect(info).toEqual({
      endpoint,
      protocol: '7.0.0',
      extended: false,
      devices: [
        { name: 'RPC0', description: endpoint, memoryFree: 100 * MIB, memoryTotal: 11358 * MIB },
        { name: 'RPC1', description: endpoint, memoryFree: 0, memoryTotal: 0 },
      ],
      roundTripMs: expect.any(Number),
      connectMs: expect.any(Number),
    });
    expect(info.roundTripMs).toBeGreaterThan(0);
    expect(commands).toEqual([14, 15, 15, 15, 11, 11]);
  });

  it('takes answers that arrive in pieces, and a newer patch', async () => {
    const endpoint = await listen(fakeWorker({ dribble: true, version: [7, 0, 9] }));
    expect((await probeEndpoint(endpoint)).protocol).toBe('7.0.9');
  });

  it.each<[string, Buffer, boolean]>([
    ['a droid-llama worker', extension(0), true],
    ['one with another version of the extension', extension(1, 2), false],
    ['an upstream worker with RDMA', Buffer.alloc(24, 0x5a), false],
  ])('recognises %s', async (_, capabilities, extended) => {
    const endpoint = await listen(fakeWorker({ capabilities, dribble: true }));
    expect(await probeEndpoint(endpoint, { roundTrips: 2 })).toMatchObject({ extended, devices: [{ memoryTotal: 2 }] });
  });

  it.each<[string, number, string, RegExp]>([
    ['busy', 1, 'DROID_WORKER_BUSY', /has as many masters as it takes.*--max-clients/],
    ['about to end', 2, 'DROID_WORKER_BUSY', /about to end/],
    ['turning us away for a reason of a later version', 77, 'DROID_WORKER_REFUSED', /status 77/],
  ])('tells a worker that is %s', async (_, status, code, message) => {
    const endpoint = await listen(fakeWorker({ capabilities: extension(status), hangUp: true }));
    const error = await failure(probeEndpoint(endpoint));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    expect(error.message.startsWith(`${endpoint}: `)).toBe(true);
  });

  it.each<[string, Buffer, string, RegExp]>([
    ['a refusal', notice(1, 'no\x1b[2Jsuch\ndevice'), 'DROID_WORKER_REFUSED', /says: no \[2Jsuch device$/],
    ['no memory', notice(2, 'none left'), 'DROID_WORKER_OUT_OF_MEMORY', /says: none left$/],
    ['the end', notice(3, ''), 'DROID_WORKER_BUSY', /about to end/],
    ['a text that does not come', notice(1, 'x', 9), 'DROID_VERSION_MISMATCH', /closed the connection/],
    ['a text without bounds', notice(1, 'x', 2 ** 31), 'DROID_VERSION_MISMATCH', /not RPC/],
  ])('reads a notice of %s in place of an answer', async (_, bytes, code, message) => {
    for (const command of [2, 3]) {
      const worker = fakeWorker({ capabilities: extension(0), noticeAt: { command, bytes } });
      const error = await failure(probeEndpoint(await listen(worker)));
      expect(error.code).toBe(code);
      expect(error.message).toMatch(message);
    }
  });

  it('reads no notice of a worker that did not offer any', async () => {
    const worker = fakeWorker({ noticeAt: { command: 2, bytes: notice(2, 'none left') } });
    expect((await failure(probeEndpoint(await listen(worker)))).code).toBe('DROID_VERSION_MISMATCH');
  });

  it('tells a closed port', async () => {
    const endpoint = await listen(() => {});
    for (const { server } of open.splice(0)) {
      server.close();
      await once(server, 'close');
    }
    const error = await failure(probeEndpoint(endpoint));
    expect(error.code).toBe('DROID_ENDPOINT_REFUSED');
    expect(error.message).toContain('droid-llama worker');
  });

  it('tells a name that does not resolve', async () => {
    const error = await failure(probeEndpoint('no-such-phone.invalid:50052'));
    expect(error.code).toBe('DROID_ENDPOINT_UNREACHABLE');
  });

  it.each<[string, FakeWorker, RegExp]>([
    ['an older major', { version: [6, 0, 0] }, /version 6\.0\.0/],
    ['a newer minor', { version: [7, 1, 0] }, /version 7\.1\.0/],
    ['no device', { deviceCount: 0 }, /0 devices/],
    ['too many devices', { deviceCount: 17 }, /17 devices/],
    ['absurd memory', { devices: [[1n, 2n ** 63n]] }, /bytes of memory/],
    ['hanging up at HELLO', { closeAt: 1 }, /closed the connection instead of greeting/],
    ['hanging up later', { closeAt: 3 }, /closed the connection in the middle/],
  ])('refuses %s', async (_, options, message) => {
    const error = await failure(probeEndpoint(await listen(fakeWorker(options))));
    expect(error.code).toBe('DROID_VERSION_MISMATCH');
    expect(error.message).toMatch(message);
  });

  it.each<[string, (socket: Socket) => void]>([
    ['a web server', (socket) => socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))],
    ['a server that greets first', (socket) => socket.write('SSH-2.0-OpenSSH_9.7\r\n')],
    ['a flood', (socket) => socket.write(Buffer.alloc(MIB, 0xff))],
    ['more than one answer', (socket) => socket.write(Buffer.from([28, ...Buffer.alloc(44)]))],
    ['one that hangs up at once', (socket) => socket.end()],
    ['one that resets', (socket) => socket.once('data', () => socket.resetAndDestroy())],
  ])('does not take %s for a worker', async (_, behave) => {
    const error = await failure(probeEndpoint(await listen(behave)));
    expect(error.code).toBe('DROID_VERSION_MISMATCH');
  });

  it('says that a silent peer may be busy, not that Android drops connections', async () => {
    const error = await failure(probeEndpoint(await listen(() => {}), { timeoutMs: 50 }));
    expect(error.code).toBe('DROID_ENDPOINT_TIMEOUT');
    expect(error.message).toMatch(/busy/);
    expect(error.message).not.toMatch(/Android/);
  });

  it('thinks of a token when a port hangs up on whoever has none', async () => {
    const error = await failure(probeEndpoint(await listen((socket) => socket.once('data', () => socket.destroy()))));
    expect(error.code).toBe('DROID_VERSION_MISMATCH');
    expect(error.message).toMatch(/wants the token that the worker shows.*`--token`/);
  });

  it.each(['', 'too-short', 5, null])('refuses the token %j without repeating it', async (token) => {
    const error = await failure(probeEndpoint('127.0.0.1:1', { token: token as string }));
    expect(error.code).toBe('DROID_INVALID_ARGUMENT');
    expect(error.message).not.toContain('too-short');
  });

  it('rejects with the reason of the signal', async () => {
    const controller = new AbortController();
    const endpoint = await listen(() => controller.abort(new Error('changed my mind')));
    await expect(probeEndpoint(endpoint, { signal: controller.signal })).rejects.toThrow('changed my mind');
    await expect(probeEndpoint(endpoint, { signal: controller.signal })).rejects.toThrow('changed my mind');
  });

  it('hangs up when it is done', async () => {
    const closed = new Promise<void>((resolve, reject) => {
      void listen((socket) => {
        socket.on('close', resolve);
        fakeWorker({})(socket);
      })
        .then(probeEndpoint)
        .catch(reject);
    });
    await closed;
  });

  it.each([{ timeoutMs: 0 }, { timeoutMs: Number.NaN }, { roundTrips: 0 }, { roundTrips: 1.5 }])(
    'refuses %j',
    async (options) => {
      const error = await failure(probeEndpoint('127.0.0.1:1', options));
      expect(error.code).toBe('DROID_INVALID_ARGUMENT');
    },
  );
});

describe('probeLink', () => {
  it('gives up on a link that does not open in time, and tells it so', async () => {
    let given: AbortSignal | undefined;
    const open = (signal?: AbortSignal): Promise<number> => {
      given = signal;
      return new Promise(() => {});
    };
    const error = await failure(probeLink({ endpoint: 'phone B', open }, { timeoutMs: 20 }));
    expect(error.code).toBe('DROID_ENDPOINT_TIMEOUT');
    expect(error.message).toMatch(/^phone B: it did not answer within 20 ms/);
    expect(given?.reason).toBe(error);
  });

  it('rejects with what opening rejects with, and with the reason of the signal', async () => {
    const reason = new Error('no way to it');
    await expect(probeLink({ endpoint: 'phone B', open: () => Promise.reject(reason) })).rejects.toBe(reason);
    const abort = new AbortController();
    const open = (): Promise<number> => {
      abort.abort(reason);
      return new Promise(() => {});
    };
    await expect(probeLink({ endpoint: 'phone B', open }, { signal: abort.signal })).rejects.toBe(reason);
    const never = { endpoint: 'phone B', open: () => expect.fail('it was opened') };
    await expect(probeLink(never, { signal: abort.signal })).rejects.toBe(reason);
  });
});
