import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { storedDeviceId, storedToken, storeToken } from '../../lib/cli/state.js';
import { configDir, stateDir } from '../../lib/user-dirs.js';

let home: string;
let env: NodeJS.ProcessEnv;
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'droid-state-'));
  env = { XDG_CONFIG_HOME: home, XDG_STATE_HOME: home };
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

describe('what `up` keeps', () => {
  it('is the same token and id every time, readable for its user alone', () => {
    const token = storedToken(env);
    expect(token).toMatch(/^[A-Za-z0-9_-]{22}$/);
    expect(storedToken(env)).toBe(token);
    expect(storedDeviceId(60_000, env)).toBe(storedDeviceId(60_000, env));
    expect(storedDeviceId(60_001, env)).not.toBe(storedDeviceId(60_000, env));
    for (const name of ['token', 'device-id']) {
      expect(statSync(join(home, 'droid-llama', name)).mode & 0o777).toBe(0o600);
    }
  });

  it('is a token that was given before', () => {
    storeToken('a-token-that-somebody-chose', env);
    expect(storedToken(env)).toBe('a-token-that-somebody-chose');
  });

  it.each(['token', 'device-id'])('says what to do with a %s file that is broken, and does not replace it', (name) => {
    const file = join(home, 'droid-llama', name);
    const read = (of: NodeJS.ProcessEnv) => (name === 'token' ? storedToken(of) : storedDeviceId(60_000, of));
    read(env);
    writeFileSync(file, 'x y');
    expect(() => read(env)).toThrow(/cannot be used.*Delete it/);
    expect(readFileSync(file, 'utf8')).toBe('x y');
  });

  it('ignores relative XDG directories, as the rule says', () => {
    expect(configDir({ XDG_CONFIG_HOME: 'relative' })).toMatch(/\.config\/droid-llama$/);
    expect(stateDir({})).toMatch(/\.local\/state\/droid-llama$/);
  });
});
