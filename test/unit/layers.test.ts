/** Data flows one way: cli → cluster → context and rpc-server → http → transport → addon; a file imports from its layer or below. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { projectRoot } from '../support/paths.js';

const lib = join(projectRoot, 'lib');
const layers = [
  ['cli/'],
  ['index.ts'],
  // A look at a device, and what its user is told of it; measurements of everything below.
  ['doctor/', 'bench/'],
  // What wires the stages of a cluster; the stages themselves know each other's records only.
  ['cluster/cluster.ts'],
  ['cluster/master/leadership.ts', 'cluster/stages.ts'],
  ['cluster/'],
  ['context.ts'],
  ['http/', 'hub/', 'requests.ts', 'rpc-server.ts', 'engine-request.ts', 'context-options.ts', 'start-engine.ts'],
  ['placement.ts', 'probe.ts', 'rpc-peer.ts', 'rpc-stream.ts', 'security.ts', 'sse.ts', 'transport/', 'worker-link.ts'],
  ['addon.ts', 'connect-errors.ts', 'cpu.ts', 'endpoint.ts', 'validate.ts'],
  [
    'errors.ts',
    'link-signals.ts',
    'package-file.ts',
    'serial-iterator.ts',
    'size-text.ts',
    'statistics.ts',
    'types.ts',
    'user-dirs.ts',
    'version.ts',
  ],
];

const files = readdirSync(lib, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
const layerOf = (file: string) =>
  layers.findIndex((names) => names.some((name) => file === name || file.startsWith(name)));
const importsOf = (file: string) =>
  [...readFileSync(join(lib, file), 'utf8').matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)].map((match) =>
    relative(lib, resolve(lib, dirname(file), (match[1] as string).replace(/\.js$/, '.ts'))),
  );

describe('layers of lib/', () => {
  it.each(files)('%s imports nothing from above', (file) => {
    expect(layerOf(file), `${file} has no layer`).toBeGreaterThanOrEqual(0);
    for (const imported of importsOf(file)) {
      expect(layerOf(imported), `${file} imports ${imported}`).toBeGreaterThanOrEqual(layerOf(file));
    }
  });

  it('load the binary in one place and print in one place', () => {
    const code = (file: string) => readFileSync(join(lib, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '');
    const matching = (pattern: RegExp) => files.filter((file) => pattern.test(code(file)));
    expect(matching(/node-gyp-build/)).toEqual(['addon.ts']);
    expect(matching(/console\.|process\.exit\(/).filter((file) => !file.startsWith('cli/'))).toEqual([]);
  });

  it('keep N-API out of the native cores', () => {
    const native = join(projectRoot, 'native');
    const withNapi = readdirSync(native, { recursive: true, encoding: 'utf8' })
      .filter((file) => /\.(cc|h)$/.test(file))
      .filter((file) => /napi\.h/.test(readFileSync(join(native, file), 'utf8')));
    const allowed = /^(addon\.cc|(.*\/)?\w+_binding\.(cc|h)|channel\.h|convert\.h|environment\.h)$/;
    expect(withNapi.filter((file) => !allowed.test(file))).toEqual([]);
  });
});
