#!/usr/bin/env node
// @ts-check
import { readFileSync, realpathSync } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { parseGguf } from './gguf-reader.mjs';
import { encodeKeyValue, layoutGguf, writeGguf } from './gguf-writer.mjs';
import { BlockPage } from './random-blocks.mjs';
import { silentTokens } from './silent-tokens.mjs';

/** @import { GuideModelOptions } from './guide-model.d.mts' */
/** @import { Layout, TensorInfo, TensorLayout, TensorType, ValueType } from './gguf-writer.d.mts' */
/**
 * @typedef {object} Shape
 * @property {[key: string, type: ValueType, value: unknown][]} metadata
 * @property {TensorInfo[]} tensors
 * @property {{ name: string, ne: number[], type: TensorType | { more: TensorType, less: TensorType } }[]} layerTensors
 * @property {number[]} layersWithMoreBits
 */

/** @type {Shape} */
const SHAPE = JSON.parse(readFileSync(new URL('guide-shape.json', import.meta.url), 'utf8'));
const GUIDE_LAYERS = 24;
const GUIDE_VOCAB_SIZE = 151936;

/** Raised when the bytes that a seed gives change, so that files of an older generator are made anew. */
const GENERATOR = 1;

const VOCAB_FILE = fileURLToPath(new URL('../../vendor/llama.cpp/models/ggml-vocab-qwen2.gguf', import.meta.url));

const CHAT_TEMPLATE =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + " +
  "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/**
 * @param {{ layers?: number, vocabSize?: number }} [options]
 * @returns {TensorInfo[]}
 */
export function guideTensors({ layers = GUIDE_LAYERS, vocabSize = GUIDE_VOCAB_SIZE } = {}) {
  if (!Number.isInteger(layers) || layers < 1 || layers > GUIDE_LAYERS) {
    throw new RangeError(`layers is ${layers}: give a whole number from 1 to ${GUIDE_LAYERS}`);
  }
  const tensors = SHAPE.tensors.map((tensor) => ({
    ...tensor,
    ne: tensor.ne.map((size) => (size === GUIDE_VOCAB_SIZE ? vocabSize : size)),
  }));
  for (let layer = 0; layer < layers; layer++) {
    const bits = SHAPE.layersWithMoreBits.includes(layer) ? 'more' : 'less';
    for (const { name, ne, type } of SHAPE.layerTensors) {
      tensors.push({ name: `blk.${layer}.${name}`, ne, type: typeof type === 'string' ? type : type[bits] });
    }
  }
  return tensors;
}

/**
 * @param {string} vocabFile
 * @returns {Promise<{ keyValues: Buffer[], vocabSize: number, silent: number[] }>}
 */
async function readVocab(vocabFile) {
  const { metadata } = parseGguf(await readFile(vocabFile));
  const tokens = metadata.get('tokenizer.ggml.tokens')?.value;
  const types = metadata.get('tokenizer.ggml.token_type')?.value;
  if (metadata.get('tokenizer.ggml.model')?.value !== 'gpt2' || !Array.isArray(tokens) || !Array.isArray(types)) {
    throw new TypeError(`${vocabFile} holds no byte-level BPE vocabulary (tokenizer.ggml.model "gpt2")`);
  }
  const keyValues = [...metadata].filter(([key]) => key.startsWith('tokenizer.')).map(([, { raw }]) => raw);
  if (!metadata.has('tokenizer.chat_template')) {
    keyValues.push(encodeKeyValue('tokenizer.chat_template', 'string', CHAT_TEMPLATE));
  }
  return { keyValues, vocabSize: tokens.length, silent: silentTokens(tokens, types) };
}

/**
 * Standard deviation of a tensor's weights. 1/√columns keeps the size of what goes through: inputs are normalized, so
 * nothing overflows in any number of layers. Embeddings of size 1 keep tokens apart beside what the layers add.
 * Logits of deviation 4 set the winner apart from the silent tokens, whose logit is 0.
 *
 * @param {TensorInfo} tensor
 */
function weightDeviation({ name, ne }) {
  if (name === 'token_embd.weight') return 1;
  return (name === 'output.weight' ? 4 : 1) / Math.sqrt(ne[0] ?? 1);
}

/**
 * @param {number} seed
 * @param {readonly number[]} silent
 */
