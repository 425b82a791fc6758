import type { BenchModel, Master, Worker } from './rpc-measure.d.mts';

export declare const CONTEXT_SIZE: number;
/** The arguments of a llama-server that places the model as ours does. */
export declare function upstreamMasterArgs(model: BenchModel, endpoint: string): string[];
/** Gives masters, which is this process, one core and workers another; false where that cannot be done. */
export declare function separateCores(): boolean;
export declare function startOurWorker(options?: { token?: string }): Promise<Worker>;
export declare function startUpstreamWorker(): Promise<Worker>;
export declare function startOurMaster(model: BenchModel, port: number, options?: { token?: string }): Promise<Master>;
export declare function startUpstreamMaster(model: BenchModel, port: number): Promise<Master>;
