/** How the hub is asked: a signal ends it, the token stays with the hub, and a listing has an end. */
import { DroidLlamaError } from '../errors.js';
import { limitTime } from '../link-signals.js';
import type { HubAccess } from './repository.js';

/** A page has 1000 entries. */
const MOST_PAGES = 100;
const MOST_PAGE_BYTES = 16 * 2 ** 20;
const ANSWER_MS = 30_000;

/** `fetch` that a signal ends. The library shows the token to every address that the hub names; this does to the hub alone. */
export function fetchWith({ url }: HubAccess, signal: AbortSignal | undefined): typeof fetch {
  return (input, init) => {
    const headers = new Headers(init?.headers);
    if (!sameOrigin(input, url)) headers.delete('authorization');
    return fetch(input, { ...init, headers, signal: signal ?? null });
  };
}

/** `fetch` for the pages of one listing: of the hub's own, each within 30 seconds, and JSON. */
export function fetchPages(access: HubAccess): typeof fetch {
  let pages = 0;
  return async (input, init) => {
    if (!sameOrigin(input, access.url)) throw failed(`${access.url} sends to another server for the rest of its list`);
    if (++pages > MOST_PAGES) throw failed(`${access.url} lists without an end`);
    const late = `${access.url} did not answer within ${ANSWER_MS / 1000} s. Is this device online?`;
    const limit = limitTime(ANSWER_MS, () => failed(late), access.signal);
    try {
      const response = await fetchWith(access, limit.signal)(input, init);
      const text = await textOf(response, access);
      if (response.ok && !isListing(text)) throw noHub(access);
      // The library's errors name the address.
      return Object.defineProperty(new Response(text || null, response), 'url', { value: response.url });
    } catch (error) {
      limit.signal.throwIfAborted();
      throw error;
    } finally {
      limit.unlink();
    }
  };
}

function sameOrigin(input: Parameters<typeof fetch>[0], url: string): boolean {
  return new URL(input instanceof Request ? input.url : input).origin === new URL(url).origin;
}

async function textOf(response: Response, access: HubAccess): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
    bytes += chunk.length;
    if (bytes > MOST_PAGE_BYTES) throw noHub(access);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function isListing(text: string): boolean {
  try {
    const items: unknown = JSON.parse(text);
    return Array.isArray(items) && items.every((item) => typeof item === 'object' && item !== null);
  } catch {
    return false;
  }
}

function noHub({ url }: HubAccess): DroidLlamaError {
  return failed(
    `what answers at ${url} is no Hugging Face hub. If this network has a login page (a captive portal), log in with a browser`,
  );
}

function failed(message: string): DroidLlamaError {
  return new DroidLlamaError('DROID_DOWNLOAD_FAILED', message);
}
