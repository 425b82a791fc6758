import type { IncomingMessage } from 'node:http';
import type { EngineRoute } from '../types.js';

/**
 * Headers the engine must not see. A request with a conversation id outlives its client in a map of the whole
 * process, from which it could be resumed: nothing would stop its generation when the client hangs up.
 */
const STRIPPED_HEADERS: ReadonlySet<string> = new Set(['x-conversation-id']);

/** The request's headers, names in lower case, repeated ones joined. */
export function engineHeaders(raw: IncomingMessage): Record<string, string> {
  // Distinct headers come from the wire, not from `headers`, where the server has dropped the content type.
  const headers = Object.entries(raw.headersDistinct).filter(([name]) => !STRIPPED_HEADERS.has(name));
  return Object.fromEntries(headers.map(([name, values]) => [name, values?.join(', ') ?? '']));
}

/** Query and path parameters in one record, as llama-server's handlers look them up: the path and the last one win. */
export function engineQuery(query: unknown, params: Readonly<Record<string, string>>): Record<string, string> {
  const entries = Object.entries(query as Record<string, string | string[]>);
  const single = entries.map(([name, value]) => [name, Array.isArray(value) ? (value.at(-1) ?? '') : value]);
  return { ...Object.fromEntries(single), ...params };
}

/**
 * The route's path with its parameters filled in. It is built from the route rather than taken from the URL, which may
 * spell the same path in other ways (`/he%61lth`, `http://host/health`).
 */
export function concretePath(route: EngineRoute, params: Readonly<Record<string, string>>): string {
  return route.path.replace(/:(\w+)/g, (_, name: string) => encodeURIComponent(params[name] ?? ''));
}
