// Makes the package for Termux: the command, the addon of android-arm64 and a service, in a .deb. Also `npm run deb`.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  chmod,
  copyFile,
  lutimes,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { basename, dirname, extname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { checkElf } from './elf.mjs';
import { TARGETS } from './prebuild-targets.mjs';
import { answers } from './toolchain.mjs';

const HELP = `Makes droid-llama_<version>_aarch64.deb, which installs in Termux with:  apt install ./<file>

Usage: npm run deb [-- options]

  --addon <file>     the addon to put in (default: prebuilds/android-arm64/droid-llama.node)
  --out <directory>  where the package goes (default: build/)
  -h, --help         this

The same sources give the same bytes; SOURCE_DATE_EPOCH is the time that the files get, in seconds.

Examples:
  $ npm run prebuild -- android-arm64 && npm run prepare && npm run deb
  $ npm run deb -- --out /tmp
  $ npm run deb -- --addon build/Release/droid-llama.node    one that was compiled in Termux
`;

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const packaging = join(root, 'packaging/termux');
const TARGET = 'android-arm64';
const ADDON = `prebuilds/${TARGETS[TARGET].file}`;

/** Where Termux has everything; compiled into its programs, so the same on every phone. */
const PREFIX = 'data/data/com.termux/files/usr';
const HOME = `${PREFIX}/lib/node_modules/droid-llama`;
const SERVICE = `${PREFIX}/var/service/droid-llama`;
const CONFIGURATION = `${PREFIX}/etc/droid-llama.conf`;
const SCRIPTS = ['preinst', 'postinst', 'prerm', 'postrm'];

/** npm's: a date that every archive format can hold. */
const EPOCH = 499_162_500;

/** Of a package's files those that Node may load. Types, sources and source maps are several times as much. */
const LOADED = /^\.(js|cjs|mjs|json|wasm)$/;
const LICENSE = /licen[cs]e/i;
/** A build from source has no use for a package without sources. */
const NOT_LOADED = /^cmake-js\.cjs$/;
/** What the bundle in dist/ asks for by name. */
const DEPENDENCIES = ['node_modules/node-gyp-build'];

class Stage {
  /** @param {string} directory that becomes `/` */
  constructor(directory) {
    this.directory = directory;
    this.bytes = 0;
    /** Each file rounded up, as dpkg counts what is installed. */
    this.kibibytes = 0;
    /** @type {string[]} */
    this.files = [];
  }

  /** @param {string} to below the stage @param {number} mode */
  async copy(from, to, mode = 0o644) {
    await this.#place(to, mode, (path) => copyFile(from, path));
  }

  async write(to, text, mode = 0o644) {
    await this.#place(to, mode, (path) => writeFile(path, text));
  }

  async link(target, to) {
    const path = join(this.directory, to);
    await mkdir(dirname(path), { recursive: true });
    await symlink(target, path);
  }

  async #place(to, mode, put) {
    const path = join(this.directory, to);
    await mkdir(dirname(path), { recursive: true });
    await put(path);
    await chmod(path, mode);
    const { size } = await stat(path);
    this.bytes += size;
    this.kibibytes += Math.ceil(size / 1024);
    this.files.push(to);
  }

  /** Everything of a directory that Node may load. */
  async copyLoaded(from, to) {
    for (const entry of await readdir(from, { withFileTypes: true })) {
      const { name } = entry;
      const [source, target] = [join(from, name), join(to, name)];
      if (NOT_LOADED.test(name)) continue;
      if (entry.isDirectory()) await this.copyLoaded(source, target);
      else if (LOADED.test(extname(name)) || LICENSE.test(name)) await this.copy(source, target);
    }
  }

  /** Gives every entry the same time, and every directory the same mode whatever the umask is. */
  async settle(time, directory = this.directory) {
    for (const entry of await readdir(directory, { withFileTypes: true })) {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) await this.settle(time, path);
      else await lutimes(path, time, time);
    }
    await chmod(directory, 0o755);
    await lutimes(directory, time, time);
  }
}

