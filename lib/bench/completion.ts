/** One measured request: a prompt of so many tokens, and so many generated ones, by the engine's own clock. */
import { z } from 'zod';
import { DroidLlamaError } from '../errors.js';
import { type RequestSender, requestJson, requestTokens } from '../requests.js';

/** Tokens of the prompt before what is generated. One, so that next to nothing of the time is the prompt's. */
export const GENERATION_PROMPT = 1;
/** Where the next prompt begins in the text; it has no divisor in common with most lengths. */
const STEP = 17;

const TEXT =
  'A phone that hosts a hotspot can only dial out, and one that joined it can accept a connection, so the first one ' +
  'leads and the other one works. Every layer of the model lives on one of the two. For each new token the master ' +
  'computes its own layers, sends what came out of them over the air, and waits until the worker has done the same ' +
  'with the rest. The river does not ask how wide the valley is; it takes the way that is there. Seven boats left the ' +
  'harbour before sunrise, three came back at noon with fish, and nobody on the pier could say what the others had ' +
  'seen. If you read this aloud, slowly, it takes about a minute: long enough for water to boil on a small stove.';

/** Prompts of ordinary tokens of the model, each beginning at another place, so that no cache knows it. */
export class Prompts {
  readonly #ids: readonly number[];
  #start = 0;

  private constructor(ids: readonly number[]) {
    this.#ids = ids;
  }

  /** Asks the engine for the tokens of a text; throws what the request does. */
  static async of(sender: RequestSender, signal?: AbortSignal): Promise<Prompts> {
    const ids = await requestTokens(sender, TEXT, { signal });
    const known = z.array(z.number().int().nonnegative()).min(1).safeParse(ids);
    if (!known.success) throw noServer('/tokenize gives no tokens');
    return new Prompts(known.data);
  }

  next(tokens: number): number[] {
    this.#start += STEP;
    return Array.from({ length: tokens }, (_, i) => this.#ids[(this.#start + i) % this.#ids.length] as number);
  }
}

/** A request of `/completion` that goes on for `tokens` tokens, whatever the model wants to say. */
export function completionBody(prompt: readonly number[], tokens: number): object {
  return { prompt, n_predict: tokens, temperature: 0, ignore_eos: true, cache_prompt: false };
}

const answerSchema = z.object({
  timings: z.object({
    prompt_n: z.number(),
    prompt_per_second: z.number().positive(),
    predicted_n: z.number(),
    predicted_per_second: z.number().nonnegative(),
  }),
});

export interface Completion {
  readonly promptPerSecond: number;
  readonly generatedPerSecond: number;
}

/** Throws `DROID_REQUEST_FAILED` when the engine did less than it was asked to; otherwise what the request does. */
export async function complete(
  sender: RequestSender,
  prompt: readonly number[],
  tokens: number,
  signal?: AbortSignal,
): Promise<Completion> {
  const answer = answerSchema.safeParse(
    await requestJson(sender, '/completion', completionBody(prompt, tokens), { signal }),
  );
  if (!answer.success) throw noServer('/completion does not answer with timings');
  const { timings } = answer.data;
  if (timings.prompt_n !== prompt.length) throw unlike('read', timings.prompt_n, prompt.length, 'of the prompt');
  // One token comes out of the prompt, so it has no speed of its own.
  if (tokens > 1 && timings.predicted_per_second === 0) throw noServer('its timings are no speeds');
  if (timings.predicted_n !== tokens) throw unlike('generated', timings.predicted_n, tokens, 'and then stopped');
  return { promptPerSecond: timings.prompt_per_second, generatedPerSecond: timings.predicted_per_second };
}

export function unlike(did: string, tokens: number, asked: number, rest: string): DroidLlamaError {
  return new DroidLlamaError(
    'DROID_REQUEST_FAILED',
    `The engine ${did} ${tokens} of ${asked} tokens ${rest}: that is nothing to measure. Perhaps its context is too small`,
  );
}

export function noServer(what: string): DroidLlamaError {
  return new DroidLlamaError('DROID_REQUEST_FAILED', `This is no llama-server or droid-llama: ${what}`);
}
