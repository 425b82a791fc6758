/** What a record of a member may be: everything that comes from another device passes through these schemas. */
import { isIP } from 'node:net';
import { z } from 'zod';
import { DroidLlamaError } from '../../errors.js';
import { MAX_EPOCH } from '../leads.js';
import type { Battery, ComputeSpeed, Lead, Link, Measured, ModelSummary, Peer, Plan } from '../types.js';
import { isPeerId } from './peer-id.js';

/** Most members a cluster may have. */
export const MAX_PEERS = 64;
/** The last date there is. */
export const MAX_INCARNATION = 8.64e15;
export const MAX_NAME_LENGTH = 64;
const MAX_LINKS = 64;
const MAX_ADDRESSES = 32;
const MAX_REASONS = 64;
const MAX_TEXT_LENGTH = 1000;
const MAX_MODEL_NAME_LENGTH = 256;

// Control characters and what turns the direction of writing could make a terminal show what is not there.
const UNPRINTABLE = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu;

/** The text without unprintable characters, cut to a number of characters. */
export function cleanText(text: string, limit: number): string {
  // Cut in characters, not in halves of them.
  return Array.from(text.slice(0, 2 * limit).replace(UNPRINTABLE, ' '))
    .slice(0, limit)
    .join('')
    .trim();
}

function text(limit: number, least = 0) {
  return z
    .string()
    .min(least)
    .max(2 * limit)
    .refine((value) => value.search(UNPRINTABLE) < 0, 'has unprintable characters')
    .refine((value) => value.length <= limit || Array.from(value).length <= limit, `has over ${limit} characters`);
}

/**
 * What numbers may be, from least to most: far more than any device has, and far from where calculating with them gives
 * no number, or none that others accept. The plan of every member is made of them.
 */
const RANGES = {
  bytes: [0, 2 ** 53],
  /** Bytes of weights or operations in a second. */
  computeSpeed: [1e3, 1e18],
  bytesPerSecond: [1, 1e15],
  roundTripMs: [0, 1e7],
  /** What was calculated of the others. */
  result: [0, 1e18],
} as const;
type Range = keyof typeof RANGES;

function within(range: Range) {
  const [least, most] = RANGES[range];
  return z.number().min(least).max(most);
}

function clamped<T extends number | null>(value: T, range: Range): T | number {
  const [least, most] = RANGES[range];
  return value === null ? value : Math.min(most, Math.max(least, value));
}

const count = z
  .int()
  .min(0)
  .max(2 ** 40);
export const peerId = z.string().refine(isPeerId, 'is no id of a peer');
export const port = z.int().min(0).max(65_535);
// The largest time that a Date can have.
export const incarnation = z.int().min(0).max(MAX_INCARNATION);
const address = z
  .string()
  .max(100)
  .refine((value) => isIP(value) !== 0, 'is no numeric address');
export const versionText = text(64);
export const buildText = text(256);
export const reasonText = text(MAX_TEXT_LENGTH);

export const computeSpeedSchema: z.ZodType<ComputeSpeed> = z.object({
  threads: count,
  weightBytesPerSecond: within('computeSpeed'),
  flopsPerSecond: within('computeSpeed'),
});

export const batterySchema: z.ZodType<Battery> = z.object({
  percent: z.number().min(0).max(100),
  charging: z.boolean(),
  temperatureCelsius: z.number().min(-273.15).max(1000).nullable(),
});

export const modelSummarySchema: z.ZodType<ModelSummary> = z.object({
  name: text(MAX_MODEL_NAME_LENGTH),
  bytes: within('bytes'),
  layers: count,
});

export const linkSchema: z.ZodType<Link> = z.object({
  from: peerId,
  to: peerId,
  dial: z.enum(['open', 'refused', 'timeout', 'unreachable', 'unknown']),
  endpoint: text(300).nullable(),
  roundTripMs: within('roundTripMs').nullable(),
  bytesPerSecond: within('bytesPerSecond').nullable(),
});

const result = within('result');
const leftOutSchema = z.object({ id: peerId, reason: reasonText });

