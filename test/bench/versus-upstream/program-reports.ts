/** What the programs on the phones print, as far as it is read. */
import { z } from 'zod';

const spread = z.object({ median: z.number().positive(), max: z.number().positive() });
/** What is read of `droid-llama bench -o json`. */
export const benchReport = z.object({
  error: z.object({ message: z.string() }).nullish(),
  cases: z
    .array(
      z.object({
        prompts: z.array(z.object({ tokensPerSecond: spread })),
        generations: z.array(z.object({ tokensPerSecond: spread })),
        streams: z.array(
          z.object({
            streams: z.number(),
            tokensPerSecond: spread,
            perStream: spread,
            firstTokenMs: z.object({ p50: z.number() }),
          }),
        ),
      }),
    )
    .length(1),
});
export const linkReport = z.object({
  roundTripMs: z.number(),
  shortestMs: z.number(),
  upBytesPerSecond: z.number(),
  downBytesPerSecond: z.number(),
});
/** A completion of either server. */
export const answerReport = z.object({
  timings: z.object({
    predicted_n: z.number(),
    draft_n: z.number().default(0),
    draft_n_accepted: z.number().default(0),
  }),
});
export const loadReport = z.object({ seconds: z.number().positive() });
export const breakdownReport = z.object({
  totalMs: z.number(),
  masterMs: z.number(),
  workerMs: z.number(),
  networkMs: z.number(),
  waits: z.number(),
  writes: z.number(),
});
export const trafficReport = z.object({
  messagesSent: z.number(),
  messagesReceived: z.number(),
  bytesSent: z.number(),
  bytesReceived: z.number(),
});
export type Traffic = z.infer<typeof trafficReport>;
