/** The engine of the device that leads: at most one at a time, changed from plan to plan while requests keep coming. */
import { EventEmitter } from 'node:events';
import { addon, engineRoutes } from '../../addon.js';
import { createContextOverLinks } from '../../context.js';
import type { RequestBody } from '../../engine-request.js';
import { DroidLlamaError } from '../../errors.js';
import type { HealthAnswer, HttpBackend } from '../../http/backend.js';
import type { ContextStats, EngineResponse, EngineRoute, LoadProgress, RequestOptions } from '../../types.js';
import type { Lead, Measured, Plan } from '../types.js';
import { countBody } from './counted-body.js';
import { healthAnswer, notReadyMessage } from './health.js';
import { type EngineContext, isSameEngine, loadPlan, PlanLoadError, type PlanLoader } from './load-plan.js';
import { overallProgress } from './load-progress.js';
import type { MasterEvents, MasterOptions, MasterState } from './master-options.js';
import { DEFAULT_REQUEST_WAIT_MS, DEFAULT_WAITING_LIMIT, notReady, RequestGate } from './request-gate.js';

export type { MasterEvents, MasterOptions, MasterState } from './master-options.js';

interface Engine {
  readonly context: EngineContext;
  readonly loadSeconds: number;
  /** Requests that it answers at the moment. */
  active: number;
  /** The first failure of a worker. */
  failure: DroidLlamaError | null;
}

/** A plan that is on its way to become the engine. */
interface Change {
  readonly plan: Plan;
  readonly drain: boolean;
  readonly controller: AbortController;
  done: Promise<void>;
}

export class MasterRuntime extends EventEmitter<MasterEvents> implements HttpBackend {
  readonly #loader: PlanLoader;
  readonly #gate: RequestGate;
  readonly #drainGraceMs: number;
  #layerBytes: readonly number[] | undefined;

  #state: MasterState = 'idle';
  #plan: Plan | null = null;
  #reason: string | null = null;
  #failure: DroidLlamaError | null = null;
  /** No plan would load: requests need not wait for one. */
  #isFinal = false;
  #progress = 0;

  #engine: Engine | null = null;
  #change: Change | null = null;
  /** Changes run one after the other, so that there are never two engines in memory. */
  #tail: Promise<void> = Promise.resolve();
  #graceTimer: NodeJS.Timeout | undefined;
  /** New requests wait until the change is through. */
  #isHolding = false;
  #wakeDrain: () => void = () => {};
  #closing: Promise<void> | undefined;

