import { DroidLlamaError } from '../errors.js';

/** Bytes of a request body that are accepted unless `bodyLimit` says otherwise: room for images and audio in base64. */
export const DEFAULT_BODY_LIMIT = 64 * 1024 * 1024;

export interface HttpServerOptions {
  /** Address or name to listen on; default `'127.0.0.1'`. Give any other than loopback together with `apiKey`. */
  host?: string;
  /** Default 8080; 0 picks a free port. */
  port?: number;
  /** One key or several, any of which opens everything but the health routes; none by default. */
  apiKey?: string | readonly string[];
  /** Largest request body in bytes, the whole of a multipart upload included; default 64 MiB. */
  bodyLimit?: number;
  /** Origins whose pages may read the answers: `'*'` (default), one, several, or `false` for none. */
  corsOrigin?: string | readonly string[] | false;
  /** Told about settings that run but are unsafe; default `process.emitWarning`. */
  onWarning?: (message: string) => void;
  /** Aborting it closes the server; before the server listens, `startHttpServer` rejects with its reason. */
  signal?: AbortSignal;
}

/** Of the connections that an HTTP handler is given. */
export interface SocketLimits {
  /** Connections at once; those above it are closed. Default 1024. */
  readonly maxConnections?: number;
  /** Milliseconds in which a client that has something to send must send a part of it. Default 30000. */
  readonly idleMs?: number;
}

export interface ResolvedOptions {
  readonly host: string;
  readonly port: number;
  readonly apiKeys: readonly string[];
  readonly bodyLimit: number;
  readonly corsOrigin: string | readonly string[] | false;
  readonly onWarning: (message: string) => void;
  readonly signal: AbortSignal | undefined;
}

/**
 * Fills in the defaults and checks every value.
 *
 * @throws {@link DroidLlamaError} `DROID_INVALID_ARGUMENT`, naming the value, the rule and the fix.
 */
export function resolveOptions({
  host = '127.0.0.1',
  port = 8080,
  apiKey = [],
  bodyLimit = DEFAULT_BODY_LIMIT,
  corsOrigin = '*',
  onWarning = (message) => process.emitWarning(message),
  signal,
}: HttpServerOptions): ResolvedOptions {
  if (typeof host !== 'string' || host === '') {
    throw invalid('host', host, 'must be an address or a host name', "leave it out to listen on '127.0.0.1'");
  }
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    throw invalid('port', port, 'must be a whole number from 0 to 65535', '0 picks a free port');
  }
  if (!Number.isSafeInteger(bodyLimit) || bodyLimit < 1) {
    throw invalid('bodyLimit', bodyLimit, 'must be a whole number of bytes, 1 or more', 'leave it out for 64 MiB');
  }
  const apiKeys = typeof apiKey === 'string' ? [apiKey] : [...apiKey];
  // An empty key would match a request that offers an empty one, and look protected while being open.
  if (apiKeys.some((key) => typeof key !== 'string' || key === '')) {
    throw new DroidLlamaError(
      'DROID_INVALID_ARGUMENT',
      'apiKey holds an empty key: every key must be a non-empty string; leave apiKey out to serve without one.',
    );
  }
  const origins = typeof corsOrigin === 'string' ? [corsOrigin] : corsOrigin;
  if (origins !== false && !(Array.isArray(origins) && origins.every((o) => typeof o === 'string' && o !== ''))) {
    throw invalid('corsOrigin', corsOrigin, 'must be an origin, a list of origins, or false', "'*' allows all");
  }
  return { host, port, apiKeys, bodyLimit, corsOrigin, onWarning, signal };
}

function invalid(name: string, value: unknown, rule: string, fix: string): DroidLlamaError {
  return new DroidLlamaError('DROID_INVALID_ARGUMENT', `${name} is ${JSON.stringify(value)}, but ${rule}; ${fix}.`);
}
