import { EventEmitter } from 'node:events';
import type { DroidLlamaError } from '../../errors.js';
import type { LoadProgress } from '../../types.js';
import type { ModelFile } from '../device/model-file.js';
import { planCluster, predictPlan } from '../plan/plan.js';
import { isWorthChanging } from '../plan/plan-change.js';
import type { Lead, Link, Objective, Peer, Plan, PlanDevice, PlanInput, Prediction, Roles } from '../types.js';
import { type MasterOptions, MasterRuntime } from './master.js';

export interface LeadershipOptions {
  readonly self: string;
  readonly epoch: number;
  readonly model: ModelFile;
  readonly objective: Objective;
  readonly contextSize: number | undefined;
  readonly batchSize: number | undefined;
  readonly ubatchSize: number | undefined;
  readonly parallel: number | undefined;
  readonly runtime: Omit<MasterOptions, 'model'>;
}

/** What a lead is made of: who is there, how they are connected, and what each is to be. */
export interface Situation {
  readonly peers: readonly Peer[];
  readonly links: readonly Link[];
  readonly roles: Roles;
}

interface LeadershipEvents {
  /** The lead changed. */
  lead: [];
  plan: [Plan];
  progress: [LoadProgress];
  lost: [DroidLlamaError, string];
  /** A load failed, for another reason than a lost worker; see {@link Leadership.hopeless}. */
  failed: [DroidLlamaError];
}

/** A worker that failed while its control connection lives is not tried again at once. */
const BENCH_MS = 3_000;
const LONGEST_BENCH_MS = 60_000;
/** A worker that served this long has made up for its failures. */
const FORGIVEN_AFTER_MS = 120_000;

/** Of a device that had less memory than it said, this much of what it says is believed from then on. */
const BELIEVED_PART = 0.8;

/** From a worker's coming until its links are measured, usually. */
const MEASURE_MS = 3_000;

interface Bench {
  readonly until: number;
  readonly failures: number;
}

/**
 * This device's time as the master: makes a plan of every situation it is shown, and has the runtime load it when there
 * is none, when the one that runs is broken, or when the new one is better by more than a threshold.
 */
export class Leadership extends EventEmitter<LeadershipEvents> {
  readonly runtime: MasterRuntime;
  readonly #options: LeadershipOptions;
  readonly #benched = new Map<string, Bench>();
  #situation: Situation | undefined;
  /** Shown to others; the runtime's own may still be the one before. */
  #plan: Plan | null = null;
  readonly #believed = new Map<string, number>();
  readonly #firstSeen = new Map<string, number>();
  /** Of the plan that is loaded, by today's measurements. */
  #prediction: Prediction | null | undefined;
  #retry: NodeJS.Timeout | undefined;
  /** Loads that failed one after the other, and when the next one may begin. */
  #failures = 0;
  #holdUntil = 0;
  #hopeless = false;
  #closed = false;

