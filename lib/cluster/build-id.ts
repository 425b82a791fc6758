import { createHash } from 'node:crypto';
import { addon } from '../addon.js';
import { packageVersion } from '../version.js';

/**
 * What two members must have in common to compute one model: the package's version, llama.cpp's, and that of the RPC
 * protocol. 16 hexadecimal digits.
 */
export function buildId(): string {
  const { llamaCpp, rpcProtocol } = addon().buildInfo();
  return createHash('sha256')
    .update(JSON.stringify([packageVersion(), llamaCpp, rpcProtocol]))
    .digest('hex')
    .slice(0, 16);
}
