// The gate that an addon for macOS has to pass, as elf.mjs is for the others. Apple's loader.h has the layout.
import { readFileSync } from 'node:fs';

/** @import { MachoRules } from './prebuild-targets.mjs' */

const MAGIC_64 = 0xfeedfacf;
const CPUS = new Map([
  [0x0100000c, 'arm64'],
  [0x01000007, 'x86_64'],
]);
const BUNDLE = 8;
const HEADER = 32;
// Commands of loading.
const SYMTAB = 0x2;
const RPATH = 0x8000001c;
const BUILD_VERSION = 0x32;
/** Load, weakly, for others, lazily. */
const LIBRARIES = new Set([0xc, 0x80000018, 0x8000001f, 0x20]);
// Of a symbol's type: defined in a section, and seen outside.
const EXTERNAL = 0x01;
const DEBUGGING = 0xe0;
const TYPE = 0x0e;
const IN_SECTION = 0x0e;
const EXPORTS = ['_napi_register_module_v1', '_node_api_module_get_api_version_v1'];

/**
 * @param {string} file
 * @param {MachoRules} rules
 * @param {readonly string[]} [secrets] what must not stand in it, such as the directories it was made in
 * @returns {string[]} what is wrong with it, a line each
 */
export function checkMacho(file, rules, secrets = []) {
  const bytes = readFileSync(file);
  if (bytes.length < HEADER || bytes.readUInt32LE(0) !== MAGIC_64) return ['it is no Mach-O file of 64 bits'];
  /** @type {string[]} */
  const wrong = [];
  const expect = (/** @type {boolean} */ holds, /** @type {string} */ text) => void (holds || wrong.push(text));
  const cpu = CPUS.get(bytes.readUInt32LE(4)) ?? 'another processor';
  expect(cpu === rules.cpu, `it is for ${cpu}, not ${rules.cpu}`);
  expect(bytes.readUInt32LE(12) === BUNDLE, 'it is no bundle');

  let oldest = '';
  /** @type {string[]} */
  let exported = [];
  for (let at = HEADER, left = bytes.readUInt32LE(16); left > 0; left--, at += bytes.readUInt32LE(at + 4)) {
    const command = bytes.readUInt32LE(at);
    // Nothing would ever end a file that says so.
    if (bytes.readUInt32LE(at + 4) < 8) return [...wrong, 'it is damaged'];
    if (LIBRARIES.has(command)) {
      const library = text(bytes, at + bytes.readUInt32LE(at + 8));
      expect(rules.libraries.test(library), `it needs ${library}`);
    }
    if (command === RPATH) wrong.push('it has a run path');
    if (command === BUILD_VERSION) oldest = `${bytes.readUInt16LE(at + 14)}.${bytes[at + 13]}`;
    if (command === SYMTAB) exported = exportedSymbols(bytes, at);
  }
  expect(oldest === rules.oldest, `it is for macOS ${oldest || 'of no version'}, not ${rules.oldest}`);
  expect(String(exported.sort()) === String(EXPORTS), `it exports ${exported.join(', ')}`);
  for (const secret of secrets) expect(!bytes.includes(secret), `it holds the path ${secret}`);
  return wrong;
}

/** @param {Buffer} bytes @param {number} at the command */
function exportedSymbols(bytes, at) {
  const [symbols = 0, count = 0, strings = 0] = [8, 12, 16].map((field) => bytes.readUInt32LE(at + field));
  const names = [];
  for (let symbol = symbols; symbol < symbols + count * 16; symbol += 16) {
    const type = bytes.readUInt8(symbol + 4);
    const seen = (type & EXTERNAL) !== 0 && (type & DEBUGGING) === 0 && (type & TYPE) === IN_SECTION;
    if (seen) names.push(text(bytes, strings + bytes.readUInt32LE(symbol)));
  }
  return names;
}

/** @param {Buffer} bytes @param {number} start of a text that ends with a zero */
function text(bytes, start) {
  return bytes.toString('utf8', start, bytes.indexOf(0, start));
}
