/** The part of dns-packet that multicast DNS needs; it comes without types. */
declare module 'dns-packet' {
  export interface Question {
    name: string;
    type: string;
  }

  export interface ResourceRecord {
    name: string;
    type: string;
    ttl?: number;
    flush?: boolean;
    /** Its shape goes by the type. */
    data?: unknown;
  }

  export interface Packet {
    type?: 'query' | 'response';
    id?: number;
    flags?: number;
    questions?: Question[];
    answers?: ResourceRecord[];
    additionals?: ResourceRecord[];
  }

  export const AUTHORITATIVE_ANSWER: number;
  export function encode(packet: Packet): Buffer;
  /** Throws on what is no DNS message. */
  export function decode(message: Buffer): Packet;
}
