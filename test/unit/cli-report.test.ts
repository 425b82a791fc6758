import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createProgram, prepareArgs } from '../../lib/cli/program.js';
import { report } from '../../lib/cli/report.js';
import { Interrupted } from '../../lib/cli/shutdown.js';
import { DroidLlamaError } from '../../lib/errors.js';

let stdout = '';
let stderr = '';

beforeEach(() => {
  stdout = '';
  stderr = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
    stdout += String(chunk);
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => {
    stderr += String(chunk);
    return true;
  });
});

afterEach(() => {
  vi.restoreAllMocks();
});

async function run(...args: string[]): Promise<number> {
  const program = createProgram();
  try {
    await program.parseAsync(prepareArgs(program, args), { from: 'user' });
    return 0;
  } catch (error) {
    return report(error, args.includes('--json'));
  }
}

describe('report', () => {
  it('prints an error with its code on stderr, status 1', () => {
    expect(report(new DroidLlamaError('DROID_MODEL_NOT_FOUND', 'no model'), false)).toBe(1);
    expect([stdout, stderr]).toEqual(['', 'error: no model (DROID_MODEL_NOT_FOUND)\n']);
  });

  it('prints JSON on stdout when asked to', () => {
    expect(report(new DroidLlamaError('DROID_MODEL_NOT_FOUND', 'no model'), true)).toBe(1);
    expect(JSON.parse(stdout)).toEqual({ error: { code: 'DROID_MODEL_NOT_FOUND', message: 'no model' } });
    expect(stderr).toBe('');
  });

  it('shows the stack of an error that is not ours', () => {
    expect(report(new TypeError('a bug'), false)).toBe(1);
    expect(stderr).toMatch(/^error: a bug\n.*TypeError: a bug\n +at /s);
  });

  it('is silent about an interruption, status 130', () => {
    expect(report(new Interrupted('ended by SIGINT'), false)).toBe(130);
    expect(stdout + stderr).toBe('');
  });
});

describe('command line', () => {
  it.each([
    [['nonsense'], /unknown command 'nonsense'/],
    [['serve'], /Say which model: -m model.gguf, or -hf/],
    [['serve', '-m', 'a', 'b'], /unexpected argument 'b'/],
    [['serve', '-m', 'a', '--head', 'phone'], /Allowed choices are master, worker/],
    [['worker', '--port', '65536'], /integer from 0 to 65535/],
    [['worker', '--frobnicate'], /unknown option '--frobnicate'/],
    [['worker', '--memory', '2X'], /number of MiB or a size such as 512M/],
    [['worker', '--max-clients', '0'], /integer from 1 to 1024/],
    [['worker', '--cache-limit', '1G'], /--cache-limit is given, but not --cache/],
    [['serve', '-m', 'a', '--answer-timeout', '0'], /number of seconds/],
    [['probe', 'phone'], /port is missing/],
    [['demo', 'now'], /too many arguments/],
  ])('%j is a usage error, status 2', async (args, message) => {
    expect(await run(...args)).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^error: /);
    expect(stderr).toMatch(message);
  });

  it('reports usage errors as JSON too', async () => {
    expect(await run('worker', '--json', '--port', 'x')).toBe(2);
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'DROID_INVALID_ARGUMENT' } });
    expect(stderr).toBe('');
  });

  it('shows help without a command, status 2', async () => {
    expect(await run()).toBe(2);
    expect(stderr).toMatch(/^Usage: droid-llama/);
  });

  it.each(['worker', 'serve', 'probe', 'demo', 'pull', 'models'])('has examples in the help of %s', async (command) => {
    expect(await run(command, '--help')).toBe(0);
    expect(stdout).toMatch(new RegExp(`Examples:\\n(?: {2}# .*\\n)*.*droid-llama ${command}`));
  });

  it('knows its version', async () => {
    expect(await run('--version')).toBe(0);
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it('probes: a closed port is an error with status 1', async () => {
    expect(await run('probe', '127.0.0.1:1', '--json')).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: 'DROID_ENDPOINT_REFUSED' } });
  });
});
