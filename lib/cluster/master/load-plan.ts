/** Turns a plan into a loaded context, and says whose fault it is when that fails. */
import { setTimeout as delay } from 'node:timers/promises';
import { toDroidLlamaError } from '../../addon.js';
import type { DistributedContext } from '../../context.js';
import type { LinkedContextOptions } from '../../context-options.js';
import { DroidLlamaError, type ErrorCode } from '../../errors.js';
import type { LoadProgress } from '../../types.js';
import type { WorkerLink } from '../../worker-link.js';
import type { Plan, PlanPart } from '../types.js';

/**
 * Milliseconds for which a worker that has too little memory is asked again: it frees the last engine's part when it has
 * noticed its end, which may be after this device has.
 */
const MEMORY_PATIENCE_MS = 3000;
const MEMORY_RETRY_MS = 250;

/** What the user decides about the engine, whatever the plan is. */
export type EngineOptions = Omit<
  LinkedContextOptions,
  | 'model'
  | 'tensorSplit'
  | 'head'
  | 'contextSize'
  | 'batchSize'
  | 'ubatchSize'
  | 'onProgress'
  | 'onWorkerLost'
  | 'signal'
>;

/** What is used of a context. */
export type EngineContext = Pick<DistributedContext, 'placement' | 'failure' | 'request' | 'stats' | 'close'>;

export type LoadContext = (options: LinkedContextOptions, workers: readonly WorkerLink[]) => Promise<EngineContext>;

export interface PlanLoader {
  readonly model: string;
  readonly engine: EngineOptions;
  /** Opens a stream to the worker of that member. */
  readonly openRpc: (peer: string, signal?: AbortSignal) => Promise<number>;
  /** How messages name a member. */
  readonly nameOf: (peer: string) => string;
  readonly loadContext: LoadContext;
  /** Bytes of each layer of the model. */
  readonly layerBytes: () => Promise<readonly number[]>;
}

export interface PlanLoadOptions {
  signal: AbortSignal;
  onProgress: (progress: LoadProgress) => void;
  /** Once for each worker that fails after loading. */
  onWorkerLost: (error: DroidLlamaError, peer: string) => void;
}

/** A load that failed, for a reason other than the signal. */
export class PlanLoadError extends Error {
  override readonly cause: DroidLlamaError;
  /**
   * `lost`: a worker cannot be reached or has failed. `memory`: a device has less than its part needs.
   * `final`: neither, so another plan would fail as well.
   */
  readonly kind: 'lost' | 'memory' | 'final';
  /** The members it is about, each with its own error; empty when it is about none, or nobody can tell. */
  readonly peers: ReadonlyMap<string, DroidLlamaError>;

  constructor(cause: DroidLlamaError, kind: PlanLoadError['kind'], peers: PlanLoadError['peers']) {
    super(cause.message);
    this.cause = cause;
    this.kind = kind;
    this.peers = peers;
  }
}

/**
 * Loads the model as the plan says, with the master's layers here and each worker's over a stream of its own.
 *
 * @throws {@link PlanLoadError}, or the signal's reason
 */
export async function loadPlan(loader: PlanLoader, plan: Plan, options: PlanLoadOptions): Promise<EngineContext> {
  const deadline = performance.now() + MEMORY_PATIENCE_MS;
  for (;;) {
    try {
      return await loadOnce(loader, plan, options);
    } catch (error) {
      const isWorkers = error instanceof PlanLoadError && error.kind === 'memory' && !error.peers.has(masterOf(plan));
      if (!isWorkers || performance.now() > deadline) throw error;
      await delay(MEMORY_RETRY_MS, undefined, { signal: options.signal }).catch(() => {});
      options.signal.throwIfAborted();
    }
  }
}

async function loadOnce(loader: PlanLoader, plan: Plan, options: PlanLoadOptions): Promise<EngineContext> {
  const { signal } = options;
  const names = uniqueNames(plan.parts.slice(1), loader.nameOf);
  const failures: Failures = { lost: new Map(), unreachable: new Map() };
  let isLoaded = false;
  try {
    const tensorSplit = layerShares(plan, await loader.layerBytes());
    signal.throwIfAborted();
    const workers = [...names].map(
      ([endpoint, peer]): WorkerLink => ({
        endpoint,
        open: async (stop = signal) => {
          try {
            return await loader.openRpc(peer, stop);
          } catch (error) {
            if (!stop.aborted) failures.unreachable.set(peer, asLoadError(error));
            throw error;
          }
        },
      }),
    );
    const context = await loader.loadContext(
      {
        ...loader.engine,
        model: loader.model,
        tensorSplit,
        head: 'master',
        contextSize: plan.contextSize,
        batchSize: plan.batchSize,
        ubatchSize: plan.ubatchSize,
        signal,
        onProgress: options.onProgress,
        onWorkerLost: (error, endpoint) => {
          const peer = names.get(endpoint) ?? endpoint;
          if (isLoaded) options.onWorkerLost(error, peer);
          else failures.lost.set(peer, error);
        },
      },
      workers,
    );
    try {
      signal.throwIfAborted();
      checkPlacement(plan, context);
      // It loaded, and is broken already.
      for (const error of failures.lost.values()) throw error;
    } catch (error) {
      await context.close();
      throw error;
    }
    isLoaded = true;
    return context;
  } catch (error) {
    signal.throwIfAborted();
    throw describeFailure(asLoadError(error), plan, names, failures);
  }
}

