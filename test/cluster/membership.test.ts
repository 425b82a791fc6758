import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { encodeFrame, FrameDecoder } from '../../lib/cluster/control/frames.js';
import { hello } from '../../lib/cluster/control/messages.js';
import { NO_PEER, peerIdToBytes } from '../../lib/cluster/control/peer-id.js';
import type { SecureStream } from '../../lib/transport/transport.js';
import { FakeNetwork, type FakeNetworkOptions, type FakeTransport } from '../support/fake-transport.js';
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
import { linkOf, peerOf } from '../support/peers.js';

/** Members in a network of their own; all are closed after the test. */
class Scene {
  readonly network: FakeNetwork;
  readonly hosts = new Map<string, string>();
  readonly dials: string[] = [];
  /** `a>b`: what a dial from `a` to `b` comes to, when it is not open. */
  readonly closed = new Map<string, 'drop' | 'refuse'>();

  constructor(options: FakeNetworkOptions = {}) {
    this.network = new FakeNetwork(options);
    const nameOf = (host: string): string => [...this.hosts].find(([, its]) => its === host)?.[0] ?? host;
    this.network.fate = (from, to) => {
      const way = `${nameOf(from)}>${nameOf(to.host)}`;
      this.dials.push(way);
      return this.closed.get(way) ?? 'open';
    };
  }

  /** `host` of a name that is taken: the next process of the same device, or its clone elsewhere. */
  async member(
    name: string,
    options: MemberOptions & { host?: string } = {},
  ): Promise<Member & { transport: FakeTransport }> {
    const host = options.host ?? this.hosts.get(name) ?? `10.0.0.${this.hosts.size + 1}`;
    if (!options.host) this.hosts.set(name, host);
    const transport = this.network.transport([host]);
    const member = await startMember(name, transport, host, options);
    onTestFinished(() => member.close());
    return Object.assign(member, { transport });
  }

  block(...ways: string[]): void {
    for (const way of ways) this.closed.set(way, 'refuse');
  }
}

function cutAll(member: Member & { transport: FakeTransport }): void {
  for (let id = 0; id < member.transport.stats().handshakes + 1000; id++) member.transport.cut(id);
}

const all = (names: string, ...members: Member[]): Promise<void> =>
  until(`all see ${names}; they see ${members.map((member) => member.names().join('')).join(', ')}`, () =>
    members.every((member) => member.names().join('') === names),
  );

