/** What the HTTP server is a server of. */
import type { EngineResponse, EngineRoute, RequestOptions } from '../types.js';

/** What `GET /health` and `GET /v1/health` answer. */
export interface HealthAnswer {
  readonly status: number;
  /** Sent as JSON. */
  readonly body: object;
}

/** What the HTTP layer needs of a context; `DistributedContext` satisfies it structurally. */
export interface HttpBackend {
  /** Every endpoint; a path may hold parameters such as `:id_slot`. */
  readonly routes: readonly EngineRoute[];
  request(method: string, path: string, body: Uint8Array | undefined, options: RequestOptions): Promise<EngineResponse>;
  /** Answers the health routes without waiting for an engine; without it, or undefined: the engine is asked. */
  health?(): HealthAnswer | undefined;
}
