/**
 * Multicast DNS (RFC 6762) over IPv4 for one service. The sockets are of this file's own making, because the usual
 * libraries ask for the network interfaces from a timer, which throws on Android 13 and later.
 */
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram';
import { EventEmitter } from 'node:events';
import { isIPv4 } from 'node:net';
import type { EndpointAddress } from '../../endpoint.js';
import { inNetworkOf, isLocalAddress, type OwnAddress } from './ip.js';
import { createInstanceName, encodeAnswer, encodeQuery, type Heard, readMessage } from './mdns-records.js';

const GROUP = '224.0.0.251';
const PORT = 5353;
const MULTICAST_TTL = 255;
const MAX_NETWORKS = 8;
/** Whoever starts asks three times within seconds, because Wi-Fi loses multicast; then it asks ever more rarely. */
const QUERY_DELAYS_MS = [1000, 2000, 5000, 10_000, 20_000, 40_000, 60_000];
const ANSWER_PAUSE_MS = 1000;
const ANSWER_DELAY_MS = { least: 20, spread: 100 };
/** A member is told again after this time, should nothing have come of it. */
const REPEAT_MS = 3000;
const MAX_REMEMBERED = 128;
/** Datagrams read within a second; a flood costs no more. */
const MAX_DATAGRAMS = 200;
/** Members told within a second. */
const MAX_MEMBERS = 32;
const GOODBYE_MS = 200;

export interface MdnsOptions {
  /** Tells clusters apart; members hear only those with the same one. */
  tag: string;
  /** Port to announce; 0 announces nothing and only listens. */
  port: number;
  /** Port of multicast DNS itself. Default 5353. */
  mdnsPort?: number;
}

interface MdnsEvents {
  member: [EndpointAddress];
  /** At most once in its life: multicast DNS does not work here. */
  warning: [string];
}

/** Announces this member and hears of others. Throws and rejects nothing: without multicast it does without. */
export class Mdns extends EventEmitter<MdnsEvents> {
  readonly #options: Required<MdnsOptions>;
  readonly #name = createInstanceName();
  readonly #told = new Map<string, number>();
  /** One for each network, so that each hears; the default route's alone would miss a hotspot's. */
  readonly #senders = new Map<string, Socket>();
  readonly #memberships = new Set<string>();
  #own: readonly OwnAddress[] = [];
  #receiver: Socket | undefined;
  #bound = false;
  #warned = false;
  #queries = 0;
  #queryTimer: NodeJS.Timeout | undefined;
  #answerTimer: NodeJS.Timeout | undefined;
  #answeredAt = Number.NEGATIVE_INFINITY;
  #window = { start: 0, datagrams: 0, members: 0 };
  #closing: Promise<void> | undefined;

  constructor({ tag, port, mdnsPort = PORT }: MdnsOptions) {
    super();
    this.#options = { tag, port, mdnsPort };
  }

