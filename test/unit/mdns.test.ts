import { createSocket, type Socket } from 'node:dgram';
import { decode, encode, type ResourceRecord } from 'dns-packet';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { Mdns } from '../../lib/cluster/discovery/mdns.js';
import {
  createInstanceName,
  encodeAnswer,
  encodeQuery,
  readMessage,
} from '../../lib/cluster/discovery/mdns-records.js';
import type { EndpointAddress } from '../../lib/probe.js';

const SERVICE = '_droid-llama._tcp.local';
const TAG = '0123abcd';
const SENDER = '192.168.43.7';
const own = createInstanceName();
const other = createInstanceName();

const read = (message: Buffer, sender = SENDER): ReturnType<typeof readMessage> =>
  readMessage(message, sender, TAG, own);
const answer = (change: Partial<Parameters<typeof encodeAnswer>[1]> = {}, name = other): Buffer =>
  encodeAnswer(name, { tag: TAG, port: 60000, addresses: ['192.168.43.7'], goodbye: false, ...change });
const members = (message: Buffer, sender = SENDER): readonly EndpointAddress[] => {
  const heard = read(message, sender);
  return heard.kind === 'answer' ? heard.members : [];
};

describe('what is said in multicast DNS', () => {
  it('holds a version, a tag, a port and addresses, and nothing else', () => {
    const packet = decode(answer());
    const records = [...(packet.answers ?? []), ...(packet.additionals ?? [])];
    expect(records.map(({ type }) => type)).toEqual(['PTR', 'SRV', 'TXT', 'A']);
    expect(records.find(({ type }) => type === 'TXT')?.data).toEqual([Buffer.from('v=1'), Buffer.from('tag=0123abcd')]);
    expect(records[0]).toMatchObject({ name: SERVICE, data: other.instance });
    expect(other.instance).toMatch(/^[0-9a-f]{12}\._droid-llama\._tcp\.local$/);
    expect(createInstanceName()).not.toEqual(createInstanceName());
  });

  it('is understood', () => {
    expect(read(encodeQuery())).toEqual({ kind: 'query' });
    expect(members(answer())).toEqual([{ host: SENDER, port: 60000 }]);
    expect(members(answer({ addresses: ['10.0.0.9', 'fd00::9'] }))).toEqual([
      { host: SENDER, port: 60000 },
      { host: '10.0.0.9', port: 60000 },
      { host: 'fd00::9', port: 60000 },
    ]);
  });
});

describe('readMessage', () => {
  it.each<[string, Buffer]>([
    ['another tag', answer({ tag: '0123abce' })],
    ['a goodbye', answer({ goodbye: true })],
    ['its own answer', answer({}, own)],
    ['another service', encode({ type: 'query', questions: [{ name: '_http._tcp.local', type: 'PTR' }] })],
    ['port 0', answer({ port: 0 })],
    ['nothing', Buffer.alloc(0)],
    ['no DNS', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['too much', Buffer.concat([answer(), Buffer.alloc(9000)])],
  ])('takes no candidate from %s', (_name, message) => {
    expect(read(message)).toEqual({ kind: 'other' });
  });

  it.each<[string, ResourceRecord]>([
    ['an address of the internet', { name: other.host, type: 'A', ttl: 1, data: '8.8.8.8' }],
    ['loopback', { name: other.host, type: 'A', ttl: 1, data: '127.0.0.1' }],
    ['a multicast group', { name: other.host, type: 'A', ttl: 1, data: '224.0.0.1' }],
    ['a link-local IPv6 address', { name: other.host, type: 'AAAA', ttl: 1, data: 'fe80::1' }],
    ['another host', { name: 'router.local', type: 'A', ttl: 1, data: '192.168.43.1' }],
    ['a name', { name: other.host, type: 'CNAME', ttl: 1, data: 'bank.example' }],
  ])('does not knock at %s', (_name, record) => {
    const packet = decode(answer({ addresses: [] }));
    expect(members(encode({ ...packet, additionals: [...(packet.additionals ?? []), record] }))).toEqual([
      { host: SENDER, port: 60000 },
    ]);
  });

  it('bounds what one datagram can make it do', () => {
    const instances = Array.from({ length: 30 }, () => createInstanceName());
    const parts = instances.map((name) => decode(answer({ addresses: [] }, name)));
    const addresses = Array.from({ length: 30 }, (_, i) => `10.0.0.${i}`);
    const many = encode({
      type: 'response',
      answers: parts.flatMap(({ answers = [] }) => answers),
      additionals: parts.flatMap(({ additionals = [] }) => additionals),
    });
    expect(members(many).length).toBeLessThanOrEqual(32);
    expect(members(answer({ addresses })).length).toBeLessThanOrEqual(8);
  });

  it('throws on nothing, and makes candidates of local addresses only', () => {
    const real = answer({ addresses: ['10.0.0.9'] });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        read(Buffer.from(bytes));
      }),
      { numRuns: 2000 },
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(real.length - 1), fc.nat(255)), { maxLength: 8 }), (changes) => {
        const bytes = Buffer.from(real);
        for (const [at, value] of changes) bytes[at] = value;
        for (const { host, port } of members(bytes)) {
          expect(port).toBeGreaterThan(0);
          expect(host).toMatch(/^(10\.|172\.|192\.168\.|169\.254\.|100\.|f[cd])/);
        }
      }),
      { numRuns: 5000 },
    );
  });
});

