import { Socket } from 'node:net';
import type { EndpointAddress } from '../../endpoint.js';
import { DroidLlamaError } from '../../errors.js';
import type { SecureStream } from '../../transport/transport.js';
import { invalid } from '../../validate.js';
import { discardStream, type OpenStreamOptions, type Route, type ServedKind, StreamOpener } from '../streams.js';
import type { Link, Peer } from '../types.js';
import { type ConnectionEnd, ControlConnection, type ControlHandlers, type Refusal } from './control-connection.js';
import { Dialer, type DialOutcome } from './dialer.js';
import { isCredible, MAX_RAISES, raisedIncarnation } from './incarnation.js';
import { Listeners } from './listeners.js';
import type { MembershipEvents, MembershipOptions, OpenedStream, SelfRecord } from './membership-types.js';
import { hello, isBuild, type MemberMessage } from './messages.js';
import { isPeerId, peerIdFromBytes, peerIdToBytes } from './peer-id.js';
import { checkOwnRecord, MAX_PEERS } from './record-schemas.js';
import { byId, compareViews, deepFreeze, isNews, lookAround, mergeRecords, type Records } from './records.js';
import { Rejections } from './rejections.js';
import { recordEndpoints, routeTo } from './routes.js';

export type { MembershipEvents, MembershipOptions, OpenedStream, SelfRecord };

const GOSSIP_MS = 100;
/** A member on the same network answers much sooner; the next attempt must not wait for this one long. */
const DIAL_MS = 5000;
/** Records that are kept, of those out of reach too: what leads to them again may come after them. */
const MAX_RECORDS = 2 * MAX_PEERS;
/** Streams that have not greeted yet. */
const MAX_GREETING = 64;
/** A connection that was shorter may be the first of many such. */
const STEADY_MS = 5000;

/** Knows who is in the cluster, and keeps a control connection with every member it can. */
export class Membership {
  readonly id: string;
  readonly #options: Required<Omit<MembershipOptions, 'self'>>;
  readonly #listeners: Listeners<MembershipEvents>;
  readonly #rejections: Rejections;
  readonly #dialer: Dialer;
  readonly #opener: StreamOpener;
  readonly #handlers: ControlHandlers;
  /** All that are not closed yet. */
  readonly #connections = new Set<ControlConnection>();
  /** The one that counts, of each peer. */
  readonly #current = new Map<string, ControlConnection>();
  readonly #dialledAt = new Map<string, EndpointAddress>();
  readonly #claims = new Map<ControlConnection, string>();
  readonly #dials = new Map<ControlConnection, (outcome: DialOutcome) => void>();
  #self: Peer;
  /** Of the other peers, whether they can be reached or not. */
  #records: Records = new Map();
  /** Of the other peers that can be reached, as the events told last. */
  #view: Records = new Map();
  /** What others say of a newer process than the one that is connected; it waits for that one's end. */
  #held = new Map<string, Peer>();
  #links: readonly Link[] = [];
  #raises = 0;
  #refresh: NodeJS.Immediate | undefined;
  #closed = false;
  #closing: Promise<void> | undefined;

