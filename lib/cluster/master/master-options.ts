/** What a MasterRuntime is made with, and what it tells. */
import type { DroidLlamaError } from '../../errors.js';
import type { LoadProgress } from '../../types.js';
import type { Lead } from '../types.js';
import type { EngineOptions, LoadContext } from './load-plan.js';

/** `idle`: before the first plan and after {@link MasterRuntime.close}; the others as in {@link Lead}. */
export type MasterState = 'idle' | Lead['state'];

export interface MasterOptions {
  /** Path of the GGUF file. */
  model: string;
  /** Opens an RPC stream to a member; the runtime owns the descriptor. */
  openRpc: (peer: string, signal?: AbortSignal) => Promise<number>;
  /** Threads, parallel streams, further flags. */
  engine?: EngineOptions;
  /** How messages and `stats()` name a member. Default: by its id. */
  nameOf?: (peer: string) => string;
  /** Milliseconds that a request waits while there is no engine. Default 60000. */
  requestWaitMs?: number;
  /** Requests that may wait at once. Default 256. */
  waitingLimit?: number;
  /** Milliseconds during which new requests are still taken while a change waits for the running ones. Default 5000. */
  drainGraceMs?: number;
  /** For tests: loads a context. */
  loadContext?: LoadContext;
  /** For tests: the bytes of each layer of the model. */
  layerBytes?: () => Promise<readonly number[]>;
}

export interface MasterEvents {
  /** State, plan, failure or reason changed. */
  state: [];
  progress: [progress: LoadProgress];
  /** A worker of the plan has failed or cannot be reached; the state is `degraded` until the next `apply()`. */
  lost: [error: DroidLlamaError, peer: string];
  /**
   * The plan could not be loaded, for another reason than a lost worker. With `DROID_OUT_OF_MEMORY` and
   * `DROID_WORKER_OUT_OF_MEMORY`, `peer` is the member that has less memory than it was thought to have, the master
   * included; null when that is not known, and with any other code, which another plan would not help.
   */
  failed: [error: DroidLlamaError, peer: string | null];
}
