/** `--token`, `--insecure` and DROID_LLAMA_TOKEN, and what a worker tells its user to type on the master. */
import { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { masterLines } from '../../lib/cli/lender.js';
import { type CliSecurity, environmentWith, insecureOption, securityOf, tokenOption } from '../../lib/cli/token.js';
import type { DroidLlamaError } from '../../lib/errors.js';

const typed = 'typed-typed-typed-typed-1';
const exported = 'from_the_environment_22';

afterEach(() => {
  vi.unstubAllEnvs();
});

function security(...args: string[]): CliSecurity {
  const command = new Command().exitOverride().addOption(tokenOption('')).addOption(insecureOption(''));
  return securityOf(command.parse(args, { from: 'user' }));
}

function failure(...args: string[]): DroidLlamaError {
  try {
    security(...args);
  } catch (error) {
    return error as DroidLlamaError;
  }
  return expect.fail('it was accepted');
}

describe('without DROID_LLAMA_TOKEN', () => {
  beforeEach(() => {
    vi.stubEnv('DROID_LLAMA_TOKEN', undefined);
  });

  it('says what was typed', () => {
    expect(security()).toEqual({});
    expect(security('--insecure')).toEqual({ insecure: true });
    expect(security('--token', typed)).toEqual({ token: typed });
    expect(security('--token', `-${typed}`)).toEqual({ token: `-${typed}` });
  });

  it('refuses both', () => {
    expect(failure('--token', typed, '--insecure')).toMatchObject({ code: 'DROID_INVALID_ARGUMENT' });
  });

  it.each(['', 'too-short', `${typed}!`, 'x'.repeat(300)])('refuses %j and does not repeat it', (token) => {
    const { code, message } = failure('--token', token);
    expect(code).toBe('DROID_INVALID_ARGUMENT');
    if (token !== '') expect(message).not.toContain(token);
  });
});

describe('with DROID_LLAMA_TOKEN', () => {
  beforeEach(() => {
    vi.stubEnv('DROID_LLAMA_TOKEN', exported);
  });

  it('takes it, unless something else was typed', () => {
    expect(security()).toEqual({ token: exported });
    expect(security('--token', typed)).toEqual({ token: typed });
    expect(security('--insecure')).toEqual({ insecure: true });
  });

  it('takes an empty one for none, and refuses a wrong one without a word of it', () => {
    vi.stubEnv('DROID_LLAMA_TOKEN', '');
    expect(security()).toEqual({});
    vi.stubEnv('DROID_LLAMA_TOKEN', 'hunter2');
    expect(failure().message).not.toContain('hunter2');
  });

  it('gives children the token they are meant to have, or none', () => {
    expect(environmentWith(typed)).toMatchObject({ DROID_LLAMA_TOKEN: typed, PATH: process.env.PATH });
    expect(environmentWith(undefined)).not.toHaveProperty('DROID_LLAMA_TOKEN');
  });
});

describe('what to type on the master', () => {
  const addresses = ['192.168.43.2', '10.0.0.5'];

  it('is the whole command, for each address', () => {
    expect(masterLines({ endpoint: '0.0.0.0:60000', token: typed }, addresses)).toEqual([
      'On the master:',
      `  droid-llama probe 192.168.43.2:60000 --token ${typed}`,
      `  droid-llama serve -m model.gguf --rpc 192.168.43.2:60000 --token ${typed}`,
      `  droid-llama probe 10.0.0.5:60000 --token ${typed}`,
      `  droid-llama serve -m model.gguf --rpc 10.0.0.5:60000 --token ${typed}`,
    ]);
    expect(masterLines({ endpoint: '[fd00::1]:1', token: typed }, addresses)[1]).toBe(
      `  droid-llama probe [fd00::1]:1 --token ${typed}`,
    );
  });

  it('shows the token also where the system does not tell the addresses', () => {
    const [head, probe] = masterLines({ endpoint: '[::]:60000', token: typed }, []);
    expect(head).toContain('for ADDRESS');
    expect(probe).toBe(`  droid-llama probe ADDRESS:60000 --token ${typed}`);
  });

  it('has --insecure for a plain worker, and is nothing for one on loopback', () => {
    expect(masterLines({ endpoint: '10.0.0.5:1', token: null }, addresses)).toEqual([
      'On the master:',
      '  droid-llama probe 10.0.0.5:1',
      '  droid-llama serve -m model.gguf --rpc 10.0.0.5:1 --insecure',
    ]);
    expect(masterLines({ endpoint: '127.0.0.1:1', token: null }, addresses)).toEqual([]);
  });
});
