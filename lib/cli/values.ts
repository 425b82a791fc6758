import { join } from 'node:path';
import { InvalidArgumentError } from 'commander';
import { DEFAULT_CLUSTER_PORT, parseEndpoint } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { cacheDir } from '../user-dirs.js';

/** A parser for commander that takes integers from `min` to `max`. */
export function integer(min: number, max = 2 ** 31 - 1): (text: string) => number {
  return (text) => {
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new InvalidArgumentError(`It must be an integer from ${min} to ${max}.`);
    return value;
  };
}

/** Like {@link integer}, and takes llama.cpp's `-1`, which {@link orAuto} reads. */
export function integerOrAuto(min: number, max?: number): (text: string) => number {
  const parse = integer(min, max);
  return (text) => (text === '-1' ? -1 : parse(text));
}

/** `-1` as `undefined`: let the library choose. commander stores a parser's `undefined` as an empty string. */
export function orAuto(value: number | undefined): number | undefined {
  return value === -1 ? undefined : value;
}

/** `0.5` seconds as 500 milliseconds; below 2^31 of them, as timers need it. */
export function seconds(text: string): number {
  const value = /^\d+(\.\d+)?$/.test(text) ? Math.round(Number(text) * 1000) : 0;
  if (value < 1 || value >= 2 ** 31) throw new InvalidArgumentError('It must be a number of seconds, e.g. 0.5 or 30.');
  return value;
}

const UNITS: Readonly<Record<string, number>> = { B: 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** Bytes of `512` or `512M` (MiB), `1.5G`, `800K`, `4096B`. */
export function byteSize(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)([BKMGT]?)(?:(?<=[KMGT])i?B)?$/i.exec(text) ?? [];
  const bytes = Math.floor(Number(digits) * (UNITS[(unit || 'M').toUpperCase()] ?? Number.NaN));
  if (!(bytes >= 1 && bytes <= Number.MAX_SAFE_INTEGER)) {
    throw new InvalidArgumentError('It must be a number of MiB or a size such as 512M or 1.5G.');
  }
  return bytes;
}

/** A port to listen on; 0 lets the system choose. */
export const port = integer(0, 65535);

/** `0.5,0.5` or `0.5/0.5`, as llama.cpp takes both. */
export function shares(text: string): number[] {
  const values = text.split(/[,/]/).map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  if (!values.every((value) => Number.isFinite(value) && value >= 0)) {
    throw new InvalidArgumentError('It must be one share per device, master first, none negative, e.g. 0.5,0.5.');
  }
  return values;
}

/** `a:1,b:2`, appended to those of earlier `--rpc` flags. */
export function endpoints(text: string, previous: readonly string[] = []): string[] {
  const list = text.split(',').map((part) => part.trim());
  for (const endpoint of list) endpointValue(endpoint);
  return [...previous, ...list];
}

/** Endpoints of a cluster's members, whose port is nearly always the same. */
export function peers(text: string, previous: readonly string[] = []): string[] {
  const withPort = (part: string): string => (/:\d+$/.test(part) ? part : `${part}:${DEFAULT_CLUSTER_PORT}`);
  const list = text.split(',').map((part) => part.trim());
  return endpoints(list.map(withPort).join(','), previous);
}

/** A single endpoint, checked and returned as it is. */
export function endpointValue(text: string): string {
  try {
    parseEndpoint(text);
  } catch (error) {
    throw error instanceof DroidLlamaError ? new InvalidArgumentError(error.message) : error;
  }
  return text;
}

/** Comma-separated words, appended to those of earlier flags of the same name. */
export function list(text: string, previous: readonly string[] = []): string[] {
  const parts = text.split(',');
  if (parts.includes('')) throw new InvalidArgumentError('One of its comma-separated values is empty.');
  return [...previous, ...parts];
}

export interface ScaledLora {
  readonly path: string;
  readonly scale: number;
}

/** `file:scale,…` as llama.cpp's `--lora-scaled` takes it. */
export function scaledLoras(text: string, previous: readonly ScaledLora[] = []): ScaledLora[] {
  const parsed = text.split(',').map((part) => {
    const colon = part.lastIndexOf(':');
    const scale = colon < 1 || colon === part.length - 1 ? Number.NaN : Number(part.slice(colon + 1));
    if (!Number.isFinite(scale)) throw new InvalidArgumentError('It must be file:scale, e.g. style.gguf:0.5.');
    return { path: part.slice(0, colon), scale };
  });
  return [...previous, ...parsed];
}

export function nonEmpty(text: string): string {
  if (text.trim() === '') throw new InvalidArgumentError('It must not be empty.');
  return text;
}

/** Where a worker keeps weights between runs when `--cache` names no directory. */
export function defaultCacheDir(env: NodeJS.ProcessEnv = process.env): string {
  return join(cacheDir(env), 'rpc');
}

/** Whether a debugging variable is switched on; `GGML_RPC_DEBUG=0` reads as off. */
export function isSwitchedOn(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0';
}
