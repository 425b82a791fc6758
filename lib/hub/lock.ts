/** Two processes that write one file would damage it: a lock beside it, which names the process that holds it. */
import { open, readFile, rm, stat } from 'node:fs/promises';
import { DroidLlamaError } from '../errors.js';

/** Returns what gives it free. Rejects with `DROID_DOWNLOAD_FAILED` where another process holds it. */
export async function lock(target: string): Promise<() => Promise<void>> {
  const path = `${target}.lock`;
  for (let i = 0; ; i++) {
    try {
      const handle = await open(path, 'wx');
      await handle.writeFile(`${process.pid} ${(await startOf(process.pid)) ?? ''}`);
      await handle.close();
      return () => rm(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const [pid, start] = (await readFile(path, 'utf8').catch(() => '')).split(' ');
    if (i > 0 || (await isHeld(path, Number(pid), start))) {
      throw new DroidLlamaError(
        'DROID_DOWNLOAD_FAILED',
        `Process ${pid} is downloading ${target} already. If that is another program by now, remove ${path}.`,
      );
    }
    await rm(path, { force: true });
  }
}

/** Whether the process that made a lock runs still. The system gives its number to others later, above all after a reboot. */
async function isHeld(path: string, pid: number, start: string | undefined): Promise<boolean> {
  if (!Number.isInteger(pid) || pid < 1) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
    // It is another user's process, so this user's lock is not of it.
    if ((await stat(path).catch(() => undefined))?.uid === process.getuid?.()) return false;
  }
  const now = await startOf(pid);
  return !start || now === undefined || start === now;
}

/** When a process began, in ticks since the boot; undefined where the system does not tell. proc(5) has the fields of `stat`. */
async function startOf(pid: number): Promise<string | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  // The second field is the program's name, which may hold spaces and brackets.
  return text.slice(text.lastIndexOf(')') + 2).split(' ')[19];
}
