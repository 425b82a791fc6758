import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';

/** Routes that answer without a key, so that a probe needs no secret to ask whether the model is loaded. */
const PUBLIC_PATHS: ReadonlySet<string> = new Set(['/health', '/v1/health']);

/** Whether the route may be asked without an API key; `path` is the route's pattern, undefined for none. */
export function isPublicPath(path: string | undefined): boolean {
  return path !== undefined && PUBLIC_PATHS.has(path);
}

/**
 * Builds the check of `Authorization: Bearer KEY` and `X-Api-Key: KEY`.
 *
 * @param keys - the accepted keys; with none every request passes.
 * @returns whether a request with these headers may pass.
 */
export function createKeyCheck(keys: readonly string[]): (headers: IncomingHttpHeaders) => boolean {
  if (keys.length === 0) return () => true;
  const accepted = keys.map((key) => digest(key, 'utf8'));
  return (headers) => {
    const offered = [bearerToken(headers.authorization), headers['x-api-key']];
    // Digests have one length and no comparison ends early, so the time taken says nothing about a key.
    let matches = 0;
    for (const key of offered) {
      if (typeof key !== 'string') continue;
      // Node reads header bytes as Latin-1; taken back to bytes they compare with a key in UTF-8 as curl sends it.
      const candidate = digest(key, 'latin1');
      for (const expected of accepted) matches += Number(timingSafeEqual(candidate, expected));
    }
    return matches > 0;
  };
}

function bearerToken(authorization: string | undefined): string | undefined {
  return authorization?.replace(/^bearer +/i, '');
}

function digest(key: string, encoding: 'latin1' | 'utf8'): Buffer {
  return createHash('sha256').update(key, encoding).digest();
}
