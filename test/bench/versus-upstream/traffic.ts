/** The messages and bytes of a generated token that droid-llama is held to, committed in traffic.json. */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import type { Measurements } from './measurements.js';
import { SPLITS } from './targets.js';

const FILE = fileURLToPath(new URL('traffic.json', import.meta.url));

const traffic = z.object({
  messagesSent: z.number(),
  messagesReceived: z.number(),
  bytesSent: z.number(),
  bytesReceived: z.number(),
});
/** Of droid-llama's plain `[0.5, 0.5]` with models/droid-tiny.gguf, by link. */
const committed = z.record(z.string(), traffic);

export type Traffic = z.infer<typeof traffic>;

export function committedTraffic(): Record<string, Traffic> {
  return committed.parse(JSON.parse(readFileSync(FILE, 'utf8')));
}

/** What was counted, by link. */
export function countedTraffic(measurements: Measurements, links: readonly string[]): Record<string, Traffic> {
  return Object.fromEntries(
    links.flatMap((link) => {
      const [found] = measurements.of('traffic', link, SPLITS.plain);
      return found ? [[link, traffic.parse(found)]] : [];
    }),
  );
}

/** Takes what was counted for what droid-llama is held to, and resolves with the name of the file. */
export function commitTraffic(counted: Readonly<Record<string, Traffic>>): string {
  writeFileSync(FILE, `${JSON.stringify(counted, null, 2)}\n`);
  return FILE;
}

/** How what was counted is more than what is committed, in words; empty when it is not. */
export function grownTraffic(counted: Readonly<Record<string, Traffic>>, limits = committedTraffic()): string[] {
  return Object.entries(limits).flatMap(([link, limit]) => {
    const here = counted[link];
    if (!here) return [`${link}: nothing was counted`];
    return (Object.keys(limit) as (keyof Traffic)[]).flatMap((name) =>
      here[name] > limit[name] ? [`${link}: ${name} ${here[name]} a token, at most ${limit[name]}`] : [],
    );
  });
}