/** Whether both plans give the same engine. */
export function isSameEngine(a: Plan, b: Plan): boolean {
  return (
    a.fits === b.fits &&
    a.contextSize === b.contextSize &&
    a.batchSize === b.batchSize &&
    a.ubatchSize === b.ubatchSize &&
    a.parts.length === b.parts.length &&
    a.parts.every((part, i) => {
      const other = b.parts[i] as PlanPart;
      return part.id === other.id && part.firstLayer === other.firstLayer && part.layers === other.layers;
    })
  );
}

/** The bytes of each part's layers: the shares with which the layers come out as planned. */
function layerShares(plan: Plan, layerBytes: readonly number[]): number[] {
  let next = 0;
  const shares = plan.parts.map(({ firstLayer, layers }) => {
    if (firstLayer !== next && layers > 0) throw badPlan('its layers do not follow each other');
    next += layers;
    return layerBytes.slice(next - layers, next).reduce((a, b) => a + b, 0);
  });
  if (next !== layerBytes.length) throw badPlan(`it places ${next} of ${layerBytes.length} layers`);
  return shares;
}

function badPlan(why: string): DroidLlamaError {
  return new DroidLlamaError('DROID_INVALID_ARGUMENT', `The plan does not suit the model: ${why}.`);
}

function checkPlacement(plan: Plan, context: EngineContext): void {
  plan.parts.forEach(({ firstLayer, layers }, i) => {
    const held = context.placement[i]?.layers ?? [];
    if (held.length === layers && held.every((layer, k) => layer === firstLayer + k)) return;
    const wanted = layers === 0 ? 'none' : `${firstLayer} to ${firstLayer + layers - 1}`;
    throw new DroidLlamaError(
      'DROID_LOAD_FAILED',
      `Of the layers, ${wanted} were planned for ${context.placement[i]?.device ?? `device ${i}`}, ` +
        `but it holds ${held.length === 0 ? 'none' : held.join(', ')}.`,
    );
  });
}

/** The workers' names in messages and placement, by which a context tells them apart, and whose they are. */
function uniqueNames(parts: readonly PlanPart[], nameOf: (peer: string) => string): Map<string, string> {
  const names = parts.map(({ id }) => nameOf(id));
  return new Map(
    parts.map(({ id }, i) => {
      const name = names[i] as string;
      const isTaken = name === 'master' || names.indexOf(name) !== names.lastIndexOf(name);
      return [isTaken || name === '' ? `${name} (${id})` : name, id];
    }),
  );
}

const LOST_CODES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'DROID_WORKER_LOST',
  'DROID_WORKER_PROTOCOL',
  'DROID_WORKER_REFUSED',
  'DROID_WORKER_BUSY',
  'DROID_ENDPOINT_TIMEOUT',
  'DROID_ENDPOINT_REFUSED',
  'DROID_ENDPOINT_UNREACHABLE',
  'DROID_TOKEN_REJECTED',
  'DROID_VERSION_MISMATCH',
]);

/** Each member with its error. */
interface Failures {
  /** Told by the engine. */
  readonly lost: Map<string, DroidLlamaError>;
  /** Told by whoever opens streams. */
  readonly unreachable: Map<string, DroidLlamaError>;
}

function describeFailure(
  error: DroidLlamaError,
  plan: Plan,
  names: ReadonlyMap<string, string>,
  { lost, unreachable }: Failures,
): PlanLoadError {
  const about = (peers: readonly string[]) => new Map(peers.map((peer) => [peer, error]));
  const named = about([...names].filter(([name]) => isAbout(error.message, name)).map(([, peer]) => peer));
  if (error.code === 'DROID_OUT_OF_MEMORY') {
    return new PlanLoadError(error, 'memory', named.size > 0 ? named : about([masterOf(plan)]));
  }
  const only = about(names.size === 1 ? [...names.values()] : []);
  const known = [lost, unreachable, named, only].find((peers) => peers.size > 0) ?? only;
  if (error.code === 'DROID_WORKER_OUT_OF_MEMORY') return new PlanLoadError(error, 'memory', known);
  if (LOST_CODES.has(error.code) || lost.size > 0 || unreachable.size > 0) {
    // Members have the same version, so one that hangs up before it has greeted is gone.
    const isGone = error.code === 'DROID_VERSION_MISMATCH';
    const cause = isGone ? new DroidLlamaError('DROID_WORKER_LOST', error.message, { cause: error }) : error;
    return new PlanLoadError(cause, 'lost', isGone ? new Map([...known.keys()].map((peer) => [peer, cause])) : known);
  }
  return new PlanLoadError(error, 'final', new Map());
}

/** Whether an error of a context is about the worker of that name: `The worker NAME …` or `NAME: …`. */
function isAbout(message: string, name: string): boolean {
  return (
    message.startsWith(`${name}: `) || [' ', ':', '.', ','].some((end) => message.includes(`worker ${name}${end}`))
  );
}

function asLoadError(thrown: unknown): DroidLlamaError {
  const error = toDroidLlamaError(thrown);
  if (error instanceof DroidLlamaError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new DroidLlamaError('DROID_LOAD_FAILED', message, { cause: error });
}

function masterOf({ parts }: Plan): string {
  return parts[0]?.id ?? '';
}
