/** Encrypted RPC between a worker and its masters that share nothing but a token; members of a cluster do it alike. */
import { type EndpointAddress, formatEndpoint, parseEndpoint } from './endpoint.js';
import { DroidLlamaError } from './errors.js';
import type { Transport } from './transport/transport.js';
import type { WorkerLink } from './worker-link.js';

/** An `rpc` stream begins with the id of the member that dialled it. A master outside of a cluster has none. */
const ID_BYTES = 16;

/** A worker that {@link acceptMasters} has given a port. `timeoutMs` is for each stream, until both ends are proven. */
export function workerLink(transport: Transport, endpoint: string, timeoutMs: number): WorkerLink {
  const address = parseEndpoint(endpoint);
  return {
    endpoint,
    async open(signal) {
      try {
        const preamble = new Uint8Array(ID_BYTES);
        return (await transport.dial(address, 'rpc', { timeoutMs, preamble, signal })).fd;
      } catch (error) {
        throw withHint(error);
      }
    },
  };
}

/**
 * Listens for masters and hands each of their streams over, with the master's address.
 * Rejects as {@link Transport.listen} does.
 */
export function acceptMasters(
  transport: Transport,
  { host, port }: EndpointAddress,
  adopt: (fd: number, peer: string) => void,
): Promise<EndpointAddress> {
  return transport.listen({
    host,
    port,
    kinds: ['rpc'],
    preambleBytes: { rpc: ID_BYTES },
    onStream: ({ fd, remote }) => adopt(fd, formatEndpoint(remote)),
  });
}

/** A token that is not wanted ends like a wrong one, and whoever typed it may not think of that. */
function withHint(error: unknown): unknown {
  if (!(error instanceof DroidLlamaError) || error.code !== 'DROID_TOKEN_REJECTED') return error;
  const hint = 'A worker that was started without a token, so not encrypted, is reached without one';
  return new DroidLlamaError(error.code, `${error.message}. ${hint}`, { cause: error });
}
