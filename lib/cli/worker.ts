import type { Command } from 'commander';
import { DEFAULT_RPC_PORT, isLoopbackHost } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import type { RpcServer } from '../rpc-server.js';
import { createToken } from '../transport/token.js';
import { helpText } from './help.js';
import { present, type WorkerReady } from './lender.js';
import { Interrupted, requestShutdown, shutdownSignal } from './shutdown.js';
import { note, warn } from './terminal.js';
import { type CliSecurity, insecureOption, securityOf, TOKEN_HELP, tokenOption } from './token.js';
import { byteSize, defaultCacheDir, integer, integerOrAuto, isSwitchedOn, nonEmpty, orAuto, port } from './values.js';

export interface WorkerOptions {
  host: string;
  port: number;
  /** Never among {@link workerFlags}: a child gets it through its environment. */
  token?: string;
  insecure?: boolean;
  threads?: number;
  memory?: number;
  clientMemory?: number;
  maxClients: number;
  /** `true` for `--cache` without a directory. */
  cache?: string | true;
  cacheLimit?: number;
  verbose?: boolean;
  json?: boolean;
  supervisor: boolean;
  /** This process is the child of one that reads its lines; see WorkerProcess. */
  child?: boolean;
}

const HELP = `
On any address but loopback RPC is encrypted, and only masters with the same token get in. Without --token and
--insecure a new token is made, and shown together with what to type on the master. ${TOKEN_HELP}

Sizes are MiB, or have a unit: 512M, 2G. The server runs in a second process, which is started again on the same port
when it ends, after 0.5 s and then twice as long each time up to 30 s.

Examples:
  $ droid-llama worker --host 0.0.0.0 --port 60000 # lend this phone to a master on the same hotspot
  $ droid-llama worker --host 0.0.0.0 --insecure # the same for a master that is llama.cpp's own llama-server
  $ droid-llama worker --memory 2G --cache # lend 2 GiB, and keep received weights for later loads
  $ GGML_RPC_DEBUG=1 droid-llama worker # print each command and graph, like --verbose

For scripts: with --json one line on stdout says when the worker is ready,
  {"endpoint":"127.0.0.1:50052","token":null,"devices":[...],"maxClients":8,"memoryLimit":...,
   "clientMemoryLimit":null,"cache":null,"cacheLimit":null,"pid":1234,"childPid":1245}
and each line "stats" on stdin (unless that is a terminal) is answered by a line of JSON with the worker's counters, which
begin anew at a restart, "restarts" and "childPid". That is null while the worker waits to be started again. Closing stdin
does not stop it; SIGINT and SIGTERM do.
`;

/** A child whose server does not close must not outlive its parent for long. */
const ORPHAN_PATIENCE_MS = 3000;

export function addWorkerCommand(program: Command): void {
  const command = program.command('worker');
  command
    .description('lend the memory and cores of this device to a master')
    .option('-H, --host <address>', 'address to listen on', nonEmpty, '127.0.0.1')
    .option('-p, --port <number>', 'port to listen on, 0 for any', port, DEFAULT_RPC_PORT)
    .addOption(tokenOption('let in masters with this token alone, encrypted'))
    .addOption(insecureOption('let in everybody, not encrypted'))
    .option('-t, --threads <n>', 'threads to compute with (default: chosen by the library)', integerOrAuto(1, 512))
    .option('--memory <size>', 'memory for all masters (default: 80% of what is available)', byteSize)
    .option('--client-memory <size>', 'memory for one master (default: as for all)', byteSize)
    .option('--max-clients <n>', 'masters at the same time', integer(1, 1024), 8)
    .option('-c, --cache [directory]', `keep all weights on disk, in ${defaultCacheDir()} if no directory is named`)
    .option('--cache-limit <size>', 'room for them on disk (default: half of what is free)', byteSize)
    .option('--no-supervisor', 'run the server in this process, which a failure inside ggml ends')
    .option('--verbose', 'print each command and graph')
    .option('--json', 'print JSON lines and answer "stats" on stdin')
    .addOption(command.createOption('--child', 'be the process that another one starts').hideHelp())
    .addHelpText('after', helpText(HELP))
    .action(runWorker);
}

