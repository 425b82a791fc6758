/** What `up` keeps between runs in the user's own directories: the join token and this device's id. */
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createPeerId, isPeerId } from '../cluster/control/peer-id.js';
import { DEFAULT_CLUSTER_PORT } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { checkToken, createToken } from '../transport/token.js';
import { configDir } from '../user-dirs.js';

type Env = NodeJS.ProcessEnv;

/** The token of last time, or a new one that is kept for the next time. */
export function storedToken(env: Env = process.env): string {
  return stored('token', checkToken, createToken, env);
}

/** Whether an earlier `up` has left a token, usable or not. */
export function hasStoredToken(env: Env = process.env): boolean {
  return existsSync(join(configDir(env), 'token'));
}

/** Keeps a token that was given, so that the next `up` needs none. */
export function storeToken(token: string, env: Env = process.env): void {
  write('token', token, env);
}

/** Names this device for good. Two that run side by side, on another port each, are two devices. */
export function storedDeviceId(clusterPort: number, env: Env = process.env): string {
  const name = clusterPort === DEFAULT_CLUSTER_PORT ? 'device-id' : `device-id-${clusterPort}`;
  return stored(name, checkDeviceId, createPeerId, env);
}

function checkDeviceId(value: unknown): string {
  if (isPeerId(value)) return value;
  throw new DroidLlamaError('DROID_INVALID_ARGUMENT', 'it must be 16 bytes in base64url');
}

function stored(name: string, check: (value: unknown) => string, create: () => string, env: Env): string {
  const file = join(configDir(env), name);
  let text: string;
  try {
    text = readFileSync(file, 'utf8').trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw unusable(file, error);
    const made = create();
    write(name, made, env);
    return made;
  }
  try {
    return check(text);
  } catch (error) {
    throw unusable(file, error);
  }
}

/** In one step, so that a device that is switched off meanwhile is not left with half a token; for its user alone. */
function write(name: string, text: string, env: Env): void {
  const dir = configDir(env);
  const file = join(dir, name);
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    writeFileSync(`${file}.new`, `${text}\n`, { mode: 0o600 });
    chmodSync(`${file}.new`, 0o600);
    renameSync(`${file}.new`, file);
  } catch (error) {
    throw unusable(file, error);
  }
}

function unusable(file: string, cause: unknown): DroidLlamaError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new DroidLlamaError(
    'DROID_INVALID_ARGUMENT',
    `${file} cannot be used: ${why.replace(/\.$/, '')}. Delete it to have a new one made.`,
    {
      cause,
    },
  );
}