describe('members', () => {
  it('find each other, and know what each says of itself', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b', { self: { model: { name: 'tiny', bytes: 1e9, layers: 12 } } });
    a.membership.offer(b.address);
    await all('ab', a, b);
    const told = ({ membership }: Member): string => JSON.stringify(membership.peers());
    await until('both know the same', () => told(a) === told(b) && told(a).includes(`["${idOf('a')}"]`));
    expect(a.membership.peers().map(({ id }) => id)).toEqual([idOf('a'), idOf('b')].sort());
    expect(a.told.joined).toMatchObject([{ name: 'b', model: { layers: 12 } }]);
    expect(a.membership.self().neighbours).toEqual([idOf('b')]);
    await until('the round trip is known', () => a.membership.roundTripMs(idOf('b')) !== null);
    expect(a.membership.roundTripMs(idOf('b'))).toBeGreaterThan(0);
    expect(a.membership.roundTripMs(idOf('z'))).toBeNull();
    expect(() => Object.assign(a.membership.peers()[0] ?? {}, { name: 'x' })).toThrow(TypeError);
  });

  it('know of those that only others reach, and lose them with those', async () => {
    const scene = new Scene();
    scene.block('a>c', 'c>a', 'a>d', 'd>a', 'b>d', 'd>b');
    const [a, b, c, d] = await Promise.all(['a', 'b', 'c', 'd'].map((name) => scene.member(name)));
    if (!a || !b || !c || !d) throw new Error('no members');
    // A line: a, b, c, d. Who comes later learns of those that were there, whose records do not change by it.
    a.membership.offer(b.address);
    await all('ab', a, b);
    c.membership.offer(b.address);
    await all('abc', a, b, c);
    await new Promise((resolve) => setTimeout(resolve, 300));
    d.membership.offer(c.address);
    await all('abcd', a, b, c, d);
    expect(a.membership.self().neighbours).toEqual([idOf('b')]);
    await expect(a.membership.openStream(idOf('d'), 'rpc', { timeoutMs: 500 })).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_REFUSED',
    });

    d.membership.update({ memory: 123, links: [linkOf('d', 'c')] });
    await until('the change has come to the other end', () => a.membership.links().length === 1);
    expect(a.membership.peers().find(({ name }) => name === 'd')?.memory).toBe(123);

    await c.close();
    await all('ab', a, b);
    await all('d', d);
    expect(a.comings.slice(-2).sort()).toEqual(['lost c', 'lost d']);
  });

  it('that are connected in a ring lose nobody with one connection', async () => {
    const scene = new Scene();
    const [a, b, c] = [await scene.member('a'), await scene.member('b'), await scene.member('c')];
    a.membership.offer(b.address);
    b.membership.offer(c.address);
    await all('abc', a, b, c);
    await until('a is connected with c', () => a.membership.self().neighbours.length === 2);
    await b.close();
    await all('ac', a, c);
    expect([...a.comings, ...c.comings].filter((line) => line.startsWith('lost'))).toEqual(['lost b', 'lost b']);
  });

  it('notice at once that one leaves, or that a connection is cut, and find it again', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    a.membership.offer(b.address);
    await all('ab', a, b);
    cutAll(a);
    const started = performance.now();
    await until('it is lost', () => a.comings.includes('lost b') && b.comings.includes('lost a'), 1000);
    await until('it is back', () => a.comings.length === 3 && b.comings.length === 3, 5000);
    expect(a.comings).toEqual(['joined b', 'lost b', 'joined b']);
    expect(performance.now() - started).toBeLessThan(3000);
    await b.close();
    await until('a noticed', () => a.comings.length === 4, 1000);
  });

  it('see a restarted device go and come, though nobody noticed its end', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const first = await scene.member('b', { self: { incarnation: 1000 } });
    first.membership.offer(a.address);
    await all('ab', a, first);
    // The first process stands still, its connection does not end: another address, the same id.
    const second = await scene.member('b', { self: { incarnation: 2000 }, host: '10.0.0.99' });
    second.membership.offer(a.address);
    await until('a has both', () => a.comings.length === 3);
    expect(a.comings).toEqual(['joined b', 'lost b', 'joined b']);
    expect(a.told.joined.map(({ incarnation }) => incarnation)).toEqual([1000, 2000]);
  });

  it('take in a restarted device whose clock went back', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const c = await scene.member('c');
    a.membership.offer(c.address);
    const first = await scene.member('b', { self: { incarnation: 5000 } });
    first.membership.offer(a.address);
    await all('abc', a, c, first);
    await first.close();
    await all('ac', a, c);
    const second = await scene.member('b', { self: { incarnation: 10, memory: 77 } });
    second.membership.offer(a.address);
    await all('abc', a, c, second);
    await until('c has its new record', () => c.membership.peers().some(({ memory }) => memory === 77));
    expect(second.membership.self().incarnation).toBe(5001);
    // Nobody took the record of the process that is gone for that of the new one.
    for (const { told } of [a, c]) {
      expect(told.joined.filter(({ name }) => name === 'b').map(({ incarnation }) => incarnation)).toEqual([
        5000, 5001,
      ]);
    }
  });

  it('let a device in that has lost the connection which the other end still has', async () => {
    const scene = new Scene();
    const a = await scene.member('a', { heartbeatMs: 50, lostAfterMs: 300 });
    // Of two connections dialled at the same time, the one that a dialled would stay.
    const name = Array.from({ length: 100 }, (_, number) => `z${number}`).find((one) => idOf(one) > idOf('a')) ?? '';
    const greeting = encodeFrame(JSON.stringify(hello('build', peerOf(name))));
    const transport = scene.network.transport(['10.0.0.66']);
    onTestFinished(() => transport.close());
    const heard = { first: '', second: '' };
    const puppet = (stream: SecureStream, which: 'first' | 'second'): Socket => {
      const socket = socketOf(stream);
      const decoder = new FrameDecoder();
      socket.on('error', () => {});
      const keep = (frame: Buffer): boolean => {
        heard[which] += `${frame}\n`;
        return true;
      };
      socket.on('data', (chunk) => decoder.push(chunk, keep));
      // Something on the way keeps it alive.
      const beating = setInterval(() => socket.write(encodeFrame('{"type":"heartbeat","sequence":1}')), 50);
      socket.on('close', () => clearInterval(beating));
      onTestFinished(() => void socket.destroy());
      socket.write(greeting);
      return socket;
    };
    const preambleBytes = { control: 16 };
    const onStream = (stream: SecureStream): void => void puppet(stream, 'first');
    await transport.listen({ host: '10.0.0.66', port: 60_000, kinds: ['control'], preambleBytes, onStream });
    a.membership.offer({ host: '10.0.0.66', port: 60_000 });
    await until('it is connected', () => a.names().includes(name));
    await new Promise((resolve) => setTimeout(resolve, 400));

    const preamble = peerIdToBytes(idOf(name));
    puppet(await transport.dial(a.address, 'control', { preamble }), 'second');
    await until('it is taken in', () => heard.second.includes('"records"'));
    await until('the old connection is given up', () => heard.first.includes('"duplicate"'));
    expect(a.comings).toEqual([`joined ${name}`]);
  });

  it('keep one connection when both dial at once, fifty times', async () => {
    for (let round = 0; round < 50; round++) {
      const scene = new Scene({ latencyMs: round % 4 });
      const a = await scene.member(`a${round}`, { heartbeatMs: 50, lostAfterMs: 1000 });
      const b = await scene.member(`b${round}`, { heartbeatMs: 50, lostAfterMs: 1000 });
      const first = round % 2 ? a : b;
      const second = round % 2 ? b : a;
      first.membership.offer(second.address);
      // Some at the same moment, some while the other is under way.
      for (let turn = 0; turn < round % 5; turn++) await new Promise((resolve) => setImmediate(resolve));
      second.membership.offer(first.address);
      await until('both are connected', () => a.comings.length > 0 && b.comings.length > 0);
      await until(
        `one connection is left in round ${round}`,
        () => a.transport.stats().open === 1 && b.transport.stats().open === 1,
      );
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect([a.comings, b.comings]).toEqual([[`joined b${round}`], [`joined a${round}`]]);
      await Promise.all([a.close(), b.close()]);
    }
  });

  it('leave themselves alone', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    a.membership.offer(a.address);
    await until('it has dialled itself', () => scene.dials.length > 0);
    await until('nothing is open', () => a.transport.stats().open === 0);
    a.membership.offer(a.address);
    await new Promise((resolve) => setTimeout(resolve, 700));
    expect(scene.dials).toEqual(['a>a']);
    expect([a.told.rejected, a.comings]).toEqual([[], []]);
  });

  it('that nobody can dial know each other through one that can be', async () => {
    const scene = new Scene();
    const hub = await scene.member('hub');
    const others = await Promise.all(
      Array.from({ length: 12 }, (_, number) => scene.member(`m${number}`, { self: { port: 0 } })),
    );
    for (const { membership } of others) membership.offer(hub.address);
    await until('all see all', () => [hub, ...others].every((member) => member.names().length === 13));
    expect(scene.dials.length).toBeLessThanOrEqual(12);
  });
});