/** Throws what is missing or wrong, and which command helps. */
async function check(addon, given) {
  if (!answers('dpkg-deb')) throw new Error('dpkg-deb is missing. Install with:  apt-get install dpkg');
  if (!existsSync(addon)) {
    const help = given ? 'give another --addon' : `npm run prebuild -- ${TARGET}`;
    throw new Error(`${given ? addon : ADDON} is missing: ${help}`);
  }
  // tsc alone leaves none, and what imports packages that would not come along.
  if (!existsSync(join(root, 'dist/THIRD-PARTY-LICENSES.txt'))) throw new Error('dist/ is missing: npm run prepare');
  if (!existsSync(join(root, 'vendor/llama.cpp/LICENSE'))) {
    throw new Error('llama.cpp, whose license goes along, is missing: node vendor/fetch.mjs');
  }
  if ((await machine(addon)) !== 'aarch64') throw new Error(`${addon} is no addon for 64-bit Arm`);
  // One that was compiled in Termux may need its libraries.
  const wrong = given ? [] : checkElf(addon, TARGETS[TARGET].elf, [root]);
  if (wrong.length > 0) throw new Error(`${ADDON} would not do for ${TARGET}:\n  ${wrong.join('\n  ')}`);
}

/** Reads the head of an ELF file. */
async function machine(file) {
  const head = Buffer.alloc(20);
  const handle = await open(file);
  try {
    await handle.read(head, 0, head.length, 0);
  } finally {
    await handle.close();
  }
  const elf64 = head.readUInt32BE(0) === 0x7f454c46 && head[4] === 2;
  // e_machine; EM_AARCH64 is 183.
  return elf64 && head.readUInt16LE(18) === 183 ? 'aarch64' : 'another';
}

async function fill(stage, manifest, addon) {
  await stage.copyLoaded(join(root, 'dist'), `${HOME}/dist`);
  await stage.copy(addon, `${HOME}/${ADDON}`);
  await stage.copy(join(root, 'models/droid-tiny.gguf'), `${HOME}/models/droid-tiny.gguf`);
  // Without the scripts and dependencies of an npm package: there is nothing to install.
  const { name, version, description, license, type, engines, exports, bin } = manifest;
  const kept = { name, version, description, license, type, engines, exports: withoutTypes(exports), bin };
  await stage.write(`${HOME}/package.json`, `${JSON.stringify(kept, null, 2)}\n`);

  for (const directory of DEPENDENCIES) {
    const from = join(root, directory);
    if (!existsSync(from)) throw new Error(`${directory} is missing: npm ci`);
    await stage.copyLoaded(from, `${HOME}/${directory}`);
  }

  await stage.copy(join(packaging, 'command'), `${PREFIX}/bin/droid-llama`, 0o755);
  // May come to hold a token.
  await stage.copy(join(packaging, 'droid-llama.conf'), CONFIGURATION, 0o600);
  for (const script of ['run', 'finish']) {
    await stage.copy(join(packaging, 'service', script), `${SERVICE}/${script}`, 0o755);
  }
  // termux-services writes what a service prints to $PREFIX/var/log/sv/<service>.
  await stage.link(`/${PREFIX}/share/termux-services/svlogger`, `${SERVICE}/log/run`);
  await stage.write(`${PREFIX}/share/doc/droid-llama/copyright`, await licenses());
}

/** No declarations are in the package. */
function withoutTypes(exports) {
  return Object.fromEntries(
    Object.entries(exports).map(([path, target]) => [path, typeof target === 'string' ? target : target.default]),
  );
}

