import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import { closeDescriptor, engineRoutes } from '../addon.js';
import type { CallOptions, ChatCompletionChunk, ChatRequest, CompletionChunk, CompletionRequest } from '../context.js';
import { defaultThreads } from '../cpu.js';
import type { RequestBody } from '../engine-request.js';
import { DroidLlamaError } from '../errors.js';
import type { createHttpHandler, HttpHandler, HttpServer, HttpServerOptions } from '../http/server.js';
import { requestEmbeddings, requestTokens, streamRequest } from '../requests.js';
import type { SecureStream } from '../transport/transport.js';
import type { EngineResponse, EngineRoute, RequestOptions } from '../types.js';
import { Changes } from './changes.js';
import type { ClusterEvents } from './cluster-events.js';
import type { Membership } from './control/membership.js';
import type { ModelFile } from './device/model-file.js';
import type { Discovery } from './discovery/discovery.js';
import { forwardRequest } from './forward/forward.js';
import { highestEpoch, leaderOf } from './leads.js';
import { mergeMeasurements } from './links.js';
import { healthAnswer } from './master/health.js';
import { Leadership } from './master/leadership.js';
import { type CheckedClusterOptions, type ClusterOptions, checkClusterOptions } from './options.js';
import { assignRoles } from './roles.js';
import { closeStages, type StageHooks, type Stages, startDiscovery, startStages } from './stages.js';
import { type ClusterStatus, clusterStatus, type MemberRole, roleOf } from './status.js';
import type { Lead, Link, Peer, Plan, Roles } from './types.js';

/** Changes come in bursts, and a plan is made of all of them. */
const REFRESH_MS = 50;
/** From finding a device to knowing its record. */
const GREETING_MS = 1_500;
/** A lead's progress and measurements are told this often. */
const TELL_MS = 500;
/** Requests of other members at once: they must leave descriptors for the rest. Members send theirs without pausing. */
const MEMBER_REQUESTS = { maxConnections: 64, idleMs: 10_000 };

/**
 * A group of devices that run one model together: finds them, gives out the roles, plans the split, and goes on when one
 * of them leaves. Made by {@link Cluster.join}; every member has one.
 */
export class Cluster extends EventEmitter<ClusterEvents> {
  /** This device's id. */
  readonly id: string;
  readonly name: string;
  /** The port that streams are accepted on. */
  readonly port: number;
  readonly #options: CheckedClusterOptions;
  readonly #stages: Stages;
  readonly #discovery: Discovery;
  readonly #servers = new Set<HttpServer>();
  readonly #handler: HttpHandler;
  #leadership: Leadership | undefined;
  /** Why this device's model cannot be loaded, if that was found out. */
  #modelFailure: DroidLlamaError | undefined;
  /** While the last one closes, no new one begins: two engines would not fit the memory. */
  #leadershipEnds: Promise<void> | undefined;
  #roles: Roles = { master: null, workers: [], leftOut: [], reasons: [] };
  #links: readonly Link[] = [];
  #probed: readonly Link[] = [];
  /** The highest that anybody has led in since this device joined. */
  #epoch = 0;
  #settled = false;
  #looked = false;
  #readyParts: string | undefined;
  #refreshTimer: NodeJS.Timeout | undefined;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #changes = new Changes();
  #leaving: Promise<void> | undefined;
  readonly #onAbort = (): void => void this.leave();

