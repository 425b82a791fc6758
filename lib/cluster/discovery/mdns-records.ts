/** What this package says and reads in multicast DNS: that some member of a cluster listens on a port, and no more. */
import { randomBytes } from 'node:crypto';
import { isIPv4 } from 'node:net';
import { AUTHORITATIVE_ANSWER, decode, encode, type Packet, type ResourceRecord } from 'dns-packet';
import { z } from 'zod';
import type { EndpointAddress } from '../../endpoint.js';
import { isDialable, isLocalAddress } from './ip.js';

const SERVICE = '_droid-llama._tcp.local';
const VERSION = '1';
const TTL_SECONDS = 120;

// An answer of this package is under 1 KiB; mDNS knows none above 9000 bytes.
const MAX_MESSAGE_BYTES = 9000;
const MAX_RECORDS = 64;
const MAX_INSTANCES = 4;
const MAX_ADDRESSES = 8;

/** Names of one running member: random, so that they tell a stranger nothing, also not that it is the same as yesterday. */
export interface InstanceName {
  readonly instance: string;
  readonly host: string;
}

export function createInstanceName(): InstanceName {
  const label = randomBytes(6).toString('hex');
  return { instance: `${label}.${SERVICE}`, host: `${label}.local` };
}

export function encodeQuery(): Buffer {
  return encode({ type: 'query', id: 0, questions: [{ name: SERVICE, type: 'PTR' }] });
}

/** `goodbye` takes back what was announced. */
export function encodeAnswer(
  { instance, host }: InstanceName,
  { tag, port, addresses, goodbye }: { tag: string; port: number; addresses: readonly string[]; goodbye: boolean },
): Buffer {
  const ttl = goodbye ? 0 : TTL_SECONDS;
  return encode({
    type: 'response',
    id: 0,
    flags: AUTHORITATIVE_ANSWER,
    answers: [{ name: SERVICE, type: 'PTR', ttl, data: instance }],
    additionals: [
      { name: instance, type: 'SRV', ttl, data: { priority: 0, weight: 0, port, target: host } },
      { name: instance, type: 'TXT', ttl, data: [`v=${VERSION}`, `tag=${tag}`] },
      ...addresses
        .slice(0, MAX_ADDRESSES)
        .map((data) => ({ name: host, type: isIPv4(data) ? 'A' : 'AAAA', ttl, data })),
    ],
  });
}

export type Heard =
  | { readonly kind: 'query' }
  | { readonly kind: 'answer'; readonly members: readonly EndpointAddress[] }
  | { readonly kind: 'other' };

const pointer = z.object({ ttl: z.number().positive(), data: z.string().max(255) });
const service = z.object({ data: z.object({ port: z.number().int().min(1).max(65535), target: z.string().max(255) }) });
const text = z.object({ data: z.array(z.instanceof(Uint8Array)).max(16) });
const address = z.object({ data: z.string().max(64) });

/**
 * Reads a datagram that anybody may have sent. Of answers, those of our cluster other than our own count, with the
 * address they came from and the local ones they name.
 */
export function readMessage(message: Buffer, sender: string, tag: string, own: InstanceName): Heard {
  if (message.length > MAX_MESSAGE_BYTES) return { kind: 'other' };
  let packet: Packet;
  try {
    packet = decode(message);
  } catch {
    return { kind: 'other' };
  }
  if (packet.type === 'query') {
    const asked = (packet.questions ?? []).some(
      ({ name, type }) => sameName(name, SERVICE) && (type === 'PTR' || type === 'ANY'),
    );
    return { kind: asked ? 'query' : 'other' };
  }
  const records = [...(packet.answers ?? []), ...(packet.additionals ?? [])].slice(0, MAX_RECORDS);
  const instances = new Set<string>();
  for (const record of select(records, 'PTR', SERVICE)) {
    const read = pointer.safeParse(record);
    if (read.success && !sameName(read.data.data, own.instance)) instances.add(read.data.data);
  }
  const members = [...instances]
    .slice(0, MAX_INSTANCES)
    .flatMap((instance) => membersAt(records, instance, sender, tag))
    .slice(0, MAX_INSTANCES * MAX_ADDRESSES);
  return members.length > 0 ? { kind: 'answer', members } : { kind: 'other' };
}

function membersAt(
  records: readonly ResourceRecord[],
  instance: string,
  sender: string,
  tag: string,
): readonly EndpointAddress[] {
  const described = text.safeParse(select(records, 'TXT', instance)[0]);
  const located = service.safeParse(select(records, 'SRV', instance)[0]);
  if (!described.success || !located.success) return [];
  const entries = described.data.data.map((entry) => Buffer.from(entry).toString('latin1'));
  if (!entries.includes(`v=${VERSION}`) || !entries.includes(`tag=${tag}`)) return [];
  const { port, target } = located.data.data;
  const hosts = new Set<string>([sender]);
  for (const record of [...select(records, 'A', target), ...select(records, 'AAAA', target)]) {
    const read = address.safeParse(record);
    // Only local ones: an answer must not make this device knock at machines on the internet.
    if (read.success && isDialable(read.data.data) && isLocalAddress(read.data.data)) hosts.add(read.data.data);
  }
  return [...hosts].slice(0, MAX_ADDRESSES).map((host) => ({ host, port }));
}

function select(records: readonly ResourceRecord[], type: string, name: string): readonly ResourceRecord[] {
  return records.filter((record) => record.type === type && sameName(record.name, name));
}

function sameName(a: unknown, b: string): boolean {
  return typeof a === 'string' && a.toLowerCase() === b.toLowerCase();
}