describe('a change', () => {
  it('is told together with others, and only when it is one', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    a.membership.offer(b.address);
    await all('ab', a, b);
    await until('all is told', () => a.membership.peers()[0] !== undefined && b.told.change.length > 0);
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { revision } = a.membership.self();
    a.membership.update({ memory: a.membership.self().memory });
    expect(a.membership.self().revision).toBe(revision);
    const before = [a.told.change.length, b.told.change.length] as const;
    for (let graphs = 1; graphs <= 100; graphs++) a.membership.update({ graphsComputed: graphs });
    expect(a.membership.self()).toMatchObject({ revision: revision + 100, graphsComputed: 100 });
    await until('b knows', () => b.membership.peers().some(({ graphsComputed }) => graphsComputed === 100));
    expect(a.told.change.length - before[0]).toBe(1);
    expect(b.told.change.length - before[1]).toBeLessThanOrEqual(2);
  });

  it('that nobody would accept is refused', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    expect(() => a.membership.update({ memory: -1 })).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT' }),
    );
    expect(() => a.membership.update({ links: [linkOf('b', 'a')] })).toThrow(/links of another peer/);
    a.membership.update({ name: 'new\nname' });
    expect(a.membership.self().name).toBe('new name');
  });
});

describe('a device is turned away', () => {
  it('with another build, for a minute, and both say why', async () => {
    const scene = new Scene();
    const a = await scene.member('a', { build: 'one' });
    const b = await scene.member('b', { build: 'two' });
    a.membership.offer(b.address);
    await until('both know', () => a.told.rejected.length > 0 && b.told.rejected.length > 0);
    for (let turn = 0; turn < 10; turn++) {
      a.membership.offer(b.address);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(scene.dials).toEqual(['a>b']);
    expect(a.told.rejected).toMatchObject([{ endpoint: '10.0.0.2:60000', code: 'DROID_VERSION_MISMATCH' }]);
    expect(b.told.rejected).toMatchObject([{ endpoint: '10.0.0.1', code: 'DROID_VERSION_MISMATCH' }]);
    expect(a.told.rejected[0]?.reason).toMatch(/build two.*this device.*build one.*same version on both/);
    expect([a.comings, b.comings]).toEqual([[], []]);
  });

  it('with another token', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const other = scene.network.transport(['10.0.0.50'], 'other token');
    await other.listen({ host: '10.0.0.50', port: 60_000, kinds: ['control'], onStream: () => {} });
    a.membership.offer({ host: '10.0.0.50', port: 60_000 });
    await until('it says so', () => a.told.rejected.length > 0);
    expect(a.told.rejected).toMatchObject([{ endpoint: '10.0.0.50:60000', code: 'DROID_TOKEN_REJECTED' }]);
  });

  it('when two have the same id, which all are told', async () => {
    const scene = new Scene();
    const options = { heartbeatMs: 100, lostAfterMs: 400 };
    const a = await scene.member('a', options);
    const older = await scene.member('b', { ...options, self: { incarnation: 1000 } });
    older.membership.offer(a.address);
    await all('ab', a, older);
    const newer = await scene.member('b', { ...options, self: { incarnation: 2000 }, host: '10.0.0.99' });
    newer.membership.offer(a.address);
    await until('the older one and the member in the middle are told', () => {
      return older.told.rejected.length > 0 && a.told.rejected.length > 0;
    });
    expect(older.told.rejected[0]).toMatchObject({ code: 'DROID_MEMBER_REFUSED' });
    expect(older.told.rejected[0]?.reason).toContain(`two devices have the id ${idOf('b')}`);
    expect(a.membership.peers().find(({ name }) => name === 'b')?.incarnation).toBe(2000);
    await all('ab', a, newer);
  });

  it('when it dials its own clone, at once', async () => {
    const scene = new Scene();
    const first = await scene.member('b', { self: { incarnation: 1000 } });
    const second = await scene.member('b', { self: { incarnation: 2000 }, host: '10.0.0.99' });
    first.membership.offer(second.address);
    await until('it is told', () => first.told.rejected.length > 0);
    expect(first.told.rejected).toMatchObject([{ endpoint: '10.0.0.99:60000', code: 'DROID_MEMBER_REFUSED' }]);
  });

  describe('as a member', () => {
    /** Joins by hand as `evil`, by way of a socket that anything can be sent from. */
    async function intrude(
      scene: Scene,
      victim: Member,
      claim = 'evil',
    ): Promise<{ socket: Socket; heard: () => string }> {
      const transport = scene.network.transport(['10.0.0.66']);
      onTestFinished(() => transport.close());
      const preamble = peerIdToBytes(idOf(claim));
      const socket = socketOf(await transport.dial(victim.address, 'control', { preamble }));
      onTestFinished(() => void socket.destroy());
      socket.on('error', () => {});
      const frames: string[] = [];
      const decoder = new FrameDecoder();
      socket.on('data', (chunk) => decoder.push(chunk, (frame) => frames.push(frame.toString()) > 0));
      await until('it greets', () => frames.length > 0);
      socket.write(encodeFrame(JSON.stringify(hello('build', peerOf('evil', { port: 0 })))));
      return { socket, heard: () => frames.join('\n') };
    }

    it.each<[string, () => Buffer]>([
      ['random bytes', () => Buffer.concat([Buffer.from([0xff]), randomBytes(5000)])],
      ['an oversized frame', () => Buffer.from([0x7f, 0xff, 0xff, 0xff])],
      ['a malformed record', () => encodeFrame(JSON.stringify({ type: 'records', peers: [{ id: idOf('a') }] }))],
      ['a flood', () => Buffer.concat(Array(5000).fill(encodeFrame('{"type":"heartbeat","sequence":1}')))],
    ])('that sends %s', async (_, nonsense) => {
      const scene = new Scene();
      const a = await scene.member('a');
      const b = await scene.member('b');
      a.membership.offer(b.address);
      await all('ab', a, b);
      const { socket, heard } = await intrude(scene, a);
      await until('it is in', () => a.names().includes('evil'));
      socket.write(nonsense());
      await until('it is out', () => a.comings.includes('lost evil') && !b.names().includes('evil'));
      await until('it was told why', () => heard().includes('"code":"protocol"'));
      expect(a.told.rejected).toMatchObject([{ endpoint: '10.0.0.66', code: 'DROID_MEMBER_REFUSED' }]);
      // The same process is not let in again for now.
      const again = await intrude(scene, a);
      await until('it is refused', () => again.heard().includes('turned away'));
      expect(a.names()).toEqual(['a', 'b']);
      expect(b.comings.filter((line) => line.includes(' a'))).toEqual(['joined a']);
    });

    it('whose hello has another id than its stream', async () => {
      const scene = new Scene();
      const a = await scene.member('a');
      const { heard } = await intrude(scene, a, 'other');
      await until('it is refused', () => heard().includes('another id than its stream'));
      expect(a.names()).toEqual(['a']);
    });

    it('and cannot speak for this device, nor for those it hears itself', async () => {
      const scene = new Scene();
      const a = await scene.member('a');
      const b = await scene.member('b');
      a.membership.offer(b.address);
      await all('ab', a, b);
      const { socket } = await intrude(scene, a);
      const lies = ['a', 'b', 'ghost'].map((name) =>
        peerOf(name, { revision: 1e9, memory: 666, neighbours: [idOf('evil')] }),
      );
      socket.write(encodeFrame(JSON.stringify({ type: 'records', peers: lies })));
      socket.write(
        encodeFrame(JSON.stringify({ type: 'records', peers: [peerOf('evil', { revision: 2, name: 'told' })] })),
      );
      await until('it was heard', () => a.names().includes('told'));
      // Nobody says that it is connected with the ghost.
      expect(a.names()).toEqual(['a', 'b', 'told']);
      expect(a.membership.peers().filter(({ memory }) => memory === 666)).toEqual([]);
    });

    it('and neither cuts the connection of others nor gives them a time that never comes', async () => {
      const scene = new Scene();
      const a = await scene.member('a');
      const b = await scene.member('b');
      a.membership.offer(b.address);
      await all('ab', a, b);
      const own = a.membership.self();
      const { socket } = await intrude(scene, a);
      await until('it is in', () => a.names().includes('evil') && b.names().includes('evil'));
      const { incarnation } = b.membership.self();
      const evil = peerOf('evil', { revision: 2, memory: 66, neighbours: [idOf('b')] });
      const newer = [incarnation + 1000, 8.64e15].map((time) => peerOf('b', { incarnation: time, memory: 666 }));
      for (const message of [
        { type: 'outdated', incarnation: 8.64e15 },
        { type: 'outdated', incarnation: Date.now() + 11 * 366 * 24 * 3_600_000 },
        { type: 'records', peers: [...newer, evil] },
      ]) {
        socket.write(encodeFrame(JSON.stringify(message)));
      }
      await until('it was heard', () => a.membership.peers().some(({ memory }) => memory === 66));
      a.membership.update({ memory: 123 });
      b.membership.update({ memory: 124 });
      await until('both go on', () =>
        [a, b].every(
          ({ membership }) => membership.peers().filter(({ memory }) => memory === 123 || memory === 124).length === 2,
        ),
      );
      expect(a.membership.self().incarnation).toBe(own.incarnation);
      expect(b.membership.self().incarnation).toBe(incarnation);
      expect(a.comings).toEqual(['joined b', 'joined evil']);
      expect(b.comings).toEqual(['joined a', 'joined evil']);
    });
  });
});

