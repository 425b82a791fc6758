// @ts-check
import { isUtf8 } from 'node:buffer';

/** LLAMA_TOKEN_TYPE_NORMAL in llama.cpp's include/llama.h. */
const NORMAL = 1;

/**
 * llama.cpp also finds special tokens by their text, whatever their type: the Qwen2 vocabulary's `</s>` is an ordinary
 * token that ends generation. Anything that looks like a tag is suspect.
 */
const TAG = /^(<.*>|\[\w+\])$/;

/** GPT-2's byte-level BPE writes each byte as one printable character; this is the way back. */
const BYTE_OF_CHARACTER = (() => {
  /** @type {Map<string, number>} */
  const map = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    map.set(String.fromCodePoint(printable ? byte : next++), byte);
  }
  return map;
})();

/**
 * Ids of the tokens that a random model must not say. End-of-generation tokens and other control tokens would end or
 * confuse an answer; a token that is only part of a character is held back by the server until the rest comes, so a
 * client that counts chunks would count too few.
 *
 * @param {readonly string[]} tokens - in byte-level BPE spelling
 * @param {readonly number[]} types
 * @returns {number[]}
 */
export function silentTokens(tokens, types) {
  const silent = [];
  for (const [id, token] of tokens.entries()) {
    const bytes = Buffer.from(Array.from(token, (character) => BYTE_OF_CHARACTER.get(character) ?? 0xff));
    if (types[id] !== NORMAL || TAG.test(token) || !isUtf8(bytes)) silent.push(id);
  }
  return silent;
}