  constructor(options: LeadershipOptions) {
    super();
    this.#options = options;
    this.runtime = new MasterRuntime({ ...options.runtime, model: options.model.path });
    this.runtime.on('state', () => this.#onState());
    this.runtime.on('progress', (progress) => this.emit('progress', progress));
    this.runtime.on('lost', (error, peer) => this.#onLost(error, peer));
    this.runtime.on('failed', (error, peer) => this.#onFailed(error, peer));
  }

  /** Whether the model or the options are at fault, so that no plan will load here. */
  get hopeless(): boolean {
    return this.#hopeless;
  }

  /** Looks at who is there now, and acts on it. */
  update(situation: Situation): void {
    if (this.#closed) return;
    this.#situation = situation;
    const pending = this.#unmeasured(situation);
    if (pending.length > 0 && (this.runtime.state === 'idle' || this.runtime.state === 'waiting')) return;
    const input: PlanInput = {
      model: this.#options.model.shape,
      ...this.#devices(situation, pending),
      objective: this.#options.objective,
      contextSize: this.#options.contextSize ?? null,
      batchSize: this.#options.batchSize ?? null,
      ubatchSize: this.#options.ubatchSize ?? null,
      parallel: this.#options.parallel ?? 1,
    };
    const next = planCluster(input);
    const { plan: current, state } = this.runtime;
    // What is wrong with the model or the options is wrong with every split.
    if (this.#hopeless) return;
    const hold = state === 'failed' ? this.#holdUntil - Date.now() : 0;
    if (hold > 0) {
      this.#again(hold + 1);
      return;
    }
    const present = new Set(situation.peers.map(({ id }) => id));
    const whole = current?.fits === true && current.parts.every(({ id }) => present.has(id) && !this.#isBenched(id));
    if (current && whole && (state === 'ready' || state === 'loading')) {
      const better = next.fits && isWorthChanging(current, next, input);
      this.#predict(better ? undefined : predictPlan(input, current));
      // Without a better one the current plan stays, also when a change to another one was waiting for its turn.
      if (better || this.#plan !== current) this.#apply(better ? next : current, true);
    } else if (next.fits) {
      this.#apply(next, false);
    } else {
      this.#setPlan(next);
      const reason = next.reasons.join(' ');
      // Each call tells everybody, who may come back with the same situation.
      if (state !== 'waiting' || this.runtime.reason !== reason) this.runtime.wait(reason);
    }
  }

  lead(): Lead {
    const { state, progress, reason, plan } = this.runtime;
    const prediction = this.#prediction ?? plan?.prediction ?? null;
    return {
      epoch: this.#options.epoch,
      state: state === 'idle' ? 'waiting' : state,
      progress,
      reason,
      // While a change waits for its turn, what is loaded is the plan before it.
      plan: plan ? { ...plan, prediction } : this.#plan,
      measured: this.runtime.measured(),
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    await this.runtime.close();
  }

  /**
   * Workers whose links are still being measured; a plan with guessed speeds would be loaded, and soon another one. Not
   * waited for longer than a moment, and not where they hold a part already.
   */
  #unmeasured({ links, roles }: Situation): readonly string[] {
    const now = Date.now();
    const held = new Set(this.runtime.plan?.parts.map(({ id }) => id));
    const pending = roles.workers.flatMap(({ id }) => {
      const since = this.#firstSeen.get(id) ?? now;
      if (!this.#firstSeen.has(id)) {
        this.#firstSeen.set(id, now);
        setTimeout(() => this.#again(0), MEASURE_MS + 1).unref();
      }
      const both = links.filter(
        ({ from, to }) => (from === id || to === id) && (from === this.#options.self || to === this.#options.self),
      );
      const measured = both.some(({ bytesPerSecond }) => bytesPerSecond !== null);
      return measured || held.has(id) || now - since >= MEASURE_MS ? [] : [id];
    });
    for (const id of this.#firstSeen.keys()) {
      if (!roles.workers.some((worker) => worker.id === id)) this.#firstSeen.delete(id);
    }
    return pending;
  }

  #predict(prediction: Prediction | null | undefined): void {
    if (JSON.stringify(prediction) === JSON.stringify(this.#prediction)) return;
    this.#prediction = prediction;
    this.emit('lead');
  }

  #devices(
    { peers, links, roles }: Situation,
    pending: readonly string[],
  ): { master: PlanDevice; workers: PlanDevice[] } {
    const link = (from: string, to: string): Link | undefined =>
      links.find((candidate) => candidate.from === from && candidate.to === to);
    const device = (peer: Peer, isMaster: boolean): PlanDevice => {
      const up = link(this.#options.self, peer.id);
      const down = link(peer.id, this.#options.self);
      return {
        id: peer.id,
        name: peer.name,
        memory: Math.floor(peer.memory * (this.#believed.get(peer.id) ?? 1)),
        compute: peer.compute,
        pinned: peer.pin === 'worker',
        link: isMaster
          ? null
          : {
              roundTripMs: up?.roundTripMs ?? down?.roundTripMs ?? null,
              upBytesPerSecond: up?.bytesPerSecond ?? null,
              downBytesPerSecond: down?.bytesPerSecond ?? null,
            },
      };
    };
    const self = peers.find(({ id }) => id === this.#options.self) as Peer;
    const workers = roles.workers
      .filter(({ id }) => !this.#isBenched(id) && !pending.includes(id))
      .flatMap(({ id }) => peers.filter((peer) => peer.id === id))
      .map((peer) => device(peer, false));
    return { master: device(self, true), workers };
  }

  #apply(plan: Plan, drain: boolean): void {
    this.#prediction = undefined;
    this.#setPlan(plan);
    // What goes wrong shows in the runtime's state.
    this.runtime.apply(plan, { drain }).catch(() => {});
  }

  #setPlan(plan: Plan): void {
    const changed = JSON.stringify(plan) !== JSON.stringify(this.#plan);
    this.#plan = plan;
    if (!changed) return;
    this.emit('plan', plan);
  }

  #onState(): void {
    this.emit('lead');
    if (this.runtime.state === 'ready') this.#failures = 0;
    if (this.runtime.state === 'degraded') this.#again(0);
    if (this.runtime.state === 'failed') {
      const pause = Math.min(BENCH_MS * 2 ** this.#failures++, LONGEST_BENCH_MS);
      this.#holdUntil = Date.now() + pause;
      this.#again(pause + 1);
    }
  }

  #onLost(error: DroidLlamaError, peer: string): void {
    const before = this.#benched.get(peer);
    const fresh = !before || Date.now() - before.until > FORGIVEN_AFTER_MS;
    const failures = fresh ? 1 : before.failures + 1;
    const pause = Math.min(BENCH_MS * 2 ** (failures - 1), LONGEST_BENCH_MS);
    this.#benched.set(peer, { until: Date.now() + pause, failures });
    this.emit('lost', error, peer);
    this.#again(0);
    setTimeout(() => this.#again(0), pause + 1).unref();
  }

  #onFailed(error: DroidLlamaError, peer: string | null): void {
    const { code } = error;
    if (code !== 'DROID_OUT_OF_MEMORY' && code !== 'DROID_WORKER_OUT_OF_MEMORY') {
      this.#hopeless = true;
    } else if (peer !== null) {
      this.#believed.set(peer, (this.#believed.get(peer) ?? 1) * BELIEVED_PART);
      // It may have been short of memory for a moment only.
      const forget = setTimeout(() => {
        this.#believed.delete(peer);
        this.#again(0);
      }, FORGIVEN_AFTER_MS);
      forget.unref();
    }
    this.emit('failed', error);
  }

  #isBenched(peer: string): boolean {
    return (this.#benched.get(peer)?.until ?? 0) > Date.now();
  }

  /** After the event that asks for it, so that nobody is called from within his own call. */
  #again(ms: number): void {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => {
      if (this.#situation) this.update(this.#situation);
    }, ms);
    this.#retry.unref();
  }
}
