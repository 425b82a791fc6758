/** What the transport and its thread say to each other. */

import type { EndpointAddress } from '../endpoint.js';
import type { DroidLlamaError, ErrorCode } from '../errors.js';
import type { SecureStream, StreamKind } from './transport.js';

export interface ThreadData {
  /** The thread never sees the token itself. */
  readonly psk: Uint8Array;
  /** {@link COUNTERS}, each an Int32 in shared memory, so that they can be read at any time without asking. */
  readonly counters: SharedArrayBuffer;
}

export const COUNTERS = { open: 0, handshakes: 1, rejected: 2 } as const;
export type Counter = keyof typeof COUNTERS;

export interface ListenRequest {
  readonly type: 'listen';
  readonly host: string;
  readonly port: number;
  readonly kinds: readonly StreamKind[];
  readonly preambleBytes: Readonly<Partial<Record<StreamKind, number>>>;
}

export interface DialRequest {
  readonly type: 'dial';
  readonly id: number;
  readonly address: EndpointAddress;
  readonly kind: StreamKind;
  readonly timeoutMs: number;
  readonly preamble: Uint8Array;
}

export type ToThread =
  | ListenRequest
  | DialRequest
  /** Of a dial. */
  | { readonly type: 'cancel'; readonly id: number }
  /** Of a stream. */
  | { readonly type: 'cut'; readonly id: number }
  | { readonly type: 'close' };

/** An error on its way between threads. */
export interface Failure {
  readonly code: ErrorCode;
  readonly message: string;
}

export type FromThread =
  | { readonly type: 'ready' }
  | { readonly type: 'failed'; readonly failure: Failure }
  | { readonly type: 'listening'; readonly address: EndpointAddress }
  | { readonly type: 'listen-failed'; readonly failure: Failure }
  // With these two, the descriptor goes over to the transport: it hands it on, or closes it.
  | { readonly type: 'dialled'; readonly id: number; readonly stream: SecureStream }
  | { readonly type: 'stream'; readonly stream: SecureStream }
  | { readonly type: 'dial-failed'; readonly id: number; readonly failure: Failure }
  | { readonly type: 'warning'; readonly line: string };

export function toFailure({ code, message }: DroidLlamaError): Failure {
  return { code, message };
}
