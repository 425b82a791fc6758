import { afterEach, describe, expect, it } from 'vitest';
import { LinkProber } from '../../lib/cluster/links.js';
import type { Link, Peer } from '../../lib/cluster/types.js';
import { createId, peerRecord, twoIds, until } from '../support/cluster-peers.js';
import { FakeNetwork, type FakeTransport } from '../support/fake-transport.js';

const PORT = 60000;

interface Device {
  readonly id: string;
  readonly transport: FakeTransport;
  readonly prober: LinkProber;
  record: Peer;
  busy: boolean;
  to(other: { id: string }): Link | undefined;
}

const open: { close(): void | Promise<void> }[] = [];
afterEach(async () => {
  for (const each of open.splice(0)) await each.close();
});

/** Devices that know each other and probe. */
async function devices(
  network: FakeNetwork,
  ...wanted: { id: string; addresses: string[]; token?: string; measureBytes?: number }[]
): Promise<Device[]> {
  const peers: Device[] = [];
  for (const { id, addresses, token, measureBytes } of wanted) {
    const transport = network.transport(addresses, token);
    await transport.listen({
      host: '0.0.0.0',
      port: PORT,
      kinds: ['probe'],
      preambleBytes: { probe: 16 },
      onStream: (stream) => device.prober.serve(stream),
    });
    const device: Device = {
      id,
      transport,
      record: peerRecord({ id, addresses, port: PORT }),
      busy: false,
      prober: LinkProber.start({
        transport,
        id,
        peers: () => peers.map(({ record }) => record),
        measureBytes,
        busy: () => device.busy,
      }),
      to: (other) => device.prober.links().find((link) => link.to === other.id),
    };
    peers.push(device);
    open.push(device.prober, transport);
  }
  return peers;
}

const measured = (link: Link | undefined): boolean => link?.roundTripMs != null && link.bytesPerSecond != null;

