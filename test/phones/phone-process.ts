/** A program on a phone: what it prints, line by line, and JSON lines as events. */
import { type ChildProcess, spawn } from 'node:child_process';

/** A line of JSON with an `event`, as the commands print them with `--json`. */
export interface PhoneEvent {
  readonly event: string;
  /** `Date.now()` when it came. */
  readonly at: number;
  readonly [key: string]: unknown;
}

export interface Finished {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** How much of what a program prints is kept. */
const OUTPUT_LIMIT = 4 * 1024 * 1024;
/** Nothing takes longer, also on a busy machine; a hang names what it waited for. */
const PATIENCE_MS = 60_000;

export class PhoneProcess {
  readonly command: string;
  /** Everything it has said as JSON so far, in order. */
  readonly events: PhoneEvent[] = [];
  readonly #child: ChildProcess;
  readonly #ended: Promise<Finished>;
  readonly #watchers = new Set<() => void>();
  #stdout = '';
  #stderr = '';
  #parsedTo = 0;
  #over = false;

  /** `command` starts the program, in its namespace; it becomes the leader of a process group. */
  constructor(name: string, command: readonly string[], env: NodeJS.ProcessEnv) {
    this.command = name;
    const [program = '', ...args] = command;
    const child = spawn(program, args, { env, detached: true, stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child = child;
    // Whether it reads its stdin is its own affair.
    child.stdin.on('error', () => {});
    child.stdout.setEncoding('utf8').on('data', (text: string) => this.#said(text, ''));
    child.stderr.setEncoding('utf8').on('data', (text: string) => this.#said('', text));
    this.#ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (status) => {
        this.#over = true;
        resolve({ status, stdout: this.#stdout, stderr: this.#stderr });
        this.#look();
      });
    });
    this.#ended.catch(() => {});
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get alive(): boolean {
    return !this.#over;
  }

  /** Every event of that name so far. */
  all(event: string): PhoneEvent[] {
    return this.events.filter((entry) => entry.event === event);
  }

  /** The latest event of that name. */
  last(event: string): PhoneEvent | undefined {
    return this.events.findLast((entry) => entry.event === event);
  }

  /** Resolves with the first event from index `from` on that `test` accepts. */
  async waitFor(
    what: string,
    test: (event: PhoneEvent) => boolean,
    { timeoutMs = PATIENCE_MS, from = 0 }: { timeoutMs?: number; from?: number } = {},
  ): Promise<PhoneEvent> {
    let found: PhoneEvent | undefined;
    await this.#until(what, timeoutMs, () => {
      found = this.events.slice(from).find(test);
      return found !== undefined;
    });
    return found as PhoneEvent;
  }

  /** Resolves with the match once stdout or stderr holds it. */
  async says(pattern: RegExp, timeoutMs = PATIENCE_MS): Promise<RegExpExecArray> {
    let found: RegExpExecArray | null = null;
    await this.#until(`it says ${pattern}`, timeoutMs, () => {
      found = pattern.exec(this.#stdout) ?? pattern.exec(this.#stderr);
      return found !== null;
    });
    return found as unknown as RegExpExecArray;
  }

  /** Resolves once the program is gone. */
  async ended(timeoutMs = PATIENCE_MS): Promise<Finished> {
    await this.#until('it ends', timeoutMs, () => this.#over);
    return this.#ended;
  }

  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** To the whole group: what it started may not outlive it. */
  signal(name: NodeJS.Signals): void {
    try {
      // Of a program that could not be started there is no id; 0 would be this test's own group.
      if (this.#child.pid) process.kill(-this.#child.pid, name);
    } catch {
      // Gone already.
    }
  }

  /** Ends it at once. */
  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await this.#ended.catch(() => {});
  }

  #said(stdout: string, stderr: string): void {
    this.#stderr = (this.#stderr + stderr).slice(-OUTPUT_LIMIT);
    if (this.#stdout.length < OUTPUT_LIMIT) this.#stdout += stdout;
    for (let end = this.#stdout.indexOf('\n', this.#parsedTo); end >= 0; ) {
      this.#readLine(this.#stdout.slice(this.#parsedTo, end));
      this.#parsedTo = end + 1;
      end = this.#stdout.indexOf('\n', this.#parsedTo);
    }
    this.#look();
  }

  #readLine(line: string): void {
    if (!line.startsWith('{')) return;
    try {
      const value = JSON.parse(line) as Record<string, unknown>;
      if (typeof value.event === 'string') this.events.push({ ...value, event: value.event, at: Date.now() });
    } catch {
      // Text that begins like JSON.
    }
  }

  #look(): void {
    for (const watcher of this.#watchers) watcher();
  }

  async #until(what: string, timeoutMs: number, condition: () => boolean): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const finish = (error?: Error): void => {
        clearTimeout(timer);
        this.#watchers.delete(look);
        if (error) reject(error);
        else resolve();
      };
      const timer = setTimeout(() => finish(this.#failure(`waited ${timeoutMs} ms in vain until ${what}`)), timeoutMs);
      const look = (): void => {
        if (condition()) finish();
        else if (this.#over) finish(this.#failure(`it ended before ${what}`));
      };
      this.#watchers.add(look);
      look();
    });
  }

  #failure(what: string): Error {
    return new Error(
      `${this.command}: ${what}\nstdout:\n${this.#stdout.slice(-4000)}\nstderr:\n${this.#stderr.slice(-4000)}`,
    );
  }
}