async function runWorker(options: WorkerOptions, command: Command): Promise<void> {
  const stop = shutdownSignal();
  const security = securityFor(options.host, securityOf(command));
  if (options.child) endWithStdin();
  else if (security.insecure && !isLoopbackHost(options.host)) {
    warn(
      `listening on ${options.host}: RPC is neither encrypted nor authenticated, so whoever reaches this port can use ` +
        'the worker. Do it on a network of your own only',
    );
  }
  if (options.cacheLimit !== undefined && options.cache === undefined) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', '--cache-limit is given, but not --cache.');
  }
  try {
    if (options.supervisor && !options.child) await supervise(options, security, stop);
    else await lend(options, security, stop);
  } catch (error) {
    // Ending a worker by a signal is how it is meant to end.
    if (!(error instanceof Interrupted)) throw error;
  }
}

/** With another address than loopback plain RPC has to be asked for by name; whoever says nothing gets a token. */
function securityFor(host: string, given: CliSecurity): CliSecurity {
  if (given.token !== undefined || given.insecure || isLoopbackHost(host)) return given;
  return { token: createToken() };
}

async function supervise(options: WorkerOptions, security: CliSecurity, stop: AbortSignal): Promise<void> {
  const [{ Supervisor }, { workerCommand }] = await Promise.all([
    import('./supervisor.js'),
    import('./worker-process.js'),
  ]);
  const supervisor = await Supervisor.start({
    command: (port) => workerCommand(workerFlags({ ...options, port }), security.token),
    port: options.port,
    note,
    signal: stop,
  });
  try {
    await present(supervisor, options.json === true, stop);
  } finally {
    await supervisor.close();
  }
}

async function lend(options: WorkerOptions, security: CliSecurity, stop: AbortSignal): Promise<void> {
  const { startRpcServer } = await import('../rpc-server.js');
  const verbose = options.verbose === true || isSwitchedOn(process.env.GGML_RPC_DEBUG);
  const server = await startRpcServer({
    host: options.host,
    port: options.port,
    ...security,
    threads: orAuto(options.threads),
    maxClients: options.maxClients,
    memoryLimit: options.memory,
    clientMemoryLimit: options.clientMemory,
    cacheDir: options.cache === true ? defaultCacheDir() : options.cache,
    cacheLimit: options.cacheLimit,
    verbose,
    // A script reads the counters instead; lines about clients would only mix with its own output.
    onEvent: options.json && !verbose ? undefined : note,
    signal: stop,
  });
  try {
    const lender = { ready: readyOf(server, options, security), stats: async () => server.stats() };
    await present(lender, options.json === true || options.child === true, stop);
  } finally {
    await server.close();
  }
}

function readyOf(
  { endpoint, devices, cacheDir }: RpcServer,
  options: WorkerOptions,
  { token }: CliSecurity,
): WorkerReady {
  return {
    endpoint,
    token: token ?? null,
    devices,
    maxClients: options.maxClients,
    // Every device of a worker lends from the same memory.
    memoryLimit: options.memory ?? devices[0]?.memoryTotal ?? 0,
    clientMemoryLimit: options.clientMemory ?? null,
    cache: cacheDir ?? null,
    cacheLimit: options.cacheLimit ?? null,
    pid: process.pid,
    childPid: null,
  };
}

/** The flags that make these options again; `--flag=value`, since a value may begin with a dash. */
export function workerFlags(options: WorkerOptions): string[] {
  const flags = [`--host=${options.host}`, `--port=${options.port}`, `--max-clients=${options.maxClients}`];
  if (options.insecure) flags.push('--insecure');
  if (options.threads !== undefined) flags.push(`--threads=${options.threads}`);
  if (options.memory !== undefined) flags.push(`--memory=${options.memory}B`);
  if (options.clientMemory !== undefined) flags.push(`--client-memory=${options.clientMemory}B`);
  if (options.cache !== undefined) flags.push(options.cache === true ? '--cache' : `--cache=${options.cache}`);
  if (options.cacheLimit !== undefined) flags.push(`--cache-limit=${options.cacheLimit}B`);
  if (options.verbose) flags.push('--verbose');
  if (options.json) flags.push('--json');
  return flags;
}

/** A parent ends its child by closing its stdin, which also happens when the parent is killed. */
function endWithStdin(): void {
  process.stdin
    .once('close', () => {
      requestShutdown('a closed stdin');
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), ORPHAN_PATIENCE_MS).unref();
    })
    .resume();
}