describe('LinkProber', () => {
  it('measures both directions of a pair that can dial each other', async () => {
    const [a = '', b = ''] = twoIds();
    const network = new FakeNetwork();
    const started = performance.now();
    const [first, second] = (await devices(
      network,
      { id: a, addresses: ['10.0.0.1'] },
      { id: b, addresses: ['10.0.0.2'] },
    )) as [Device, Device];
    await until('both are measured', () => measured(first.to(second)) && measured(second.to(first)));
    expect(performance.now() - started).toBeLessThan(3000);
    expect(first.to(second)).toMatchObject({ from: a, to: b, dial: 'open', endpoint: '10.0.0.2:60000' });
    expect(second.to(first)).toMatchObject({ from: b, to: a, dial: 'open', endpoint: '10.0.0.1:60000' });
    // Memory is fast, also on a busy machine, yet no link is endless.
    expect(first.to(second)?.bytesPerSecond).toBeGreaterThan(5e6);
    expect(first.to(second)?.bytesPerSecond).toBeLessThan(10e9);
    await until(
      'the streams are closed',
      () => first.transport.stats().open === 0 && second.transport.stats().open === 0,
    );
  });

  it.each([
    ['smaller', 0],
    ['larger', 1],
  ])('gives a direction that only the other one can dial its measurements, %s id dials', async (_name, dialler) => {
    const ids = twoIds();
    const network = new FakeNetwork({ latencyMs: 1 });
    network.fate = (from) => (from === `10.0.0.${dialler + 1}` ? 'open' : 'drop');
    const both = await devices(
      network,
      { id: ids[0], addresses: ['10.0.0.1'] },
      { id: ids[1], addresses: ['10.0.0.2'] },
    );
    const host = both[dialler] as Device;
    const guest = both[1 - dialler] as Device;
    await until('the dialler has measured', () => measured(host.to(guest)));
    await until('the other one has failed', () => guest.to(host)?.dial === 'timeout');
    expect(host.to(guest)).toMatchObject({ dial: 'open' });
    expect(guest.to(host)).toMatchObject({ dial: 'timeout', endpoint: `10.0.0.${dialler + 1}:60000` });
    expect(measured(guest.to(host))).toBe(true);
  });

  it('finds about 6.25 MB/s and 10 ms on an emulated 50 Mbit/s link with 5 ms', async () => {
    const [a = '', b = ''] = twoIds();
    const network = new FakeNetwork({ latencyMs: 5, bytesPerSecond: 6.25e6 });
    const [first, second] = (await devices(
      network,
      { id: a, addresses: ['10.0.0.1'] },
      { id: b, addresses: ['10.0.0.2'] },
    )) as [Device, Device];
    await until('both are measured', () => measured(first.to(second)) && measured(second.to(first)));
    for (const link of [first.to(second), second.to(first)]) {
      // The link is emulated by timers of a machine that may be busy.
      expect(link?.bytesPerSecond).toBeGreaterThan(3e6);
      expect(link?.bytesPerSecond).toBeLessThan(9.4e6);
      expect(link?.roundTripMs).toBeGreaterThan(9.5);
      expect(link?.roundTripMs).toBeLessThan(40);
    }
  });

  it('moves few bytes over a slow link', async () => {
    const [a = '', b = ''] = twoIds();
    const network = new FakeNetwork({ latencyMs: 20, bytesPerSecond: 100e3 });
    const [first, second] = (await devices(
      network,
      { id: a, addresses: ['10.0.0.1'] },
      { id: b, addresses: ['10.0.0.2'] },
    )) as [Device, Device];
    await until('it is measured', () => measured(first.to(second)) && measured(second.to(first)));
    expect(first.to(second)?.bytesPerSecond).toBeGreaterThan(70e3);
    expect(first.to(second)?.bytesPerSecond).toBeLessThan(150e3);
  });

  it('tells refused, dropped and unreachable apart', async () => {
    const network = new FakeNetwork();
    const fates = { '10.0.0.2': 'refuse', '10.0.0.3': 'drop', '10.0.0.4': 'unreachable' } as const;
    network.fate = (from, { host }) =>
      from === '10.0.0.1' && host in fates ? fates[host as keyof typeof fates] : 'open';
    const [first, ...others] = await devices(
      network,
      ...[1, 2, 3, 4].map((n) => ({ id: createId(), addresses: [`10.0.0.${n}`] })),
    );
    const dials = (): unknown[] => others.map((other) => first?.to(other)?.dial);
    await until('all have an answer', () => dials().every((dial) => dial !== undefined && dial !== 'unknown'));
    expect(dials()).toEqual(['refused', 'timeout', 'unreachable']);
  });

  it('takes the address that answers fastest and is the peer that was meant', async () => {
    const network = new FakeNetwork();
    const [me, other, third] = (await devices(
      network,
      { id: createId(), addresses: ['10.0.0.1'] },
      { id: createId(), addresses: ['10.0.0.2', '10.9.9.9'] },
      { id: createId(), addresses: ['10.0.0.3'] },
    )) as [Device, Device, Device];
    // Of another network that has the same addresses: one of a stranger, one of another member, one that drops, our own.
    const stranger = network.transport(['10.0.0.66'], 'another token');
    await stranger.listen({ host: '0.0.0.0', port: PORT, kinds: ['probe'], onStream: () => {} });
    network.fate = (_from, { host }) => (host === '10.9.9.9' ? 'drop' : 'open');
    other.record = {
      ...other.record,
      addresses: ['10.0.0.1', '10.0.0.3', '10.0.0.66', '10.9.9.9', 'fe80::1%wlan0', 'phone.local', '10.0.0.2'],
    };
    me.prober.check();
    await until('it is open', () => me.to(other)?.dial === 'open' && me.to(third)?.dial === 'open');
    expect(me.to(other)?.endpoint).toBe('10.0.0.2:60000');
    expect(me.to(third)?.endpoint).toBe('10.0.0.3:60000');
    expect(stranger.stats().rejected).toBeGreaterThan(0);
  });

  it('has no measure of a member that listens nowhere or is somebody else', async () => {
    const network = new FakeNetwork();
    const [me, other, third] = (await devices(
      network,
      { id: createId(), addresses: ['10.0.0.1'] },
      { id: createId(), addresses: ['10.0.0.2'] },
      { id: createId(), addresses: ['10.0.0.3'] },
    )) as [Device, Device, Device];
    other.record = { ...other.record, port: 0 };
    third.record = { ...third.record, addresses: ['10.0.0.2'] };
    await until('the wrong one was dialled', () => me.to(third)?.endpoint === '10.0.0.2:60000');
    expect(me.to(other)).toMatchObject({ dial: 'unknown', endpoint: null });
    // The third one dialled us, so there is something to know; but not from dialling it.
    expect(me.to(third)?.dial).toBe('unknown');
  });

  it('dials again when the addresses change or the peer was restarted, and forgets who left', async () => {
    const network = new FakeNetwork();
    const [me, other] = (await devices(
      network,
      { id: createId(), addresses: ['10.0.0.1'] },
      { id: createId(), addresses: ['10.0.0.2', '10.0.0.22'] },
    )) as [Device, Device];
    other.record = { ...other.record, addresses: ['10.0.0.2'] };
    await until('it is open', () => measured(me.to(other)));
    other.record = { ...other.record, addresses: ['10.0.0.22'], revision: 2 };
    await until('the new one is open', () => me.to(other)?.endpoint === '10.0.0.22:60000');
    expect(measured(me.to(other))).toBe(true);
    network.fate = () => 'refuse';
    other.record = { ...other.record, incarnation: 2 };
    await until('the restarted one refuses', () => me.to(other)?.dial === 'refused');
    expect(measured(me.to(other))).toBe(false);
    network.fate = () => 'open';
    me.prober.refresh();
    await until('it is open again', () => measured(me.to(other)));
    other.record = { ...other.record, id: createId() };
    await until('it is gone', () => me.to(other) === undefined);
  });

  it('transfers nothing while a generation runs, on either side', async () => {
    const network = new FakeNetwork();
    const ids = twoIds();
    const [me, other] = (await devices(
      network,
      { id: ids[0], addresses: ['10.0.0.1'] },
      { id: ids[1], addresses: ['10.0.0.2'] },
    )) as [Device, Device];
    me.busy = true;
    await until('both can dial', () => me.to(other)?.roundTripMs != null && other.to(me)?.roundTripMs != null);
    // The other one has asked at least twice by then.
    await until('it has asked', () => other.transport.stats().handshakes >= 4);
    expect(me.to(other)?.bytesPerSecond).toBeNull();
    expect(other.to(me)?.bytesPerSecond).toBeNull();
    me.busy = false;
    await until('it is measured', () => measured(me.to(other)) && measured(other.to(me)));
  });

  it('ends its streams when it is closed, and may be closed twice', async () => {
    const network = new FakeNetwork({ latencyMs: 30 });
    const [me, other] = (await devices(
      network,
      { id: createId(), addresses: ['10.0.0.1'] },
      { id: createId(), addresses: ['10.0.0.2'] },
    )) as [Device, Device];
    await until('a stream is open', () => me.transport.stats().open > 0);
    me.prober.close();
    me.prober.close();
    other.prober.close();
    await until('none is open', () => me.transport.stats().open === 0 && other.transport.stats().open === 0);
  });
});
