import { randomBytes } from 'node:crypto';

/** A peer's id is 16 bytes; as text they are 22 characters of base64url, in records and messages. */
export const PEER_ID_BYTES = 16;

/** The id of whoever opens an `rpc` stream without being a member; no member has it. */
export const NO_PEER = Buffer.alloc(PEER_ID_BYTES).toString('base64url');

// 22 characters hold 132 bits: the last one has 4 too many, which are 0 in the one way to write an id.
const PEER_ID = /^[\w-]{21}[AQgw]$/;

/** A new random id for a device. */
export function createPeerId(): string {
  return randomBytes(PEER_ID_BYTES).toString('base64url');
}

export function isPeerId(value: unknown): value is string {
  return typeof value === 'string' && PEER_ID.test(value) && value !== NO_PEER;
}

export function peerIdToBytes(id: string): Buffer {
  return Buffer.from(id, 'base64url');
}

/** The text of the first 16 bytes, which may be {@link NO_PEER}; undefined when there are fewer. */
export function peerIdFromBytes(bytes: Uint8Array): string | undefined {
  if (bytes.length < PEER_ID_BYTES) return undefined;
  return Buffer.from(bytes.subarray(0, PEER_ID_BYTES)).toString('base64url');
}