function tensorFiller(seed, silent) {
  /** @type {Map<string, BlockPage>} */
  const pages = new Map();

  /**
   * @param {TensorLayout} tensor
   * @returns {Iterable<Uint8Array>}
   */
  return function* chunksOf(tensor) {
    if (tensor.type === 'F32') {
      yield Buffer.from(new Float32Array(tensor.bytes / 4).fill(tensor.name.endsWith('norm.weight') ? 1 : 0).buffer);
      return;
    }
    const weight = weightDeviation(tensor);
    const key = `${tensor.type} ${weight}`;
    const page = pages.get(key) ?? new BlockPage(tensor.type, weight, seed, pages.size);
    pages.set(key, page);
    yield* tensor.name === 'output.weight' ? silence(page.take(tensor.bytes), tensor, silent) : page.take(tensor.bytes);
  };
}

/**
 * Zeroes the rows of the silent tokens: their logit is 0, and among 10⁵ random logits one is always far above it.
 *
 * @param {Iterable<Buffer>} chunks
 * @param {TensorLayout} tensor
 * @param {readonly number[]} silent
 * @returns {Iterable<Buffer>}
 */
function* silence(chunks, tensor, silent) {
  const rowBytes = tensor.bytes / (tensor.ne[1] ?? 1);
  let start = 0;
  for (const chunk of chunks) {
    // A copy: the page is shared with other tensors and comes round again.
    const copy = Buffer.from(chunk);
    for (const id of silent) {
      // Chunks end where the page does, within a row.
      const from = Math.max(id * rowBytes - start, 0);
      const to = Math.min((id + 1) * rowBytes - start, copy.length);
      if (from < to) copy.fill(0, from, to);
    }
    start += copy.length;
    yield copy;
  }
}

/**
 * Files come into being by a rename, so one with the right header, which names the seed, and the right size is whole.
 *
 * @param {string} path
 * @param {Layout} layout
 */
async function isWritten(path, { header, fileBytes }) {
  const file = await open(path).catch((error) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (file === undefined) return false;
  try {
    if ((await file.stat()).size !== fileBytes) return false;
    const { buffer } = await file.read({ buffer: Buffer.alloc(header.length), position: 0 });
    return header.equals(buffer);
  } finally {
    await file.close();
  }
}

/**
 * @param {string} path
 * @param {GuideModelOptions} [options]
 * @returns {Promise<void>}
 */
export async function writeGuideModel(path, { seed = 1, vocabFile = VOCAB_FILE, layers = GUIDE_LAYERS } = {}) {
  if (!Number.isInteger(seed) || seed < 0 || seed > 0xffffffff) {
    throw new RangeError(`seed is ${seed}: give a whole number from 0 to 4294967295`);
  }
  const vocab = await readVocab(vocabFile);
  const tensors = guideTensors({ layers, vocabSize: vocab.vocabSize });
  const keyValues = SHAPE.metadata.map(([key, type, value]) =>
    encodeKeyValue(key, type, key === 'qwen2.block_count' ? layers : value),
  );
  keyValues.push(
    encodeKeyValue('general.name', 'string', 'guide-shape'),
    encodeKeyValue('general.description', 'string', `random weights, generator ${GENERATOR}, seed ${seed}`),
    ...vocab.keyValues,
  );
  const layout = layoutGguf(keyValues, tensors);
  if (await isWritten(path, layout)) return;
  await writeGguf(path, layout, tensorFiller(seed, vocab.silent));
}

const HELP = `Usage: node test/models/guide-model.mjs [options] OUT.gguf

Writes a model of the shape of Qwen2.5-0.5B-Instruct Q4_K_M (463 MiB) with random weights.

  --seed N      seed of the random weights (default 1)
  --layers N    layers to write, 1 to ${GUIDE_LAYERS} (default ${GUIDE_LAYERS})
  --vocab FILE  GGUF whose tokenizer is copied (default vendor/llama.cpp/models/ggml-vocab-qwen2.gguf)
  --help        this text
`;

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seed: { type: 'string' },
      layers: { type: 'string' },
      vocab: { type: 'string' },
      help: { type: 'boolean' },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const [path, ...extra] = positionals;
  if (path === undefined || extra.length > 0) throw new TypeError(`give one output file\n\n${HELP}`);
  await writeGuideModel(path, {
    vocabFile: values.vocab,
    seed: values.seed === undefined ? undefined : Number(values.seed),
    layers: values.layers === undefined ? undefined : Number(values.layers),
  });
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  });
}
