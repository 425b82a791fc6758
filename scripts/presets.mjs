// What a preset of CMakePresets.json sets. cmake-js cannot be told to use one, so that its variables are handed over.
import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * @param {string} name of a configure preset
 * @returns {Record<string, string>} CMake variables
 */
export function presetVariables(name) {
  const { configurePresets } = JSON.parse(readFileSync(`${root}/CMakePresets.json`, 'utf8'));
  const preset = configurePresets.find((entry) => entry.name === name);
  const expand = (text) =>
    text.replace(/\$\{sourceDir\}|\$env\{(\w+)\}/g, (_, variable) => (variable ? process.env[variable] : root));
  const own = { ...preset.cacheVariables };
  if (preset.toolchainFile) own.CMAKE_TOOLCHAIN_FILE = preset.toolchainFile;
  for (const [variable, value] of Object.entries(own)) own[variable] = expand(value);
  return preset.inherits ? { ...presetVariables(preset.inherits), ...own } : own;
}
