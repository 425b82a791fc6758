/** Endpoints of workers: how they are written, and whether they are on this device. */
import { BlockList, isIPv4, isIPv6 } from 'node:net';
import { DroidLlamaError } from './errors.js';

/** Port that llama.cpp's own RPC server listens on unless told otherwise. */
export const DEFAULT_RPC_PORT = 50052;

/** Port of a cluster unless told otherwise: control, RPC and requests share it. */
export const DEFAULT_CLUSTER_PORT = 60_000;

export interface EndpointAddress {
  readonly host: string;
  readonly port: number;
}

/**
 * Splits `host:port` or `[IPv6]:port`.
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT`
 */
export function parseEndpoint(endpoint: string): EndpointAddress {
  const invalid = (why: string): DroidLlamaError =>
    new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      `endpoint ${JSON.stringify(endpoint)}: ${why}; write host:port or [IPv6 address]:port, ` +
        `e.g. 192.168.37.219:${DEFAULT_RPC_PORT}`,
    );
  if (typeof endpoint !== 'string') throw invalid('not a string');
  if (endpoint.includes('://')) throw invalid('an endpoint is not a URL');
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(endpoint);
  if (!match) {
    if (isIPv6(endpoint)) throw invalid('an IPv6 address needs brackets and a port');
    throw invalid(endpoint.includes(':') ? 'not understood' : 'the port is missing');
  }
  const [, v6, name, digits = ''] = match;
  if (v6 !== undefined && !isIPv6(v6)) throw invalid('what stands in the brackets is not an IPv6 address');
  const host = v6 ?? name ?? '';
  if (host === '') throw invalid('the host is missing');
  if (host.length > 253 || /[\s/?#@\\,]/.test(host)) throw invalid('the host is not a name or an address');
  const port = /^\d{1,5}$/.test(digits) ? Number(digits) : 0;
  if (port < 1 || port > 65535) throw invalid('the port must be a number from 1 to 65535');
  return { host, port };
}

/** The opposite of {@link parseEndpoint}. */
export function formatEndpoint({ host, port }: EndpointAddress): string {
  return `${isIPv6(host) ? `[${host}]` : host}:${port}`;
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');
loopback.addSubnet('::ffff:127.0.0.0', 104, 'ipv6');

/**
 * Whether what is sent to `host` stays on this device. Of names only `localhost` counts: what another one resolves to
 * is decided by whoever answers for it.
 */
export function isLoopbackHost(host: string): boolean {
  if (host.toLowerCase() === 'localhost') return true;
  if (isIPv4(host)) return loopback.check(host, 'ipv4');
  // Only an IPv6 address may have a zone.
  const [address = ''] = host.split('%');
  return isIPv6(address) && loopback.check(address, 'ipv6');
}
