export { bench } from './bench.js';
export type { BenchOptions } from './bench-options.js';
export { type ClusterFacts, parseClusterStatus } from './cluster-facts.js';
export { type LinkOptions, type MeasuredLink, measureLink } from './link.js';
export type { TestOptions } from './options.js';
export { plotReport } from './plot/plot.js';
export { benchCluster, benchUrl, type UrlBenchOptions } from './server.js';
export type {
  BenchCase,
  BenchLink,
  BenchLoad,
  BenchProgress,
  BenchReport,
  Breakdown,
  Floor,
  GenerationResult,
  Machine,
  Percentiles,
  PromptResult,
  Spread,
  StreamsResult,
  WorkerResult,
} from './types.js';
