// The machines that the package carries an addon for, and what such a file may ask of them.

/**
 * @typedef {object} Target
 * @property {string} file below prebuilds/, with node-gyp-build's tags in its name
 * @property {Record<string, string>} flags for CMake
 * @property {{ command: string, apt: string }} compiler
 * @property {string} strip
 * @property {ElfRules} elf
 */

/**
 * @typedef {object} ElfRules
 * @property {string} machine as readelf names it
 * @property {RegExp} libraries that may be needed
 * @property {RegExp} unversioned imported symbols without a version that may be there, besides Node-API's
 * @property {Readonly<Record<string, string>>} newest version of a library's symbols, by the name before the version
 */

// Debian 12, Ubuntu 22.04 and what came after them. Node itself needs a libstdc++.
const GNU = { GLIBC: '2.34', GLIBCXX: '3.4.30', CXXABI: '1.3.13', GCC: '4.2' };
// Weak: what a profiler or transactional memory would bring.
const COMPILER = /^(__gmon_start__|_ITM_(de)?registerTMCloneTable|__cxa_finalize)$/;

/** @type {Readonly<Record<string, Target>>} */
export const TARGETS = {
  'linux-x64': {
    file: 'linux-x64/droid-llama.glibc.node',
    flags: {},
    compiler: { command: 'x86_64-linux-gnu-g++', apt: 'g++' },
    strip: 'x86_64-linux-gnu-strip',
    elf: {
      machine: 'Advanced Micro Devices X86-64',
      libraries: /^(libc|libm|libstdc\+\+)\.so\.6$|^libgcc_s\.so\.1$|^ld-linux-x86-64\.so\.2$/,
      unversioned: COMPILER,
      newest: GNU,
    },
  },
  'linux-arm64': {
    file: 'linux-arm64/droid-llama.glibc.node',
    flags: { CMAKE_TOOLCHAIN_FILE: 'cmake/linux-arm64.cmake' },
    compiler: { command: 'aarch64-linux-gnu-g++', apt: 'g++-aarch64-linux-gnu' },
    strip: 'aarch64-linux-gnu-strip',
    elf: {
      machine: 'AArch64',
      libraries: /^(libc|libm|libstdc\+\+)\.so\.6$|^libgcc_s\.so\.1$|^ld-linux-aarch64\.so\.1$/,
      unversioned: COMPILER,
      newest: GNU,
    },
  },
};
