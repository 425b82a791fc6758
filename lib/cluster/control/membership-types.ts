import type { SecureStream, Transport } from '../../transport/transport.js';
import type { ServedKind } from '../streams.js';
import type { Peer } from '../types.js';
import type { Rejection } from './rejections.js';

/** What a device says of itself; the rest of its record is found out. */
export type SelfRecord = Omit<Peer, 'revision' | 'neighbours' | 'links'>;

export interface MembershipOptions {
  /** Whoever listens with it hands the streams to `Membership.accept`; it is closed by whoever started it. */
  transport: Transport;
  self: SelfRecord;
  /** Members of another one are turned away. */
  build: string;
  /** Milliseconds between two heartbeats. Default 1000. */
  heartbeatMs?: number;
  /** Milliseconds of silence after which a control connection is dead. Default 4000. */
  lostAfterMs?: number;
  /** Called with what a listener threw. Default: it is ignored. */
  onListenerError?: (error: unknown) => void;
}

export interface OpenedStream {
  readonly kind: ServedKind;
  /** Id of the member at the other end, which is the client; `NO_PEER` for who is no member. */
  readonly peer: string;
  /** Belongs to the listener. */
  readonly stream: SecureStream;
}

export interface MembershipEvents {
  /** Peers or links changed; at most once a turn of the event loop. */
  change: [];
  /** A peer can be reached, by this device or by another member; a restarted one is lost first. */
  joined: [peer: Peer];
  lost: [peer: Peer];
  /** At most once a minute for each endpoint and code. */
  rejected: [rejection: Rejection];
  /** A member opened a stream to this device. */
  stream: [opened: OpenedStream];
}
