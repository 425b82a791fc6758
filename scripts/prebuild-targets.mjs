// The machines that the package carries an addon for, and what such a file may ask of them. The flags of CMake are the
// presets' in CMakePresets.json.
import { readApi } from '../android/api.mjs';

/**
 * @typedef {object} Target
 * @property {string} file below prebuilds/, with node-gyp-build's tags in its name
 * @property {string} preset of CMakePresets.json
 * @property {NodeJS.Platform} madeOn
 * @property {{ command: string, apt?: string }} compiler and the Debian packages that bring it
 * @property {string} [strip] the program for it, where the linker does not do it
 * @property {ElfRules} [elf]
 * @property {MachoRules} [macho]
 */

/**
 * @typedef {object} ElfRules
 * @property {string} machine as readelf names it
 * @property {RegExp} libraries that may be needed
 * @property {(name: string, version?: string) => boolean} imports whether a symbol may be asked for, besides Node-API's
 * @property {false} [tls] that the loader has no variables of threads, as Android's before API level 29
 */

/**
 * @typedef {object} MachoRules
 * @property {'arm64' | 'x86_64'} cpu
 * @property {RegExp} libraries that may be needed
 * @property {string} oldest macOS that loads it
 */

/**
 * What a Linux distribution has, by the newest version of each library's symbols.
 * @param {Readonly<Record<string, string>>} newest such as { GLIBC: '2.34' }
 * @returns {ElfRules['imports']}
 */
export function gnuSymbols(newest) {
  return (name, version) => {
    // Weak: what a profiler or transactional memory would bring.
    if (!version) return /^(__gmon_start__|_ITM_(de)?registerTMCloneTable|__cxa_finalize)$/.test(name);
    const [, library = '', number = ''] = /^(\w+)_(\d[\d.]*)$/.exec(version) ?? [];
    const limit = newest[library]?.split('.').map(Number);
    if (!limit) return false;
    for (const [i, part] of number.split('.').map(Number).entries()) {
      if (part !== (limit[i] ?? 0)) return part < (limit[i] ?? 0);
    }
    return true;
  };
}

/** @returns {ElfRules['imports']} */
function androidSymbols() {
  const versions = new Map(readApi().map(({ name, version }) => [name, version]));
  return (name, version) => version !== undefined && versions.get(name) === version;
}

// Debian 12, Ubuntu 22.04 and what came after them. Node itself needs a libstdc++.
const GNU = gnuSymbols({ GLIBC: '2.34', GLIBCXX: '3.4.30', CXXABI: '1.3.13', GCC: '4.2' });

// Where Google's NDK is; releases are made with it.
const NDK = process.env.ANDROID_NDK_HOME;

function withNdk(/** @type {string} */ ndk) {
  const bin = `${ndk}/toolchains/llvm/prebuilt/${process.platform}-x86_64/bin`;
  return { preset: 'android-arm64', compiler: { command: `${bin}/clang++` }, strip: `${bin}/llvm-strip` };
}

/** The preset that makes an addon for Android of what Debian and npm have. */
export const WITHOUT_NDK = 'android-arm64-without-ndk';

const withoutNdk = {
  preset: WITHOUT_NDK,
  compiler: { command: 'clang++-19', apt: 'clang-19 lld-19 llvm-19' },
  strip: 'llvm-strip-19',
};

function mac(/** @type {MachoRules['cpu']} */ cpu) {
  const libraries = /^\/usr\/lib\/lib(System\.B|c\+\+\.1)\.dylib$/;
  return {
    madeOn: /** @type {const} */ ('darwin'),
    compiler: { command: 'clang++' },
    macho: { cpu, libraries, oldest: '13.5' },
  };
}

/** @type {Readonly<Record<string, Target>>} */
export const TARGETS = {
  'linux-x64': {
    file: 'linux-x64/droid-llama.glibc.node',
    preset: 'linux-x64',
    madeOn: 'linux',
    compiler: { command: 'x86_64-linux-gnu-g++', apt: 'g++' },
    strip: 'x86_64-linux-gnu-strip',
    elf: {
      machine: 'Advanced Micro Devices X86-64',
      libraries: /^(libc|libm|libstdc\+\+)\.so\.6$|^libgcc_s\.so\.1$|^ld-linux-x86-64\.so\.2$/,
      imports: GNU,
    },
  },
  'linux-arm64': {
    file: 'linux-arm64/droid-llama.glibc.node',
    preset: 'linux-arm64',
    madeOn: 'linux',
    compiler: { command: 'aarch64-linux-gnu-g++', apt: 'g++-aarch64-linux-gnu' },
    strip: 'aarch64-linux-gnu-strip',
    elf: {
      machine: 'AArch64',
      libraries: /^(libc|libm|libstdc\+\+)\.so\.6$|^libgcc_s\.so\.1$|^ld-linux-aarch64\.so\.1$/,
      imports: GNU,
    },
  },
  'android-arm64': {
    file: 'android-arm64/droid-llama.node',
    madeOn: 'linux',
    ...(NDK ? withNdk(NDK) : withoutNdk),
    elf: {
      machine: 'AArch64',
      libraries: /^lib(c|m|dl)\.so$/,
      imports: androidSymbols(),
      tls: false,
    },
  },
  'darwin-arm64': { file: 'darwin-arm64/droid-llama.node', preset: 'darwin-arm64', ...mac('arm64') },
  'darwin-x64': { file: 'darwin-x64/droid-llama.node', preset: 'darwin-x64', ...mac('x86_64') },
};
