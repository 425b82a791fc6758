import { describe, expect, it } from 'vitest';
import { createPeerId } from '../../lib/cluster/control/peer-id.js';
import { checkClusterOptions } from '../../lib/cluster/options.js';

const token = 'abcdefghijklmnopqrstuv';

describe('options of Cluster.join()', () => {
  it('has defaults for everything but the token', () => {
    const options = checkClusterOptions({ token });
    expect(options).toMatchObject({
      host: '0.0.0.0',
      port: 60_000,
      peers: [],
      pin: null,
      mdns: true,
      scan: 'auto',
      tailscale: true,
      objective: 'share',
      activations: 'f32',
      requestWaitMs: 60_000,
    });
    expect(options.name).not.toBe('');
    expect(options.id).toMatch(/^[A-Za-z0-9_-]{22}$/);
  });

  it('makes ids that it takes, each another one', () => {
    const ids = new Set(Array.from({ length: 50 }, createPeerId));
    expect(ids.size).toBe(50);
    for (const id of ids) expect(checkClusterOptions({ token, id }).id).toBe(id);
  });

  it('takes a list of peers apart', () => {
    expect(checkClusterOptions({ token, peers: ['10.0.0.7:60000', '[fd00::1]:7'] }).peers).toEqual([
      { host: '10.0.0.7', port: 60_000 },
      { host: 'fd00::1', port: 7 },
    ]);
  });

  it.each([
    ['no token', {}, /token/],
    ['a short token', { token: 'short' }, /22/],
    ['a name with a control character', { token, name: 'a\u001b[2J' }, /printable/],
    ['a name that is too long', { token, name: 'x'.repeat(65) }, /printable/],
    ['an unknown option', { token, modle: 'x' }, /no option "modle"/],
    ['an unknown option of a group', { token, listen: { prt: 1 } }, /listen has no option "prt"/],
    ['a port that is none', { token, listen: { port: 65_536 } }, /listen\.port/],
    ['a scan that is none', { token, discovery: { scan: 'yes' } }, /discovery\.scan/],
    ['a peer without a port', { token, peers: ['10.0.0.7'] }, /port is missing/],
    ['more peers than can be', { token, peers: Array(65).fill('10.0.0.7:1') }, /64 are the most/],
    ['a master without a model', { token, role: 'master' }, /no model/],
    ['an objective that is none', { token, objective: 'fast' }, /objective/],
    ['activations of another type', { token, activations: 'q8_0' }, /activations/],
    ['an id that is none', { token, id: '../../etc/passwd' }, /id is/],
    ['room for a cache that is not there', { token, cacheLimit: 5 }, /no cacheDir/],
    ['half a byte', { token, memoryLimit: 0.5 }, /memoryLimit/],
  ])('refuses %s', (_, options, message) => {
    expect(() => checkClusterOptions(options as never)).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });

  it('never repeats a bad token', () => {
    let message = '';
    try {
      checkClusterOptions({ token: 'secret but wrong !' });
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).not.toBe('');
    expect(message).not.toContain('secret');
  });
});
