import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { addon } from '../../lib/addon.js';
import { RPC_PROTOCOL } from '../../lib/probe.js';
import { projectRoot } from '../support/paths.js';

describe('the addon', () => {
  it('is made of the pinned llama.cpp, for this CPU, without OpenMP', async () => {
    const lock = JSON.parse(await readFile(join(projectRoot, 'vendor/llama.lock.json'), 'utf8')) as { tag: string };
    const { llamaCpp, systemInfo } = addon().buildInfo();
    expect(`v${llamaCpp}`).toContain(lock.tag);
    expect(systemInfo).toContain('CPU : ');
    expect(systemInfo).not.toContain('OPENMP');
  });

  it('speaks the protocol that the probe expects', () => {
    const { major, minor, patch } = RPC_PROTOCOL;
    expect(addon().buildInfo().rpcProtocol).toBe(`${major}.${minor}.${patch}`);
  });
});