/** Loopback takes part in multicast when it is named; each test has a port of its own. */
describe.runIf(process.platform === 'linux')('Mdns', () => {
  const LOOPBACK = [{ address: '127.0.0.1', prefix: 8 }];
  const open: Mdns[] = [];
  const sockets: Socket[] = [];
  const port = 20_000 + (process.pid % 20_000);
  afterEach(async () => {
    for (const each of open.splice(0)) await each.close();
    for (const socket of sockets.splice(0)) socket.close();
  });

  function start(
    mdnsPort: number,
    tag: string,
    listen: number,
  ): { mdns: Mdns; heard: EndpointAddress[]; warnings: string[] } {
    const mdns = new Mdns({ tag, port: listen, mdnsPort });
    open.push(mdns);
    const heard: EndpointAddress[] = [];
    const warnings: string[] = [];
    mdns.on('member', (address) => heard.push(address));
    mdns.on('warning', (line) => warnings.push(line));
    mdns.update(LOOPBACK);
    return { mdns, heard, warnings };
  }

  it('finds the members of its cluster, whoever started first, and no others', async () => {
    const first = start(port, TAG, 60001);
    await expect.poll(() => first.warnings).toEqual([]);
    const second = start(port, TAG, 60002);
    const stranger = start(port, 'ffffffff', 60003);
    await expect.poll(() => first.heard, { timeout: 5000 }).toContainEqual({ host: '127.0.0.1', port: 60002 });
    await expect.poll(() => second.heard, { timeout: 5000 }).toContainEqual({ host: '127.0.0.1', port: 60001 });
    const ports = new Set([...first.heard, ...second.heard].map((address) => address.port));
    expect([...ports].sort()).toEqual([60001, 60002]);
    expect(stranger.heard).toEqual([]);
  });

  it('hears without announcing where it does not listen', async () => {
    const quiet = start(port + 1, TAG, 0);
    const loud = start(port + 1, TAG, 60002);
    await expect.poll(() => quiet.heard, { timeout: 5000 }).toContainEqual({ host: '127.0.0.1', port: 60002 });
    expect(loud.heard).toEqual([]);
  });

  it('does without when its port is taken, with one warning', async () => {
    const taken = createSocket('udp4');
    sockets.push(taken);
    await new Promise<void>((resolve) => taken.bind(port + 2, resolve));
    const { mdns, warnings } = start(port + 2, TAG, 60001);
    await expect.poll(() => warnings).toEqual([expect.stringMatching(/EADDRINUSE/)]);
    mdns.update(LOOPBACK);
    await mdns.close();
    expect(warnings).toHaveLength(1);
  });

  it('lives through a flood and an address that is not its own', async () => {
    const one = start(port + 3, TAG, 60001);
    one.mdns.update([...LOOPBACK, { address: '203.0.113.99', prefix: 24 }]);
    const flood = createSocket('udp4');
    sockets.push(flood);
    for (let i = 0; i < 2000; i++) flood.send(Buffer.alloc(i % 700, i), port + 3, '127.0.0.1');
    const two = start(port + 3, TAG, 60002);
    await expect.poll(() => two.heard, { timeout: 8000 }).toContainEqual({ host: '127.0.0.1', port: 60001 });
    await one.mdns.close();
    await one.mdns.close();
    one.mdns.update(LOOPBACK);
  });
});
