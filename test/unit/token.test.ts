import { describe, expect, it } from 'vitest';
import { checkToken, clusterTag, createToken, derivePsk } from '../../lib/transport/token.js';

const TOKEN = 'AAAAAAAAAAAAAAAAAAAAAA';

describe('createToken', () => {
  it('makes 22 URL-safe characters, other ones each time', () => {
    const tokens = new Set(Array.from({ length: 100 }, () => createToken()));
    expect(tokens.size).toBe(100);
    for (const token of tokens) {
      expect(token).toMatch(/^[A-Za-z0-9_-]{22}$/);
      expect(checkToken(token)).toBe(token);
    }
  });
});

describe('checkToken', () => {
  it.each([
    ['too short', 'A'.repeat(21), /21 characters/],
    ['too long', 'A'.repeat(257), /257 characters/],
    ['a space', `${'A'.repeat(21)} `, /a character that no token has/],
    ['a line break at the end', `${'A'.repeat(22)}\n`, /a character that no token has/],
    ['what base64 has and URLs have not', `${'A'.repeat(22)}+/=`, /a character that no token has/],
    ['no string', 12345, /no string/],
    ['nothing', undefined, /is missing/],
  ])('refuses %s and does not show it', (_what, token, message) => {
    let caught: unknown;
    try {
      checkToken(token);
    } catch (error) {
      caught = error;
    }
    expect(caught).toMatchObject({ code: 'DROID_INVALID_ARGUMENT', message: expect.stringMatching(message) });
    if (typeof token === 'string') expect((caught as Error).message).not.toContain(token.slice(0, 20));
    expect((caught as Error).message).not.toContain('12345');
  });

  it('takes any string of the right characters and length', () => {
    for (const token of ['a-b_c0123456789ABCDEFG', 'A'.repeat(256)]) expect(checkToken(token)).toBe(token);
  });
});

describe('what is derived from a token', () => {
  // Devices with different versions of this package must agree on these.
  it('stays the same', () => {
    expect(derivePsk(TOKEN).toString('hex')).toBe('cc7850d8db17b5fc426297c20b7a1f1dcb23179ad95c2954535a09f5f23b61bd');
    expect(clusterTag(TOKEN)).toBe('d3814cda');
  });

  it('differs between tokens and between purposes', () => {
    const other = `${TOKEN.slice(0, -1)}B`;
    expect(derivePsk(TOKEN)).toHaveLength(32);
    expect(derivePsk(other)).not.toEqual(derivePsk(TOKEN));
    expect(clusterTag(TOKEN)).toMatch(/^[0-9a-f]{8}$/);
    expect(clusterTag(other)).not.toBe(clusterTag(TOKEN));
    expect(derivePsk(TOKEN).toString('hex')).not.toContain(clusterTag(TOKEN));
  });

  it('wants a valid token', () => {
    expect(() => derivePsk('short')).toThrow(expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT' }));
    expect(() => clusterTag('short')).toThrow(expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT' }));
  });
});
