/** How a context reaches its workers: over a port of their own, or over streams that something else opens. */
import { parseEndpoint } from './endpoint.js';
import { type EndpointInfo, type ProbeOptions, probeEndpoint, probeLink } from './probe.js';

/** A worker that is reached over streams which somebody else opens, encrypts and authenticates. */
export interface WorkerLink {
  /** Its name in messages, in placement and in the counters. */
  readonly endpoint: string;
  /**
   * Opens one more stream.
   * @returns the descriptor of a connected stream socket that carries nothing but RPC, the caller's from here on
   */
  open(signal?: AbortSignal): Promise<number>;
}

/** Where the engine finds a worker: the fields of `NativeWorkerOptions`. */
export interface WorkerSocket {
  readonly host: string;
  readonly port: number;
  /** -1: connect to host:port. */
  readonly fd: number;
}

export interface WorkerAccess {
  readonly endpoint: string;
  probe(options: ProbeOptions): Promise<EndpointInfo>;
  connect(signal?: AbortSignal): Promise<WorkerSocket>;
}

/** A worker on a plain TCP port, which the engine connects to by itself. */
export function plainAccess(endpoint: string): WorkerAccess {
  return {
    endpoint,
    probe: (options) => probeEndpoint(endpoint, options),
    connect: async () => ({ ...parseEndpoint(endpoint), fd: -1 }),
  };
}

export function linkAccess(link: WorkerLink): WorkerAccess {
  return {
    endpoint: link.endpoint,
    probe: (options) => probeLink(link, options),
    connect: async (signal) => ({ host: '', port: 0, fd: await link.open(signal) }),
  };
}
