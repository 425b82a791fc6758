/** The messages of a control connection, and what a message from another device must look like. */
import { z } from 'zod';
import type { Peer } from '../types.js';
import { buildText, cleanText, firstIssue, incarnation, MAX_PEERS, peerSchema, reasonText } from './record-schemas.js';

/** Version of these messages; a member of another one is turned away. */
export const CONTROL_PROTOCOL = 1;

/** Why a control connection is ended by one of its ends; a hello is answered with one, too. */
export const GOODBYE_CODES = [
  /** The member leaves the cluster. */
  'leaving',
  /** Another protocol or build. */
  'version',
  /** A newer process with the same id is there. */
  'id-in-use',
  /** A newer process with the same id came. */
  'replaced',
  /** There is another connection between the two. */
  'duplicate',
  /** It sent what no member sends. */
  'protocol',
  /** The cluster has as many members as it may have. */
  'full',
  /** Nothing came for too long. */
  'silent',
] as const;
export type GoodbyeCode = (typeof GOODBYE_CODES)[number];

/** The first message of each end; the dialler waits for the other one's before it sends its own. */
export interface Hello {
  readonly type: 'hello';
  readonly protocol: number;
  readonly build: string;
  readonly version: string;
  readonly peer: Peer;
}

const ticket = z.string().regex(/^[\w-]{22}$/);
const streamKind = z.enum(['rpc', 'http']);
const sequence = z.int().min(0);

const memberMessage = z.discriminatedUnion('type', [
  z.object({ type: z.literal('heartbeat'), sequence }),
  /** Answers a heartbeat at once, so that its sender knows the round trip. */
  z.object({ type: z.literal('echo'), sequence }),
  z.object({ type: z.literal('records'), peers: z.array(peerSchema).min(1).max(MAX_PEERS) }),
  /** Someone has seen a later incarnation of the receiver, whose clock went back; it must go above it. */
  z.object({ type: z.literal('outdated'), incarnation }),
  z.object({ type: z.literal('dial-me'), kind: streamKind, ticket }),
  z.object({ type: z.literal('dial-failed'), ticket, reason: reasonText }),
]);
/** What two members tell each other after their hellos. */
export type MemberMessage = z.infer<typeof memberMessage>;
export type DialMe = Extract<MemberMessage, { type: 'dial-me' }>;
export type DialFailed = Extract<MemberMessage, { type: 'dial-failed' }>;

export interface Goodbye {
  readonly type: 'goodbye';
  readonly code: GoodbyeCode;
  readonly reason: string;
}

export type ControlMessage = Hello | MemberMessage | Goodbye;

/** What was read, or what is wrong with it. */
export type Reading<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly reason: string };

/** What every version of the protocol has in its hello, read leniently so that another version can be named. */
export interface Greeting {
  readonly protocol: number;
  readonly build: string;
  readonly version: string;
  /** Unchecked; see {@link readPeer}. */
  readonly peer?: unknown;
}

const looseText = z.string().transform((value) => cleanText(value, 64));
const greeting = z.object({
  type: z.literal('hello'),
  protocol: z.number(),
  build: looseText.catch('unknown'),
  version: looseText.catch('unknown'),
  peer: z.unknown().optional(),
});
// Lenient as well: another version may know other codes.
const goodbye = z.object({
  type: z.literal('goodbye'),
  code: z.enum(GOODBYE_CODES).catch('protocol'),
  reason: z
    .string()
    .transform((value) => cleanText(value, 500))
    .catch(''),
});

/** The first message of another end: its greeting, or a goodbye. */
export function readFirstMessage(frame: Buffer): Reading<{ hello: Greeting } | { goodbye: Goodbye }> {
  const json = parse(frame);
  if (!json.ok) return json;
  const bye = goodbye.safeParse(json.value);
  if (bye.success) return { ok: true, value: { goodbye: bye.data } };
  const hello = greeting.safeParse(json.value);
  if (!hello.success) return { ok: false, reason: `its hello ${firstIssue(hello.error)}` };
  return { ok: true, value: { hello: hello.data } };
}

export function readPeer(value: unknown): Reading<Peer> {
  const parsed = peerSchema.safeParse(value);
  return parsed.success
    ? { ok: true, value: parsed.data }
    : { ok: false, reason: `its record ${firstIssue(parsed.error)}` };
}

/** Any message after the first. */
export function readMessage(frame: Buffer): Reading<MemberMessage | Goodbye> {
  const json = parse(frame);
  if (!json.ok) return json;
  const message = memberMessage.safeParse(json.value);
  if (message.success) return { ok: true, value: message.data };
  const bye = goodbye.safeParse(json.value);
  if (bye.success) return { ok: true, value: bye.data };
  return { ok: false, reason: `its message ${firstIssue(message.error)}` };
}

function parse(frame: Buffer): Reading<unknown> {
  try {
    return { ok: true, value: JSON.parse(frame.toString('utf8')) };
  } catch {
    return { ok: false, reason: 'its message is no JSON' };
  }
}

/** Ours, within the limits that the other end holds it to. */
export function hello(build: string, peer: Peer): Hello {
  return { type: 'hello', protocol: CONTROL_PROTOCOL, build, version: peer.version, peer };
}

/** Why two ends cannot talk, in words for the user of either; undefined when they can. */
export function mismatch(own: Hello, theirs: Greeting): string | undefined {
  if (theirs.protocol === own.protocol && theirs.build === own.build) return undefined;
  const describe = ({ protocol, build, version }: Greeting): string =>
    `droid-llama ${version}, build ${build}, cluster protocol ${protocol}`;
  return `it runs ${describe(theirs)}, this device ${describe(own)}; install the same version on both`;
}

/** Whether a build is one that others can be told; they refuse a longer one. */
export function isBuild(value: unknown): value is string {
  return buildText.safeParse(value).success && value !== '';
}
