import type { CommandName } from './rpc-frames.d.mts';

/** A request whose header has passed. */
export interface ProxiedRequest {
  readonly command: CommandName;
  /** Header and payload. */
  readonly bytes: number;
  /** Number of the connection, from 1 on; a probe has one of its own. */
  readonly connection: number;
  /** How many of this command there have been since the last reset, this one included. */
  readonly count: number;
}

/** Since the last reset. A message sent is a request, a message received an answer or a notice. */
export interface Traffic {
  readonly requests: Partial<Record<CommandName, { readonly messages: number; readonly bytes: number }>>;
  readonly messagesSent: number;
  readonly bytesSent: number;
  readonly messagesReceived: number;
  readonly bytesReceived: number;
}

export interface Breakpoint {
  readonly reached: Promise<ProxiedRequest>;
  /** The request that was met, or undefined before. */
  readonly request: ProxiedRequest | undefined;
}

/** A man in the middle between masters and one worker, on loopback. */
export declare class RpcProxy {
  private constructor();
  /** @param target a port on loopback, or an address */
  static start(target: number | { host: string; port: number }): Promise<RpcProxy>;
  readonly port: number;
  /** What a master is given in place of the worker's endpoint. */
  readonly endpoint: string;
  readonly traffic: Traffic;
  /** Open connections of masters. */
  readonly connections: number;
  /** Commands that the worker got in full and whose answers the master did not get in full, oldest first. */
  readonly awaiting: readonly string[];
  /** Whether traffic waits for {@link resume}. */
  readonly held: boolean;
  /** Counts from 0 again. */
  reset(): void;
  /**
   * Stops the traffic, both ways, at the next request that matches: before its first byte, after its header, or after
   * its last byte. From its header on no byte of an answer passes.
   */
  stopAt(matches: (request: ProxiedRequest) => boolean, place?: 'before' | 'middle' | 'after'): Breakpoint;
  /** Lets everything go on, also what has waited. */
  resume(): void;
  /** Ends every connection on both sides. */
  cut(): void;
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}
