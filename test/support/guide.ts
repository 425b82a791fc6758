import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { writeGuideModel } from '../models/guide-model.mjs';
import { cacheDir } from './paths.js';

/** A file of the guide's shape with random weights, made once: 463 MiB, 24 layers, 151,936 tokens. */
export async function guideModel(): Promise<string> {
  await mkdir(cacheDir, { recursive: true });
  const path = join(cacheDir, 'guide-model.gguf');
  await writeGuideModel(path);
  return path;
}

/** Width of the guide's model, in elements of four bytes. */
export const guideEmbedding = 896;
