/** Why a TCP connection did not come about, as Node says it. */
import type { ErrorCode } from './errors.js';

export interface ConnectFault {
  readonly code: Extract<ErrorCode, 'DROID_ENDPOINT_REFUSED' | 'DROID_ENDPOINT_TIMEOUT' | 'DROID_ENDPOINT_UNREACHABLE'>;
  /** For unreachable ones: what that may come from, with the system's codes. */
  readonly why: string;
}

/** A name with several addresses fails with one error for each. */
export function errorParts(error: Error): readonly NodeJS.ErrnoException[] {
  return error instanceof AggregateError ? error.errors : [error];
}

/** What an error of connecting means; of several, the most telling one. */
export function connectFault(error: Error): ConnectFault {
  const codes = errorParts(error).map((part) => part.code ?? part.message);
  const has = (...wanted: string[]) => codes.some((code) => wanted.includes(code));
  const why = has('ENOTFOUND', 'EAI_AGAIN')
    ? 'its name does not resolve; try its IP address'
    : has('EACCES', 'EPERM')
      ? 'the system does not let this process connect; newer Android asks for a local network permission'
      : has('EMFILE', 'ENFILE')
        ? 'this process has no file descriptors left'
        : 'there is no route to it; check that both devices are on the same network';
  const code = has('ECONNREFUSED')
    ? 'DROID_ENDPOINT_REFUSED'
    : has('ETIMEDOUT')
      ? 'DROID_ENDPOINT_TIMEOUT'
      : 'DROID_ENDPOINT_UNREACHABLE';
  return { code, why: `${why} (${codes.join(', ')})` };
}
