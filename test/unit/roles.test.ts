import { describe, expect, it } from 'vitest';
import { assignRoles } from '../../lib/cluster/roles.js';
import type { DialResult, Link, Peer } from '../../lib/cluster/types.js';

const GIB = 1024 ** 3;
const file = { name: 'qwen', bytes: 5e8, layers: 24 };

function peer(id: string, more: Partial<Peer> = {}): Peer {
  return {
    id,
    name: `phone${id.toUpperCase()}`,
    incarnation: 1,
    revision: 1,
    version: '0.1.0',
    port: 60000,
    addresses: [`10.0.0.${id.charCodeAt(0)}`],
    pin: null,
    model: null,
    memory: 4 * GIB,
    compute: null,
    battery: null,
    graphsComputed: 0,
    neighbours: [],
    links: [],
    lead: null,
    ...more,
  };
}

function link(from: string, to: string, dial: DialResult): Link {
  const endpoint = `10.0.0.${to.charCodeAt(0)}:60000`;
  return { from, to, dial, endpoint, roundTripMs: null, bytesPerSecond: null };
}

/** `'ab open'`, `'ba timeout'`, … */
function links(...lines: string[]): Link[] {
  return lines.map((line) => link(line[0] ?? '', line[1] ?? '', line.slice(3) as DialResult));
}

const both = (...pairs: string[]) => pairs.flatMap((pair) => links(`${pair} open`, `${pair[1]}${pair[0]} open`));

/** `a` hosts the hotspot and drops what comes in; `b` has joined it. */
const scene = links('ab open', 'ba timeout');

describe('the guide’s scene: A hosts the hotspot, B joined it', () => {
  const [withModel, without] = [(id: string) => peer(id, { model: file }), (id: string) => peer(id)];

  it.each([null, 'a', 'b'])('A leads when it has the model, whoever led before (%s)', (incumbent) => {
    const expected = { master: 'a', workers: [{ id: 'b', via: 'direct' }], leftOut: [] };
    expect(assignRoles({ peers: [withModel('a'), without('b')], links: scene, incumbent })).toMatchObject(expected);
    const roles = assignRoles({ peers: [withModel('a'), withModel('b')], links: scene, incumbent });
    expect(roles).toMatchObject(expected);
    expect(roles.reasons.join('\n')).toContain('it can dial out, but nobody can connect to it');
  });

  it.each([null, 'b'])('B leads over the reverse stream when only it has the model (%s)', (incumbent) => {
    const roles = assignRoles({ peers: [without('a'), withModel('b')], links: scene, incumbent });
    expect(roles).toMatchObject({ master: 'b', workers: [{ id: 'a', via: 'reverse' }], leftOut: [] });
    expect(roles.reasons.join('\n')).toContain('phoneB got no answer from phoneA at 10.0.0.97:60000');
  });

  it('B goes on leading until it is known that nobody can connect to A', () => {
    const peers = [withModel('a'), withModel('b')];
    expect(assignRoles({ peers, links: links('ab open', 'ba unknown'), incumbent: 'b' }).master).toBe('b');
    expect(assignRoles({ peers, links: scene, incumbent: 'b' }).master).toBe('a');
  });
});

describe('a pin', () => {
  it('makes a master, even one that accepts connections and reaches less', () => {
    const peers = [peer('a', { model: file }), peer('b', { model: file, pin: 'master' }), peer('c')];
    const roles = assignRoles({ peers, links: [...scene, ...both('ac')], incumbent: 'a' });
    expect(roles).toMatchObject({ master: 'b', workers: [{ id: 'a', via: 'reverse' }] });
    expect(roles.leftOut.map(({ id }) => id)).toEqual(['c']);
    expect(roles.reasons).toContain('phoneB is pinned as master.');
  });

  it('of two as master goes by the rules, and says so', () => {
    const peers = [
      peer('a', { model: file, pin: 'master' }),
      peer('b', { model: file, pin: 'master', memory: 8 * GIB }),
    ];
    const roles = assignRoles({ peers, links: both('ab'), incumbent: null });
    expect(roles.master).toBe('b');
    expect(roles.reasons[0]).toBe('phoneA and phoneB are pinned as master; there can be one, and the rules choose.');
  });

  it('as master without a model is said to be without effect', () => {
    const peers = [peer('a', { pin: 'master' }), peer('b', { model: file })];
    const roles = assignRoles({ peers, links: both('ab'), incumbent: null });
    expect(roles.master).toBe('b');
    expect(roles.reasons[0]).toBe('phoneA is pinned as master but has no model: start it with -m model.gguf.');
  });

  it('as worker keeps the only model from being used, and says so', () => {
    const peers = [peer('a', { model: file, pin: 'worker' }), peer('b')];
    const roles = assignRoles({ peers, links: both('ab'), incumbent: null });
    expect(roles.master).toBeNull();
    expect(roles.leftOut).toHaveLength(2);
    expect(roles.reasons[0]).toContain('--role worker');
  });
});