  /**
   * Joins the devices that have the same token, or waits for them: resolves when this device can be found.
   * Rejects with `DROID_INVALID_ARGUMENT`, `DROID_PORT_IN_USE`, `DROID_MODEL_*`, `DROID_ADDON_NOT_FOUND`, or the signal's
   * reason.
   */
  static async join(options: ClusterOptions): Promise<Cluster> {
    const checked = checkClusterOptions(options);
    const { signal } = checked;
    signal?.throwIfAborted();
    const hooks: StageHooks = { tell: () => {}, bytesLoaded: () => 0, isGenerating: () => false, warn: () => {} };
    const early: string[] = [];
    hooks.warn = (line) => void early.push(line);
    // It is half of what loading this library costs, which many have no use for.
    const { createHttpHandler } = await import('../http/server.js');
    const cluster = new Cluster(checked, await startStages(checked, hooks), hooks, createHttpHandler);
    setImmediate(() => {
      for (const line of early) cluster.emit('warning', line);
    });
    if (signal?.aborted) {
      await cluster.leave();
      signal.throwIfAborted();
    }
    signal?.addEventListener('abort', cluster.#onAbort, { once: true });
    return cluster;
  }

  /** Use {@link Cluster.join}. */
  private constructor(
    options: CheckedClusterOptions,
    stages: Stages,
    hooks: StageHooks,
    createHandler: typeof createHttpHandler,
  ) {
    super();
    this.id = options.id;
    this.name = options.name;
    this.port = stages.port;
    this.#options = options;
    this.#stages = stages;
    // What comes from another member is answered here or not at all: passing it on could go round in circles.
    const backend = {
      routes: engineRoutes(),
      request: this.#requestHere.bind(this),
      health: () => this.#leadership?.runtime.health(),
    };
    this.#handler = createHandler(engineRoutes(), backend, MEMBER_REQUESTS);
    hooks.tell = (change) => this.#tell(change);
    hooks.bytesLoaded = () => this.#bytesLoaded();
    hooks.isGenerating = () => (this.#leadership?.runtime.activeRequests ?? 0) > 0;
    hooks.warn = (line) => this.emit('warning', line);
    const { membership, prober, report, streams } = stages;
    membership.on('change', () => {
      prober.check();
      this.#refreshSoon();
    });
    membership.on('joined', (peer) => this.emit('peer', peer, 'joined'));
    membership.on('lost', (peer) => {
      // TCP takes its time to notice; whoever waits for this device is told now.
      streams.cutAll(peer.id);
      this.emit('peer', peer, 'lost');
    });
    membership.on('rejected', ({ endpoint, reason }) => {
      // What comes from a dial names the endpoint itself.
      this.emit('warning', reason.includes(endpoint) ? reason : `${endpoint}: ${reason}`);
    });
    membership.on('stream', ({ kind, peer, stream }) => this.#onStream(kind, peer, stream));
    prober.on('links', (links) => {
      this.#probed = links;
      this.#refreshSoon();
    });
    const discovery = startDiscovery(options, stages);
    this.#discovery = discovery;
    discovery.on('candidate', (address, source) => membership.offer(address, source === 'peer'));
    discovery.on('addresses', (addresses) => {
      this.#tell({ addresses });
      prober.refresh();
    });
    discovery.on('warning', (line) => this.emit('warning', line));
    report.start();
    void discovery.settled().then(() => {
      if (this.#leaving) return;
      // Who was found last has yet to be dialled.
      const greeted = setTimeout(() => {
        this.#looked = true;
        this.#refreshSoon();
      }, GREETING_MS);
      this.#timers.push(greeted.unref());
    });
    this.#timers.push(
      setTimeout(() => {
        this.#settled = true;
        this.#refreshSoon();
      }, options.settleMs).unref(),
      setInterval(() => this.#tellLead(), TELL_MS).unref(),
    );
    this.#refreshSoon();
  }

  /** What this device is at the moment. */
  get role(): MemberRole {
    return roleOf(this.id, this.#roles, this.plan);
  }

  /** Every device that can be reached, this one too. */
  get peers(): readonly Peer[] {
    return this.#stages.membership.peers();
  }

  /** Who can dial whom, how far and how fast, as far as it is known. */
  get links(): readonly Link[] {
    return this.#links;
  }

  get roles(): Roles {
    return this.#roles;
  }

  /** The master's plan; null before there is one. */
  get plan(): Plan | null {
    return leaderOf(this.peers)?.lead?.plan ?? null;
  }

  /** The endpoints of {@link request} and {@link listen}. */
  get routes(): readonly EngineRoute[] {
    return engineRoutes();
  }

  /** Everything at once, as `droid-llama status` shows it. */
  status(): ClusterStatus {
    return clusterStatus(this.id, this.peers, this.#links, this.#roles);
  }

  /**
   * Resolves when the model is loaded and can be asked from here. Rejects when it can not be loaded here (`DROID_MODEL_*`,
   * `DROID_LOAD_FAILED`), with `DROID_CLOSED`, or with the signal's reason.
   */
  async ready({ signal }: CallOptions = {}): Promise<void> {
    for (;;) {
      signal?.throwIfAborted();
      if (this.#leaving) throw left();
      if (this.#lead()?.state === 'ready') return;
      if (this.#modelFailure) throw this.#modelFailure;
      await this.#changes.next(signal);
    }
  }

  /** Streams a chat completion, wherever the master is; like `DistributedContext.chat`. */
  chat(request: ChatRequest, options: CallOptions = {}): AsyncGenerator<ChatCompletionChunk, void, undefined> {
    return streamRequest(this, '/v1/chat/completions', request, options);
  }

  /** Streams the completion of a prompt. */
  complete(request: CompletionRequest, options: CallOptions = {}): AsyncGenerator<CompletionChunk, void, undefined> {
    return streamRequest(this, '/v1/completions', request, options);
  }

  /** One vector for each text; needs `llamaArgs: ['--embeddings']` on the master. */
  embed(input: string | readonly string[], options: CallOptions = {}): Promise<number[][]> {
    return requestEmbeddings(this, input, options);
  }

  /** The token ids of a text. */
  tokenize(content: string, options: CallOptions & { addSpecial?: boolean } = {}): Promise<number[]> {
    return requestTokens(this, content, options);
  }

  /**
   * Sends a request to one of llama-server's endpoints on the master. While there is no loaded model it waits, up to
   * `requestWaitMs`, and then rejects with `DROID_NOT_READY`.
   */
  async request(
    method: string,
    path: string,
    body?: RequestBody,
    options: RequestOptions = {},
  ): Promise<EngineResponse> {
    const deadline = Date.now() + this.#options.requestWaitMs;
    for (;;) {
      if (this.#leaving) throw left();
      if (this.#leadership) return this.#requestHere(method, path, body, options);
      const leader = leaderOf(this.peers);
      if (leader && leader.id !== this.id) {
        return forwardRequest((signal) => this.#open(leader.id, 'http', signal), method, path, body, options);
      }
      const patience = deadline - Date.now();
      if (patience <= 0) {
        const reason = this.#roles.reasons.join(' ') || 'no device leads the cluster yet';
        throw new DroidLlamaError('DROID_NOT_READY', `The cluster has no master: ${reason}`, { status: 503 });
      }
      await this.#changes.next(options.signal, patience);
    }
  }

  /**
   * Serves llama-server's API over HTTP until the server or the cluster is closed; on a worker requests go to the master.
   * Rejects with `DROID_PORT_IN_USE` or `DROID_INVALID_ARGUMENT`.
   */
  async listen(options: HttpServerOptions = {}): Promise<HttpServer> {
    if (this.#leaving) throw left();
    const backend = {
      routes: this.routes,
      request: this.request.bind(this),
      health: () => this.#leadership?.runtime.health() ?? healthAnswer(this.#lead()),
    };
    const { startHttpServer } = await import('../http/server.js');
    const inner = await startHttpServer(this.routes, backend, options);
    const close = (): Promise<void> => {
      this.#servers.delete(server);
      return inner.close();
    };
    const server: HttpServer = { ...inner, close, [Symbol.asyncDispose]: close };
    this.#servers.add(server);
    if (this.#leaving) await close();
    return server;
  }

  /** Says goodbye, so that the others notice at once, and frees everything on this device. Idempotent. */
  leave(): Promise<void> {
    this.#leaving ??= this.#leave();
    return this.#leaving;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.leave();
  }

  /** Bytes of a model that this device holds as the master. */
  #bytesLoaded(): number {
    const runtime = this.#leadership?.runtime;
    if (!runtime?.context()) return 0;
    return runtime.plan?.parts.find(({ id }) => id === this.id)?.memoryNeeded ?? 0;
  }

  /** Changes this device's own record. */
  #tell(change: Parameters<Membership['update']>[0]): void {
    if (this.#leaving) return;
    try {
      this.#stages.membership.update(change);
    } catch (error) {
      // Called by timers, where nobody would catch it; and no fault of the user's, whose options were checked.
      this.emit('warning', (error as Error).message);
    }
  }

  async #leave(): Promise<void> {
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    clearTimeout(this.#refreshTimer);
    for (const timer of this.#timers) clearTimeout(timer);
    this.#changes.tell();
    await Promise.allSettled([...this.#servers].map((server) => server.close()));
    await this.#handler.close();
    this.#resign();
    await this.#leadershipEnds;
    await this.#discovery.close();
    await closeStages(this.#stages);
  }

  #refreshSoon(): void {
    if (this.#leaving || this.#refreshTimer) return;
    this.#refreshTimer = setTimeout(() => {
      this.#refreshTimer = undefined;
      if (!this.#leaving) this.#refresh();
    }, REFRESH_MS);
  }

  /** Everything that follows from who is there and how they are connected. */
  #refresh(): void {
    const { membership } = this.#stages;
    const others = membership.peers().filter(({ id }) => id !== this.id);
    const own = mergeMeasurements(this.#probed, others);
    const before = membership.self().links;
    if (JSON.stringify(own) !== JSON.stringify(before)) this.#tell({ links: own });
    const peers = membership.peers();
    const links = membership.links();
    if (JSON.stringify(links) !== JSON.stringify(this.#links)) {
      this.#links = links;
      this.emit('link', links);
    }
    this.#settled ||=
      this.#looked && others.every(({ id }) => own.some((link) => link.to === id && link.dial !== 'unknown'));
    this.#epoch = highestEpoch(peers, this.#epoch);
    const roles = assignRoles({ peers, links, incumbent: leaderOf(peers)?.id ?? null });
    const leads = roles.master === this.id && this.#stages.model !== undefined;
    // Whoever has just come must not lead before it has looked whether somebody else does.
    if (leads && !this.#settled) {
      this.#changes.tell();
      return;
    }
    if (JSON.stringify(roles) !== JSON.stringify(this.#roles)) {
      this.#roles = roles;
      this.emit('roles', roles);
    }
    if (leads && !this.#leadershipEnds) {
      this.#leadership ??= this.#beginToLead(this.#stages.model as ModelFile);
      this.#leadership.update({ peers, links, roles });
    } else if (!leads) {
      this.#resign();
    }
    this.#tellReady();
    this.#changes.tell();
  }

  #beginToLead(model: ModelFile): Leadership {
    const { objective, activations, contextSize, batchSize, ubatchSize, parallel, requestWaitMs, llamaArgs } =
      this.#options;
    const leadership = new Leadership({
      self: this.id,
      epoch: ++this.#epoch,
      model,
      objective,
      contextSize,
      batchSize,
      ubatchSize,
      parallel,
      runtime: {
        openRpc: async (peer, signal) => (await this.#open(peer, 'rpc', signal)).fd,
        engine: {
          threads: this.#options.threads ?? defaultThreads(),
          activations,
          parallel,
          llamaArgs: [...llamaArgs],
        },
        requestWaitMs,
        nameOf: (peer) => this.#nameOf(peer),
      },
    });
    leadership.on('lead', () => {
      this.#tellLead();
      this.#refreshSoon();
    });
    leadership.on('plan', (plan) => this.emit('plan', plan));
    leadership.on('progress', (progress) => this.emit('progress', progress));
    leadership.on('lost', (error, peer) => this.emit('lost', error, peer));
    leadership.on('failed', (error) => {
      if (leadership.hopeless) {
        // Another device's model may be better: this one is no candidate any more.
        this.#modelFailure = error;
        this.#tell({ model: null });
      }
      this.#report(error);
    });
    return leadership;
  }

  #resign(): void {
    const leadership = this.#leadership;
    if (!leadership) return;
    this.#leadership = undefined;
    this.#leadershipEnds = leadership
      .close()
      .catch((error: Error) => this.#report(error))
      .then(() => {
        this.#leadershipEnds = undefined;
        this.#refreshSoon();
      });
    this.#tell({ lead: null });
  }

  #tellLead(): void {
    const leadership = this.#leadership;
    if (!leadership || this.#leaving) return;
    const lead = leadership.lead();
    if (JSON.stringify(lead) === JSON.stringify(this.#stages.membership.self().lead)) return;
    this.#tell({ lead });
    this.#tellReady();
    this.#changes.tell();
  }

  #tellReady(): void {
    const lead = this.#lead();
    // A short load in between may have passed unseen here: then the parts tell that it was another one.
    const ready = lead?.state === 'ready' ? JSON.stringify(lead.plan?.parts) : undefined;
    if (ready !== undefined && ready !== this.#readyParts) this.emit('ready', this.status());
    this.#readyParts = ready;
  }

  #lead(): Lead | null {
    return leaderOf(this.peers)?.lead ?? null;
  }

  async #open(peer: string, kind: 'rpc' | 'http', signal?: AbortSignal): Promise<SecureStream> {
    const { membership, streams } = this.#stages;
    return streams.add(peer, await membership.openStream(peer, kind, { signal }));
  }

  #onStream(kind: 'rpc' | 'http', peer: string, stream: SecureStream): void {
    if (this.#leaving) {
      closeDescriptor(stream.fd);
      return;
    }
    this.#stages.streams.add(peer, stream);
    if (kind === 'http') {
      this.#handler.handle(new Socket({ fd: stream.fd, readable: true, writable: true, allowHalfOpen: true }));
      return;
    }
    this.#stages.worker.accept(stream, this.#nameOf(peer)).catch((error: Error) => this.#report(error));
  }

  #nameOf(peer: string): string {
    return this.peers.find(({ id }) => id === peer)?.name ?? peer;
  }

  async #requestHere(
    method: string,
    path: string,
    body: RequestBody | undefined,
    options: RequestOptions,
  ): Promise<EngineResponse> {
    const runtime = this.#leadership?.runtime;
    if (!runtime) throw new DroidLlamaError('DROID_NOT_READY', 'This device is not the master.', { status: 503 });
    return runtime.request(method, path, body, options);
  }

  /** An 'error' event that nobody listens for would end the process. */
  #report(error: Error): void {
    if (this.listenerCount('error') > 0) this.emit('error', error);
    else this.emit('warning', error.message);
  }
}

function left(): DroidLlamaError {
  return new DroidLlamaError('DROID_CLOSED', 'This device has left the cluster.');
}
