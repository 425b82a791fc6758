/** What a cluster knows of itself, in the terms of a benchmark. */
import { z } from 'zod';
import type { MemberStatus } from '../cluster/status.js';
import type { Link, Plan, PlanPart, Prediction } from '../cluster/types.js';
import { DroidLlamaError } from '../errors.js';
import type { Placement } from '../types.js';
import type { BenchLink } from './types.js';

const speed = z.number().nonnegative().nullable();
const statusSchema = z.object({
  self: z.object({ role: z.string() }),
  state: z.string(),
  url: z.string().nullish().default(null),
  peers: z.array(z.object({ id: z.string(), name: z.string(), role: z.string() })),
  links: z.array(z.object({ from: z.string(), to: z.string(), roundTripMs: speed, bytesPerSecond: speed })),
  plan: z
    .object({
      fits: z.boolean(),
      ubatchSize: z.number(),
      parts: z.array(
        z.object({
          id: z.string(),
          firstLayer: z.number().int().nonnegative(),
          layers: z.number().int().min(0).max(65_536),
          bytes: z.number(),
        }),
      ),
      prediction: z.object({ promptTokensPerSecond: z.number(), generationTokensPerSecond: z.number() }).nullable(),
    })
    .nullable(),
});

/** The part of a cluster's status that a benchmark shows; `Cluster.status()` has it. */
export interface ClusterFacts {
  readonly peers: readonly Pick<MemberStatus, 'id' | 'name'>[];
  readonly links: readonly Pick<Link, 'from' | 'to' | 'roundTripMs' | 'bytesPerSecond'>[];
  readonly plan:
    | (Pick<Plan, 'fits' | 'ubatchSize'> & {
        readonly parts: readonly Pick<PlanPart, 'id' | 'firstLayer' | 'layers' | 'bytes'>[];
        readonly prediction: Pick<Prediction, 'promptTokensPerSecond' | 'generationTokensPerSecond'> | null;
      })
    | null;
}

/** What `droid-llama status --json` says, as far as a benchmark needs it. */
export interface ClusterStatusFacts extends ClusterFacts {
  readonly self: { readonly role: string };
  readonly state: string;
  readonly peers: readonly { readonly id: string; readonly name: string; readonly role: string }[];
  /** Where the `up` of this device serves HTTP. */
  readonly url: string | null;
}

/**
 * What `droid-llama status --json` says, checked.
 * @throws DroidLlamaError `DROID_VERSION_MISMATCH` for what no droid-llama of this version says
 */
export function parseClusterStatus(status: unknown): ClusterStatusFacts {
  const parsed = statusSchema.safeParse(status);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new DroidLlamaError(
    'DROID_VERSION_MISMATCH',
    `The status of the cluster is not understood (${issue?.path.join('.')}: ${issue?.message}): ` +
      'the droid-llama up that runs on this device is another version.',
  );
}

/** The parts of the plan by the devices' names; the head is always the master's. Null without a plan. */
export function clusterPlacement({ plan, peers }: ClusterFacts): Placement[] | null {
  if (!plan?.fits) return null;
  return plan.parts.map(({ id, firstLayer, layers, bytes }, i) => ({
    device: i === 0 ? 'master' : nameOf(peers, id),
    layers: Array.from({ length: layers }, (_, layer) => firstLayer + layer),
    head: i === 0,
    bytes,
  }));
}

/** Part of the layers that the first device holds, 0 to 1; null where nobody holds one. */
export function masterShare(placement: readonly Placement[]): number | null {
  const total = placement.reduce((sum, { layers }) => sum + layers.length, 0);
  return total === 0 ? null : (placement[0]?.layers.length ?? 0) / total;
}

/** Between the master and each worker of the plan, as the members measured it. */
export function clusterLinks({ plan, peers, links }: ClusterFacts): BenchLink[] {
  const [master, ...workers] = plan?.parts ?? [];
  return workers.map(({ id }) => {
    const up = links.find(({ from, to }) => from === master?.id && to === id);
    const down = links.find(({ from, to }) => from === id && to === master?.id);
    return {
      endpoint: nameOf(peers, id),
      roundTripMs: up?.roundTripMs ?? down?.roundTripMs ?? null,
      upBytesPerSecond: up?.bytesPerSecond ?? null,
      downBytesPerSecond: down?.bytesPerSecond ?? null,
    };
  });
}

function nameOf(peers: ClusterFacts['peers'], id: string): string {
  return peers.find((peer) => peer.id === id)?.name ?? id;
}
