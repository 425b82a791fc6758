/** Members of a cluster in one process, and what they were told. */
import { readdirSync } from 'node:fs';
import { Socket } from 'node:net';
import { type Duplex, PassThrough } from 'node:stream';
import { Membership, type MembershipEvents, type SelfRecord } from '../../lib/cluster/control/membership.js';
import { PREAMBLE_BYTES } from '../../lib/cluster/streams.js';
import type { EndpointAddress } from '../../lib/probe.js';
import { type SecureStream, STREAM_KINDS, type Transport } from '../../lib/transport/transport.js';
import { idOf, peerOf } from './peers.js';

export interface MemberOptions {
  self?: Partial<SelfRecord>;
  build?: string;
  heartbeatMs?: number;
  lostAfterMs?: number;
  /** 0 for any. */
  port?: number;
}

type Told = { [Name in keyof MembershipEvents]: NonNullable<MembershipEvents[Name][0]>[] };

export interface Member extends AsyncDisposable {
  readonly membership: Membership;
  readonly transport: Transport;
  readonly address: EndpointAddress;
  readonly told: Told;
  /** `joined b`, `lost b`, in their order. */
  readonly comings: string[];
  /** The names of all that it can reach, itself included. */
  names(): string[];
  close(): Promise<void>;
}

/** Starts a member that listens on a transport, which it closes with itself. */
export async function startMember(
  name: string,
  transport: Transport,
  host: string,
  options: MemberOptions = {},
): Promise<Member> {
  const { self, build = 'build', heartbeatMs, lostAfterMs, port = 60_000 } = options;
  let membership: Membership | undefined;
  const listening = await transport.listen({
    host,
    port,
    kinds: STREAM_KINDS,
    preambleBytes: PREAMBLE_BYTES,
    onStream: (stream) => membership?.accept(stream),
  });
  const { revision, neighbours, links, ...record } = peerOf(name, { port: listening.port, addresses: [host], ...self });
  const started = Membership.start({
    transport,
    self: record,
    build,
    ...(heartbeatMs && { heartbeatMs }),
    ...(lostAfterMs && { lostAfterMs }),
    onListenerError: () => {},
  });
  membership = started;
  const told: Told = { change: [], joined: [], lost: [], rejected: [], stream: [] };
  const comings: string[] = [];
  started.on('change', () => told.change.push(undefined as never));
  started.on('joined', (peer) => comings.push(`joined ${told.joined.push(peer) && peer.name}`));
  started.on('lost', (peer) => comings.push(`lost ${told.lost.push(peer) && peer.name}`));
  started.on('rejected', (rejection) => told.rejected.push(rejection));
  const close = async (): Promise<void> => {
    await started.close();
    await transport.close();
  };
  return {
    membership: started,
    transport,
    address: { host, port: listening.port },
    told,
    comings,
    names: () =>
      started
        .peers()
        .map((peer) => peer.name)
        .sort(),
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** Waits for a state by looking, and names it when it does not come. */
export async function until(what: string, holds: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`${timeoutMs} ms were not enough until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function socketOf(stream: SecureStream): Socket {
  return new Socket({ fd: stream.fd, readable: true, writable: true, allowHalfOpen: true });
}

/** All bytes until the end. */
export async function readAll(socket: Duplex): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of socket.pipe(new PassThrough())) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** Descriptors that this process has open. */
export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

export { idOf };
