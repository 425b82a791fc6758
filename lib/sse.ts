import { DroidLlamaError } from './errors.js';

/**
 * The JSON payloads of a server-sent event stream, up to its end or `data: [DONE]`.
 * Only `data:` lines matter here: llama-server puts one JSON document in one line.
 */
export async function* parseServerSentEvents(
  body: AsyncIterable<Uint8Array>,
): AsyncGenerator<unknown, void, undefined> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true });
    const lines = rest.split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (!line.startsWith('data:')) continue;
      const data = line.slice('data:'.length).trim();
      if (data === '[DONE]') return;
      yield parseEvent(data);
    }
  }
}

function parseEvent(data: string): unknown {
  try {
    return JSON.parse(data);
  } catch (cause) {
    throw new DroidLlamaError('DROID_REQUEST_FAILED', 'An event of the answer is not JSON.', { cause });
  }
}
