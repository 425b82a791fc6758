/** Members over the real transport on loopback; needs the built transport thread in dist. */
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { DroidLlamaError } from '../../lib/errors.js';
import { startTransport } from '../../lib/transport/tls-transport.js';
import { createToken } from '../../lib/transport/token.js';
import type { Transport } from '../../lib/transport/transport.js';
import {
  idOf,
  type Member,
  type MemberOptions,
  openDescriptors,
  readAll,
  socketOf,
  startMember,
  until,
} from '../support/members.js';
import { TcpProxy } from '../support/tcp-proxy.js';

const token = createToken();

/** A member on 127.0.0.1; `cannotDial` refuses dials as a firewall would, so that one direction is closed. */
async function member(
  name: string,
  options: MemberOptions & { cannotDial?: () => readonly (Member | undefined)[]; token?: string } = {},
): Promise<Member> {
  const transport = await startTransport({ token: options.token ?? token });
  const limited: Transport = {
    listen: (listening) => transport.listen(listening),
    dial: (address, kind, dialling) => {
      if (options.cannotDial?.().some((other) => other?.address.port === address.port)) {
        return Promise.reject(new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', 'nothing came back'));
      }
      return transport.dial(address, kind, dialling);
    },
    cut: (id) => transport.cut(id),
    stats: () => transport.stats(),
    close: () => transport.close(),
  };
  const made = await startMember(name, limited, '127.0.0.1', { port: 0, ...options });
  onTestFinished(() => made.close());
  return made;
}

const all = (names: string, ...members: Member[]): Promise<void> =>
  until(`all see ${names}`, () => members.every((one) => one.names().join('') === names), 15_000);

async function exchange(from: Member, to: Member, kind: 'rpc' | 'http', name: string): Promise<void> {
  to.membership.on('stream', ({ stream }) => {
    const socket = socketOf(stream);
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  const socket = socketOf(await from.membership.openStream(idOf(name), kind));
  const bytes = randomBytes(2_000_000);
  const back = readAll(socket);
  socket.end(bytes);
  expect((await back).equals(bytes)).toBe(true);
  socket.destroy();
}

describe('members over TLS', () => {
  it('join, know each other by way of one in the middle, and carry streams', async () => {
    const members: (Member | undefined)[] = [];
    const [a, b, c] = [
      await member('a', { cannotDial: () => [members[2]] }),
      await member('b'),
      await member('c', { cannotDial: () => [members[0]] }),
    ];
    members.push(a, b, c);
    a.membership.offer(b.address);
    c.membership.offer(b.address);
    await all('abc', a, b, c);
    expect(a.membership.self().neighbours).toEqual([idOf('b')]);
    expect(a.membership.roundTripMs(idOf('c'))).toBeNull();
    await exchange(a, b, 'rpc', 'b');
    await exchange(c, b, 'http', 'b');
    await b.close();
    await all('a', a);
    await all('c', c);
  });

  it('carry a stream the other way round', async () => {
    const others: (Member | undefined)[] = [];
    const a = await member('a', { cannotDial: () => others });
    const b = await member('b');
    others.push(b);
    b.membership.offer(a.address);
    await all('ab', a, b);
    await exchange(a, b, 'rpc', 'b');
  });

  it('notice within 5 s that the link is cut without a word, and come back with it', async () => {
    await using proxy = await TcpProxy.start();
    // Only the way through the proxy leads to b, and none to a.
    const a = await member('a', { self: { port: 0 } });
    const b = await member('b', { self: { port: proxy.port } });
    proxy.target = b.address;
    a.membership.offer({ host: '127.0.0.1', port: proxy.port });
    await all('ab', a, b);
    a.membership.update({ name: 'a', model: { name: 'a-telling-name.gguf', bytes: 1, layers: 1 } });
    await until('b knows', () => b.membership.peers().some(({ model }) => model !== null));

    const cut = performance.now();
    proxy.block();
    await until('both have lost the other', () => a.comings.length === 2 && b.comings.length === 2);
    const noticedMs = performance.now() - cut;
    expect(noticedMs).toBeGreaterThan(2500);
    expect(noticedMs).toBeLessThan(5000);
    proxy.unblock();
    await all('ab', a, b);
    expect(a.comings).toEqual(['joined b', 'lost b', 'joined b']);
    expect(Buffer.concat(proxy.seen).includes('telling')).toBe(false);
  });

  it('do not hear of another cluster, and say so', async () => {
    const a = await member('a');
    const b = await member('b', { token: createToken() });
    a.membership.offer(b.address);
    await until('it is turned away', () => a.told.rejected.length > 0);
    expect(a.told.rejected[0]?.code).toBe('DROID_TOKEN_REJECTED');
    expect([a.names(), b.names()]).toEqual([['a'], ['b']]);
  });

  it('keep one connection when both dial at once', async () => {
    for (let round = 0; round < 5; round++) {
      const [a, b] = [await member('a'), await member('b')];
      a.membership.offer(b.address);
      b.membership.offer(a.address);
      await all('ab', a, b);
      await until('one is left', () => a.transport.stats().open === 1 && b.transport.stats().open === 1);
      // Both redial when it is cut.
      for (let id = 0; id < 100; id++) a.transport.cut(id);
      await until('they are back', () => a.comings.length === 3 && b.comings.length === 3);
      await until('one is left again', () => a.transport.stats().open === 1 && b.transport.stats().open === 1);
      expect([a.comings, b.comings]).toEqual([
        ['joined b', 'lost b', 'joined b'],
        ['joined a', 'lost a', 'joined a'],
      ]);
      await Promise.all([a.close(), b.close()]);
    }
  });

  it('go on while strangers knock', async () => {
    const [a, b] = [await member('a'), await member('b')];
    a.membership.offer(b.address);
    await all('ab', a, b);
    const strangers = Array.from({ length: 20 }, () => {
      const socket = connect(b.address);
      socket.on('error', () => {});
      socket.on('connect', () => socket.write(randomBytes(300)));
      return socket;
    });
    await new Promise((resolve) => setTimeout(resolve, 1500));
    for (const socket of strangers) socket.destroy();
    expect([a.comings, b.comings]).toEqual([['joined b'], ['joined a']]);
  });

  it('leave no descriptor behind', async () => {
    // The first transport of a process keeps some for good.
    await (await member('warm')).close();
    const before = openDescriptors();
    for (let round = 0; round < 3; round++) {
      const [a, b] = [await member('a'), await member('b')];
      a.membership.offer(b.address);
      b.membership.offer(a.address);
      await all('ab', a, b);
      await exchange(a, b, 'rpc', 'b');
      await Promise.all([a.close(), b.close()]);
    }
    await until(`${openDescriptors()} descriptors are ${before} again`, () => openDescriptors() <= before);
  });
});
