/** The checks' questions, asked of the machine this runs on. */
import { createSocket } from 'node:dgram';
import { readdir, statfs } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { availableParallelism, networkInterfaces, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { addon } from '../addon.js';
import { ask } from '../cluster/device/battery.js';
import { availableMemory } from '../cluster/device/device.js';
import { type Core, defaultThreads, readCores } from '../cpu.js';
import { stateDir } from '../user-dirs.js';
import { packageVersion } from '../version.js';
import type { Probes } from './types.js';

const DISCARD_PORT = 9;
const MDNS = { group: '224.0.0.251', port: 5353 } as const;
/** Nothing here waits longer for the network of this device. */
const PATIENCE_MS = 1000;

export async function systemProbes(env: NodeJS.ProcessEnv = process.env): Promise<Probes> {
  // Node for Termux says android; one from a Linux distribution inside of Termux says linux.
  const android = process.platform === 'android' || env.TERMUX_VERSION !== undefined || env.ANDROID_ROOT !== undefined;
  const exec = async (program: string, ...args: readonly string[]): Promise<string | null> => {
    const answer = await ask(program, args);
    return answer.kind === 'answer' ? answer.text : null;
  };
  const sdk = android ? Number(await exec('getprop', 'ro.build.version.sdk')) : 0;
  return {
    android,
    androidSdk: Number.isInteger(sdk) && sdk > 0 ? sdk : null,
    env,
    nodeVersion: process.version,
    packageVersion: packageVersion(),
    networkInterfaces,
    localAddressTowards,
    sendDatagram,
    joinMulticast,
    tryListen,
    ownUpRuns: () => ownUpRuns(stateDir(env)),
    exec,
    freeStorage,
    memory: () => ({ total: totalmem(), available: availableMemory() }),
    cores: () => {
      const cores = readCores();
      return { clusters: clusters(cores), all: cores.length || availableParallelism(), threads: defaultThreads(cores) };
    },
    addon: () => addon().buildInfo(),
  };
}

/** Cores of one clock together, the fastest first; empty when none tells its clock. */
function clusters(cores: readonly Core[]): { count: number; megahertz: number | null }[] {
  const counts = new Map<number | null, number>();
  for (const { maxKilohertz } of cores) counts.set(maxKilohertz, (counts.get(maxKilohertz) ?? 0) + 1);
  return [...counts]
    .sort(([a], [b]) => (b ?? 0) - (a ?? 0))
    .map(([kilohertz, count]) => ({ count, megahertz: kilohertz === null ? null : kilohertz / 1000 }));
}

function localAddressTowards(host: string): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = createSocket('udp4');
    const finish = (address: string | null): void => {
      socket.close();
      resolve(address);
    };
    socket.once('error', () => finish(null));
    socket.connect(DISCARD_PORT, host, () => finish(socket.address().address));
  });
}

function sendDatagram(host: string): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = createSocket('udp4');
    socket.on('error', () => {});
    socket.send(Buffer.alloc(0), DISCARD_PORT, host, (error) => {
      socket.close();
      resolve(error ? codeOf(error) : null);
    });
  });
}

function joinMulticast(): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = createSocket({ type: 'udp4', reuseAddr: true });
    const finish = (code: string | null): void => {
      socket.close();
      resolve(code);
    };
    socket.once('error', (error) => finish(codeOf(error)));
    socket.bind(MDNS.port, () => {
      try {
        socket.addMembership(MDNS.group);
        finish(null);
      } catch (error) {
        finish(codeOf(error));
      }
    });
  });
}

function tryListen(host: string, port: number): Promise<string | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', (error) => resolve(codeOf(error)));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(null)));
  });
}

/** Whether something answers on a socket that `up` makes. */
async function ownUpRuns(directory: string): Promise<boolean> {
  const entries = await readdir(directory, { withFileTypes: true }).catch(() => []);
  const answers = entries.filter((entry) => entry.isSocket()).map((entry) => answersAt(join(directory, entry.name)));
  return (await Promise.all(answers)).includes(true);
}

function answersAt(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    const finish = (answers: boolean): void => {
      socket.destroy();
      resolve(answers);
    };
    socket.setTimeout(PATIENCE_MS, () => finish(false));
    socket.once('error', () => finish(false));
    socket.once('connect', () => finish(true));
  });
}

/** Of the nearest directory that is there already. */
async function freeStorage(path: string): Promise<number | null> {
  for (let at = path; ; at = dirname(at)) {
    try {
      const { bavail, bsize } = await statfs(at);
      return bavail * bsize;
    } catch {
      if (at === dirname(at)) return null;
    }
  }
}

function codeOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : String(error);
}
