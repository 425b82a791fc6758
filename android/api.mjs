// What an addon for Android may ask of the phone's libraries.
import { readFileSync } from 'node:fs';

/** Android 7.0, below which Termux does not go. */
export const API_LEVEL = 24;

/**
 * @typedef {object} ApiSymbol
 * @property {string} soname of its library, such as libc.so
 * @property {string} version of the symbol: LIBC, or LIBC_N for what came with API level 24
 * @property {string} name
 * @property {boolean} data a variable, not a function
 */

/** @returns {ApiSymbol[]} the symbols of api-24.txt */
export function readApi() {
  const text = readFileSync(new URL(`api-${API_LEVEL}.txt`, import.meta.url), 'utf8');
  /** @type {ApiSymbol[]} */
  const symbols = [];
  let soname = '';
  let version = '';
  for (const line of text.split('\n')) {
    const words = line.startsWith('#') ? [] : line.split(' ').filter(Boolean);
    if (words[0]?.endsWith('.so')) [soname = '', version = ''] = words;
    else
      for (const word of words) symbols.push({ soname, version, name: word.replace('*', ''), data: word[0] === '*' });
  }
  return symbols;
}

/**
 * The version script of a library that has these symbols: later versions are built on earlier ones.
 * @param {readonly ApiSymbol[]} symbols of one library
 */
export function versionScript(symbols) {
  let before = '';
  let script = '';
  for (const version of new Set(symbols.map((symbol) => symbol.version))) {
    const names = symbols.filter((symbol) => symbol.version === version).map(({ name }) => `${name};`);
    script += `${version} { global: ${names.join(' ')} ${before ? '' : 'local: *;'} } ${before};\n`;
    before = version;
  }
  return script;
}