  private constructor(options: MembershipOptions) {
    const { transport, self, build, heartbeatMs = 1000, lostAfterMs = 4000, onListenerError = () => {} } = options;
    if (!isPeerId(self.id)) invalid(`id is ${JSON.stringify(self.id)}; it must be 16 bytes as base64url.`);
    if (!isBuild(build)) invalid('build must be a text of 1 to 256 printable characters.');
    this.#options = { transport, build, heartbeatMs, lostAfterMs, onListenerError };
    this.id = self.id;
    this.#self = deepFreeze(checkOwnRecord({ ...self, revision: 0, neighbours: [], links: [] }));
    this.#listeners = new Listeners(onListenerError);
    this.#rejections = new Rejections({
      emit: (rejection) => this.#listeners.emit('rejected', rejection),
      id: self.id,
      rivalryMs: 2.5 * lostAfterMs,
    });
    this.#dialer = new Dialer({
      dial: (address, signal) => this.#dial(address, signal),
      standing: (id) => (this.#current.has(id) ? 'connected' : this.#view.has(id) ? 'member' : 'unknown'),
    });
    this.#opener = new StreamOpener({ transport, id: self.id, route: (id) => this.#route(id) });
    this.#handlers = {
      admit: (connection, peer) => this.#admit(connection, peer),
      established: (connection) => this.#established(connection),
      message: (connection, message) => this.#received(connection, message),
      ended: (connection, end) => this.#ended(connection, end),
    };
  }

  /** @throws DroidLlamaError `DROID_INVALID_ARGUMENT` when others would not accept the record. */
  static start(options: MembershipOptions): Membership {
    return new Membership(options);
  }

  on<Name extends keyof MembershipEvents>(name: Name, listener: (...values: MembershipEvents[Name]) => unknown): this {
    this.#listeners.add(name, listener);
    return this;
  }

  off<Name extends keyof MembershipEvents>(name: Name, listener: (...values: MembershipEvents[Name]) => unknown): this {
    this.#listeners.delete(name, listener);
    return this;
  }

  /** This device's record as the others get it. */
  self(): Peer {
    return this.#self;
  }

  /** All that can be reached, this device included, in the order of their ids. */
  peers(): readonly Peer[] {
    return Object.freeze([this.#self, ...this.#view.values()].sort(byId));
  }

  /** What the peers found out by dialling each other. */
  links(): readonly Link[] {
    return this.#links;
  }

  /** Tells the others; nothing happens when it is no change. Throws `DROID_INVALID_ARGUMENT` for what they refuse. */
  update(change: Partial<Omit<SelfRecord, 'id' | 'incarnation'> & { readonly links: readonly Link[] }>): void {
    const { id, incarnation, revision, neighbours } = this.#self;
    const next = checkOwnRecord({ ...this.#self, ...change, id, incarnation, revision, neighbours });
    if (this.#closed || JSON.stringify(next) === JSON.stringify(this.#self)) return;
    this.#publishSelf(next);
    this.#touch();
  }

  /** An endpoint where a member may be, or is as a user says; nothing happens when it is connected, or failed just before. */
  offer(address: EndpointAddress, named = false): void {
    if (!this.#closed) this.#dialer.offer(address, named);
  }

  /** The endpoint, numeric, at which this device has dialled a member last; also of one that it is not connected with now. */
  dialledAt(id: string): EndpointAddress | undefined {
    return this.#dialledAt.get(id);
  }

  /** Takes an incoming stream of any kind but `probe`. */
  accept(stream: SecureStream): void {
    const peer = peerIdFromBytes(stream.preamble);
    const greeting = [...this.#connections].filter(({ established, ended }) => !established && !ended).length;
    if (this.#closed || peer === undefined) discardStream(stream);
    else if (stream.kind === 'reverse') this.#opener.redeem(stream);
    else if (stream.kind === 'rpc' || stream.kind === 'http') this.#serve({ kind: stream.kind, peer, stream });
    else if (stream.kind === 'control' && greeting < MAX_GREETING) this.#connect(stream, stream.remote, peer);
    else discardStream(stream);
  }

  /**
   * Opens a stream to a member, who gets it with its event `stream`: dials it, or asks it to dial this device, or both
   * one after the other. The stream's descriptor belongs to the caller.
   *
   * Rejects with `DROID_ENDPOINT_TIMEOUT`, `_REFUSED`, `_UNREACHABLE` (no member, too), `DROID_TOKEN_REJECTED`,
   * `DROID_CLOSED`, or the reason of the signal.
   */
  openStream(id: string, kind: ServedKind, options: OpenStreamOptions = {}): Promise<SecureStream> {
    return this.#opener.open(id, kind, options);
  }

  /** Milliseconds of the shortest recent exchange with a member that this device is connected with, else null. */
  roundTripMs(id: string): number | null {
    return this.#current.get(id)?.roundTripMs ?? null;
  }

  /** Says goodbye, so that the others notice at once, and closes everything. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#closed = true;
    clearImmediate(this.#refresh);
    this.#opener.close();
    for (const connection of this.#connections) connection.end('leaving', 'it leaves the cluster');
    await this.#dialer.close();
    await Promise.all([...this.#connections].map(({ closed }) => closed));
    this.#listeners.clear();
  }

  async #dial(address: EndpointAddress, signal: AbortSignal): Promise<DialOutcome> {
    let stream: SecureStream;
    try {
      const options = { preamble: peerIdToBytes(this.id), timeoutMs: DIAL_MS, signal };
      stream = await this.#options.transport.dial(address, 'control', options);
    } catch (error) {
      if (!(error instanceof DroidLlamaError) || error.code !== 'DROID_TOKEN_REJECTED') return { how: 'failed' };
      if (!this.#closed) this.#rejections.tell({ address, dialled: true }, error.code, error.message);
      return { how: 'rejected' };
    }
    if (this.#closed) {
      discardStream(stream);
      return { how: 'failed' };
    }
    const outcome = await new Promise<DialOutcome>((resolve) => this.#connect(stream, address, undefined, resolve));
    for (const id of this.#dialledAt.keys()) if (!this.#view.has(id)) this.#dialledAt.delete(id);
    if (outcome.how === 'connected') this.#dialledAt.set(outcome.id, stream.remote);
    return outcome;
  }

  /** `claim` is who the dialler of an incoming stream says it is, `settle` waits for the outcome of a dial. */
  #connect(
    stream: SecureStream,
    address: EndpointAddress,
    claim: string | undefined,
    settle?: (outcome: DialOutcome) => void,
  ): void {
    const { build, heartbeatMs, lostAfterMs } = this.#options;
    const connection = new ControlConnection({
      socket: new Socket({ fd: stream.fd, readable: true, writable: true }),
      dialled: claim === undefined,
      address,
      hello: () => hello(build, this.#self),
      record: (id) => (id === this.id ? this.#self : this.#records.get(id)),
      handlers: this.#handlers,
      heartbeatMs,
      lostAfterMs,
      gossipMs: GOSSIP_MS,
    });
    this.#connections.add(connection);
    void connection.closed.then(() => this.#connections.delete(connection));
    if (claim !== undefined) this.#claims.set(connection, claim);
    if (settle) this.#dials.set(connection, settle);
    connection.start();
  }

  #admit(connection: ControlConnection, peer: Peer): Refusal | undefined {
    if ((this.#claims.get(connection) ?? peer.id) !== peer.id) {
      return { code: 'protocol', reason: 'its hello has another id than its stream' };
    }
    const shared = { code: 'id-in-use', reason: `a newer process has the id ${peer.id}` } as const;
    if (peer.id === this.id) {
      if (peer.incarnation === this.#self.incarnation) return { code: 'duplicate', reason: 'it is this device itself' };
      this.#rejections.tellSharedId(this.id, connection);
      return shared;
    }
    if (this.#rejections.isBanned(peer)) return { code: 'protocol', reason: 'it was turned away for what it sent' };
    const current = this.#current.get(peer.id);
    if (peer.incarnation < (current?.incarnation ?? this.#view.get(peer.id)?.incarnation ?? 0)) return shared;
    if (current && current.incarnation === peer.incarnation && this.#isSurplus(connection, current, peer)) {
      return { code: 'duplicate', reason: 'there is another connection' };
    }
    if (!current && this.#current.size >= MAX_PEERS - 1) {
      return { code: 'full', reason: `the cluster has ${MAX_PEERS} members, and takes no more` };
    }
    // First the new one takes its place, so that the end of the old one is no loss.
    this.#current.set(peer.id, connection);
    if (current && peer.incarnation > current.incarnation) current.end('replaced', shared.reason);
    else current?.end('duplicate', 'there is another connection');
    return undefined;
  }

  /** Which of two connections with the same process goes; both ends come to the same answer. */
  #isSurplus(connection: ControlConnection, current: ControlConnection, peer: Peer): boolean {
    // Nobody relies on this one yet, since the end that dialled speaks last.
    if (connection.dialled) return true;
    // The other end would not have gone on if it had a connection, but for one dialled from both sides just now.
    if (!current.dialled || current.ageMs > this.#options.lostAfterMs) return false;
    return this.id < peer.id;
  }

  #established(connection: ControlConnection): void {
    const { peer } = connection;
    if (!peer) return;
    this.#dials.get(connection)?.({ how: 'connected', id: peer.id });
    this.#dials.delete(connection);
    this.#claims.delete(connection);
    const known = this.#records.get(peer.id);
    if (known && known.incarnation > connection.incarnation) {
      connection.send({ type: 'outdated', incarnation: known.incarnation });
    }
    this.#merge([deepFreeze(peer)]);
    connection.gossip.tell([this.id, ...this.#records.keys()]);
    this.#touch();
  }

  #received(connection: ControlConnection, message: MemberMessage): void {
    const { id } = connection;
    if (id === undefined) return;
    if (message.type === 'records') this.#heard(connection, id, message.peers);
    else if (message.type === 'dial-me') void this.#answer(id, message);
    else if (message.type === 'dial-failed') this.#opener.dialFailed(id, message);
    else if (message.type === 'outdated') this.#raise(message.incarnation);
  }

  #heard(connection: ControlConnection, from: string, records: readonly Peer[]): void {
    const news: Peer[] = [];
    for (const record of records) {
      connection.gossip.heard(record);
      // Nobody knows better than this device, but that a newer process has its id; then it will be turned away.
      if (record.id === this.id || !isNews(this.#records, record)) continue;
      const direct = this.#current.get(record.id);
      if (record.id === from) {
        if (record.incarnation < connection.incarnation) continue;
        connection.raiseIncarnation(record.incarnation);
      } else if (!isCredible(record.incarnation)) {
        continue;
      } else if (direct?.established) {
        // While it talks its own word counts; a newer process comes by itself, or when this connection is dead.
        if (record.incarnation > direct.incarnation) this.#held = mergeRecords(this.#held, [deepFreeze(record)]);
        continue;
      }
      news.push(deepFreeze(record));
    }
    if (news.length > 0) this.#merge(news);
  }

  #merge(incoming: readonly Peer[]): void {
    const before = this.#records;
    this.#records = mergeRecords(before, incoming);
    this.#tell(incoming.map(({ id }) => id).filter((id) => this.#records.get(id) !== before.get(id)));
    this.#touch();
  }

  #tell(ids: readonly string[]): void {
    for (const connection of this.#current.values()) if (connection.established) connection.gossip.tell(ids);
  }

  /** The clock of this device went back since others heard of it last: its records would count for old ones. */
  #raise(seen: number): void {
    const incarnation = raisedIncarnation(this.#self.incarnation, seen);
    if (incarnation === undefined || ++this.#raises > MAX_RAISES) return;
    this.#publishSelf({ ...this.#self, incarnation });
    this.#touch();
  }

  #publishSelf(record: Peer): void {
    this.#self = deepFreeze({ ...record, revision: record.revision + 1 });
    this.#tell([this.id]);
  }

  async #answer(peer: string, message: Parameters<StreamOpener['answer']>[1]): Promise<void> {
    const stream = await this.#opener.answer(peer, message);
    if (stream) this.#serve({ kind: message.kind, peer, stream });
  }

  #serve(opened: OpenedStream): void {
    if (!this.#closed && this.#listeners.has('stream')) this.#listeners.emit('stream', opened);
    else discardStream(opened.stream);
  }

  #ended(connection: ControlConnection, end: ConnectionEnd): void {
    const { id } = connection;
    const { code, by } = end;
    this.#claims.delete(connection);
    const shared = this.#rejections.tellEnd(connection, end);
    if (id !== undefined && this.#current.get(id) === connection) {
      this.#current.delete(id);
      this.#opener.hungUp(id);
      const held = this.#held.get(id);
      if (held) this.#merge([held]);
      this.#held.delete(id);
      if (code === 'protocol' && by === 'us') {
        this.#rejections.ban(id, connection.incarnation);
        this.#dialer.rejectedBy(id);
      } else if (end.established) this.#redial(id, connection, code === 'leaving');
      this.#touch();
    }
    const settle = this.#dials.get(connection);
    this.#dials.delete(connection);
    if (shared || code === 'version' || code === 'protocol' || code === 'full') settle?.({ how: 'rejected' });
    else if (code !== 'duplicate' || id === undefined) settle?.({ how: 'failed' });
    else settle?.(id === this.id ? { how: 'ourselves' } : { how: 'connected', id });
  }

  #redial(id: string, { dialled, address, ageMs }: ControlConnection, left: boolean): void {
    if (this.#closed) return;
    const record = this.#records.get(id);
    const from = record && record.port !== 0 ? { host: address.host, port: record.port } : undefined;
    this.#dialer.suggest(id, record ? recordEndpoints(record) : []);
    // Who left on purpose comes back by itself, but when it cannot dial this device.
    const when = left ? 'later' : ageMs < STEADY_MS ? 'backing-off' : 'soon';
    this.#dialer.lost(id, dialled ? address : from, when);
  }

  #route(id: string): Route | undefined {
    const record = this.#view.get(id);
    const current = this.#current.get(id);
    const link = this.#self.links.find(({ to }) => to === id);
    return record && routeTo({ record, control: current?.established ? current : undefined, link });
  }

  /** What changed is looked at once a turn of the event loop. */
  #touch(): void {
    if (!this.#closed) this.#refresh ??= setImmediate(() => this.#evaluate());
  }

  #evaluate(): void {
    this.#refresh = undefined;
    const neighbours = [...this.#current]
      .filter(([id, { established, incarnation }]) => established && this.#records.get(id)?.incarnation === incarnation)
      .map(([id]) => id)
      .sort();
    if (neighbours.join() !== this.#self.neighbours.join()) this.#publishSelf({ ...this.#self, neighbours });

    const before = this.#view;
    const limits = { keep: MAX_RECORDS, see: MAX_PEERS - 1 };
    ({ records: this.#records, view: this.#view } = lookAround(this.#self, this.#records, limits));
    this.#links = Object.freeze(this.peers().flatMap(({ links }) => links));
    for (const peer of this.#view.values()) {
      if (!this.#current.has(peer.id)) this.#dialer.suggest(peer.id, recordEndpoints(peer));
    }
    const { lost, joined } = compareViews(before, this.#view);
    for (const peer of lost) this.#listeners.emit('lost', peer);
    for (const peer of joined) this.#listeners.emit('joined', peer);
    this.#listeners.emit('change');
  }
}
