/** How TLS is set up on both sides, and what its errors mean. */
import { constants, randomBytes } from 'node:crypto';
import type { SecureContextOptions } from 'node:tls';
import { STREAM_KINDS, type StreamKind } from './transport.js';

/** Names the key, not the member: there is one key for all. */
const IDENTITY = 'droid-llama';
const PSK_BYTES = 32;

/** A dead link is noticed by whoever talks over it, an idle one by the system's probes. */
export const SOCKET_OPTIONS = { noDelay: true, keepAlive: true, keepAliveInitialDelay: 5000 } as const;

/**
 * TLS 1.2: Node has no pre-shared keys of one's own for 1.3. The suite is forward secret and quick without AES
 * instructions. Tickets and renegotiation are off: nothing of one stream is worth anything in another.
 */
export const CONTEXT_OPTIONS: SecureContextOptions = {
  ciphers: 'ECDHE-PSK-CHACHA20-POLY1305',
  minVersion: 'TLSv1.2',
  maxVersion: 'TLSv1.2',
  ecdhCurve: 'X25519',
  secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
};

export function clientPsk(psk: Uint8Array): { psk: Uint8Array; identity: string } {
  return { psk, identity: IDENTITY };
}

export function serverPsk(psk: Uint8Array, identity: string): Uint8Array {
  // A random key ends like a wrong one; null would tell the stranger that the name is what is wrong.
  return identity === IDENTITY ? psk : randomBytes(PSK_BYTES);
}

export function alpnName(kind: StreamKind): string {
  return `droid-llama/${kind}/1`;
}

export function kindOfAlpn(name: string | false | null): StreamKind | undefined {
  return STREAM_KINDS.find((kind) => alpnName(kind) === name);
}

/** What a handshake that failed says about the other end. */
export type HandshakeFault = 'wrong-token' | 'unwanted-kind' | 'no-member' | 'hung-up';

/** @param code of the error that ended the handshake */
export function handshakeFault(code: string | undefined): HandshakeFault {
  switch (code) {
    // As the server, which cannot decrypt, and as the client, which is told so.
    case 'ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC':
    case 'ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC':
    case 'ERR_SSL_DIGEST_CHECK_FAILED':
    case 'ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR':
    case 'ERR_SSL_TLSV1_ALERT_UNKNOWN_PSK_IDENTITY':
      return 'wrong-token';
    case 'ERR_SSL_NO_APPLICATION_PROTOCOL':
    case 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL':
      return 'unwanted-kind';
    default:
      return code?.startsWith('ERR_SSL_') || code === 'EPROTO' ? 'no-member' : 'hung-up';
  }
}
