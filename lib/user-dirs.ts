/** The directories of this user that the package keeps something in, by the XDG rules. */
import { homedir } from 'node:os';
import { join } from 'node:path';

type Env = NodeJS.ProcessEnv;

function xdg(value: string | undefined, fallback: string): string {
  // The rule: a relative path there is to be ignored.
  return join(value?.startsWith('/') ? value : join(homedir(), fallback), 'droid-llama');
}

/** The join token and this device's id. */
export function configDir(env: Env = process.env): string {
  return xdg(env.XDG_CONFIG_HOME, '.config');
}

/** Where a running `up` listens for `status`. */
export function stateDir(env: Env = process.env): string {
  return xdg(env.XDG_STATE_HOME, '.local/state');
}

/** What can be made again. */
export function cacheDir(env: Env = process.env): string {
  return xdg(env.XDG_CACHE_HOME, '.cache');
}
