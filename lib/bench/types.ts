/** What a benchmark reports. Plain records, the same in memory and as JSON. Sizes are bytes, speeds tokens per second. */
import type { ErrorCode } from '../errors.js';
import type { Placement } from '../types.js';

/** Several measurements of one thing. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  /** In the order they were measured. */
  readonly samples: readonly number[];
}

/** Half of the measurements are below `p50`, 95 of 100 below `p95`. Milliseconds. */
export interface Percentiles {
  readonly p50: number;
  readonly p95: number;
}

export interface BenchReport {
  /** Version of this package, and of Node with its `v`. */
  readonly droidLlama: string;
  readonly node: string;
  /** When the benchmark began, ISO 8601. */
  readonly date: string;
  readonly machine: Machine;
  /** Name or path of the model; null where a server does not tell. */
  readonly model: string | null;
  /** How many times each test was run. */
  readonly repetitions: number;
  /** What was measured of each worker's connection before anything was loaded, in the order of the workers. */
  readonly links: readonly BenchLink[];
  readonly cases: readonly BenchCase[];
  /** What to know when reading the numbers, in words: what was assumed, left out or could not be measured. */
  readonly notes: readonly string[];
  /** Why the benchmark ended before all cases were measured; null when it did not. */
  readonly error: { readonly code: ErrorCode | null; readonly message: string } | null;
}

/** The device that the benchmark ran on. */
export interface Machine {
  readonly processor: string;
  /** Processors that this process may use. */
  readonly cores: number;
  readonly memory: number;
  readonly platform: string;
  readonly arch: string;
}

/** One worker's connection as the master sees it: `up` is from the master to the worker. */
export interface BenchLink {
  /** The worker's endpoint; in a cluster its name. */
  readonly endpoint: string;
  readonly roundTripMs: number | null;
  readonly upBytesPerSecond: number | null;
  readonly downBytesPerSecond: number | null;
}

/** One way to run the model, and everything that was measured of it. */
export interface BenchCase {
  /** `'one device'`, the split as in `'[0.5, 0.5]'`, or the server's URL; with `, ub 64` where several sizes of the ubatch were compared. */
  readonly name: string;
  /** The shares of the layers as they were asked for, master first; null for one device and for a server. */
  readonly tensorSplit: readonly number[] | null;
  /** Part of the layers that the master holds, 0 to 1; null where the placement is not known. */
  readonly masterShare: number | null;
  /** Null: llama.cpp's default of 512, or what the server was started with. */
  readonly ubatchSize: number | null;
  /** Threads of the master; null: llama.cpp's choice, or the server's. */
  readonly threads: number | null;
  /** Which device holds what; null for a server that does not tell. */
  readonly placement: readonly Placement[] | null;
  /** Empty for a server, which had loaded before. */
  readonly loads: readonly BenchLoad[];
  readonly prompts: readonly PromptResult[];
  readonly generations: readonly GenerationResult[];
  readonly streams: readonly StreamsResult[];
  /** The workers that hold layers; empty for one device and for a server. */
  readonly workers: readonly WorkerResult[];
}

export interface BenchLoad {
  /** `cold` when the workers had none of the weights: all of theirs were sent. On one device the first load is cold. */
  readonly kind: 'cold' | 'warm';
  /** From the call until requests could be answered. */
  readonly seconds: number;
  /** Bytes of weights that went to the workers, and that these had already. */
  readonly weightsSent: number;
  readonly weightsReused: number;
}

/** `pp512` of llama-bench: a prompt of so many tokens, in an empty context. */
export interface PromptResult {
  readonly tokens: number;
  /** The engine's own `timings.prompt_per_second`. */
  readonly tokensPerSecond: Spread;
  /** What the planner's formulas say (docs/planning.md); null where something they need was not measured. */
  readonly predicted: number | null;
}

/** `tg128` of llama-bench: so many tokens one after the other, after a prompt of one. */
export interface GenerationResult {
  readonly tokens: number;
  /** The engine's own `timings.predicted_per_second`: the steps after the first token, by their time. */
  readonly tokensPerSecond: Spread;
  readonly predicted: number | null;
  readonly floor: Floor | null;
  readonly breakdown: Breakdown | null;
}

/**
 * The least time that one token can take with these devices and links, however good the software:
 * compute of all layers + Σ workers (round trip + bytes ÷ bandwidth).
 */
export interface Floor {
  /** What that makes: 1000 ÷ (`computeMs` + `roundTripMs` + `transferMs`). */
  readonly tokensPerSecond: number;
  /** All layers and the head, as one device generated with them in this run; the fastest of its cases. */
  readonly computeMs: number;
  /** The round trips of all workers that hold layers, added up. */
  readonly roundTripMs: number;
  /** `2 × 4 × n_embd + 2 × n_kv` bytes up and `4 × n_embd` down for each worker, by its measured bandwidth. */
  readonly transferMs: number;
  /** Measured ÷ floor: 1 is as fast as it can be. */
  readonly share: number;
}

/** Where the time of one generated token went, in the median run. Milliseconds. */
export interface Breakdown {
  readonly totalMs: number;
  /** What is left: the master computes, samples, and sends. */
  readonly masterMs: number;
  readonly workers: readonly {
    readonly endpoint: string;
    /** The master waited for this worker's answer. */
    readonly waitMs: number;
    /** Of that, the worker computed, by its own clock; null when it is no droid-llama worker. */
    readonly computeMs: number | null;
    /** The rest: on the way, and in the queues of both systems. */
    readonly networkMs: number | null;
  }[];
}

/** So many requests at once, each with a prompt of its own. */
export interface StreamsResult {
  readonly streams: number;
  /** All streams together: their tokens after each one's first, by the time from the earliest first token to the last. */
  readonly tokensPerSecond: Spread;
  /** Each stream: its tokens after the first, by the time from its first token to its last. */
  readonly perStream: Spread;
  /** From sending a request to its first token, over all streams and repetitions. */
  readonly firstTokenMs: Percentiles;
  /** From one token of a stream to the next. */
  readonly tokenMs: Percentiles;
}

/** One worker in the median run of the longest generation test; `…PerToken` are means over its tokens. */
export interface WorkerResult {
  readonly endpoint: string;
  readonly bytesSentPerToken: number;
  readonly bytesReceivedPerToken: number;
  readonly messagesSentPerToken: number;
  readonly messagesReceivedPerToken: number;
  /** Times the master waited for an answer. */
  readonly roundTripsPerToken: number;
  /** Null when it is no droid-llama worker. */
  readonly computeMsPerToken: number | null;
  readonly networkMsPerToken: number | null;
  /** What the loaded model takes of its memory; null when it is no droid-llama worker or has no room for one more client. */
  readonly memoryBytes: number | null;
}

/** What is being done at the moment. */
export interface BenchProgress {
  /** `case` of `cases`, from 1; 0 while the links to the workers are measured. */
  readonly case: number;
  readonly cases: number;
  /** The case's name; of a link the worker's endpoint. */
  readonly name: string;
  /** `'link'`, `'answer'` while a server is asked what it is, `'load'`, `'warm-up'`, `'pp512'`, `'tg128'`, `'4 streams'`, … */
  readonly test: string;
  /** `run` of `runs`, from 1. */
  readonly run: number;
  readonly runs: number;
}
