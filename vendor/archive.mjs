// Packs what compiling the addon needs of vendor/llama.cpp into one file, which is what the package carries: hundreds of
// files are most of the time of an install, and few who install compile. fetch.mjs takes them out again.
//
//   node vendor/archive.mjs            fetch the sources where they are not there, and pack them
//   node vendor/archive.mjs --remove   once the package is made: a checkout needs more of them than an archive has
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import { brotliCompress, constants } from 'node:zlib';
import { ARCHIVE, ensureSources, STAMP } from './fetch.mjs';

/** For tests, or of backends that are not switched on. CMake does not look at them. */
const WITHOUT = [
  /^(models|tests|tools\/rpc)\//,
  /^ggml\/src\/(ggml-rpc|ggml-cpu\/(arch\/wasm|kleidiai|spacemit))\//,
  /(^|\/)README[^/]*\.md$/,
];
/** The next ones save a tenth and take five times as long. */
const QUALITY = 9;

async function archive() {
  const sources = await ensureSources({ log: (line) => console.error(line) });
  const entries = await readdir(sources, { recursive: true, withFileTypes: true });
  const paths = entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(sources, join(entry.parentPath, entry.name)))
    .filter((path) => !WITHOUT.some((pattern) => pattern.test(path)))
    .sort();
  if (!paths.includes(STAMP)) throw new Error(`${sources} is a local checkout; only what is pinned is packed`);
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
  await writeFile(ARCHIVE, await promisify(brotliCompress)(text, { params }));
}

const made = process.argv[2] === '--remove' ? rm(ARCHIVE, { force: true }) : archive();
made.catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