  /** Tells it the addresses to announce, in whose networks it then speaks: at the start and whenever they change. */
  update(own: readonly OwnAddress[]): void {
    if (this.#closing) return;
    this.#own = own;
    if (!this.#receiver) this.#listen();
    else if (this.#bound) this.#join();
    this.#queries = 0;
    this.#ask();
    this.#answer();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#queryTimer);
    clearTimeout(this.#answerTimer);
    this.removeAllListeners();
    if (this.#options.port !== 0) {
      // A socket that never came up does not call back.
      let timer: NodeJS.Timeout | undefined;
      const patience = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, GOODBYE_MS);
      });
      await Promise.race([this.#send(this.#encodeAnswer(true)), patience]);
      clearTimeout(timer);
    }
    for (const socket of [this.#receiver, ...this.#senders.values()]) if (socket) closeSocket(socket);
    this.#senders.clear();
    this.#receiver = undefined;
  }

  #listen(): void {
    const receiver = createSocket({ type: 'udp4', reuseAddr: true });
    this.#receiver = receiver;
    receiver.unref();
    receiver.on('error', (error: NodeJS.ErrnoException) => {
      if (!this.#bound) this.#warn(error.code ?? error.message);
    });
    receiver.on('message', (message, from) => this.#hear(message, from));
    receiver.bind({ port: this.#options.mdnsPort, exclusive: true }, () => {
      if (this.#closing) return;
      this.#bound = true;
      this.#join();
    });
  }

  #warn(code: string): void {
    if (this.#warned) return;
    this.#warned = true;
    const why =
      code === 'EADDRINUSE' ? 'another program has its port for itself' : 'the system does not let this process use it';
    this.emit('warning', `multicast DNS does not work here: ${why} (${code}); other ways to find devices go on`);
  }

  #join(): void {
    const addresses = this.#own.map((own) => own.address).filter(isIPv4);
    for (const [address, socket] of this.#senders) {
      if (addresses.includes(address)) continue;
      closeSocket(socket);
      this.#senders.delete(address);
      this.#memberships.delete(address);
    }
    let failure: NodeJS.ErrnoException | undefined;
    for (const address of addresses.slice(0, MAX_NETWORKS)) {
      if (!this.#memberships.has(address)) {
        try {
          this.#receiver?.addMembership(GROUP, address);
          this.#memberships.add(address);
        } catch (error) {
          // EADDRINUSE: two addresses of one interface, which has joined already.
          if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') this.#memberships.add(address);
          else failure = error as NodeJS.ErrnoException;
        }
      }
      if (!this.#senders.has(address)) this.#addSender(address);
    }
    if (failure && this.#memberships.size === 0) this.#warn(failure.code ?? failure.message);
  }

  #addSender(address: string): void {
    const socket = createSocket({ type: 'udp4', reuseAddr: true });
    this.#senders.set(address, socket);
    socket.unref();
    socket.on('error', () => {
      // The address went away; the next update() makes another one.
      if (this.#senders.get(address) === socket) this.#senders.delete(address);
      closeSocket(socket);
    });
    socket.on('message', (message, from) => this.#hear(message, from));
    socket.bind({ address, port: this.#options.mdnsPort, exclusive: true }, () => {
      try {
        socket.setMulticastInterface(address);
        socket.setMulticastTTL(MULTICAST_TTL);
        socket.setMulticastLoopback(true);
      } catch {
        // It then sends by the default route.
      }
      if (this.#closing) return;
      void this.#sendFrom(socket, encodeQuery());
      this.#answer();
    });
  }

  #hear(message: Buffer, from: RemoteInfo): void {
    if (this.#closing) return;
    const now = performance.now();
    if (now - this.#window.start > 1000) this.#window = { start: now, datagrams: 0, members: 0 };
    if (++this.#window.datagrams > MAX_DATAGRAMS) return;
    // What is sent to the port from afar is no multicast.
    if (!isLocalAddress(from.address) && !this.#own.some((own) => inNetworkOf(own, from.address))) return;
    let heard: Heard;
    try {
      heard = readMessage(message, from.address, this.#options.tag, this.#name);
    } catch {
      return;
    }
    if (heard.kind === 'query') this.#answer();
    if (heard.kind === 'answer') for (const member of heard.members) this.#tell(member, now);
  }

  #tell(member: EndpointAddress, now: number): void {
    const key = `${member.host} ${member.port}`;
    const before = this.#told.get(key);
    if (before !== undefined && now - before < REPEAT_MS) return;
    if (++this.#window.members > MAX_MEMBERS) return;
    this.#told.delete(key);
    // The one told longest ago goes, so that somebody who makes up members cannot keep real ones out for long.
    const oldest = this.#told.keys().next().value;
    if (this.#told.size >= MAX_REMEMBERED && oldest !== undefined) this.#told.delete(oldest);
    this.#told.set(key, now);
    this.emit('member', member);
  }

  #ask(): void {
    clearTimeout(this.#queryTimer);
    if (this.#closing) return;
    void this.#send(encodeQuery());
    const delay = QUERY_DELAYS_MS[Math.min(this.#queries++, QUERY_DELAYS_MS.length - 1)] ?? 0;
    this.#queryTimer = setTimeout(() => this.#ask(), delay);
    this.#queryTimer.unref();
  }

  /** Soon, and for all that ask within a second at once. */
  #answer(): void {
    if (this.#options.port === 0 || this.#answerTimer) return;
    const wait = this.#answeredAt + ANSWER_PAUSE_MS - performance.now();
    const delay = Math.max(wait, ANSWER_DELAY_MS.least + Math.random() * ANSWER_DELAY_MS.spread);
    this.#answerTimer = setTimeout(() => {
      this.#answerTimer = undefined;
      this.#answeredAt = performance.now();
      void this.#send(this.#encodeAnswer(false));
    }, delay);
    this.#answerTimer.unref();
  }

  #encodeAnswer(goodbye: boolean): Buffer {
    const { tag, port } = this.#options;
    const addresses = this.#own.map(({ address }) => address);
    return encodeAnswer(this.#name, { tag, port, addresses, goodbye });
  }

  async #send(message: Buffer): Promise<void> {
    await Promise.all([...this.#senders.values()].map((socket) => this.#sendFrom(socket, message)));
  }

  #sendFrom(socket: Socket, message: Buffer): Promise<void> {
    return new Promise((resolve) => {
      try {
        // A network without a route to the group cannot be helped; the other ways to find devices go on.
        socket.send(message, this.#options.mdnsPort, GROUP, () => resolve());
      } catch {
        resolve();
      }
    });
  }
}

function closeSocket(socket: Socket): void {
  try {
    socket.close();
  } catch {
    // Closed already.
  }
}
