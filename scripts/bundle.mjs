// Makes dist/ what ships: the library and everything it imports, in a few files, so that an install fetches one package
// and a start reads little. Of what tsc makes it keeps the .d.ts files that are needed. Also `npm run prepare`.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';
import typescript from 'typescript';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(root, 'dist');

/** What package.json names, and the thread that is started by its path. */
const ENTRIES = ['index', 'bench/index', 'cli/main', 'transport/tls-thread'];
/** What tests and benchmarks of a checkout import besides; each is a line that passes on what is in a chunk anyway. */
const INTERNALS = ['addon', 'errors', 'http/server', 'statistics', 'transport/tls-transport', 'transport/token'];
/** A build from source runs it. With all it imports, most of which it never uses, it would be half of what is installed. */
const CMAKE_JS = 'cmake-js.cjs';
const LICENSES = 'THIRD-PARTY-LICENSES.txt';

/** The only packages that may be asked for by name: those that come along. */
const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const external = Object.keys(dependencies);

/** Names stay as they are, for stack traces; of comments only licences. */
const OUTPUT = { comments: { legal: true, annotation: false, jsdoc: false } };

/** @returns {Promise<import('rolldown').OutputChunk[]>} */
async function bundle(input, output) {
  const made = await rolldown({
    cwd: root,
    input,
    external,
    platform: 'node',
    resolve: { extensionAlias: { '.js': ['.ts', '.js'] } },
    onLog(level, log) {
      // An import that is not found, for one, would only be missed when a user gets there.
      if (level === 'warn' && !EXPECTED.has(log.code)) throw new Error(log.message);
    },
  });
  try {
    return (await made.generate({ ...OUTPUT, ...output })).output;
  } finally {
    await made.close();
  }
}

/** Dependencies build functions from text, which is how their schemas and serializers are fast. */
const EXPECTED = new Set(['EVAL']);

function libraryChunks() {
  const input = Object.fromEntries([...ENTRIES, ...INTERNALS].map((name) => [name, `lib/${name}.ts`]));
  return bundle(input, { format: 'esm', entryFileNames: '[name].js', chunkFileNames: 'chunks/[name].js' });
}

function cmakeJs() {
  return bundle('node_modules/cmake-js/bin/cmake-js', { format: 'cjs', entryFileNames: CMAKE_JS });
}

/** The declarations that the public ones lead to. Throws when they need a package that is not installed with this one. */
async function declarations() {
  const kept = new Set();
  const open = [...ENTRIES.slice(0, 2), ...INTERNALS].map((name) => join(dist, `${name}.d.ts`));
  for (let file = open.pop(); file !== undefined; file = open.pop()) {
    if (kept.has(file)) continue;
    kept.add(file);
    for (const { fileName: name } of typescript.preProcessFile(await readFile(file, 'utf8')).importedFiles) {
      if (name.startsWith('.')) open.push(join(dirname(file), name.replace(/\.js$/, '.d.ts')));
      else if (!name.startsWith('node:')) throw new Error(`${relative(root, file)} has types of ${name}`);
    }
  }
  return kept;
}

/** Packages whose own files hold what they depend on. */
const BUNDLES = new Set(['tar', '@isaacs/fs-minipass', 'minizlib']);

/** Packages that name a licence and forgot to add it. */
const WITHOUT_A_TEXT = {
  'abstract-logging@2.0.1': mitLicense('James Sumners <james.sumners@gmail.com>'),
};

/** The text is ours. */
function mitLicense(holder) {
  return readFileSync(join(root, 'LICENSE'), 'utf8').replace(/^Copyright.*$/m, `Copyright (c) ${holder}`);
}

/** Name, version and licence of each package that has code in the bundle. */
function licenses(chunks) {
  const packages = new Set([packageOf(fileURLToPath(import.meta.resolve('rolldown')))]);
  for (const { modules } of chunks) {
    for (const [id, { renderedLength }] of Object.entries(modules)) {
      if (renderedLength > 0 && id.includes('node_modules')) packages.add(packageOf(id));
    }
  }
  for (const directory of packages) {
    const { name, dependencies } = manifestOf(directory);
    if (!BUNDLES.has(name)) continue;
    for (const inside of Object.keys(dependencies)) packages.add(dependencyOf(directory, inside));
  }
  const texts = [...packages].map((directory) => {
    const { name, version, license } = manifestOf(directory);
    const file = readdirSync(directory).find((entry) => /^(licen[cs]e|copying)(\.|-|$)/i.test(entry));
    const text = file ? readFileSync(join(directory, file), 'utf8') : WITHOUT_A_TEXT[`${name}@${version}`];
    if (!text) throw new Error(`${name} ${version} (${license}) comes without the text of its licence`);
    return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  });
  const line = '-'.repeat(80);
  return [`The files in this directory hold code of these packages:\n`, ...texts.sort((a, b) => (a < b ? -1 : 1))].join(
    `\n${line}\n\n`,
  );
}

function manifestOf(directory) {
  return JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8'));
}

/** The directory of a package that another one gets by its name. */
function dependencyOf(directory, name) {
  for (let above = directory; above !== dirname(above); above = dirname(above)) {
    const found = join(above, 'node_modules', name);
    if (existsSync(found)) return found;
  }
  throw new Error(`${name} is not installed, which ${directory} depends on`);
}

/** The directory of the package that a module belongs to. */
function packageOf(module) {
  let directory = dirname(module);
  // Some packages have a package.json in a directory of theirs that says only what kind of modules are there.
  while (basename(directory) !== 'node_modules') {
    if (existsSync(join(directory, 'package.json')) && manifestOf(directory).version) return directory;
    directory = dirname(directory);
  }
  throw new Error(`${module} belongs to no package`);
}

async function main() {
  // Written last, so that a dist/ that has them is whole.
  await rm(join(dist, LICENSES), { force: true });
  const tsc = fileURLToPath(import.meta.resolve('typescript/bin/tsc'));
  execFileSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json')], { stdio: 'inherit' });
  const chunks = [...(await libraryChunks()), ...(await cmakeJs())];
  const text = licenses(chunks);
  const kept = await declarations();
  // Only now, so that after a failure dist/ still is what tsc made.
  for (const entry of await readdir(dist, { recursive: true, withFileTypes: true })) {
    const file = join(entry.parentPath, entry.name);
    if (entry.isFile() && !kept.has(file)) await rm(file);
  }
  for (const { fileName, code } of chunks) {
    await mkdir(dirname(join(dist, fileName)), { recursive: true });
    await writeFile(join(dist, fileName), code);
  }
  await writeFile(join(dist, LICENSES), text);
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
