/**
 * The join token: the one secret that the members of a cluster share. Keys are derived from it, each for one purpose,
 * so that what one of them shows says nothing about another.
 */
import { hkdfSync, randomBytes } from 'node:crypto';
import { invalid } from '../validate.js';

/** 128 random bits. */
const TOKEN_BYTES = 16;
const SHORTEST = 22;
const LONGEST = 256;
const PSK_BYTES = 32;
const TAG_BYTES = 4;

/** A new token: 22 URL-safe characters that hold 128 random bits. */
export function createToken(): string {
  return randomBytes(TOKEN_BYTES).toString('base64url');
}

/**
 * The token, if it is one: 22 to 256 of the characters `A-Z a-z 0-9 _ -`.
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT`, without showing what was given
 */
export function checkToken(value: unknown): string {
  const rule = `it must be ${SHORTEST} to ${LONGEST} of the characters A-Z, a-z, 0-9, _ and -`;
  // None of these shows the value: a mistyped token is a secret, too, and messages end up in logs.
  if (value === undefined) invalid('The token is missing: createToken() makes one, and every device needs the same.');
  if (typeof value !== 'string') invalid(`The token is no string; ${rule}.`);
  if (value.length < SHORTEST || value.length > LONGEST) {
    invalid(`The token has ${value.length} characters; ${rule}. A shorter one could be guessed.`);
  }
  if (!/^[A-Za-z0-9_-]+$/.test(value)) invalid(`The token has a character that no token has; ${rule}.`);
  return value;
}

/** The pre-shared key of the cluster's TLS: 32 bytes. */
export function derivePsk(token: string): Buffer {
  return derive(token, 'droid-llama tls psk 1', PSK_BYTES);
}

/** Eight hex digits that are the same for everyone with the token and tell clusters apart in public. */
export function clusterTag(token: string): string {
  return derive(token, 'droid-llama cluster tag 1', TAG_BYTES).toString('hex');
}

function derive(token: string, purpose: string, bytes: number): Buffer {
  return Buffer.from(hkdfSync('sha256', checkToken(token), 'droid-llama', purpose, bytes));
}
