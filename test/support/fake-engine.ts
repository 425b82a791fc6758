/** An engine that only plays one: loads when told to, and streams what it is told. */
import type { EngineContext, LoadContext } from '../../lib/cluster/master/load-plan.js';
import type { Plan } from '../../lib/cluster/types.js';
import type { LinkedContextOptions } from '../../lib/context-options.js';
import { DroidLlamaError } from '../../lib/errors.js';
import type { EngineResponse, RequestOptions, WorkerFailure } from '../../lib/types.js';
import type { WorkerLink } from '../../lib/worker-link.js';

export const layerBytes = [10, 20, 30, 40];

/** A plan of four layers: so many of them for each member, the master first. */
export function planOf(counts: Record<string, number>, more: Partial<Plan> = {}): Plan {
  let next = 0;
  const parts = Object.entries(counts).map(([id, layers]) => {
    const part = { id, firstLayer: next, layers, bytes: 1, memoryNeeded: 2 };
    next += layers;
    return part;
  });
  const sizes = { contextSize: 512, batchSize: 128, ubatchSize: 64 };
  return { fits: true, missingBytes: 0, parts, ...sizes, prediction: null, leftOut: [], reasons: [], ...more };
}

export class FakeContext implements EngineContext {
  failure: WorkerFailure | undefined;
  isClosed = false;
  readonly paths: string[] = [];
  readonly #streams = new Set<(error?: Error) => void>();

  constructor(
    readonly load: FakeLoad,
    readonly placement: EngineContext['placement'],
  ) {}

  /** Answers `/stream` with a body that goes on until {@link finish}, and everything else at once. */
  async request(_method: string, path: string, _body?: unknown, options: RequestOptions = {}): Promise<EngineResponse> {
    if (this.isClosed) throw new DroidLlamaError('DROID_CLOSED', 'The context is closed.');
    this.paths.push(path);
    const goesOn = path.startsWith('/stream');
    const streams = this.#streams;
    const body = async function* (): AsyncGenerator<Uint8Array> {
      yield Buffer.from(path);
      if (!goesOn) return;
      await new Promise<void>((resolve, reject) => {
        streams.add((error) => (error ? reject(error) : resolve()));
        options.signal?.addEventListener('abort', () => reject(options.signal?.reason));
      });
    };
    return { status: 200, headers: {}, body: body() };
  }

  finish(error?: Error): void {
    for (const end of this.#streams) end(error);
    this.#streams.clear();
  }

  stats(): ReturnType<EngineContext['stats']> {
    const engine = { tokensGenerated: 9, promptTokens: 9, tokensPerSecond: 5.5, promptTokensPerSecond: 0 };
    return { workers: [], engine: { ...engine, activeRequests: this.#streams.size } };
  }

  async close(): Promise<void> {
    this.isClosed = true;
    this.finish(new DroidLlamaError('DROID_CLOSED', 'The context was closed.'));
  }
}

export class FakeLoad {
  readonly context: FakeContext;
  state: 'pending' | 'loaded' | 'failed' | 'aborted' = 'pending';
  readonly result: Promise<EngineContext>;
  #resolve: (context: EngineContext) => void = () => {};
  #reject: (error: unknown) => void = () => {};

  constructor(
    readonly options: LinkedContextOptions,
    readonly workers: readonly WorkerLink[],
  ) {
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    options.signal?.addEventListener('abort', () => {
      if (this.state === 'pending') this.fail(options.signal?.reason, 'aborted');
    });
    // The shares are the bytes of each part's layers, so their sums tell which.
    let next = 0;
    const devices = ['master', ...workers.map(({ endpoint }) => endpoint)];
    const placement = (options.tensorSplit ?? [100]).map((share, i) => {
      const layers: number[] = [];
      for (let rest = share; rest > 0; next++) {
        rest -= layerBytes[next] as number;
        layers.push(next);
      }
      return { device: devices[i] as string, layers, head: i === 0, bytes: share };
    });
    this.context = new FakeContext(this, placement);
  }

  finish(): void {
    this.state = 'loaded';
    this.#resolve(this.context);
  }

  fail(error: unknown, state: 'failed' | 'aborted' = 'failed'): void {
    this.state = state;
    this.#reject(error);
  }

  loseWorker(index: number): void {
    const endpoint = this.workers[index]?.endpoint as string;
    this.context.failure = { code: 'DROID_WORKER_LOST', message: `${endpoint} hung up`, endpoint };
    this.options.onWorkerLost?.(new DroidLlamaError('DROID_WORKER_LOST', `${endpoint} hung up`), endpoint);
  }
}

/** Loads that the test ends; `open` are those whose memory is taken. */
export class FakeLoads {
  readonly all: FakeLoad[] = [];
  readonly load: LoadContext = (options, workers) => {
    const taken = this.all.filter(
      ({ state, context }) => state === 'pending' || (state === 'loaded' && !context.isClosed),
    );
    if (taken.length > 0) throw new Error('two engines at once');
    const load = new FakeLoad(options, workers);
    this.all.push(load);
    return load.result;
  };

  get last(): FakeLoad {
    const load = this.all.at(-1);
    if (!load) throw new Error('nothing was loaded');
    return load;
  }
}
