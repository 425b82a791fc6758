// The gate that a prebuilt addon has to pass: it reads the file as a loader does and says what a machine of its target
// would miss.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

/** @import { ElfRules } from './prebuild-targets.mjs' */

const require = createRequire(import.meta.url);
const { symbols: nodeApi } = require('node-api-headers');

/** Of Node-API 8, which package.json names. */
const NODE_API = new Set([...nodeApi.v8.js_native_api_symbols, ...nodeApi.v8.node_api_symbols]);
const EXPORTS = ['napi_register_module_v1', 'node_api_module_get_api_version_v1'];
/** Android 15 has kernels with pages of 16 KiB. */
const ALIGNMENT = 0x4000;

/**
 * @param {string} file
 * @param {ElfRules} rules
 * @param {readonly string[]} [secrets] what must not stand in it, such as the directories it was made in
 * @returns {string[]} what is wrong with it, a line each
 */
export function checkElf(file, rules, secrets = []) {
  /** @type {string[]} */
  const wrong = [];
  const expect = (/** @type {boolean} */ holds, /** @type {string} */ text) => void (holds || wrong.push(text));
  const read = (/** @type {string[]} */ ...args) =>
    execFileSync('readelf', ['-W', ...args, file], {
      encoding: 'utf8',
      maxBuffer: 2 ** 26,
      env: { ...process.env, LC_ALL: 'C' },
    });

  const header = read('-h');
  const machine = /Machine:\s*(.*)/.exec(header)?.[1] ?? 'none';
  expect(machine === rules.machine, `it is for ${machine}, not ${rules.machine}`);
  expect(/Type:\s*DYN/.test(header), 'it is no shared object');

  const segments = read('-l');
  expect(/^ *GNU_STACK /m.test(segments), 'it does not say that its stack is not to be executed');
  expect(rules.tls !== false || !/^ *TLS /m.test(segments), 'it has variables of threads that the loader has to know');
  for (const segment of segments.matchAll(/^ *(LOAD|GNU_STACK) .* ([R ][W ][E ]) (0|0x[0-9a-f]+)$/gm)) {
    const [, type, flags = '', alignment = ''] = segment;
    if (type === 'GNU_STACK') expect(!flags.includes('E'), 'it wants a stack that can be executed');
    else expect(Number(alignment) >= ALIGNMENT, `a segment is aligned to ${alignment}, less than 16 KiB`);
    expect(flags !== 'RWE', 'a segment can be written and executed');
  }

  const dynamic = read('-d');
  for (const [, library = ''] of dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)) {
    expect(rules.libraries.test(library), `it needs ${library}`);
  }
  expect(!/\((RPATH|RUNPATH)\)/.test(dynamic), 'it has a run path');
  expect(!/\(TEXTREL\)/.test(dynamic), 'it has relocations in its code');
  expect(!/\((ANDROID_)?RELR\)/.test(dynamic), 'it has packed relocations, which older loaders do not know');
  expect(!/\((AUXILIARY|FILTER)\)/.test(dynamic), 'it filters another library');
  expect(/BIND_NOW|FLAGS_1.*NOW/.test(dynamic), 'its symbols are not bound when it is loaded');

  const exported = [];
  for (const { name, version, defined } of dynamicSymbols(read('--dyn-syms'))) {
    if (defined) exported.push(name);
    else if (version) expect(rules.imports(name, version), `${name} is of ${version}`);
    else expect(NODE_API.has(name) || rules.imports(name), `${name} is nobody's`);
  }
  expect(String(exported.sort()) === String(EXPORTS), `it exports ${exported.join(', ')}`);

  const bytes = readFileSync(file);
  for (const secret of secrets) expect(!bytes.includes(secret), `it holds the path ${secret}`);
  return wrong;
}

/** @param {string} table of readelf --dyn-syms */
function dynamicSymbols(table) {
  const found = [];
  //   Num: Value Size Type Bind Vis Ndx Name@Version, or Name@@Version where it is defined
  for (const line of table.matchAll(/^ *\d+: [0-9a-f]+ +\S+ +\S+ +(?!LOCAL)(?:<.*?>: \d+|\S+) +\S+ +(\S+) +(\S+)/gm)) {
    const [, section, symbol = ''] = line;
    const [name = '', version] = symbol.split(/@+/);
    found.push({ name, version, defined: section !== 'UND' });
  }
  return found;
}

/** Helpers that choose between two kinds of atomic instructions when the addon is loaded; of a file that is not stripped. */
export function outlineAtomics(/** @type {string} */ file) {
  const symbols = execFileSync('readelf', ['-W', '-s', file], { encoding: 'utf8', maxBuffer: 2 ** 28 });
  return [...symbols.matchAll(/ (__aarch64_(?:cas|swp|ldadd|ldclr|ldeor|ldset)\w*)$/gm)].map((match) => match[1]);
}

/** The NDK writes its release beside the API level into each library that it links. */
export function madeWithNdk(/** @type {string} */ file) {
  return /\br\d+/.test(execFileSync('readelf', ['-p', '.note.android.ident', file], { encoding: 'utf8' }));
}
