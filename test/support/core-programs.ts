/** Test programs of the C++ cores as tests, one process each: one that ends in a signal takes no other with it. */
import { execFile, execFileSync } from 'node:child_process';
import { basename } from 'node:path';
import { promisify } from 'node:util';
import { describe, it } from 'vitest';

const execute = promisify(execFile);

/**
 * A test for every case that the program lists.
 * @param env is asked when a case begins, for what it gets beside this process's environment
 * @param check is given what a case printed when it passed
 */
export function describeCoreProgram(
  program: string,
  env: () => Record<string, string> = () => ({}),
  check: (output: string) => void = () => {},
): void {
  const names = execFileSync(program, ['--list'], { encoding: 'utf8' }).split('\n').filter(Boolean);
  describe(basename(program), () => {
    it.each(names)('%s', async (name) => {
      const options = { timeout: 50_000, killSignal: 'SIGKILL' as const, env: { ...process.env, ...env() } };
      const { stdout } = await execute(program, [name], options).catch((error) => {
        const { code, signal, stdout, stderr } = error as { [key: string]: string };
        throw new Error(`${signal ?? `exit code ${code}`}\n${stdout}${stderr}`);
      });
      check(stdout);
    });
  });
}
