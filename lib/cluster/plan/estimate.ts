/**
 * What a part of a model takes of a device: memory and time, from the model's sizes and what was measured of devices and
 * links. Pure formulas; docs/planning.md holds the measurements they were fitted to.
 */
import type { ComputeSpeed, ModelShape } from '../types.js';

const F32 = 4;
const F16 = 2;
const MIB = 1024 * 1024;

/** llama.cpp rounds the KV cells of each stream up to this (`GGML_PAD(n_ctx_seq, 256)` in llama-context.cpp). */
const KV_CELLS = 256;

/** What a device needs besides what llama.cpp asks for by name: the allocator, buffers of the connection, its graphs. */
const MARGIN = { part: 0.05, workerBytes: 4 * MIB, masterBytes: 8 * MIB };
/** The master also keeps the tokenizer: strings, ranks and maps; 350 bytes a token were measured with 151,936 tokens. */
const TOKENIZER_BYTES_PER_TOKEN = 400;
/** Of each stream, for every token of the vocabulary: logits twice (graph and output), and the sampler's candidates. */
const SAMPLING_BYTES_PER_TOKEN = 24;

/** A prompt of this many tokens is what prompt speed means here. */
const PROMPT_TOKENS = 512;
/** llama.cpp's kernels for many tokens at once need this many; with fewer, arithmetic takes so many times as long. */
const SMALL_UBATCH = { below: 64, slowdown: 1.25 };
/** A graph that is sent anew takes this much of each layer (1.9 KB were counted); a ubatch of a prompt may do so. */
const GRAPH_BYTES_PER_LAYER = 2048;
/** What a generated token sends besides its hidden state: mask, positions, cell indices, headers (245 were counted). */
const TOKEN_OVERHEAD_BYTES = 256;
/** The same of a token in a ubatch of a prompt (19 were counted); a row of the mask is packed into ten bytes. */
const PROMPT_TOKEN_OVERHEAD_BYTES = 32;
/** Weights are read from storage at about this rate; a floor of the time to load. */
const STORAGE_BYTES_PER_SECOND = 500e6;

export interface Sizing {
  /** Tokens, of all streams together. */
  readonly contextSize: number;
  readonly ubatchSize: number;
  readonly parallel: number;
}

/** Tokens that the KV cache has room for: never fewer than asked for. */
function kvCells({ contextSize, parallel }: Sizing): number {
  return Math.ceil(contextSize / parallel / KV_CELLS) * KV_CELLS * parallel;
}

/** What a file that does not say is taken for: large, so that memory is rather left over. */
function widthOf(model: ModelShape): number {
  return model.embeddingLength || 8192;
}

function feedForwardOf(model: ModelShape): number {
  return model.feedForwardLength || 4 * widthOf(model);
}

/** Bytes of keys and values of a token in a layer; where they are not known, those of attention without grouped heads. */
function kvBytes(model: ModelShape): number {
  return model.kvBytesPerTokenLayer || 2 * F16 * widthOf(model);
}

function isMixtureOfExperts(model: ModelShape): boolean {
  return model.activeBytesPerLayer.some((active, i) => active < (model.layerBytes[i] ?? 0));
}

/**
 * Upper bound of the buffers that a device computes a ubatch in, with flash attention, which llama.cpp switches on for
 * every device that has it. In a dense layer the feed-forward part holds most at once: gate, up and their product, and
 * the residual; with small feed-forward parts it is attention. A mixture of experts holds each used expert's output.
 */
export function computeBytes(model: ModelShape, sizing: Sizing, isMaster: boolean): number {
  const width = widthOf(model);
  const values =
    Math.max(3 * feedForwardOf(model) + 3 * width, 12 * width) + (isMixtureOfExperts(model) ? 20 * width : 0);
  // The mask, F16: one for the cells of all streams, or two for those of one stream, as with sliding windows. Then
  // positions and cell indices.
  const perToken = values * F32 + F16 * kvCells(sizing) * (1 + 1 / sizing.parallel) + 64;
  const ubatch = Math.min(sizing.ubatchSize, kvCells(sizing));
  if (!isMaster) return ubatch * perToken;
  const hiddenStates = 3 * width * F32;
  return ubatch * (perToken + hiddenStates) + sizing.parallel * model.vocabularySize * SAMPLING_BYTES_PER_TOKEN;
}

/** Memory of the devices, split into what each layer adds and what a device needs for taking part at all. Whole bytes. */
export interface MemoryNeeds {
  /** What the layers before the i-th one need, with their KV cache and margin; the last entry is all of them. */
  readonly before: readonly number[];
  readonly master: number;
  readonly worker: number;
}

export function memoryNeeds(model: ModelShape, sizing: Sizing): MemoryNeeds {
  const withMargin = (bytes: number) => Math.ceil(bytes * (1 + MARGIN.part));
  const kv = kvBytes(model) * kvCells(sizing);
  const before = [0];
  for (const bytes of model.layerBytes) before.push((before.at(-1) ?? 0) + withMargin(bytes + kv));
  return {
    before,
    master:
      withMargin(model.outerBytes + computeBytes(model, sizing, true)) +
      MARGIN.masterBytes +
      TOKENIZER_BYTES_PER_TOKEN * model.vocabularySize,
    worker: withMargin(computeBytes(model, sizing, false)) + MARGIN.workerBytes,
  };
}