/** Of what is in the addon; those of the bundle lie beside it. */
async function licenses() {
  const vendor = join(root, 'vendor/llama.cpp');
  const files = await readdir(vendor, { recursive: true });
  const texts = files.filter((file) => /(^|\/)(LICENSE[^/]*|licenses\/[^/]+)$/.test(file)).sort();
  const parts = await Promise.all(
    [join(root, 'LICENSE'), ...texts.map((file) => join(vendor, file))].map(
      async (file) => `${relative(root, file)}\n\n${(await readFile(file, 'utf8')).trim()}\n`,
    ),
  );
  return parts.join(`\n${'-'.repeat(80)}\n`);
}

/** What dpkg reads: the description, the scripts it calls and the sums it checks. */
async function describe(stage, manifest, version) {
  const node = /^>=(\d+)/.exec(manifest.engines.node)?.[1];
  if (!node) throw new Error(`engines.node of package.json is ${manifest.engines.node}, which no control file can say`);
  const values = {
    VERSION: version,
    INSTALLED_SIZE: String(stage.kibibytes),
    NODE: node,
  };
  const template = await readFile(join(packaging, 'control'), 'utf8');
  const sums = [];
  for (const file of [...stage.files].sort()) {
    const sum = createHash('md5').update(await readFile(join(stage.directory, file)));
    // A configuration file is meant to be changed.
    if (file !== CONFIGURATION) sums.push(`${sum.digest('hex')}  ${file}\n`);
  }
  await stage.write(
    'DEBIAN/control',
    template.replace(/@(\w+)@/g, (_, name) => values[name]),
  );
  await stage.write('DEBIAN/conffiles', `/${CONFIGURATION}\n`);
  await stage.write('DEBIAN/md5sums', sums.join(''));
  for (const script of SCRIPTS) await stage.copy(join(packaging, script), `DEBIAN/${script}`, 0o755);
}

const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

async function build(addon, given, out) {
  await check(addon, given);
  const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'));
  // 1.0.0-beta.1 comes before 1.0.0, for dpkg only with a tilde.
  const version = manifest.version.replace('-', '~');
  const epoch = Number(process.env.SOURCE_DATE_EPOCH ?? EPOCH);
  if (!Number.isSafeInteger(epoch) || epoch < 0) {
    throw new Error(`SOURCE_DATE_EPOCH is ${process.env.SOURCE_DATE_EPOCH}; it must be seconds since 1970`);
  }
  await mkdir(out, { recursive: true });
  // Beside the result, which is then put in place in one step.
  const scratch = await mkdtemp(join(out, '.termux-deb-'));
  try {
    const stage = new Stage(join(scratch, 'root'));
    await fill(stage, manifest, addon);
    console.log(`${given ? addon : ADDON}, ${mib((await stat(addon)).size)}`);
    console.log(`${stage.files.length} files, ${mib(stage.bytes)}`);
    await describe(stage, manifest, version);
    await stage.settle(epoch);
    const deb = join(scratch, `droid-llama_${version}_aarch64.deb`);
    console.log('packing');
    execFileSync('dpkg-deb', ['--root-owner-group', '-Zxz', '--build', stage.directory, deb], {
      stdio: ['ignore', 'ignore', 'inherit'],
      // Several threads cut the stream into blocks.
      env: { ...process.env, SOURCE_DATE_EPOCH: String(epoch), DPKG_DEB_THREADS_MAX: '1' },
    });
    const file = join(out, basename(deb));
    await rename(deb, file);
    console.log(`built ${relative(process.cwd(), file) || file}, ${mib((await stat(file)).size)}`);
    console.log(`In Termux:  apt install ./${basename(file)}`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

async function main() {
  const { values } = parseArgs({
    options: { addon: { type: 'string' }, out: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return;
  }
  const given = values.addon !== undefined;
  await build(given ? resolve(values.addon) : join(root, ADDON), given, resolve(values.out ?? join(root, 'build')));
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  if (error.code?.startsWith('ERR_PARSE_ARGS')) console.error('see npm run deb -- --help');
  process.exitCode = 1;
});
