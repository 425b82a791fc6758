// Consumers need the types of `await using` whatever their own lib setting is.
/// <reference lib="esnext.disposable" preserve="true" />

export { type LogLevel, setLogLevel } from './addon.js';
export { Cluster } from './cluster/cluster.js';
export type { ClusterEvents } from './cluster/cluster-events.js';
export { createPeerId } from './cluster/control/peer-id.js';
export type { ClusterOptions, DiscoveryOptions } from './cluster/options.js';
export type { ClusterStatus, MemberRole, MemberStatus } from './cluster/status.js';
export type {
  Battery,
  ComputeSpeed,
  DialResult,
  Lead,
  Link,
  Measured,
  ModelSummary,
  Objective,
  Peer,
  Plan,
  PlanPart,
  Prediction,
  Roles,
  WorkerRole,
} from './cluster/types.js';
export {
  type CallOptions,
  type ChatCompletionChunk,
  type ChatRequest,
  type CompletionChunk,
  type CompletionRequest,
  createDistributedContext,
  DistributedContext,
  type Timings,
  type TokenUsage,
} from './context.js';
export type { DistributedContextOptions, WorkerTimeouts } from './context-options.js';
export { DEFAULT_CLUSTER_PORT } from './endpoint.js';
export type { RequestBody } from './engine-request.js';
export { DroidLlamaError, ERROR_CODES, type ErrorCode } from './errors.js';
export type { HttpServer, HttpServerOptions } from './http/server.js';
export type { StoredModel } from './hub/model-store.js';
export {
  listModels,
  type PulledModel,
  type PullOptions,
  type PullProgress,
  pullModel,
  removeModel,
} from './hub/pull.js';
export { type EndpointInfo, probeEndpoint } from './probe.js';
export { RpcServer, type RpcServerOptions, type RpcServerStats, startRpcServer } from './rpc-server.js';
export { createToken } from './transport/token.js';
export type {
  ContextStats,
  EngineResponse,
  EngineRoute,
  EngineStats,
  LoadProgress,
  Placement,
  RequestOptions,
  RpcDevice,
  UploadedFile,
  WorkerFailure,
  WorkerTraffic,
} from './types.js';
