/**
 * Streams between members: who may open one, by which way, and how the other side knows who it is.
 *
 * Whoever dials a stream sends its id first. Where a device cannot be dialled, it is asked over the control connection
 * to dial a `reverse` stream itself, which carries a ticket: who asked finds the request by it that the stream is for.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { addon } from '../addon.js';
import type { EndpointAddress } from '../endpoint.js';
import { formatEndpoint } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { linkSignals } from '../link-signals.js';
import type { SecureStream, StreamKind, Transport } from '../transport/transport.js';
import type { DialFailed, DialMe } from './control/messages.js';
import { PEER_ID_BYTES, peerIdFromBytes, peerIdToBytes } from './control/peer-id.js';

export const TICKET_BYTES = 16;
/** How long a ticket may be used. */
const TICKET_MS = 10_000;
const MAX_TICKETS = 256;
/** Of one member, which may not come to dial. */
const MAX_TICKETS_OF_MEMBER = 64;
/** Dials for others that may run at once. */
const MAX_ANSWERS = 32;
const MAX_ANSWERS_OF_MEMBER = 16;
const MAX_ENDPOINTS = 6;
const OPEN_MS = 10_000;

/** What a member's transport reads of each kind before the stream is announced; for `ListenOptions.preambleBytes`. */
export const PREAMBLE_BYTES: Readonly<Record<StreamKind, number>> = {
  control: PEER_ID_BYTES,
  rpc: PEER_ID_BYTES,
  http: PEER_ID_BYTES,
  probe: PEER_ID_BYTES,
  reverse: PEER_ID_BYTES + TICKET_BYTES,
};

export type ServedKind = 'rpc' | 'http';

export interface OpenStreamOptions {
  /** Milliseconds for all ways that are tried together. Default 10000. */
  timeoutMs?: number;
  /** Aborting rejects with its reason. */
  signal?: AbortSignal;
}

/** Closes a stream that nobody wants. */
export function discardStream(stream: SecureStream): void {
  addon().closeDescriptor(stream.fd);
}

/** A stream that is waited for. */
interface Ticket {
  readonly bytes: Buffer;
  readonly peer: string;
  readonly kind: ServedKind;
  readonly deliver: (stream: SecureStream) => void;
  readonly fail: (error: Error) => void;
}

/** The ways to a member. */
export interface Route {
  readonly name: string;
  /** Where it may be dialled, the best first. */
  readonly endpoints: readonly EndpointAddress[];
  /** Whether dialling it is known to fail, or unknown while it is known to dial us. */
  readonly reverseFirst: boolean;
  /** Sends over the control connection; undefined without one. */
  readonly send: ((message: DialMe | DialFailed) => boolean) | undefined;
}

export interface StreamOpenerOptions {
  readonly transport: Pick<Transport, 'dial'>;
  /** This device's. */
  readonly id: string;
  /** Undefined for one that is no member. */
  readonly route: (id: string) => Route | undefined;
  /** How a stream nobody waits for is closed; for tests. */
  readonly discard?: (stream: SecureStream) => void;
}

/** Opens streams to members, and dials those that other members ask for. */
export class StreamOpener {
  readonly #options: StreamOpenerOptions;
  readonly #discard: (stream: SecureStream) => void;
  readonly #tickets = new Set<Ticket>();
  readonly #closing = new AbortController();
  /** The members that are being dialled because they asked. */
  readonly #answers: string[] = [];