describe('what others say of a newer process', () => {
  const told = ({ membership }: Member): number | undefined =>
    membership.peers().find(({ name }) => name === 'b')?.incarnation;

  it('waits while the older one is connected, and counts when that has gone', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const c = await scene.member('c');
    const first = await scene.member('b', { self: { incarnation: 1000 } });
    first.membership.offer(a.address);
    await all('ab', a, first);
    scene.block('a>10.0.0.99', '10.0.0.99>a');
    const second = await scene.member('b', { self: { incarnation: 2000 }, host: '10.0.0.99' });
    second.membership.offer(c.address);
    await all('bc', c, second);
    c.membership.offer(a.address);
    await all('abc', a, c);
    c.membership.update({ memory: 77 });
    await until('a knows all of c', () => a.membership.peers().some(({ memory }) => memory === 77));
    expect(told(a)).toBe(1000);
    expect(a.membership.roundTripMs(idOf('b'))).not.toBeNull();
    await first.close();
    await until('a knows the new one by way of c', () => told(a) === 2000);
  });

  it('is not believed of a time that never comes', async () => {
    const scene = new Scene();
    const [a, b, c] = [await scene.member('a'), await scene.member('b'), await scene.member('c')];
    scene.block('a>b', 'b>a');
    a.membership.offer(c.address);
    b.membership.offer(c.address);
    await all('abc', a, b, c);
    const before = told(a);
    const transport = scene.network.transport(['10.0.0.66']);
    onTestFinished(() => transport.close());
    const stream = await transport.dial(a.address, 'control', { preamble: peerIdToBytes(idOf('evil')) });
    const socket = socketOf(stream).on('error', () => {});
    onTestFinished(() => void socket.destroy());
    socket.resume();
    const evil = peerOf('evil', { port: 0, neighbours: [idOf('b')] });
    socket.write(encodeFrame(JSON.stringify(hello('build', evil))));
    await until('it is in', () => a.names().includes('evil'));
    const peers = [peerOf('b', { incarnation: 8.64e15 }), { ...evil, revision: 2, memory: 66 }];
    socket.write(encodeFrame(JSON.stringify({ type: 'records', peers })));
    await until('it was heard', () => a.membership.peers().some(({ memory }) => memory === 66));
    expect(told(a)).toBe(before);
  });
});

