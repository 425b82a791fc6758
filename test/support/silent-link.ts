/** A network namespace on a link of its own that can be cut without a word, as when a phone walks out of range. */
import { execFile, execFileSync } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** Nobody has it: frames to it reach the other end, which drops them, and neither kernel learns anything. */
const NOBODY = '02:00:00:00:00:99';

export class SilentLink implements AsyncDisposable {
  readonly namespace: string;
  /** Address of the far end, inside of the namespace. */
  readonly address: string;
  readonly #near: string;
  readonly #nearAddress: string;

  private constructor(number: number) {
    // 198.18.0.0/15 is set aside for tests of networks.
    const network = `198.${18 + (number >> 14)}.${(number >> 6) & 255}`;
    const first = (number & 63) << 2;
    this.namespace = `droid-test-${number}`;
    this.#near = `droid-t${number}`;
    this.#nearAddress = `${network}.${first + 1}`;
    this.address = `${network}.${first + 2}`;
  }

  /** Why there can be none here; undefined when there can. */
  static unavailable(): string | undefined {
    if (process.platform !== 'linux') return 'network namespaces are Linux only';
    if (process.getuid?.() !== 0) return 'network namespaces need root';
    const name = `droid-try-${process.pid}`;
    try {
      execFileSync('ip', ['netns', 'add', name], { stdio: 'pipe' });
      execFileSync('ip', ['netns', 'del', name], { stdio: 'pipe' });
      return undefined;
    } catch (error) {
      return `ip netns does not work here: ${(error as Error).message.trim()}`;
    }
  }

  static async open(): Promise<SilentLink> {
    const link = new SilentLink(process.pid & 32767);
    const { namespace } = link;
    const far = 'wlan0';
    await ip('netns', 'add', namespace);
    try {
      await ip('link', 'add', link.#near, 'type', 'veth', 'peer', 'name', far, 'netns', namespace);
      await ip('addr', 'add', `${link.#nearAddress}/30`, 'dev', link.#near);
      await ip('link', 'set', link.#near, 'up');
      await ip('-n', namespace, 'addr', 'add', `${link.address}/30`, 'dev', far);
      await ip('-n', namespace, 'link', 'set', far, 'up');
      await ip('-n', namespace, 'link', 'set', 'lo', 'up');
    } catch (error) {
      await link[Symbol.asyncDispose]();
      throw error;
    }
    return link;
  }

  /** From here on nothing arrives at either end, and nothing says so. */
  async cut(): Promise<void> {
    await ip('neigh', 'replace', this.address, 'lladdr', NOBODY, 'dev', this.#near, 'nud', 'permanent');
    const back = ['neigh', 'replace', this.#nearAddress, 'lladdr', NOBODY, 'dev', 'wlan0', 'nud', 'permanent'];
    await ip('-n', this.namespace, ...back);
  }

  async restore(): Promise<void> {
    await ip('neigh', 'del', this.address, 'dev', this.#near);
    await ip('-n', this.namespace, 'neigh', 'del', this.#nearAddress, 'dev', 'wlan0');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // With one end of the pair goes the other.
    await ip('link', 'del', this.#near).catch(() => {});
    await ip('netns', 'del', this.namespace).catch(() => {});
  }
}

async function ip(...args: string[]): Promise<void> {
  await run('ip', args);
}
