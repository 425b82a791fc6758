import type { Pair, Speed, TokenTraffic } from './rpc-measure.d.mts';

export interface Report {
  readonly speeds: ReadonlyMap<Pair, readonly Speed[]>;
  readonly traffic: ReadonlyMap<Pair, TokenTraffic>;
  /** Path of the model, as it is to be read. */
  readonly model: string;
  readonly layers: number;
  readonly rounds: number;
  /** Whether master and worker each had a core of their own. */
  readonly separate: boolean;
  readonly date: string;
  readonly processor: string;
  readonly versions: string;
  readonly command: string;
}

export declare function report(run: Report): string;
