/** The release workflow cannot run here; what it names has to be there. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { TARGETS, WITHOUT_NDK } from '../../scripts/prebuild-targets.mjs';
import { presetVariables } from '../../scripts/presets.mjs';
import { projectRoot } from '../support/paths.js';

const read = (file: string) => readFileSync(join(projectRoot, file), 'utf8');
const workflow = read('.github/workflows/release.yml');
const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
const presets = JSON.parse(read('CMakePresets.json')).configurePresets as { name: string; hidden?: boolean }[];

afterEach(() => {
  vi.unstubAllEnvs();
});

test('the release workflow calls scripts that package.json has', () => {
  const called = [...workflow.matchAll(/npm run ([\w:-]+)/g)].map(([, name = '']) => name);
  expect(called).toContain('deb');
  expect(called.filter((name) => !(name in scripts))).toEqual([]);
});

test('the release workflow makes each prebuilt addon once, and checks them before it publishes', () => {
  const matrix = [...workflow.matchAll(/target: ([\w-]+) \}/g)].map(([, target = '']) => target);
  const commands = [...workflow.matchAll(/npm run prebuild -- ([a-z][\w -]*)$/gm)].map(([, names = '']) => names);
  const made = [...matrix, ...commands.flatMap((names) => names.split(' '))];
  expect(made.sort()).toEqual(Object.keys(TARGETS).sort());
  const check = workflow.indexOf('npm run prebuild -- --check');
  expect(check).toBeGreaterThan(0);
  expect(workflow.indexOf('npm publish')).toBeGreaterThan(check);
});

test('the presets are those of the prebuilt addons', () => {
  const used = [...Object.values(TARGETS).map(({ preset }) => preset), 'android-arm64', WITHOUT_NDK];
  expect(presets.flatMap(({ name, hidden }) => (hidden ? [] : [name])).sort()).toEqual([...new Set(used)].sort());
});

test('a preset says what its parents say, with its variables filled in', () => {
  vi.stubEnv('ANDROID_NDK_HOME', '/opt/ndk');
  expect(presetVariables('android-arm64')).toMatchObject({
    CMAKE_BUILD_TYPE: 'Release',
    DROID_PREBUILT: 'ON',
    CMAKE_TOOLCHAIN_FILE: '/opt/ndk/build/cmake/android.toolchain.cmake',
    ANDROID_PLATFORM: 'android-24',
  });
  for (const { preset } of Object.values(TARGETS)) {
    const { CMAKE_TOOLCHAIN_FILE: toolchain } = presetVariables(preset);
    expect(!toolchain?.startsWith(projectRoot) || existsSync(toolchain)).toBe(true);
  }
});
