import { networkInterfaces } from 'node:os';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { DEFAULT_RPC_PORT, RPC_PROTOCOL } from '../probe.js';
import type { RpcServer } from '../rpc-server.js';
import { deviceLines, wrapText } from './format.js';
import { aborted, Interrupted, requestShutdown, shutdownSignal } from './shutdown.js';
import { note, print, printJson, stdoutColumns, styled, warn } from './terminal.js';
import { defaultCacheDir, integerOrAuto, isSwitchedOn, nonEmpty, orAuto, port } from './values.js';

interface WorkerOptions {
  host: string;
  port: number;
  threads?: number;
  /** `true` for `--cache` without a directory. */
  cache?: string | true;
  verbose?: boolean;
  json?: boolean;
  exitWithStdin?: boolean;
}

const HELP = `
Examples:
  $ droid-llama worker --host 0.0.0.0 --port 60000     lend this phone to a master on the same hotspot
  $ droid-llama worker --cache                         keep received weights for the next load
  $ GGML_RPC_DEBUG=1 droid-llama worker                print each command and graph, like --verbose

For scripts: with --json one line on stdout says when the worker is ready,
  {"endpoint":"127.0.0.1:50052","devices":[...],"cache":null,"pid":1234}
and each line "stats" on stdin (unless that is a terminal) is answered by a line of JSON with the worker's counters.
Closing stdin does not stop it; SIGINT and SIGTERM do.
`;

export function addWorkerCommand(program: Command): void {
  const command = program.command('worker');
  command
    .description('lend the memory and cores of this device to a master')
    .option('-H, --host <address>', 'address to listen on', nonEmpty, '127.0.0.1')
    .option('-p, --port <number>', 'port to listen on, 0 for any', port, DEFAULT_RPC_PORT)
    .option('-t, --threads <n>', 'threads to compute with (default: chosen by the library)', integerOrAuto(1, 512))
    .option('-c, --cache [directory]', `keep weights on disk between runs, in ${defaultCacheDir()} if none is named`)
    .option('--verbose', 'print each command and graph')
    .option('--json', 'print JSON lines and answer "stats" on stdin')
    .addOption(command.createOption('--exit-with-stdin', 'end when stdin is closed').hideHelp())
    .addHelpText('after', () => wrapText(HELP, stdoutColumns()))
    .action(runWorker);
}

async function runWorker(options: WorkerOptions): Promise<void> {
  const stop = shutdownSignal();
  const verbose = options.verbose === true || isSwitchedOn(process.env.GGML_RPC_DEBUG);
  const cacheDir = options.cache === true ? defaultCacheDir() : options.cache;
  if (options.exitWithStdin) process.stdin.once('close', () => requestShutdown('a closed stdin')).resume();
  if (!isLoopback(options.host)) {
    warn(
      `listening on ${options.host}: RPC is neither encrypted nor authenticated, so whoever reaches this port can use ` +
        'and crash the worker. Do it on a network of your own only',
    );
  }
  try {
    const { startRpcServer } = await import('../rpc-server.js');
    const server = await startRpcServer({
      host: options.host,
      port: options.port,
      threads: orAuto(options.threads),
      cacheDir,
      verbose,
      // A script reads the counters instead; lines about clients would only mix with its own output.
      onEvent: options.json && !verbose ? undefined : note,
      signal: stop,
    });
    try {
      await lend(server, options, stop);
    } finally {
      await server.close();
    }
  } catch (error) {
    // Ending a worker by a signal is how it is meant to end.
    if (!(error instanceof Interrupted)) throw error;
  }
}

async function lend(server: RpcServer, options: WorkerOptions, stop: AbortSignal): Promise<void> {
  if (options.json) {
    const { endpoint, devices, cacheDir = null } = server;
    printJson({ endpoint, devices, cache: cacheDir, pid: process.pid });
  } else {
    printBanner(server);
  }
  // Reading a terminal from the background would stop the process (SIGTTIN).
  const answersStdin = options.json === true && !process.stdin.isTTY;
  const commands = answersStdin ? createInterface({ input: process.stdin, terminal: false }) : undefined;
  commands?.on('line', (line) => {
    if (line.trim() === 'stats') printJson(server.stats());
  });
  await aborted(stop);
  commands?.close();
}

function printBanner(server: RpcServer): void {
  const { major, minor, patch } = RPC_PROTOCOL;
  print(styled(process.stdout, 'bold', `droid-llama worker, RPC protocol ${major}.${minor}.${patch}`));
  print(`  endpoint : ${server.endpoint}`);
  print(`  cache    : ${server.cacheDir ?? 'off'}`);
  print('Devices:');
  for (const line of deviceLines(server.devices)) print(line);
  const addresses = isAnyAddress(server.host) ? lanAddresses() : [];
  if (addresses.length > 0) {
    print('On the master:');
    for (const address of addresses) print(`  droid-llama serve -m model.gguf --rpc ${address}:${server.port}`);
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d+){3}$/.test(host);
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