describe('a stream', () => {
  const echo = (member: Member): void => {
    member.membership.on('stream', (opened) => {
      member.told.stream.push(opened);
      const socket = socketOf(opened.stream);
      socket.pipe(socket);
      socket.on('error', () => {});
    });
  };

  async function exchange(member: Member, to: string, kind: 'rpc' | 'http'): Promise<void> {
    const socket = socketOf(await member.membership.openStream(idOf(to), kind));
    const bytes = randomBytes(300_000);
    const back = readAll(socket);
    socket.end(bytes);
    expect((await back).equals(bytes)).toBe(true);
    socket.destroy();
  }

  it('is dialled where the member can be', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    echo(b);
    a.membership.offer(b.address);
    await all('ab', a, b);
    await exchange(a, 'b', 'rpc');
    await exchange(a, 'b', 'http');
    expect(b.told.stream).toMatchObject([
      { kind: 'rpc', peer: idOf('a'), stream: { kind: 'rpc' } },
      { kind: 'http', peer: idOf('a') },
    ]);
    expect(scene.dials).toEqual(['a>b', 'a>b', 'a>b']);
  });

  it('comes the other way round where only the member can dial', async () => {
    const scene = new Scene();
    scene.closed.set('a>b', 'drop');
    const a = await scene.member('a');
    const b = await scene.member('b');
    echo(b);
    b.membership.offer(a.address);
    await all('ab', a, b);
    await exchange(a, 'b', 'rpc');
    expect(b.told.stream).toMatchObject([{ kind: 'rpc', peer: idOf('a'), stream: { kind: 'rpc' } }]);
    await exchange(a, 'b', 'http');
  });

  it('is dialled when the member cannot dial back, though it came by itself', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    echo(b);
    b.membership.offer(a.address);
    await all('ab', a, b);
    scene.block('b>a');
    await exchange(a, 'b', 'rpc');
  });

  it('is closed when nobody listens, and fails soon when there is no way', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    a.membership.offer(b.address);
    await all('ab', a, b);
    const socket = socketOf(await a.membership.openStream(idOf('b'), 'rpc'));
    expect(await readAll(socket)).toHaveLength(0);
    socket.destroy();
    scene.block('a>b', 'b>a');
    await expect(a.membership.openStream(idOf('b'), 'rpc')).rejects.toMatchObject({ code: 'DROID_ENDPOINT_REFUSED' });
    await expect(a.membership.openStream(idOf('z'), 'rpc')).rejects.toMatchObject({
      code: 'DROID_ENDPOINT_UNREACHABLE',
    });
  });

  it('of who is no member has no id', async () => {
    const scene = new Scene();
    const b = await scene.member('b');
    echo(b);
    const stranger = scene.network.transport(['10.0.0.77']);
    const stream = await stranger.dial(b.address, 'rpc', { preamble: Buffer.alloc(16) });
    await until('it is there', () => b.told.stream.length > 0);
    expect(b.told.stream[0]?.peer).toBe(NO_PEER);
    socketOf(stream).destroy();
    await stranger.close();
  });
});

