/** What `droid-llama worker` shows its user, whether the server runs in this process or in one of its own. */
import { networkInterfaces } from 'node:os';
import { createInterface } from 'node:readline';
import { formatEndpoint, isLoopbackHost, parseEndpoint } from '../endpoint.js';
import { RPC_PROTOCOL } from '../rpc-peer.js';
import type { RpcDevice } from '../types.js';
import { deviceLines, mebibytes } from './format.js';
import { aborted } from './shutdown.js';
import { print, printJson, styled } from './terminal.js';

/** The line that says a worker is ready, which scripts read, and the parent of a worker process. Sizes are bytes. */
export interface WorkerReady {
  readonly endpoint: string;
  /** What masters need to get in; null where RPC is plain. */
  readonly token: string | null;
  readonly devices: readonly RpcDevice[];
  readonly maxClients: number;
  /** What all masters together may use, and what each may; null where nothing smaller than the first is set. */
  readonly memoryLimit: number;
  readonly clientMemoryLimit: number | null;
  /** The directory of the weights, null for none. */
  readonly cache: string | null;
  /** Null where the library chooses. */
  readonly cacheLimit: number | null;
  /** The process that was started, and the one the server runs in, null where that is the same. */
  readonly pid: number;
  readonly childPid: number | null;
}

/** A worker that runs somewhere. */
export interface Lender {
  readonly ready: WorkerReady;
  /** The counters; with a supervisor also how often it has restarted the worker. */
  stats(): Promise<object>;
}

/** Says that the worker is ready, and answers questions about it until `stop` is aborted. */
export async function present(lender: Lender, json: boolean, stop: AbortSignal): Promise<void> {
  if (!json) {
    printBanner(lender.ready);
    await aborted(stop);
    return;
  }
  printJson(lender.ready);
  // Reading a terminal from the background would stop the process (SIGTTIN).
  const commands = process.stdin.isTTY ? undefined : createInterface({ input: process.stdin, terminal: false });
  commands?.on('line', async (line) => {
    if (line.trim() === 'stats') printJson(await lender.stats());
  });
  await aborted(stop);
  commands?.close();
}

function printBanner(ready: WorkerReady): void {
  const { major, minor, patch } = RPC_PROTOCOL;
  print(styled(process.stdout, 'bold', `droid-llama worker, RPC protocol ${major}.${minor}.${patch}`));
  print(`  endpoint : ${ready.endpoint}`);
  print(`  security : ${ready.token === null ? 'not encrypted' : 'encrypted, for masters with the token'}`);
  print(`  memory   : ${memoryText(ready)}`);
  print(`  cache    : ${cacheText(ready)}`);
  print(`  process  : ${ready.childPid === null ? ready.pid : `${ready.childPid}, restarted by ${ready.pid}`}`);
  print('Devices:');
  for (const line of deviceLines(ready.devices)) print(line);
  for (const line of masterLines(ready, lanAddresses())) print(line);
}

/**
 * What to type on the master, for each address it may reach this device at: to see whether it does, and to use it.
 * Nothing for a plain worker on loopback, which is nobody else's.
 */
export function masterLines(
  { endpoint, token }: Pick<WorkerReady, 'endpoint' | 'token'>,
  own: readonly string[],
): string[] {
  const { host, port } = parseEndpoint(endpoint);
  if (token === null && isLoopbackHost(host)) return [];
  const addresses = isAnyAddress(host) ? own : [host];
  const security = token === null ? '--insecure' : `--token ${token}`;
  const lines = (at: string): string[] => [
    `  droid-llama probe ${at}${token === null ? '' : ` ${security}`}`,
    `  droid-llama serve -m model.gguf --rpc ${at} ${security}`,
  ];
  // Newer Android does not tell them.
  if (addresses.length === 0)
    return ["On the master, with this device's address for ADDRESS:", ...lines(`ADDRESS:${port}`)];
  return ['On the master:', ...addresses.flatMap((address) => lines(formatEndpoint({ host: address, port })))];
}

function memoryText({ memoryLimit, clientMemoryLimit, maxClients }: WorkerReady): string {
  const each = clientMemoryLimit === null ? '' : `, ${mebibytes(clientMemoryLimit)} for each`;
  return `${mebibytes(memoryLimit)} for up to ${maxClients} ${maxClients === 1 ? 'master' : 'masters'}${each}`;
}

function cacheText({ cache, cacheLimit }: WorkerReady): string {
  if (cache === null) return 'off';
  return `${cache}, at most ${cacheLimit === null ? 'half of the free disk' : mebibytes(cacheLimit)}`;
}

function isAnyAddress(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}

function lanAddresses(): string[] {
  try {
    return Object.values(networkInterfaces()).flatMap((entries = []) =>
      entries.filter((entry) => entry.family === 'IPv4' && !entry.internal).map((entry) => entry.address),
    );
  } catch {
    // Newer Android denies apps the list of interfaces; the hint is not worth failing for.
    return [];
  }
}
