/**
 * The least time that a generated token can take when its layers are split over two devices:
 * computing all layers + round trip + bytes ÷ bandwidth (see docs/planning.md).
 */
export interface FloorInput {
  /** Of one device that computes all layers itself. */
  readonly generatedPerSecond: number;
  readonly roundTripMs: number;
  /** From the master to the worker, and back. */
  readonly upBytesPerSecond: number;
  readonly downBytesPerSecond: number;
  /** Elements of a hidden state. */
  readonly width: number;
}

export interface Floor {
  readonly computeMs: number;
  readonly roundTripMs: number;
  readonly transferMs: number;
  readonly tokensPerSecond: number;
}

/** Cells of the KV cache that the mask covers: llama.cpp pads them. What is generated here stays below. */
const KV_CELLS = 256;
const F32_BYTES = 4;
const F16_BYTES = 2;

/** The hidden state and the residual go up, with the mask; one hidden state comes back. */
export function floorOf(input: FloorInput): Floor {
  const computeMs = 1000 / input.generatedPerSecond;
  const hidden = input.width * F32_BYTES;
  const up = 2 * hidden + KV_CELLS * F16_BYTES;
  const transferMs = 1000 * (up / input.upBytesPerSecond + hidden / input.downBytesPerSecond);
  const tokensPerSecond = 1000 / (computeMs + input.roundTripMs + transferMs);
  return { computeMs, roundTripMs: input.roundTripMs, transferMs, tokensPerSecond };
}