  constructor(options: StreamOpenerOptions) {
    this.#options = options;
    this.#discard = options.discard ?? discardStream;
    // Every stream that is being opened listens to it, which is no leak.
    setMaxListeners(0, this.#closing.signal);
  }

  /**
   * Rejects with the code of the way that was tried first: `DROID_ENDPOINT_TIMEOUT`, `_REFUSED`, `_UNREACHABLE`,
   * `DROID_TOKEN_REJECTED`; or with `DROID_CLOSED`.
   */
  async open(id: string, kind: ServedKind, options: OpenStreamOptions = {}): Promise<SecureStream> {
    const { timeoutMs = OPEN_MS, signal } = options;
    signal?.throwIfAborted();
    this.#closing.signal.throwIfAborted();
    const route = this.#options.route(id);
    if (!route) throw new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', `${id} is no member of the cluster.`);
    const { endpoints, send } = route;
    const ways: ((ms: number, abort: AbortSignal) => Promise<SecureStream>)[] = [];
    if (endpoints.length > 0)
      ways.push((ms, abort) => this.#dial(endpoints, kind, peerIdToBytes(this.#options.id), ms, abort));
    if (send) ways.push((ms, abort) => this.#ask(id, kind, send, ms, abort));
    if (route.reverseFirst) ways.reverse();

    const failures: unknown[] = [];
    const linked = linkSignals(this.#closing.signal, signal);
    try {
      const deadline = performance.now() + timeoutMs;
      for (const [index, way] of ways.entries()) {
        const leftMs = deadline - performance.now();
        if (leftMs <= 0) break;
        try {
          return await way(index < ways.length - 1 ? leftMs / 2 : leftMs, linked.signal);
        } catch (error) {
          linked.signal.throwIfAborted();
          failures.push(error);
        }
      }
    } finally {
      linked.unlink();
    }
    throw openFailed(route.name, kind, failures);
  }

  /** Whether an incoming `reverse` stream is one that was asked for; if so, it is delivered, and else closed. */
  redeem(stream: SecureStream): boolean {
    const from = peerIdFromBytes(stream.preamble);
    const given = Buffer.alloc(TICKET_BYTES);
    given.set(stream.preamble.subarray(PEER_ID_BYTES, PEER_ID_BYTES + TICKET_BYTES));
    let found: Ticket | undefined;
    // All are compared, so that the time tells nothing of how near a guess was.
    for (const ticket of this.#tickets) if (timingSafeEqual(ticket.bytes, given)) found = ticket;
    if (!found || found.peer !== from || stream.preamble.length !== PREAMBLE_BYTES.reverse) {
      this.#discard(stream);
      return false;
    }
    found.deliver({ ...stream, kind: found.kind });
    return true;
  }

  /** The member that was asked could not dial. */
  dialFailed(peer: string, { ticket: text, reason }: DialFailed): void {
    const given = Buffer.from(text, 'base64url');
    for (const ticket of this.#tickets) {
      if (ticket.peer !== peer || !ticket.bytes.equals(given)) continue;
      ticket.fail(new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', `it could not dial this device: ${reason}`));
    }
  }

  /** The control connection is gone over which a member was asked. */
  hungUp(peer: string): void {
    for (const ticket of this.#tickets) {
      if (ticket.peer !== peer) continue;
      ticket.fail(new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', 'its control connection was cut'));
    }
  }

  /** Dials the stream that a member asked for. Undefined when that failed, which the member is told. Never rejects. */
  async answer(peer: string, { kind, ticket }: DialMe): Promise<SecureStream | undefined> {
    const route = this.#options.route(peer);
    if (!route) return undefined;
    const preamble = Buffer.concat([peerIdToBytes(this.#options.id), Buffer.from(ticket, 'base64url')]);
    const refuse = (reason: string): undefined => {
      route.send?.({ type: 'dial-failed', ticket, reason: reason.slice(0, 500) });
    };
    if (route.endpoints.length === 0) return refuse('its record has no address with a port');
    const same = this.#answers.filter((asking) => asking === peer).length;
    if (this.#answers.length >= MAX_ANSWERS || same >= MAX_ANSWERS_OF_MEMBER)
      return refuse('it is asked for too many streams at once');
    this.#answers.push(peer);
    try {
      const stream = await this.#dial(route.endpoints, 'reverse', preamble, TICKET_MS, this.#closing.signal);
      return { ...stream, kind };
    } catch (error) {
      return refuse(messageOf(error));
    } finally {
      this.#answers.splice(this.#answers.indexOf(peer), 1);
    }
  }

  close(): void {
    const error = new DroidLlamaError('DROID_CLOSED', 'This device left the cluster.');
    this.#closing.abort(error);
    for (const ticket of this.#tickets) ticket.fail(error);
  }

  async #dial(
    endpoints: readonly EndpointAddress[],
    kind: StreamKind,
    preamble: Uint8Array,
    ms: number,
    signal: AbortSignal,
  ): Promise<SecureStream> {
    const deadline = performance.now() + ms;
    const tried = endpoints.slice(0, MAX_ENDPOINTS);
    const failures: unknown[] = [];
    for (const [index, endpoint] of tried.entries()) {
      // One that keeps silent must leave time for the others.
      const timeoutMs = Math.ceil((deadline - performance.now()) / (tried.length - index));
      if (timeoutMs <= 0) break;
      try {
        const stream = await this.#options.transport.dial(endpoint, kind, { preamble, timeoutMs, signal });
        if (!signal.aborted) return stream;
        this.#discard(stream);
      } catch (error) {
        failures.push(named(endpoint, error));
      }
      signal.throwIfAborted();
    }
    throw failures[0] ?? new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', 'there was no time left to dial it');
  }

  #ask(
    peer: string,
    kind: ServedKind,
    send: (message: DialMe) => boolean,
    ms: number,
    signal: AbortSignal,
  ): Promise<SecureStream> {
    return new Promise((resolve, reject) => {
      const same = [...this.#tickets].filter((waiting) => waiting.peer === peer).length;
      if (this.#tickets.size >= MAX_TICKETS || same >= MAX_TICKETS_OF_MEMBER) {
        reject(new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', 'too many streams are waited for'));
        return;
      }
      const settle = (): void => {
        this.#tickets.delete(ticket);
        clearTimeout(timer);
        signal.removeEventListener('abort', aborted);
      };
      const ticket: Ticket = {
        bytes: randomBytes(TICKET_BYTES),
        peer,
        kind,
        deliver: (stream) => {
          settle();
          resolve(stream);
        },
        fail: (error) => {
          settle();
          reject(error);
        },
      };
      const aborted = (): void => ticket.fail(signal.reason as Error);
      const timer = setTimeout(
        () =>
          ticket.fail(new DroidLlamaError('DROID_ENDPOINT_TIMEOUT', 'it was asked to dial this device, and did not')),
        Math.min(ms, TICKET_MS),
      );
      this.#tickets.add(ticket);
      signal.addEventListener('abort', aborted, { once: true });
      if (!send({ type: 'dial-me', kind, ticket: ticket.bytes.toString('base64url') })) {
        ticket.fail(new DroidLlamaError('DROID_ENDPOINT_UNREACHABLE', 'its control connection was cut'));
      }
    });
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function named(endpoint: EndpointAddress, error: unknown): DroidLlamaError {
  const code = error instanceof DroidLlamaError ? error.code : 'DROID_ENDPOINT_UNREACHABLE';
  return new DroidLlamaError(code, `dialling ${formatEndpoint(endpoint)}: ${messageOf(error)}`, { cause: error });
}

function openFailed(name: string, kind: ServedKind, failures: readonly unknown[]): DroidLlamaError {
  const [first] = failures;
  const code = first instanceof DroidLlamaError ? first.code : 'DROID_ENDPOINT_UNREACHABLE';
  const why = failures.length > 0 ? failures.map(messageOf).join('; ') : 'no way to it is known';
  return new DroidLlamaError(code, `No ${kind} stream to ${name}: ${why}`, { cause: first });
}