describe('closing', () => {
  it('leaves no descriptor, and may be asked for twice', async () => {
    const scene = new Scene();
    const before = openDescriptors();
    for (let round = 0; round < 5; round++) {
      const a = await scene.member('a', { self: { incarnation: 1000 + round } });
      const b = await scene.member('b', { self: { incarnation: 1000 + round } });
      a.membership.offer(b.address);
      b.membership.offer(a.address);
      await all('ab', a, b);
      const opening = a.membership.openStream(idOf('b'), 'rpc').catch(() => undefined);
      const stream = await a.membership.openStream(idOf('b'), 'rpc');
      socketOf(stream).destroy();
      a.membership.offer({ host: '10.0.0.200', port: 1 });
      await Promise.all([a.membership.close(), a.membership.close(), b.membership.close()]);
      const late = await opening;
      if (late) socketOf(late).destroy();
      await Promise.all([a.close(), b.close()]);
    }
    await until(`${openDescriptors()} descriptors are ${before} again`, () => openDescriptors() <= before);
  });

  it('ends what waits, and takes nothing any more', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    scene.closed.set('a>b', 'drop');
    b.membership.offer(a.address);
    await all('ab', a, b);
    scene.closed.set('b>a', 'drop');
    const opening = a.membership.openStream(idOf('b'), 'rpc').catch((error: unknown) => error);
    await new Promise((resolve) => setTimeout(resolve, 20));
    const started = performance.now();
    await a.membership.close();
    expect(performance.now() - started).toBeLessThan(1000);
    expect(await opening).toMatchObject({ code: 'DROID_CLOSED' });
    await expect(a.membership.openStream(idOf('b'), 'rpc')).rejects.toMatchObject({ code: 'DROID_CLOSED' });
    scene.dials.length = 0;
    a.membership.offer(b.address);
    a.membership.update({ memory: 1 });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(scene.dials.filter((way) => way.startsWith('a'))).toEqual([]);
    expect(a.comings).toEqual(['joined b']);
  });
});

describe('a listener', () => {
  it('that throws or rejects harms nobody', async () => {
    const scene = new Scene();
    const a = await scene.member('a');
    const b = await scene.member('b');
    for (const event of ['change', 'joined', 'lost'] as const) {
      a.membership.on(event, () => {
        throw new Error(`in ${event}`);
      });
      a.membership.on(event, async () => {
        throw new Error(`later in ${event}`);
      });
    }
    const calls: string[] = [];
    const last = (): unknown => calls.push('joined');
    a.membership.on('joined', last);
    a.membership.offer(b.address);
    await all('ab', a, b);
    await until('the last one is called', () => calls.length > 0);
    a.membership.off('joined', last);
    await b.close();
    await all('a', a);
  });
});
