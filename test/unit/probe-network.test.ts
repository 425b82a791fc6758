import { EventEmitter } from 'node:events';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import type { DroidLlamaError } from '../../lib/errors.js';
import { probeEndpoint } from '../../lib/probe.js';

/** What a network that cannot be had on one machine does to a socket. */
class SilentSocket extends EventEmitter {
  write(): boolean {
    return true;
  }
  destroy(): void {
    this.emit('close');
  }
}

const { sockets } = vi.hoisted(() => ({ sockets: [] as unknown[] }));
vi.mock('node:net', async (original) => ({
  ...(await original<typeof import('node:net')>()),
  connect: () => {
    const socket = new SilentSocket();
    sockets.push(socket);
    return socket;
  },
}));

beforeEach(() => {
  sockets.length = 0;
});

function probe(endpoint: string, timeoutMs = 5000): { socket: SilentSocket; failed: Promise<DroidLlamaError> } {
  const failed = probeEndpoint(endpoint, { timeoutMs }).then(
    () => expect.fail('the probe succeeded'),
    (error: DroidLlamaError) => error,
  );
  return { socket: sockets[0] as SilentSocket, failed };
}

const networkError = (code: string): Error => Object.assign(new Error(`connect ${code}`), { code });

describe('probeEndpoint on a bad network', () => {
  it('explains that Android drops incoming connections when none is answered', async () => {
    const error = await probe('192.168.37.219:60000', 20).failed;
    expect(error.code).toBe('DROID_ENDPOINT_TIMEOUT');
    expect(error.message).toMatch(
      /^192\.168\.37\.219:60000: .* within 20 ms\. Android drops incoming .* swap the roles/,
    );
  });

  it('says the same once a name has resolved', async () => {
    const { socket, failed } = probe('phone.local:60000', 20);
    socket.emit('lookup', null, '192.168.37.219', 4, 'phone.local');
    expect((await failed).message).toMatch(/Android/);
  });

  it('tells a name server that does not answer', async () => {
    const error = await probe('phone.local:60000', 20).failed;
    expect(error.code).toBe('DROID_ENDPOINT_UNREACHABLE');
    expect(error.message).toMatch(/did not resolve/);
  });

  it.each([
    ['ECONNREFUSED', 'DROID_ENDPOINT_REFUSED', /nothing listens/],
    ['ETIMEDOUT', 'DROID_ENDPOINT_TIMEOUT', /Android/],
    ['EHOSTUNREACH', 'DROID_ENDPOINT_UNREACHABLE', /no route.*EHOSTUNREACH/],
    ['ENETUNREACH', 'DROID_ENDPOINT_UNREACHABLE', /no route/],
    ['EACCES', 'DROID_ENDPOINT_UNREACHABLE', /local network permission/],
    ['EAI_AGAIN', 'DROID_ENDPOINT_UNREACHABLE', /does not resolve/],
  ])('reads %s', async (code, expected, message) => {
    const { socket, failed } = probe('192.168.37.219:60000');
    const cause = networkError(code);
    socket.emit('error', cause);
    const error = await failed;
    expect(error.code).toBe(expected);
    expect(error.message).toMatch(message);
    expect(error.cause).toBe(cause);
  });

  it('takes the most telling error of a name with several addresses', async () => {
    const { socket, failed } = probe('phone.local:60000');
    socket.emit('error', new AggregateError([networkError('ENETUNREACH'), networkError('ECONNREFUSED')]));
    expect((await failed).code).toBe('DROID_ENDPOINT_REFUSED');
  });
});
