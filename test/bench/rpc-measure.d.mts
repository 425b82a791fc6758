export type End = 'ours' | 'upstream';

export interface Pair {
  readonly master: End;
  readonly worker: End;
}

export interface BenchModel {
  readonly path: string;
  /** An even number; half of them go to the worker. */
  readonly layers: number;
}

export interface Worker {
  readonly port: number;
  stop(): Promise<unknown>;
}

export interface Completion {
  readonly tokens?: number[];
  readonly timings: {
    readonly prompt_n: number;
    readonly prompt_per_second: number;
    readonly predicted_n: number;
    readonly predicted_per_second: number;
  };
}

export interface Master {
  readonly loadSeconds: number;
  complete(body: object): Promise<Completion>;
  stop(): Promise<unknown>;
}

export interface Speed {
  /** From starting the master to its being ready; ours in this process, llama-server as a process. */
  readonly loadSeconds: number;
  readonly promptPerSecond: number;
  readonly generatedPerSecond: number;
}

/** For each generated token; requests are sent, answers received. */
export interface TokenTraffic {
  readonly messagesSent: number;
  readonly messagesReceived: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
}

export declare const PROMPT_TOKENS: number;
export declare const GENERATED_TOKENS: number;
export declare const PAIRS: readonly Pair[];
/** One load, and the best of a few prompts and generations. */
export declare function measureSpeed(model: BenchModel, pair: Pair): Promise<Speed>;
export declare function countTraffic(model: BenchModel, pair: Pair): Promise<TokenTraffic>;
export declare function measureRounds(
  model: BenchModel,
  rounds: number,
  log?: (line: string) => void,
): Promise<Map<Pair, Speed[]>>;
export declare function medianSpeed(speeds: readonly Speed[]): Speed;
export declare function bestSpeed(speeds: readonly Speed[]): Speed;
export declare function ratios(speed: Speed, other: Speed): { load: number; prompt: number; generation: number };
export declare function describePair(pair: Pair): string;
