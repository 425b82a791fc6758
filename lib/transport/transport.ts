/**
 * Encrypted, authenticated streams between the members of a cluster: TLS with a pre-shared key that is made of the join
 * token, one port for every kind of stream (ALPN tells them apart). TLS runs in a thread of its own, so that neither a
 * busy event loop delays tokens nor a flood of strangers the program; what comes out is a file descriptor of a
 * connected stream socket, which Node (`net.Socket`) and the native cores read alike.
 */
import type { EndpointAddress } from '../endpoint.js';

/**
 * What a stream is for; its ALPN name is `droid-llama/<kind>/1`.
 *
 * `control` carries the membership messages, `rpc` ggml's RPC protocol from a master to a worker, `http` HTTP/1.1
 * requests from a member to the master, `probe` measurements. Whoever dials an `rpc` or `http` stream is its client;
 * `reverse` streams are dialled by the side that serves: after connecting it sends the ticket that the other side
 * asked for, and then answers as if it had been dialled. See cluster/streams.ts.
 */
export const STREAM_KINDS = ['control', 'rpc', 'http', 'probe', 'reverse'] as const;
export type StreamKind = (typeof STREAM_KINDS)[number];

/** A connected stream; the descriptor belongs to whoever has this record, who closes it. */
export interface SecureStream {
  /** Names the stream to {@link Transport.cut}; unique within a transport. */
  readonly id: number;
  readonly kind: StreamKind;
  readonly fd: number;
  /** The other device's address as this one sees it, numeric. */
  readonly remote: EndpointAddress;
  /** This device's own address on that path, numeric. */
  readonly localAddress: string;
  /** What the dialler sent first, as many bytes as `ListenOptions.preambleBytes` asks for; empty on a dialled stream. */
  readonly preamble: Uint8Array;
}

export interface TransportOptions {
  /** The join token; see token.ts. */
  token: string;
  /** A line for each thing its user should know, each at most once a minute and address: a stranger was turned away. */
  onWarning?: (line: string) => void;
}

export interface ListenOptions {
  host: string;
  /** 0 takes any that is free. */
  port: number;
  /** The kinds that are let in; a stream of any other is refused while it greets. */
  kinds: readonly StreamKind[];
  /**
   * Bytes of each kind that are read before the stream is announced, and then are no part of it: the transport's thread
   * reads them within the time of the handshake, or drops the connection. Default 0.
   */
  preambleBytes?: Readonly<Partial<Record<StreamKind, number>>>;
  onStream: (stream: SecureStream) => void;
}

export interface DialOptions {
  /** Milliseconds until the stream is proven on both sides. Default 10000. */
  timeoutMs?: number;
  /** Sent before anything else. Default: nothing. */
  preamble?: Uint8Array;
  /** Aborting rejects with its reason. */
  signal?: AbortSignal;
}

export interface TransportStats {
  /** Streams that are open. */
  readonly open: number;
  readonly handshakes: number;
  /** Connections that did not prove the token. */
  readonly rejected: number;
}

export interface Transport {
  /** Rejects with `DROID_PORT_IN_USE` or `DROID_INVALID_ARGUMENT`. May be called once. */
  listen(options: ListenOptions): Promise<EndpointAddress>;
  /**
   * Rejects with `DROID_ENDPOINT_TIMEOUT`, `_REFUSED`, `_UNREACHABLE`, or `DROID_TOKEN_REJECTED` when something answered
   * that does not have the same token (or is no droid-llama at all).
   */
  dial(address: EndpointAddress, kind: StreamKind, options?: DialOptions): Promise<SecureStream>;
  /**
   * Ends a stream from this side of the descriptor, as if the connection broke: whoever holds it reads its end at once.
   * For streams of a device that is known to be gone before TCP notices. Without effect on one that has ended.
   */
  cut(id: number): void;
  stats(): TransportStats;
  /** Cuts every stream and ends the thread. Idempotent. */
  close(): Promise<void>;
}
