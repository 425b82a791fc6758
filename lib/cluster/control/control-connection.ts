import type { Duplex } from 'node:stream';
import type { EndpointAddress } from '../../endpoint.js';
import type { Peer } from '../types.js';
import { Allowance } from './allowance.js';
import { encodeFrame, FrameDecoder } from './frames.js';
import { Gossip } from './gossip.js';
import { Heartbeat } from './heartbeat.js';
import {
  type ControlMessage,
  type GoodbyeCode,
  type Greeting,
  type Hello,
  type MemberMessage,
  mismatch,
  readFirstMessage,
  readMessage,
  readPeer,
} from './messages.js';

/** Time for both hellos. */
const HANDSHAKE_MS = 5000;
/** Time that a goodbye has to be read. */
const GOODBYE_MS = 500;
/** Bytes that may wait to be read by the other end; above it the records wait, and far above it the connection ends. */
const SEND_LOW_BYTES = 256 * 1024;
const SEND_LIMIT_BYTES = 2 * 1024 * 1024;
/** More than members send each other, by far. */
const MESSAGES = { burst: 500, perSecond: 100 };
const BYTES = { burst: 16 * 1024 * 1024, perSecond: 4 * 1024 * 1024 };

export interface Refusal {
  readonly code: GoodbyeCode;
  readonly reason: string;
}

/** How a connection ended, and who says so. */
export interface ConnectionEnd {
  /** `hung-up`: the stream ended without a word. */
  readonly code: GoodbyeCode | 'hung-up';
  readonly reason: string;
  readonly by: 'us' | 'them';
  /** Whether both ends had taken each other in. */
  readonly established: boolean;
}

export interface ControlHandlers {
  /** The other end is who it says; the answer refuses it, or undefined takes it in. */
  readonly admit: (connection: ControlConnection, peer: Peer) => Refusal | undefined;
  /** Both ends have taken each other in. */
  readonly established: (connection: ControlConnection) => void;
  readonly message: (connection: ControlConnection, message: MemberMessage) => void;
  readonly ended: (connection: ControlConnection, end: ConnectionEnd) => void;
}

export interface ControlConnectionOptions {
  /** Belongs to the connection from here on. */
  readonly socket: Duplex;
  readonly dialled: boolean;
  /** Where it was dialled, or where it came from. */
  readonly address: EndpointAddress;
  readonly hello: () => Hello;
  /** The newest record of a peer, for gossip. */
  readonly record: (id: string) => Peer | undefined;
  readonly handlers: ControlHandlers;
  readonly heartbeatMs: number;
  readonly lostAfterMs: number;
  readonly gossipMs: number;
}

/**
 * One control connection. The end that accepted greets first; the one that dialled answers once it wants the
 * connection, and has it when anything but a goodbye comes then. So of two connections between the same devices, the
 * surplus one ends before anybody relies on it.
 */
export class ControlConnection {
  readonly dialled: boolean;
  readonly address: EndpointAddress;
  readonly gossip: Gossip;
  /** Settles when the socket is closed. */
  readonly closed: Promise<void>;
  readonly #options: ControlConnectionOptions;
  readonly #socket: Duplex;
  readonly #decoder = new FrameDecoder();
  readonly #heartbeat: Heartbeat;
  readonly #messages = new Allowance(MESSAGES.burst, MESSAGES.perSecond);
  readonly #bytes = new Allowance(BYTES.burst, BYTES.perSecond);
  #state: 'greeting' | 'committed' | 'established' | 'ended' = 'greeting';
  #deadline: NodeJS.Timeout | undefined;
  #peer: Peer | undefined;
  #incarnation = 0;
  #committedAt = 0;

