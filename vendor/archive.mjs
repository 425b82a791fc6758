// Packs what compiling the addon needs of vendor/llama.cpp into one file, which is what the package carries: hundreds of
// files are most of the time of an install, and few who install compile. fetch.mjs takes them out again.
//
//   node vendor/archive.mjs            fetch the sources where they are not there, and pack them
import { readdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import { brotliCompress, constants } from 'node:zlib';
import { ARCHIVE, ensureSources } from './fetch.mjs';

/** For tests, or of backends that are not switched on. CMake does not look at them. */
const WITHOUT = [
  /^(models|tests|tools\/rpc)\//,
  /^ggml\/src\/(ggml-rpc|ggml-cpu\/(arch\/wasm|kleidiai|spacemit))\//,
  /(^|\/)README[^/]*\.md$/,
];
/** The next ones save a tenth and take five times as long. */
const QUALITY = 9;

async function archive() {
  // What the stamp of edited sources says is not true any more.
  if (process.env.DROID_LLAMA_CPP_DIR) throw new Error('DROID_LLAMA_CPP_DIR is set; only what is pinned is packed');
  const sources = await ensureSources({ log: (line) => console.error(line) });
  const entries = await readdir(sources, { recursive: true, withFileTypes: true });
  const paths = entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(sources, join(entry.parentPath, entry.name)))
    .filter((path) => !WITHOUT.some((pattern) => pattern.test(path)))
    .sort();
  const files = {};
  for (const path of paths) {
    const content = await readFile(join(sources, path));
    files[path] = content.toString();
    if (!Buffer.from(files[path]).equals(content)) throw new Error(`${path} is no text`);
  }
  const text = Buffer.from(JSON.stringify(files));
  const params = {
    [constants.BROTLI_PARAM_MODE]: constants.BROTLI_MODE_TEXT,
    [constants.BROTLI_PARAM_QUALITY]: QUALITY,
    [constants.BROTLI_PARAM_LGWIN]: constants.BROTLI_MAX_WINDOW_BITS,
    [constants.BROTLI_PARAM_SIZE_HINT]: text.length,
  };
  const fresh = `${ARCHIVE}.${process.pid}`;
  await writeFile(fresh, await promisify(brotliCompress)(text, { params }));
  await rename(fresh, ARCHIVE);
}

archive().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
