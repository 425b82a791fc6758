// Compiles the addon for this machine's CPU to build/Release/droid-llama.node.
import { copyFile, mkdir, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compile } from './cmake.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

export async function build() {
  await compile('cmake', { GGML_NATIVE: 'ON' }, async (addon, note) => {
    const target = join(root, 'build', 'Release', 'droid-llama.node');
    await mkdir(dirname(target), { recursive: true });
    // Rename, not overwrite: a process that has the old addon mapped must keep its pages.
    await copyFile(addon, `${target}.new`);
    await rename(`${target}.new`, target);
    note('built build/Release/droid-llama.node');
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  build().catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