export const planSchema: z.ZodType<Plan> = z.object({
  fits: z.boolean(),
  missingBytes: result,
  parts: z
    .array(z.object({ id: peerId, firstLayer: count, layers: count, bytes: result, memoryNeeded: result }))
    .max(MAX_PEERS),
  contextSize: count,
  batchSize: count,
  ubatchSize: count,
  prediction: z
    .object({ loadSeconds: result, promptTokensPerSecond: result, generationTokensPerSecond: result })
    .nullable(),
  leftOut: z.array(leftOutSchema).max(MAX_PEERS),
  reasons: z.array(reasonText).max(MAX_REASONS),
});

const measuredSchema: z.ZodType<Measured> = z.object({
  loadSeconds: result.nullable(),
  promptTokensPerSecond: result.nullable(),
  generationTokensPerSecond: result.nullable(),
});

export const leadSchema: z.ZodType<Lead> = z.object({
  epoch: z.int().min(0).max(MAX_EPOCH),
  state: z.enum(['waiting', 'loading', 'ready', 'degraded', 'failed']),
  progress: z.number().min(0).max(1),
  reason: reasonText.nullable(),
  plan: planSchema.nullable(),
  measured: measuredSchema.nullable(),
});

export const peerSchema: z.ZodType<Peer> = z
  .object({
    id: peerId,
    name: text(MAX_NAME_LENGTH, 1),
    incarnation,
    revision: count,
    version: versionText,
    port,
    addresses: z.array(address).max(MAX_ADDRESSES),
    pin: z.enum(['master', 'worker']).nullable(),
    model: modelSummarySchema.nullable(),
    memory: within('bytes'),
    compute: computeSpeedSchema.nullable(),
    battery: batterySchema.nullable(),
    graphsComputed: count,
    neighbours: z.array(peerId).max(MAX_PEERS),
    links: z.array(linkSchema).max(MAX_LINKS),
    lead: leadSchema.nullable(),
  })
  .refine(({ id, links }) => links.every(({ from }) => from === id), 'has links of another peer');

/**
 * A copy of this device's own record that others will accept: texts for people are made printable and cut,
 * measurements brought within what they may be, and what is still wrong then is an error of the program.
 * @throws DroidLlamaError `DROID_INVALID_ARGUMENT`
 */
export function checkOwnRecord(record: Peer): Peer {
  const parsed = peerSchema.safeParse({
    ...record,
    name: cleanText(record.name, MAX_NAME_LENGTH),
    model: record.model && { ...record.model, name: cleanText(record.model.name, MAX_MODEL_NAME_LENGTH) },
    compute: record.compute && {
      ...record.compute,
      weightBytesPerSecond: clamped(record.compute.weightBytesPerSecond, 'computeSpeed'),
      flopsPerSecond: clamped(record.compute.flopsPerSecond, 'computeSpeed'),
    },
    // Some of it was measured by others.
    links: record.links.map((link) => ({
      ...link,
      roundTripMs: clamped(link.roundTripMs, 'roundTripMs'),
      bytesPerSecond: clamped(link.bytesPerSecond, 'bytesPerSecond'),
    })),
    lead: record.lead && cleanLead(record.lead),
  });
  if (parsed.success) return parsed.data;
  throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `The record of this device ${firstIssue(parsed.error)}.`);
}

function cleanLead(lead: Lead): Lead {
  const { plan } = lead;
  const cleaned = (reason: string): string => cleanText(reason, MAX_TEXT_LENGTH);
  const numbers = <T extends object>(values: T): T =>
    Object.fromEntries(Object.entries(values).map(([name, value]) => [name, clamped(value, 'result')])) as T;
  return {
    ...lead,
    measured: lead.measured && numbers(lead.measured),
    reason: lead.reason === null ? null : cleaned(lead.reason),
    plan: plan && {
      ...plan,
      prediction: plan.prediction && numbers(plan.prediction),
      leftOut: plan.leftOut.map(({ id, reason }) => ({ id, reason: cleaned(reason) })),
      reasons: plan.reasons.slice(0, MAX_REASONS).map(cleaned),
    },
  };
}

/** What is wrong, where; never the value, which came from somewhere else. */
export function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0];
  if (!issue) return 'is malformed';
  const path = issue.path.map(String).join('.');
  return cleanText(`is malformed${path && ` at ${path}`}: ${issue.message}`, 200);
}