/** Bytes that a device needs for the layers from `first` up to, not including, `end`. */
export function memoryNeeded(needs: MemoryNeeds, first: number, end: number, isMaster: boolean): number {
  return (needs.before[end] ?? 0) - (needs.before[first] ?? 0) + (isMaster ? needs.master : needs.worker);
}

/** A direction is bytes per second, the round trip seconds. */
export interface LinkSpeed {
  readonly roundTrip: number;
  readonly up: number;
  readonly down: number;
}

/** Seconds that a device needs; the arrays say for each i what the layers before the i-th one need. */
export interface DeviceTimes {
  /** One generated token. */
  readonly token: Float64Array;
  /** One ubatch of a prompt while the master waits for it; with the graph on its way where the device is a worker. */
  readonly ubatch: Float64Array;
  /** The computing part of it. */
  readonly compute: Float64Array;
  /** What the link adds to a token, and to a ubatch that the master waits for. */
  readonly tokenLink: number;
  readonly ubatchLink: number;
  /** Of the last worker, for which the master does not wait: a ubatch on its way, less its graph; the last one's answer. */
  readonly send: number;
  readonly sendPerLayer: number;
  readonly answer: number;
}

/**
 * Multiplications and additions of a layer for one token, as weights: query and output of attention, keys and values, and
 * three matrices of the feed-forward part. Kept within 1.5 and 32 bits a weight, for layers of another kind.
 */
export function weightsPerLayer(model: ModelShape): number {
  const width = widthOf(model);
  const guess = width * (2 * width + kvBytes(model) / F16 + 3 * feedForwardOf(model));
  const bytes = sum(model.activeBytesPerLayer) / Math.max(1, model.activeBytesPerLayer.length);
  return Math.min((bytes * 8) / 1.5, Math.max(bytes / F32, guess));
}

/** Tokens of the prompt that predictions are made for. */
export function promptTokens(contextSize: number): number {
  return Math.min(PROMPT_TOKENS, contextSize);
}

export function ubatchTokens({ contextSize, ubatchSize }: Sizing): number {
  return Math.min(ubatchSize, promptTokens(contextSize));
}

/**
 * Generation reads every weight in use and the keys and values so far, and is bound by that; a ubatch reads them once and
 * is bound by arithmetic: 2 operations for each weight and token.
 * @param link null for the master
 */
export function deviceTimes(
  model: ModelShape,
  sizing: Sizing,
  compute: ComputeSpeed,
  link: LinkSpeed | null,
): DeviceTimes {
  const tokens = ubatchTokens(sizing);
  const cached = promptTokens(sizing.contextSize);
  const layers = model.layerBytes.length;
  const token = new Float64Array(layers + 1);
  const computing = new Float64Array(layers + 1);
  const ubatch = new Float64Array(layers + 1);
  const slowdown = tokens < SMALL_UBATCH.below ? SMALL_UBATCH.slowdown : 1;
  const arithmetic = (slowdown * 2 * weightsPerLayer(model) * tokens) / compute.flopsPerSecond;
  const sendPerLayer = link ? GRAPH_BYTES_PER_LAYER / link.up : 0;
  for (let i = 0; i < layers; i++) {
    const active = model.activeBytesPerLayer[i] ?? model.layerBytes[i] ?? 0;
    token[i + 1] = (token[i] ?? 0) + (active + cached * kvBytes(model)) / compute.weightBytesPerSecond;
    computing[i + 1] = (computing[i] ?? 0) + active / compute.weightBytesPerSecond + arithmetic;
    ubatch[i + 1] = (computing[i + 1] ?? 0) + (i + 1) * sendPerLayer;
  }
  const hidden = widthOf(model) * F32;
  const half = link ? link.roundTrip / 2 : 0;
  const send = link ? half + (tokens * (hidden + PROMPT_TOKEN_OVERHEAD_BYTES)) / link.up : 0;
  return {
    token,
    ubatch,
    compute: computing,
    tokenLink: link ? link.roundTrip + (hidden + TOKEN_OVERHEAD_BYTES) / link.up + hidden / link.down : 0,
    ubatchLink: link ? send + half + (tokens * hidden) / link.down : 0,
    send,
    sendPerLayer,
    answer: link ? half + hidden / link.down : 0,
  };
}

/** Seconds of the output head, once for each token that is sampled. */
export function headSeconds(model: ModelShape, compute: ComputeSpeed): number {
  return model.headBytes / compute.weightBytesPerSecond;
}

/**
 * Seconds until a prompt is read. llama.cpp waits for every worker but the last one, whose answer only the last ubatch
 * needs: while the last worker computes one ubatch, the others and the master compute the next.
 * @param waited seconds of a ubatch on the master and on all workers but the last one
 * @param last seconds of a ubatch on the last worker; null without workers
 */
export function promptSeconds(
  ubatches: number,
  waited: number,
  last: { send: number; compute: number; answer: number } | null,
): number {
  if (!last) return ubatches * waited;
  const slowest = Math.max(waited, last.send, last.compute);
  return waited + last.send + last.compute + last.answer + (ubatches - 1) * slowest;
}

/** Seconds to load: storage is read once, and the links carry the workers' weights one after the other. */
export function loadSeconds(totalBytes: number, sent: readonly { bytes: number; up: number }[]): number {
  return totalBytes / STORAGE_BYTES_PER_SECOND + sum(sent.map(({ bytes, up }) => bytes / up));
}

export function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}