  constructor(options: MasterOptions) {
    super();
    this.#loader = {
      model: options.model,
      engine: options.engine ?? {},
      openRpc: options.openRpc,
      nameOf: options.nameOf ?? ((peer) => peer),
      loadContext: options.loadContext ?? createContextOverLinks,
      layerBytes: options.layerBytes ?? (() => this.#readLayerBytes()),
    };
    this.#drainGraceMs = options.drainGraceMs ?? 5000;
    this.#gate = new RequestGate({
      waitMs: options.requestWaitMs ?? DEFAULT_REQUEST_WAIT_MS,
      limit: options.waitingLimit ?? DEFAULT_WAITING_LIMIT,
      reason: () => this.#notReadyReason(),
    });
  }

  get state(): MasterState {
    return this.#state;
  }

  /** The plan that is loaded or being loaded; while a change waits for running requests, still the old one. */
  get plan(): Plan | null {
    return this.#plan;
  }

  /** Why the state is `degraded` or `failed`. */
  get failure(): DroidLlamaError | null {
    return this.#failure;
  }

  /** Why it waits, is degraded or failed, in words. */
  get reason(): string | null {
    return this.#reason;
  }

  /** Of the load, 0 to 1; 1 when loaded. */
  get progress(): number {
    return this.#progress;
  }

  /** Requests that the engine answers at the moment; those that wait do not count. */
  get activeRequests(): number {
    return this.#engine?.active ?? 0;
  }

  /** Requests that wait for an engine. */
  get waitingRequests(): number {
    return this.#gate.waiting;
  }

  get routes(): readonly EngineRoute[] {
    return engineRoutes();
  }

  /**
   * Makes this plan the engine: ends the old one, then loads. A newer call, {@link wait} and {@link close} take over
   * from an older one, also in the middle of its load; applying what is loaded or being loaded already changes nothing.
   * A plan that does not fit is a reason to {@link wait}.
   *
   * @param drain wait until no request runs, however long that takes; after a grace time new ones are held back until
   * the new engine is there. Otherwise the old engine ends at once, and so do its requests. One that has lost a worker
   * always ends at once.
   * @returns resolves when the plan is loaded, or something newer has taken over; rejects with why it was not. Nobody
   * has to wait for it: state and events tell the same.
   */
  apply(plan: Plan, { drain }: { drain: boolean }): Promise<void> {
    if (this.#closing) return ignorable(Promise.reject(closed()));
    const current = this.#change;
    if (current && isSameEngine(current.plan, plan) && (drain || !current.drain)) return current.done;
    if (!plan.fits) return this.#pause(missingMemory(plan), plan);
    this.#supersede();
    const change: Change = { plan, drain, controller: new AbortController(), done: Promise.resolve() };
    this.#change = change;
    change.done = this.#enqueue(() => this.#perform(change));
    return change.done;
  }

  /** Ends the engine, because the model does not fit who is there; requests wait, and then fail with the reason. */
  wait(reason: string): void {
    if (!this.#closing) this.#pause(reason, null);
  }

  /** What the running engine really does. */
  measured(): Measured {
    const engine = this.#engine;
    const speeds = engine?.context.stats().engine;
    return {
      loadSeconds: engine?.loadSeconds ?? null,
      promptTokensPerSecond: speeds?.promptTokensPerSecond || null,
      generationTokensPerSecond: speeds?.tokensPerSecond || null,
    };
  }

  /** The counters of the running engine; `workers` are in the order of the plan's parts, without the master. */
  stats(): ContextStats | null {
    return this.#engine?.context.stats() ?? null;
  }

  /** The running engine. Its requests are not counted, so that a change does not wait for them. */
  context(): EngineContext | null {
    return this.#engine?.context ?? null;
  }

  /** What the health routes answer, without asking the engine. */
  health(): HealthAnswer {
    return healthAnswer(this.#lead());
  }

  /**
   * Sends a request to the engine; while there is none, it waits for one.
   *
   * Rejects with `DROID_NOT_READY` when it has waited for its time, when too many wait, or when no plan will load; with
   * `DROID_WORKER_*` when a worker's failure has ended it; with `DROID_CLOSED`; or with the signal's reason. Read the
   * body to its end, or end it: a change waits for that.
   */
  async request(
    method: string,
    path: string,
    body?: RequestBody,
    options: RequestOptions = {},
  ): Promise<EngineResponse> {
    if (this.#closing) throw closed();
    if (this.#isFinal) throw notReady(this.#notReadyReason(), this.#failure);
    const { signal } = options;
    const engine = await this.#gate.enter(() => this.#takeEngine(), signal);
    let release: () => void = () => {
      release = () => {};
      signal?.removeEventListener('abort', onAbort);
      engine.active--;
      if (engine.active === 0) this.#wakeDrain();
    };
    const onAbort = () => release();
    // Whoever aborts need not read the body any more.
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      const response = await engine.context.request(method, path, body, options);
      return { ...response, body: countBody(response.body, onAbort, (error) => explain(error, engine)) };
    } catch (error) {
      release();
      throw explain(error, engine);
    }
  }

  /** Ends the engine, its requests, and those that wait, with `DROID_CLOSED`. Idempotent. */
  close(): Promise<void> {
    if (!this.#closing) {
      this.#supersede();
      this.#closing = this.#enqueue(() => this.#closeEngine());
      this.#plan = null;
      this.#become('idle');
      this.#gate.fail(closed());
    }
    return this.#closing;
  }

  #pause(reason: string, plan: Plan | null): Promise<void> {
    this.#supersede();
    // Before anybody hears of it, who may apply the next plan at once: that comes after the end of this engine.
    const closing = this.#enqueue(() => this.#closeEngine());
    this.#plan = plan;
    this.#become('waiting', { reason });
    return closing;
  }

  #supersede(): void {
    this.#change?.controller.abort();
    this.#change = null;
    this.#wakeDrain();
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    const done = ignorable(this.#tail.then(work));
    this.#tail = done.catch(() => {});
    return done;
  }

  async #perform(change: Change): Promise<void> {
    const { plan, drain } = change;
    const { signal } = change.controller;
    try {
      if (signal.aborted) return;
      const isLoaded = this.#state === 'ready' && this.#plan && isSameEngine(this.#plan, plan);
      if (isLoaded && !this.#isBroken()) {
        this.#plan = plan;
        this.#stopHolding();
        this.#gate.retry();
        this.emit('state');
        return;
      }
      if (drain) await this.#drained(signal);
      if (signal.aborted) return;
      this.#plan = plan;
      this.#progress = 0;
      this.#become('loading');
      await this.#closeEngine();
      if (!signal.aborted) await this.#load(plan, signal);
    } finally {
      if (this.#change === change) this.#change = null;
    }
  }

  async #drained(signal: AbortSignal): Promise<void> {
    while (!signal.aborted && !this.#isBroken() && this.activeRequests > 0) {
      this.#graceTimer ??= setTimeout(() => {
        this.#isHolding = true;
      }, this.#drainGraceMs).unref();
      await new Promise<void>((resolve) => {
        this.#wakeDrain = resolve;
      });
    }
  }

  async #closeEngine(): Promise<void> {
    this.#stopHolding();
    const engine = this.#engine;
    this.#engine = null;
    await engine?.context.close();
  }

  #stopHolding(): void {
    clearTimeout(this.#graceTimer);
    this.#graceTimer = undefined;
    this.#isHolding = false;
  }

  async #load(plan: Plan, signal: AbortSignal): Promise<void> {
    const started = performance.now();
    let engine: Engine | undefined;
    const onProgress = (progress: LoadProgress): void => {
      if (signal.aborted || engine) return;
      this.#progress = Math.max(this.#progress, overallProgress(progress, plan.parts.length > 1));
      this.emit('progress', progress);
    };
    const onWorkerLost = (error: DroidLlamaError, peer: string): void => {
      if (engine) this.#loseWorker(engine, error, peer);
    };
    try {
      const context = await loadPlan(this.#loader, plan, { signal, onProgress, onWorkerLost });
      engine = { context, loadSeconds: (performance.now() - started) / 1000, active: 0, failure: null };
      this.#engine = engine;
    } catch (error) {
      if (signal.aborted) return;
      throw this.#loadFailed(error);
    }
    if (signal.aborted) return; // whoever took over closes it
    this.#progress = 1;
    this.#become('ready');
    this.#gate.retry();
  }

  /** @returns what the caller of apply() is told */
  #loadFailed(error: unknown): unknown {
    if (!(error instanceof PlanLoadError)) return error;
    const { cause, kind, peers } = error;
    // Whoever hears of it may apply the same plan again.
    this.#change = null;
    if (kind === 'lost' && peers.size > 0) {
      this.#become('degraded', { reason: cause.message, failure: cause });
      for (const [peer, itsError] of peers) this.emit('lost', itsError, peer);
      return cause;
    }
    this.#isFinal = kind === 'final';
    this.#become('failed', { reason: cause.message, failure: cause });
    if (this.#isFinal) this.#gate.fail(notReady(this.#notReadyReason(), cause));
    this.emit('failed', cause, peers.keys().next().value ?? null);
    return cause;
  }

  #loseWorker(engine: Engine, error: DroidLlamaError, peer: string): void {
    engine.failure ??= error;
    if (this.#engine !== engine) return;
    this.#wakeDrain();
    if (this.#state === 'ready') this.#become('degraded', { reason: error.message, failure: error });
    this.emit('lost', error, peer);
  }

  #become(state: MasterState, { reason = null, failure = null }: Partial<Pick<this, 'reason' | 'failure'>> = {}): void {
    this.#state = state;
    this.#reason = reason;
    this.#failure = failure;
    if (state !== 'failed') this.#isFinal = false;
    this.emit('state');
  }

  /** The engine for one request more, if requests are answered at the moment. */
  #takeEngine(): Engine | undefined {
    const engine = this.#engine;
    if (!engine || this.#state !== 'ready' || this.#isHolding || this.#isBroken()) return undefined;
    engine.active++;
    return engine;
  }

  /** The context knows of a failure a moment before its callback tells. */
  #isBroken(): boolean {
    return Boolean(this.#engine?.failure ?? this.#engine?.context.failure);
  }

  #lead(): Pick<Lead, 'state' | 'progress' | 'reason'> | null {
    if (this.#state === 'idle') return null;
    return { state: this.#state, progress: this.#progress, reason: this.#reason };
  }

  #notReadyReason(): string {
    if (this.#state === 'ready' && this.#isHolding) {
      return `The model is about to be placed anew, once ${this.activeRequests} running requests have ended.`;
    }
    return notReadyMessage(this.#lead());
  }

  async #readLayerBytes(): Promise<readonly number[]> {
    this.#layerBytes ??= (await addon().inspectModel(this.#loader.model)).layerBytes;
    return this.#layerBytes;
  }
}

/** A request that a lost worker has ended says so, also when the engine was closed before it could. */
function explain(error: unknown, engine: Engine): unknown {
  const isClosed = error instanceof DroidLlamaError && error.code === 'DROID_CLOSED';
  const failure = isClosed ? (engine.failure ?? engine.context.failure) : undefined;
  return failure ? new DroidLlamaError(failure.code, failure.message, { cause: error }) : error;
}

function closed(): DroidLlamaError {
  return new DroidLlamaError('DROID_CLOSED', 'This device does not lead the cluster any more.');
}

function missingMemory({ missingBytes, reasons }: Plan): string {
  const missing = `The model does not fit: ${Math.ceil(missingBytes / 1048576)} MiB more memory is needed.`;
  return missingBytes > 0 ? missing : (reasons[0] ?? 'The model does not fit.');
}

/** A promise whose rejection may go unheard. */
function ignorable<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}
