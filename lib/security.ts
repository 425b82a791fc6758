/** The rule for RPC with other devices: encrypted, unless its user asked for plain RPC by name. */
import { isLoopbackHost } from './endpoint.js';
import { DroidLlamaError } from './errors.js';
import { checkToken } from './transport/token.js';
import { invalid, optionalBoolean } from './validate.js';

export interface Security {
  token?: string;
  insecure?: boolean;
}

/**
 * Checks the two options together with the hosts that RPC is done on or with.
 * @returns the token, or undefined where RPC is plain
 * @throws DroidLlamaError `DROID_INSECURE`, `DROID_INVALID_ARGUMENT`
 */
export function checkSecurity(options: Security, hosts: readonly string[]): string | undefined {
  const insecure = optionalBoolean('insecure', options.insecure) ?? false;
  if (options.token !== undefined) {
    if (insecure)
      invalid('token and insecure are both given; with a token RPC is encrypted, so leave one of them out.');
    return checkToken(options.token);
  }
  const host = hosts.find((candidate) => !isLoopbackHost(candidate));
  if (host !== undefined && !insecure) {
    throw new DroidLlamaError(
      'DROID_INSECURE',
      `${host} is not loopback, and plain RPC is neither encrypted nor authenticated: whoever is in the network can ` +
        'read it and use the worker. Give both ends the same token (`token`, on the command line `--token`); or, where ' +
        'every member of the network is trusted, ask for plain RPC by name (`insecure: true`, `--insecure`).',
    );
  }
  return undefined;
}
