/** The least time that a token can take, whatever the software. A pure formula. */
import type { BenchLink, Floor } from './types.js';

const F32 = 4;
const F16 = 2;
/** llama.cpp attends to the cells of the KV cache in whole blocks of so many. */
const KV_BLOCK = 256;

/** Bytes that one token sends to a worker, and that come back. */
export interface TokenBytes {
  readonly up: number;
  readonly down: number;
}

/**
 * Up go the residual and the block's output, whose sum the worker computes, and the mask's row for this token; down comes
 * one hidden state. What passes for it on the wire, headers left out, in ggml's RPC protocol with the head on the master.
 * @param cached tokens that are attended to
 */
export function tokenBytes(embeddingLength: number, cached: number): TokenBytes {
  const cells = Math.ceil(cached / KV_BLOCK) * KV_BLOCK;
  return { up: 2 * F32 * embeddingLength + F16 * cells, down: F32 * embeddingLength };
}

export interface FloorInput {
  /** Milliseconds that one device takes for a token, with all layers and the head. */
  readonly computeMs: number;
  readonly bytes: TokenBytes;
  /** Of the workers that hold layers. */
  readonly links: readonly Pick<BenchLink, 'roundTripMs' | 'upBytesPerSecond' | 'downBytesPerSecond'>[];
  /** Measured, in tokens per second. */
  readonly measured: number;
}

/** `t_token ≥ t_compute + Σ workers (round trip + bytes ÷ bandwidth)`; null where one of these is not known. */
export function floorOf({ computeMs, bytes, links, measured }: FloorInput): Floor | null {
  let roundTripMs = 0;
  let transferMs = 0;
  for (const link of links) {
    if (link.roundTripMs === null || link.upBytesPerSecond === null || link.downBytesPerSecond === null) return null;
    roundTripMs += link.roundTripMs;
    transferMs += 1000 * (bytes.up / link.upBytesPerSecond + bytes.down / link.downBytesPerSecond);
  }
  const tokensPerSecond = 1000 / (computeMs + roundTripMs + transferMs);
  return { tokensPerSecond, computeMs, roundTripMs, transferMs, share: measured / tokensPerSecond };
}
