import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const projectRoot = fileURLToPath(new URL('../..', import.meta.url));
export const tinyModel = join(projectRoot, 'models/droid-tiny.gguf');
export const tinyModelQ8 = join(projectRoot, 'models/droid-tiny-q8_0.gguf');
export const cliMain = join(projectRoot, 'dist/cli/main.js');
/** Files the tests make; ignored by git, kept between runs. */
export const cacheDir = join(projectRoot, 'build/test');
