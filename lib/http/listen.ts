import { lookup } from 'node:dns/promises';
import { type AddressInfo, BlockList, isIP, isIPv6 } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { DroidLlamaError } from '../errors.js';

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');
loopback.addSubnet('::ffff:127.0.0.0', 104, 'ipv6');

/** Whether only programs on this device can connect to the address. */
export function isLoopback(address: string): boolean {
  return loopback.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');
}

/**
 * Starts to listen and says where.
 *
 * @throws {@link DroidLlamaError} `DROID_PORT_IN_USE`, or `DROID_INVALID_ARGUMENT` for an address that this device
 * does not have or a port it may not open.
 */
export async function listen(app: FastifyInstance, host: string, port: number): Promise<AddressInfo> {
  try {
    // Given a name, Fastify would open a second server per address of `localhost`, without our limits on it. IPv4
    // comes first because most clients' configuration says 127.0.0.1.
    const address = isIP(host) === 0 ? (await lookup(host, { verbatim: false })).address : host;
    await app.listen({ host: address, port });
  } catch (error) {
    throw listenError(error, host, port);
  }
  return app.server.address() as AddressInfo;
}

/** `http://host:port`, an IPv6 address in brackets. */
export function urlOf({ address, port }: AddressInfo): string {
  return `http://${isIPv6(address) ? `[${address}]` : address}:${port}`;
}

function listenError(error: unknown, host: string, port: number): DroidLlamaError {
  const where = isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
  const code = (error as NodeJS.ErrnoException).code ?? String(error);
  switch (code) {
    case 'EADDRINUSE':
      return new DroidLlamaError(
        'DROID_PORT_IN_USE',
        `${where} is already in use: stop the program that listens there, or choose another port (0 picks a free one).`,
        { cause: error },
      );
    case 'EADDRNOTAVAIL':
      return refused(
        `${where}: this device has no such address; 127.0.0.1 is this device, 0.0.0.0 all of its addresses.`,
      );
    case 'EACCES':
      return refused(`${where}: the system does not allow this port; choose one above 1023.`);
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return refused(`${where}: the name does not resolve; give an address instead.`);
    default:
      return refused(`${where}: listening failed (${code}).`);
  }

  function refused(message: string): DroidLlamaError {
    return new DroidLlamaError('DROID_INVALID_ARGUMENT', `Cannot listen on ${message}`, { cause: error });
  }
}
