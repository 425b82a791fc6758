import { describe, expect, it } from 'vitest';
import { checkLinkedOptions, checkOptions, type DistributedContextOptions } from '../../lib/context-options.js';
import { formatEndpoint, isLoopbackHost, parseEndpoint } from '../../lib/endpoint.js';
import { checkSecurity } from '../../lib/security.js';

const token = 'AbCdEfGhIjKlMnOpQrStUv';
const insecure = expect.objectContaining({
  code: 'DROID_INSECURE',
  message: expect.stringMatching(/`token`.*`--token`.*`insecure: true`.*`--insecure`/),
});

describe('isLoopbackHost', () => {
  it.each(['127.0.0.1', '127.255.0.3', '::1', '::ffff:127.0.0.1', 'localhost', 'LocalHost'])('%s is', (host) => {
    expect(isLoopbackHost(host)).toBe(true);
  });

  it.each([
    '127.0.0.1%.evil.com',
    '0.0.0.0',
    '::',
    '10.0.0.1',
    '::ffff:10.0.0.1',
    'fe80::1%wlan0',
    'phone.local',
    '127.example.com',
    '127.1',
    '',
  ])('%s is not', (host) => {
    expect(isLoopbackHost(host)).toBe(false);
  });
});

it.each(['10.0.0.1:1', '[::1]:2', '[fe80::1%wlan0]:3', 'phone:4'])('formatEndpoint gives %s back', (endpoint) => {
  expect(formatEndpoint(parseEndpoint(endpoint))).toBe(endpoint);
});

describe('checkSecurity', () => {
  it('leaves loopback alone, and asks for a word about anything else', () => {
    expect(checkSecurity({}, [])).toBeUndefined();
    expect(checkSecurity({}, ['127.0.0.1', '::1'])).toBeUndefined();
    expect(() => checkSecurity({}, ['127.0.0.1', '10.0.0.1'])).toThrow(insecure);
    expect(() => checkSecurity({ insecure: false }, ['0.0.0.0'])).toThrow(insecure);
    expect(checkSecurity({ insecure: true }, ['0.0.0.0'])).toBeUndefined();
    expect(checkSecurity({ token }, ['0.0.0.0'])).toBe(token);
    expect(checkSecurity({ token, insecure: false }, ['127.0.0.1'])).toBe(token);
  });

  it.each([
    [{ token, insecure: true }, /token and insecure are both given/],
    [{ insecure: 'yes' }, /insecure is "yes"/],
    [{ token: 5 }, /token/],
    [{ token: 'short' }, /token/],
    [{ token: null }, /token/],
  ])('refuses %j', (options, message) => {
    expect(() => checkSecurity(options as object, ['127.0.0.1'])).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });
});

describe('a context', () => {
  const check = (options: object) => checkOptions({ model: 'm', ...options } as DistributedContextOptions, 15);

  it('holds every worker to the rule', () => {
    expect(check({ rpc: ['127.0.0.1:1', '[::1]:2', 'localhost:3'] }).token).toBeUndefined();
    expect(() => check({ rpc: ['127.0.0.1:1', 'phone:2'] })).toThrow(insecure);
    expect(check({ rpc: ['127.0.0.1:1', 'phone:2'], insecure: true })).toMatchObject({
      rpc: ['127.0.0.1:1', 'phone:2'],
    });
    expect(check({ rpc: ['phone:2'], token }).token).toBe(token);
    expect(check({ token }).token).toBe(token);
  });

  it('has no such options over links, and as many workers as it is given', () => {
    const linked = checkLinkedOptions({ model: 'm', tensorSplit: [1, 2] }, 1, 15);
    expect(linked).toMatchObject({ tensorSplit: [1, 2] });
    for (const name of ['rpc', 'token', 'insecure']) expect(linked).not.toHaveProperty(name);
    expect(() => checkLinkedOptions({ model: 'm', tensorSplit: [1, 2] }, 2, 15)).toThrow(/2 shares for 3 devices;/);
    expect(() => checkLinkedOptions({ model: 'm', tensorSplit: [1] }, 1, 15)).toThrow(/ 1 share for 2 devices;/);
    expect(() => checkLinkedOptions({ model: 'm' }, 16, 15)).toThrow(/at most 15/);
  });
});
