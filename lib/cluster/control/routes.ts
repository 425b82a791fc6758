/** Where a member may be dialled, from what is known of it. Pure. */
import { type EndpointAddress, formatEndpoint, parseEndpoint } from '../../endpoint.js';
import type { Route } from '../streams.js';
import type { Link, Peer } from '../types.js';
import type { ControlConnection } from './control-connection.js';

/** The endpoints that a member's record names. */
export function recordEndpoints({ addresses, port }: Pick<Peer, 'addresses' | 'port'>): EndpointAddress[] {
  if (port === 0) return [];
  // A link-local address means nothing without its interface, whose name here only this device knows.
  return addresses
    .filter((address) => !/^fe[89ab]/i.test(address) && !address.includes('%'))
    .map((host) => ({ host, port }));
}

/**
 * Where to try out whether a member can be dialled: the addresses that it names, and the one at which it was reached, which
 * it may not know, as with `tailscaled` in Termux, a forwarded port, or an Android that hides the interface of a VPN.
 */
export function dialAddresses(
  record: Pick<Peer, 'addresses' | 'port'>,
  dialled: EndpointAddress | undefined,
): string[] {
  const first = dialled?.port === record.port ? [dialled.host] : [];
  return [...new Set([...first, ...record.addresses])];
}

export interface KnownWays {
  readonly record: Peer;
  /** The control connection with it. */
  readonly control?: Pick<ControlConnection, 'dialled' | 'address' | 'send'> | undefined;
  /** What this device found out by dialling it. */
  readonly link?: Link | undefined;
}

/** The ways to a member; its endpoints that are known to work come first. */
export function routeTo({ record, control, link }: KnownWays): Route {
  const endpoints: EndpointAddress[] = [];
  if (control?.dialled) endpoints.push(control.address);
  if (link?.dial === 'open' && link.endpoint !== null) endpoints.push(parseEndpoint(link.endpoint));
  if (control && !control.dialled && record.port !== 0) {
    endpoints.push({ host: control.address.host, port: record.port });
  }
  endpoints.push(...recordEndpoints(record));
  return {
    name: record.name,
    endpoints: [...new Map(endpoints.map((endpoint) => [formatEndpoint(endpoint), endpoint])).values()],
    // It dialled this device, so it can; the other direction is known to fail, or not known at all.
    reverseFirst: control !== undefined && !control.dialled && link?.dial !== 'open',
    send: control && ((message) => control.send(message)),
  };
}
