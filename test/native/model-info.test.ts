/** What a GGUF tells about a model before it is loaded. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { addon, type ModelInfo } from '../../lib/addon.js';
import { encodeKeyValue, layoutGguf, type TensorInfo, tensorBytes, writeGguf } from '../models/gguf-writer.mjs';
import { guideTensors, writeGuideModel } from '../models/guide-model.mjs';
import { tinyModel } from '../support/paths.js';

let dir = '';
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'droid-model-info-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const sum = (numbers: readonly number[]) => numbers.reduce((total, number) => total + number, 0);

type Metadata = Parameters<typeof encodeKeyValue>[];

/** Looks into a file of just these, with zeros for weights. */
async function inspect(metadata: Metadata, tensors: TensorInfo[]): Promise<ModelInfo> {
  const path = join(dir, 'model.gguf');
  const layout = layoutGguf(
    metadata.map((entry) => encodeKeyValue(...entry)),
    tensors,
  );
  await writeGguf(path, layout, ({ bytes }) => [Buffer.alloc(bytes)]);
  return addon().inspectModel(path);
}

const tensor = (name: string, ...ne: number[]): TensorInfo => ({ name, ne, type: 'F32' });

describe('inspectModel', () => {
  it('knows the model that ships', async () => {
    const info = await addon().inspectModel(tinyModel);
    expect(info).toMatchObject({
      architecture: 'qwen2',
      contextLength: 1024,
      embeddingLength: 256,
      feedForwardLength: 512,
      headCount: 4,
      vocabularySize: 1024,
    });
    expect(info.layerBytes).toHaveLength(6);
    expect(info.activeBytesPerLayer).toEqual(info.layerBytes);
  });

  it('knows a model of the guide’s shape', async () => {
    const path = join(dir, 'guide.gguf');
    await writeGuideModel(path, { layers: 2 });
    const info = await addon().inspectModel(path);
    expect(info).toMatchObject({
      embeddingLength: 896,
      feedForwardLength: 4864,
      headCount: 14,
      vocabularySize: 151936,
    });
    const layers = guideTensors({ layers: 2 }).filter(({ name }) => name.startsWith('blk.'));
    expect(sum(info.activeBytesPerLayer)).toBe(sum(layers.map(tensorBytes)));
    expect(info.activeBytesPerLayer).toEqual(info.layerBytes);
  });

  it('says 0 for what a file does not tell', async () => {
    const info = await inspect(
      [
        ['general.architecture', 'string', 'llama'],
        ['llama.block_count', 'u32', 1],
      ],
      [tensor('blk.0.attn_q.weight', 8, 8)],
    );
    expect(info).toEqual({
      architecture: 'llama',
      name: '',
      contextLength: 0,
      layerBytes: [256],
      outerBytes: 0,
      headBytes: 0,
      kvBytesPerTokenLayer: 0,
      activeBytesPerLayer: [256],
      embeddingLength: 0,
      feedForwardLength: 0,
      headCount: 0,
      vocabularySize: 0,
      tensors: [
        { name: 'blk.0.attn_q.weight', path: join(dir, 'model.gguf'), offset: expect.any(Number), size: 256, layer: 0 },
      ],
    });
  });

  it('tells where the data of each tensor lies', async () => {
    const tensors = [tensor('token_embd.weight', 8, 4), tensor('blk.1.attn_q.weight', 8, 8), tensor('blk.7.x', 8)];
    const path = join(dir, 'placed.gguf');
    const layout = layoutGguf(
      [encodeKeyValue('general.architecture', 'string', 'llama'), encodeKeyValue('llama.block_count', 'u32', 2)],
      tensors,
    );
    await writeGguf(path, layout, ({ name, bytes }) => [Buffer.alloc(bytes, name)]);
    const info = await addon().inspectModel(path);
    expect(info.tensors.map(({ name, layer, size }) => [name, layer, size])).toEqual([
      ['token_embd.weight', -1, 128],
      ['blk.1.attn_q.weight', 1, 256],
      ['blk.7.x', -1, 32],
    ]);
    const file = await readFile(path);
    for (const { name, offset, size } of info.tensors) {
      expect(file.subarray(offset, offset + size).equals(Buffer.alloc(size, name))).toBe(true);
    }
  });

  it('counts the experts that one token uses', async () => {
    const info = await inspect(
      [
        ['general.architecture', 'string', 'deepseek2'],
        ['deepseek2.block_count', 'u32', 2],
        ['deepseek2.embedding_length', 'u32', 8],
        ['deepseek2.feed_forward_length', 'u32', 20],
        ['deepseek2.expert_feed_forward_length', 'u32', 16],
        ['deepseek2.expert_count', 'u32', 4],
        ['deepseek2.expert_used_count', 'u32', 2],
        ['deepseek2.expert_shared_count', 'u32', 1],
      ],
      [
        tensor('token_embd.weight', 8, 100),
        tensor('blk.0.ffn_up.weight', 8, 20),
        tensor('blk.1.ffn_up_exps.weight', 8, 16, 4),
        tensor('blk.1.ffn_down_exps.weight', 16, 8, 4),
        tensor('blk.1.ffn_up_exps.bias', 16, 4),
        tensor('blk.1.ffn_norm_exps.weight', 8),
        tensor('blk.1.ffn_up_shexp.weight', 8, 16),
        tensor('blk.1.ffn_gate_inp.weight', 8, 4),
      ],
    );
    const whole = 4 * (8 + 8 * 16 + 8 * 4);
    expect(info.layerBytes).toEqual([4 * 8 * 20, whole + 4 * 4 * (8 * 16 + 16 * 8 + 16)]);
    expect(info.activeBytesPerLayer).toEqual([4 * 8 * 20, whole + 4 * 2 * (8 * 16 + 16 * 8 + 16)]);
    expect(info.feedForwardLength).toBe(2 * 16 + 16);
    expect(info.vocabularySize).toBe(100);
    expect(info.embeddingLength).toBe(8);
  });

  it.each([
    { what: 'experts of the layer’s length', more: [], expected: 2 * 20 },
    { what: 'a shared expert of its own length', more: [['expert_shared_feed_forward_length', 12]], expected: 52 },
    { what: 'dense layers that are longer', more: [['expert_feed_forward_length', 4]], expected: 20 },
  ] as const)('adds up the feed-forward length of $what', async ({ more, expected }) => {
    const info = await inspect(
      [
        ['general.architecture', 'string', 'qwen2moe'],
        ['qwen2moe.block_count', 'u32', 1],
        ['qwen2moe.feed_forward_length', 'u32', 20],
        ['qwen2moe.expert_count', 'u32', 8],
        ['qwen2moe.expert_used_count', 'u32', 2],
        ...more.map(([key, value]): Metadata[number] => [`qwen2moe.${key}`, 'u32', value]),
      ],
      [tensor('blk.0.ffn_up_exps.weight', 8, 16, 8)],
    );
    expect(info.feedForwardLength).toBe(expected);
    expect(info.activeBytesPerLayer).toEqual([(4 * 8 * 16 * 8) / 4]);
  });

  it('takes the largest where layers differ', async () => {
    const info = await inspect(
      [
        ['general.architecture', 'string', 'openelm'],
        ['openelm.block_count', 'u32', 3],
        ['openelm.embedding_length', 'u32', 64],
        ['openelm.feed_forward_length', 'i32[]', [100, 300, 200]],
        ['openelm.attention.head_count', 'u32[]', [4, 12, 8]],
        ['tokenizer.ggml.tokens', 'string[]', ['a', 'b', 'c']],
      ],
      [tensor('token_embd.weight', 64, 8), tensor('blk.1.attn_q.weight', 8, 8)],
    );
    expect(info).toMatchObject({ feedForwardLength: 300, headCount: 12, vocabularySize: 3 });
    expect(info.activeBytesPerLayer).toEqual([0, 256, 0]);
  });

  it('counts all experts where the file does not say how many are used', async () => {
    const info = await inspect(
      [
        ['general.architecture', 'string', 'llama'],
        ['llama.block_count', 'u32', 1],
        ['llama.expert_count', 'u32', 4],
      ],
      [tensor('blk.0.ffn_up_exps.weight', 8, 16, 4)],
    );
    expect(info.activeBytesPerLayer).toEqual(info.layerBytes);
  });
});
