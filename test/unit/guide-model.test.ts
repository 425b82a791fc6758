import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseGguf } from '../models/gguf-reader.mjs';
import { encodeKeyValue, layoutGguf, tensorBytes, writeGguf } from '../models/gguf-writer.mjs';
import { guideTensors, writeGuideModel } from '../models/guide-model.mjs';

const TOKENS = ['a', 'Ġhello', 'é', '<|endoftext|>', '<|im_start|>', '<|im_end|>', 'âĤ¬', '</s>'];
const NORMAL = 1;
const CONTROL = 3;
const TOKEN_TYPES = [NORMAL, NORMAL, NORMAL, CONTROL, CONTROL, CONTROL, NORMAL, NORMAL];
/** 'é' spells the byte 0xe9, which alone is no character; 'âĤ¬' spells all three bytes of '€'. */
const SILENT = [2, 3, 4, 5, 7];

let folder: string;
let vocabFile: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'guide-model-'));
  vocabFile = join(folder, 'vocab.gguf');
  const keyValues = [
    encodeKeyValue('general.name', 'string', 'not copied'),
    encodeKeyValue('tokenizer.ggml.model', 'string', 'gpt2'),
    encodeKeyValue('tokenizer.ggml.tokens', 'string[]', TOKENS),
    encodeKeyValue('tokenizer.ggml.token_type', 'i32[]', TOKEN_TYPES),
    encodeKeyValue('tokenizer.ggml.eos_token_id', 'u32', 5),
    encodeKeyValue('tokenizer.ggml.add_bos_token', 'bool', false),
  ];
  await writeGguf(vocabFile, layoutGguf(keyValues, []), () => []);
});

afterAll(() => rm(folder, { recursive: true, force: true }));

describe('the guide model', () => {
  it('has the sizes that the guide ran', () => {
    const tensors = guideTensors();
    const mebibytes = (pattern: RegExp) =>
      tensors.filter(({ name }) => pattern.test(name)).reduce((sum, tensor) => sum + tensorBytes(tensor), 0) / 2 ** 20;

    expect(tensors).toHaveLength(3 + 24 * 12);
    expect(mebibytes(/^blk\./)).toBeCloseTo(235.76, 2);
    expect(mebibytes(/^output.weight/)).toBeCloseTo(137.94, 2);
    expect(mebibytes(/^token_embd/)).toBeCloseTo(89.26, 2);
    expect(mebibytes(/./)).toBeCloseTo(462.96, 2);
  });

  it('is written as a GGUF file that reads back', async () => {
    const path = join(folder, 'small.gguf');
    await writeGuideModel(path, { vocabFile, layers: 4 });
    const file = await readFile(path);
    const { metadata, tensors, dataOffset } = parseGguf(file);

    expect(metadata.get('general.architecture')?.value).toBe('qwen2');
    expect(metadata.get('general.name')?.value).toBe('guide-shape');
    expect(metadata.get('qwen2.block_count')?.value).toBe(4);
    expect(metadata.get('qwen2.rope.freq_base')?.value).toBe(1e6);
    expect(metadata.get('qwen2.attention.layer_norm_rms_epsilon')?.value).toBeCloseTo(1e-6, 12);
    expect(metadata.get('tokenizer.ggml.tokens')?.value).toEqual(TOKENS);
    expect(metadata.get('tokenizer.ggml.token_type')?.value).toEqual(TOKEN_TYPES);
    expect(metadata.get('tokenizer.ggml.add_bos_token')?.value).toBe(false);
    expect(metadata.get('tokenizer.chat_template')?.value).toContain('<|im_start|>assistant');

    const expected = guideTensors({ layers: 4, vocabSize: TOKENS.length });
    expect(tensors.map(({ name, ne, type }) => ({ name, ne, type }))).toEqual(expected);
    let end = dataOffset;
    for (const tensor of tensors) {
      expect(dataOffset + tensor.offset).toBe(Math.ceil(end / 32) * 32);
      end = dataOffset + tensor.offset + tensorBytes(tensor);
    }
    expect(file.length).toBe(Math.ceil(end / 32) * 32);
  });

  it('gives no weight to tokens that would end the text or hold it back', async () => {
    const path = join(folder, 'silent.gguf');
    await writeGuideModel(path, { vocabFile, layers: 1 });
    const file = await readFile(path);
    const { tensors, dataOffset } = parseGguf(file);
    const output = tensors.find(({ name }) => name === 'output.weight');
    if (output === undefined) throw new Error('no output.weight');

    const rowBytes = tensorBytes(output) / TOKENS.length;
    const start = dataOffset + output.offset;
    const zeroRows = TOKENS.map((_, id) => id).filter((id) =>
      file.subarray(start + id * rowBytes, start + (id + 1) * rowBytes).every((byte) => byte === 0),
    );
    expect(zeroRows).toEqual(SILENT);
  });

  it('is the same for the same seed, another for another, and written only when it must be', async () => {
    const [path, again, other] = ['one.gguf', 'again.gguf', 'other.gguf'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    await writeGuideModel(path, { vocabFile, layers: 1, seed: 7 });
    await writeGuideModel(again, { vocabFile, layers: 1, seed: 7 });
    await writeGuideModel(other, { vocabFile, layers: 1, seed: 8 });
    const bytes = await readFile(path);
    expect(bytes.equals(await readFile(again))).toBe(true);
    expect(bytes.subarray(-4096).equals((await readFile(other)).subarray(-4096))).toBe(false);

    const { ino } = await stat(path);
    await writeGuideModel(path, { vocabFile, layers: 1, seed: 7 });
    expect((await stat(path)).ino).toBe(ino);

    await writeGuideModel(path, { vocabFile, layers: 1, seed: 8 });
    expect((await readFile(path)).equals(await readFile(other))).toBe(true);

    await truncate(path, 1000);
    await writeGuideModel(path, { vocabFile, layers: 1, seed: 7 });
    expect((await readFile(path)).equals(bytes)).toBe(true);
  });

  it('leaves nothing behind when it fails, and says what was wrong', async () => {
    const path = join(folder, 'failed.gguf');
    await expect(writeGuideModel(path, { vocabFile, layers: 25 })).rejects.toThrow('from 1 to 24');
    await expect(writeGuideModel(path, { vocabFile, seed: -1 })).rejects.toThrow('seed is -1');
    await expect(writeGuideModel(path, { vocabFile: join(folder, 'none.gguf') })).rejects.toThrow('ENOENT');
    await expect(writeGuideModel(path, { vocabFile: fileURLToPath(import.meta.url) })).rejects.toThrow(
      'not a GGUF file',
    );

    const layout = layoutGguf([], [{ name: 'x', ne: [32], type: 'F32' }]);
    await expect(writeGguf(path, layout, () => [Buffer.alloc(4)])).rejects.toThrow('x: 4 bytes given, 128 needed');
    expect((await readdir(folder)).filter((name) => name.includes('failed'))).toEqual([]);
  });

  it('is a command', async () => {
    const command = fileURLToPath(new URL('../models/guide-model.mjs', import.meta.url));
    const run = (...args: string[]) => promisify(execFile)(process.execPath, [command, ...args]);
    const path = join(folder, 'command.gguf');

    expect((await run('--help')).stdout).toContain('Usage: node test/models/guide-model.mjs');
    await run('--vocab', vocabFile, '--layers', '1', '--seed', '7', path);
    expect(parseGguf(await readFile(path)).metadata.get('general.description')?.value).toContain('seed 7');
    await expect(run()).rejects.toThrow('give one output file');
  });
});