describe('without a pin', () => {
  it('nobody leads without a model', () => {
    const roles = assignRoles({ peers: [peer('a'), peer('b')], links: both('ab'), incumbent: null });
    expect(roles.master).toBeNull();
    expect(roles.reasons).toEqual(['No device has a model: start one of them with -m model.gguf.']);
  });

  it('whoever reaches more memory leads', () => {
    const peers = [peer('a', { model: file, memory: 8 * GIB }), peer('b', { model: file }), peer('c')];
    const roles = assignRoles({
      peers,
      links: [...both('ab', 'bc'), ...links('ac timeout', 'ca refused')],
      incumbent: null,
    });
    expect(roles).toMatchObject({ master: 'b', workers: [{ id: 'a' }, { id: 'c' }], leftOut: [] });
  });

  it('a phone that nobody reaches and that reaches nobody is left out, with what was tried', () => {
    const peers = [peer('a', { model: file }), peer('b'), peer('c')];
    const tried = links('ac timeout', 'ca unreachable', 'bc timeout', 'cb timeout');
    const roles = assignRoles({ peers, links: [...scene, ...tried], incumbent: null });
    expect(roles).toMatchObject({ master: 'a', workers: [{ id: 'b', via: 'direct' }] });
    expect(roles.leftOut).toEqual([
      {
        id: 'c',
        reason:
          'phoneA got no answer from phoneC at 10.0.0.99:60000, and phoneC has no route to phoneA at 10.0.0.97:60000. ' +
          'Android drops incoming connections on many paths: let one phone join the hotspot of the other, or use Tailscale.',
      },
    ]);
  });

  it('a phone that was not probed yet waits, and is not called unreachable', () => {
    const peers = [peer('a', { model: file, neighbours: ['c'] }), peer('b'), peer('c', { neighbours: ['a'] })];
    const roles = assignRoles({ peers, links: links('ab unknown'), incumbent: null });
    expect(roles.leftOut.map(({ reason }) => reason)).toEqual([
      'Not probed yet: phoneA has not tried phoneB at 10.0.0.98:60000 yet, and phoneB has not tried phoneA yet.',
      'It is connected with phoneA, but which of the two can dial is not known yet: ' +
        'phoneA has not tried phoneC yet, and phoneC has not tried phoneA yet.',
    ]);
  });

  it('a phone that accepts nothing leads as soon as that is known: it has no port', () => {
    const peers = [peer('a', { model: file, port: 0 }), peer('b', { model: file, memory: 9 * GIB })];
    expect(assignRoles({ peers, links: links('ab open'), incumbent: null }).master).toBe('a');
  });

  it.each([
    ['model', { model: { ...file, bytes: 6e8 } }],
    ['memory', { memory: 5 * GIB }],
    ['speed', { compute: { threads: 4, weightBytesPerSecond: 1e9, flopsPerSecond: 1e9 } }],
  ] as const)('the larger %s breaks a tie', (_, more) => {
    const peers = [peer('a', { model: file }), peer('b', { model: file, ...more })];
    expect(assignRoles({ peers, links: both('ab'), incumbent: null }).master).toBe('b');
  });

  it('the one that charges breaks a tie, then the id', () => {
    const battery = (charging: boolean) => ({ percent: 50, charging, temperatureCelsius: null });
    const at = (a: boolean, b: boolean) =>
      assignRoles({
        peers: [peer('a', { model: file, battery: battery(a) }), peer('b', { model: file, battery: battery(b) })],
        links: both('ab'),
        incumbent: null,
      }).master;
    expect([at(false, true), at(true, false), at(true, true)]).toEqual(['b', 'a', 'a']);
  });
});

describe('the master of the moment', () => {
  const peers = [peer('a', { model: file }), peer('b', { model: file, memory: 6 * GIB }), peer('c')];

  it('stays when a better one joins', () => {
    const known = both('ab', 'ac', 'bc');
    expect(assignRoles({ peers, links: known, incumbent: null }).master).toBe('b');
    const roles = assignRoles({ peers, links: known, incumbent: 'a' });
    expect(roles.master).toBe('a');
    expect(roles.reasons).toContain('phoneA goes on leading.');
  });

  it('stays while its links to a new phone are not probed yet', () => {
    expect(assignRoles({ peers, links: both('ab', 'bc'), incumbent: 'a' }).master).toBe('a');
    const failed = [...both('ab', 'bc'), ...links('ac timeout', 'ca timeout')];
    expect(assignRoles({ peers, links: failed, incumbent: 'a' }).master).toBe('b');
  });

  it('is forgotten when it is gone or has no model any more', () => {
    expect(assignRoles({ peers, links: both('ab', 'ac', 'bc'), incumbent: 'z' }).master).toBe('b');
    expect(assignRoles({ peers, links: both('ab', 'ac', 'bc'), incumbent: 'c' }).master).toBe('b');
  });
});