  constructor(options: ControlConnectionOptions) {
    this.#options = options;
    this.dialled = options.dialled;
    this.address = options.address;
    const { socket, heartbeatMs, lostAfterMs, record, gossipMs } = options;
    this.#socket = socket;
    this.#heartbeat = new Heartbeat({
      heartbeatMs,
      lostAfterMs,
      send: (sequence) => this.send({ type: 'heartbeat', sequence }),
      onSilence: () => this.end('silent', `nothing came for ${lostAfterMs / 1000} s`),
    });
    this.gossip = new Gossip({
      record,
      send: (json) => this.#write(json),
      writable: () => socket.writableLength < SEND_LOW_BYTES,
      intervalMs: gossipMs,
    });
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('data', (chunk: Buffer) => this.#received(chunk));
    socket.on('drain', () => this.gossip.drained());
    socket.on('error', () => {
      // 'close' follows, which is all there is to know.
    });
    const hungUp = (): void => this.#finish({ code: 'hung-up', reason: 'the connection was cut', by: 'them' });
    socket.on('end', hungUp);
    socket.on('close', hungUp);
    this.#deadline = setTimeout(() => this.end('silent', 'no hello came in time'), HANDSHAKE_MS);
    this.#deadline.unref();
  }

  /** Apart from the constructor, so that whoever makes the connection knows it before the first event. */
  start(): void {
    if (!this.dialled) this.#send(this.#options.hello());
  }

  /** The other end's record as it came with its hello. */
  get peer(): Peer | undefined {
    return this.#peer;
  }

  get id(): string | undefined {
    return this.#peer?.id;
  }

  /** Of the process at the other end; it may raise it. */
  get incarnation(): number {
    return this.#incarnation;
  }

  raiseIncarnation(incarnation: number): void {
    this.#incarnation = Math.max(this.#incarnation, incarnation);
  }

  /** Until it ends. */
  get established(): boolean {
    return this.#state === 'established';
  }

  get ended(): boolean {
    return this.#state === 'ended';
  }

  /** Milliseconds since this end took the other one in. */
  get ageMs(): number {
    return performance.now() - this.#committedAt;
  }

  /** Milliseconds since the last byte came. */
  get silentMs(): number {
    return this.#heartbeat.silentMs;
  }

  get roundTripMs(): number | null {
    return this.#heartbeat.roundTripMs;
  }

  /** False when the connection has ended. */
  send(message: MemberMessage): boolean {
    if (this.#state !== 'established') return false;
    this.#send(message);
    return true;
  }

  /** Says why, and hangs up. Idempotent. */
  end(code: GoodbyeCode, reason: string): void {
    if (this.#state === 'ended') return;
    this.#send({ type: 'goodbye', code, reason });
    this.#finish({ code, reason, by: 'us' });
  }

  #send(message: ControlMessage): void {
    this.#write(JSON.stringify(message));
  }

  #write(json: string): void {
    if (this.#state === 'ended' || !this.#socket.writable) return;
    this.#socket.write(encodeFrame(json));
    // Whoever does not read is as good as silent, and no reason to fill the memory.
    if (this.#socket.writableLength > SEND_LIMIT_BYTES) {
      this.#finish({ code: 'silent', reason: 'it does not read what it is sent', by: 'us' });
    }
  }

  #received(chunk: Buffer): void {
    if (this.#state === 'ended') return;
    this.#heartbeat.heard();
    if (!this.#bytes.take(chunk.length)) {
      this.end('protocol', 'it sends too much');
      return;
    }
    const sound = this.#decoder.push(chunk, (frame) => {
      if (!this.#messages.take(1)) this.end('protocol', 'it sends too many messages');
      else if (this.#state === 'greeting') this.#greeted(frame);
      else this.#told(frame);
      return this.#state !== 'ended';
    });
    if (!sound) this.end('protocol', 'its message has a length that none has');
  }

  #greeted(frame: Buffer): void {
    const first = readFirstMessage(frame);
    if (!first.ok) this.end('protocol', first.reason);
    else if ('goodbye' in first.value) this.#finish({ ...first.value.goodbye, by: 'them' });
    else this.#introduced(first.value.hello);
  }

  #introduced(theirs: Greeting): void {
    const own = this.#options.hello();
    const difference = mismatch(own, theirs);
    if (difference !== undefined) {
      // With our hello the other end can name the versions to its user.
      if (this.dialled) this.#send(own);
      this.end('version', difference);
      return;
    }
    const peer = readPeer(theirs.peer);
    if (!peer.ok) {
      this.end('protocol', peer.reason);
      return;
    }
    this.#peer = peer.value;
    this.#incarnation = peer.value.incarnation;
    const refusal = this.#options.handlers.admit(this, peer.value);
    // Admitting may have ended this connection as well.
    if (this.ended) return;
    if (refusal) {
      this.end(refusal.code, refusal.reason);
      return;
    }
    this.#committedAt = performance.now();
    this.gossip.heard(peer.value);
    if (this.dialled) {
      this.#state = 'committed';
      this.#send(own);
    } else {
      this.#establish();
    }
  }

  #told(frame: Buffer): void {
    const message = readMessage(frame);
    if (!message.ok) {
      this.end('protocol', message.reason);
      return;
    }
    if (message.value.type === 'goodbye') {
      this.#finish({ code: message.value.code, reason: message.value.reason, by: 'them' });
      return;
    }
    if (this.#state === 'committed') this.#establish();
    if (this.ended) return;
    if (message.value.type === 'heartbeat') this.send({ type: 'echo', sequence: message.value.sequence });
    else if (message.value.type === 'echo') this.#heartbeat.echoed(message.value.sequence);
    else this.#options.handlers.message(this, message.value);
  }

  #establish(): void {
    this.#state = 'established';
    clearTimeout(this.#deadline);
    this.#heartbeat.start();
    this.#options.handlers.established(this);
  }

  #finish(how: Omit<ConnectionEnd, 'established'>): void {
    if (this.#state === 'ended') return;
    const end = { ...how, established: this.established };
    this.#state = 'ended';
    clearTimeout(this.#deadline);
    this.#heartbeat.stop();
    this.gossip.close();
    // What still comes is thrown away; 'end' and 'close' must be seen all the same.
    this.#socket.resume();
    this.#socket.end();
    const cut = setTimeout(() => this.#socket.destroy(), end.by === 'us' ? GOODBYE_MS : 0);
    cut.unref();
    void this.closed.then(() => clearTimeout(cut));
    this.#options.handlers.ended(this, end);
  }
}
