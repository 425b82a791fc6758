import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { addon, type ModelInfo, toDroidLlamaError } from '../../addon.js';
import type { ModelShape, ModelSummary } from '../types.js';

/** A model file of this device, as the planner and as other members see it. */
export interface ModelFile {
  readonly path: string;
  readonly shape: ModelShape;
  readonly summary: ModelSummary;
}

/** Rejects with `DROID_MODEL_NOT_FOUND`, `_INVALID` or `_UNSUPPORTED`. */
export async function readModelFile(path: string): Promise<ModelFile> {
  let info: ModelInfo;
  try {
    info = await addon().inspectModel(path);
  } catch (error) {
    throw toDroidLlamaError(error);
  }
  const name = printableName(info.name || basename(path, '.gguf'));
  // What is split over several files is more than the first one's size.
  const bytes = info.layerBytes.reduce((sum, layer) => sum + layer, info.outerBytes);
  return {
    path,
    shape: { ...info, name },
    summary: { name, bytes: Math.max(bytes, (await stat(path)).size), layers: info.layerBytes.length },
  };
}

/** The file says its name itself, and other devices print it. */
function printableName(name: string): string {
  return [...name.replace(/[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, '')].slice(0, 64).join('') || 'model';
}
