import { createServer } from 'node:net';
import { hostname } from 'node:os';
import type { Command } from 'commander';
import type { Cluster } from '../cluster/cluster.js';
import type { ClusterOptions } from '../cluster/options.js';
import { DEFAULT_CLUSTER_PORT } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import type { HttpServer } from '../http/server.js';
import { helpText } from './help.js';
import { addHubOption, HUB_ALIASES, modelFile } from './hub-model.js';
import { Interrupted, shutdownSignal } from './shutdown.js';
import { hasStoredToken, storedDeviceId, storedToken, storeToken } from './state.js';
import { askStatus, serveStatus } from './status-socket.js';
import { TOKEN_HELP, TOKEN_VARIABLE, tokenOption } from './token.js';
import { UpDisplay } from './up-display.js';
import { byteSize, defaultCacheDir, integer, integerOrAuto, list, nonEmpty, orAuto, peers, port } from './values.js';

export interface UpOptions {
  token?: string;
  model?: string;
  hfRepo?: string;
  name?: string;
  role?: 'master' | 'worker';
  peer?: string[];
  host: string;
  port: number;
  clusterHost: string;
  clusterPort: number;
  mdns: boolean;
  scan: boolean;
  tailscale: boolean;
  objective?: 'share' | 'fastest';
  activations?: 'f32' | 'f16';
  ctxSize?: number;
  batchSize?: number;
  ubatchSize?: number;
  parallel?: number;
  threads?: number;
  memory?: number;
  /** `true` for the usual directory, false for none. */
  cache: string | boolean;
  cacheLimit?: number;
  apiKey?: string[];
  requestWait?: number;
  json?: boolean;
}

/** llama.cpp's spellings that commander cannot express. */
export const UP_ALIASES: Readonly<Record<string, string>> = {
  '-ub': '--ubatch-size',
  '-np': '--parallel',
  ...HUB_ALIASES,
};

const HELP = `
Start it on every device; at least one needs a model. The first one prints a join token, as text and as a QR code, which
the others are started with. Each remembers it, so later starts need none. The devices find each other, the one that
should be the master becomes it, places layers on the others and serves HTTP on --host and --port.

${TOKEN_HELP}

Examples:
  $ droid-llama up -m model.gguf # the first phone; prints the token
  $ droid-llama up -hf Qwen/Qwen2.5-0.5B-Instruct-GGUF # the same with a model that is downloaded
  $ droid-llama up --token TOKEN # every other one
  $ droid-llama up --token TOKEN --peer 10.0.0.7:60000 # when the devices are not in one network
  $ droid-llama status # on any of them, in another terminal

For scripts: with --json each event is a line of JSON on stdout with an "event": "started" (with the token), "peer",
"roles", "plan", "progress", "ready", "lost", "warning". Further flags of llama-server go after --.
`;

export function addUpCommand(program: Command): void {
  const command = program.command('up');
  command
    .description('join the devices that have the same token, and run one model on all of them')
    .argument('[llama-args...]', 'further flags of llama-server, after --')
    .addOption(tokenOption('join token of the cluster (default: that of last time, or a new one)'))
    .option('-m, --model <file>', 'GGUF model; a device that has one can become the master', nonEmpty);
  addHubOption(command)
    .option('--name <name>', "what to call this device (default: the host's name)", nonEmpty)
    .addOption(command.createOption('--role <role>', 'what this device is to be').choices(['master', 'worker']))
    .option('--peer <endpoints>', `devices to try first, as host or host:port, comma-separated`, peers)
    .option('--host <address>', 'address that HTTP listens on, on the master', nonEmpty, '127.0.0.1')
    .option('--port <number>', 'port that HTTP listens on, on the master; 0 for any', port, 8080)
    .option('--cluster-host <address>', 'address that other devices reach', nonEmpty, '0.0.0.0')
    .option('--cluster-port <number>', 'port that other devices reach; the same everywhere', port, DEFAULT_CLUSTER_PORT)
    .option('--no-mdns', 'do not announce this device nor look for others by mDNS')
    .option('--no-scan', 'do not look for others at the addresses of the own network')
    .option('--no-tailscale', "do not look for others among Tailscale's peers")
    .addOption(
      command
        .createOption('--objective <what>', 'share: use every device that helps; fastest: leave out who slows it down')
        .choices(['share', 'fastest']),
    )
    .addOption(
      command
        .createOption('--activations <type>', 'how hidden states travel; f16 halves them and rounds (default: f32)')
        .choices(['f32', 'f16']),
    )
    .option('-c, --ctx-size <n>', 'tokens of context (default: chosen by the planner)', integer(1, 1 << 24))
    .option('-b, --batch-size <n>', 'tokens of a batch (default: chosen by the planner)', integer(1, 1 << 24))
    .option('--ubatch-size <n>', 'tokens computed at once (also -ub)', integer(1, 1 << 24))
    .option('--parallel <n>', 'streams that are answered at once (also -np)', integerOrAuto(1, 1024))
    .option('-t, --threads <n>', 'threads to compute with (default: one for each big core)', integerOrAuto(1, 512))
    .option('--memory <size>', 'memory to lend (default: 80% of what is available)', byteSize)
    .option('--cache [directory]', `keep received weights on disk (default: in ${defaultCacheDir()})`)
    .option('--no-cache', 'keep none')
    .option('--cache-limit <size>', 'room for them on disk (default: half of what is free)', byteSize)
    .addOption(
      command
        .createOption('--api-key <keys>', 'keys of which HTTP clients must send one, comma-separated')
        .env('LLAMA_API_KEY')
        .argParser(list),
    )
    .option('--request-wait <seconds>', 'how long a request waits for a model (default: 60)', integer(0, 86_400))
    .option('--json', 'print events as lines of JSON')
    .addHelpText('after', helpText(HELP))
    .action(runUp);
}

async function runUp(llamaArgs: string[], options: UpOptions): Promise<void> {
  const stop = shutdownSignal();
  try {
    await up(llamaArgs, options, stop);
  } catch (error) {
    // Ending it by a signal is how it is meant to end.
    if (!(error instanceof Interrupted)) throw error;
  }
}

async function up(llamaArgs: readonly string[], options: UpOptions, stop: AbortSignal): Promise<void> {
  const [first] = llamaArgs;
  if (first !== undefined && !first.startsWith('-')) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `unexpected argument '${first}'; the model goes after -m`);
  }
  const { Cluster } = await import('../cluster/cluster.js');
  // An empty variable is how a shell leaves one out.
  const given = options.token || undefined;
  // Programs that are asked for the battery or Tailscale's peers need not know it.
  delete process.env[TOKEN_VARIABLE];
  const token = given ?? storedToken();
  // Known before minutes of loading, and before anybody relies on this device.
  await checkClusterPort(options.clusterHost, options.clusterPort);
  if ((options.model ?? options.hfRepo) !== undefined && options.port !== 0)
    await checkPort(options.host, options.port, 'for HTTP', '--port');
  const model = await modelFile(options, stop);
  const cluster = await Cluster.join({ ...(await clusterOptions(options, llamaArgs)), model, token, signal: stop });
  try {
    if (given !== undefined) {
      // A mistyped one must not take the place of one that works.
      if (hasStoredToken()) cluster.once('peer', () => storeToken(given));
      else storeToken(given);
    }
    const display = new UpDisplay(options.json === true);
    display.started(cluster, token, given === undefined);
    const session = new UpSession(cluster, options, display);
    const answer = () => ({ ...cluster.status(), url: session.url });
    const status = await serveStatus(cluster.port, answer).catch((error: Error) => {
      display.warning(`droid-llama status will not work: ${error.message}`);
      return undefined;
    });
    try {
      await session.run(stop);
    } finally {
      status?.close();
    }
  } finally {
    await cluster.leave();
  }
}

async function clusterOptions(
  options: UpOptions,
  llamaArgs: readonly string[],
): Promise<Omit<ClusterOptions, 'model' | 'token' | 'signal'>> {
  const cacheDir = options.cache === false ? undefined : options.cache === true ? defaultCacheDir() : options.cache;
  return {
    name: options.name ?? (await deviceName()),
    id: storedDeviceId(options.clusterPort),
    role: options.role,
    listen: { host: options.clusterHost, port: options.clusterPort },
    peers: options.peer,
    discovery: { mdns: options.mdns, scan: options.scan ? 'auto' : false, tailscale: options.tailscale },
    objective: options.objective,
    activations: options.activations,
    contextSize: options.ctxSize,
    batchSize: options.batchSize,
    ubatchSize: options.ubatchSize,
    parallel: orAuto(options.parallel),
    threads: orAuto(options.threads),
    memoryLimit: options.memory,
    cacheDir,
    cacheLimit: cacheDir === undefined ? undefined : options.cacheLimit,
    llamaArgs,
    requestWaitMs: options.requestWait === undefined ? undefined : options.requestWait * 1000,
  };
}

/** Of a load: what is wrong with the model or with the options. */
const FINAL_CODES = /^DROID_(MODEL_|LOAD_FAILED|INVALID_ARGUMENT)/;

/** Whether other devices will reach this one, and if an `up` of this user is why they would not. */
async function checkClusterPort(host: string, port: number): Promise<void> {
  try {
    await checkPort(host, port, 'for other devices', '--cluster-port');
  } catch (error) {
    const running = await askStatus(port).catch(() => undefined);
    if (running === undefined) throw error;
    throw new DroidLlamaError(
      'DROID_PORT_IN_USE',
      `droid-llama up runs already on this device: \`droid-llama status\` shows it. For another cluster choose ` +
        `another port, e.g. --cluster-port ${port + 1}.`,
      { cause: error },
    );
  }
}

/** Whether HTTP will be able to listen. */
async function checkPort(host: string, port: number, purpose: string, flag: string): Promise<void> {
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen({ host, port }, resolve);
    });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') return;
    throw new DroidLlamaError(
      'DROID_PORT_IN_USE',
      `Port ${port} of ${host}, ${purpose}, is taken: choose another one, e.g. ${flag} ${port + 1}.`,
      { cause },
    );
  } finally {
    server.close();
  }
}

/** What Termux calls every phone is no name. */
async function deviceName(): Promise<string | undefined> {
  if (hostname() !== 'localhost') return undefined;
  const { ask } = await import('../cluster/device/battery.js');
  const answer = await ask('getprop', ['ro.product.model']);
  return (answer.kind === 'answer' && answer.text.trim()) || undefined;
}

/** One run of `up`: HTTP where this device is the master, and everything that happens on the terminal. */
class UpSession {
  readonly #cluster: Cluster;
  readonly #options: UpOptions;
  readonly #display: UpDisplay;
  #server: HttpServer | undefined;
  #serving: Promise<void> = Promise.resolve();
  #fail: (error: unknown) => void = () => {};

  constructor(cluster: Cluster, options: UpOptions, display: UpDisplay) {
    this.#cluster = cluster;
    this.#options = options;
    this.#display = display;
  }

  /** Where HTTP is served, null while it is not: on the master. */
  get url(): string | null {
    return this.#server?.url ?? null;
  }

  /** Until `stop` is aborted, or HTTP cannot be served. */
  async run(stop: AbortSignal): Promise<void> {
    const cluster = this.#cluster;
    const display = this.#display;
    const ended = new Promise<never>((_, reject) => {
      this.#fail = reject;
      stop.addEventListener('abort', () => reject(stop.reason), { once: true });
    });
    cluster.on('peer', (peer, state) => display.peer(peer.id, peer.name, state));
    cluster.on('roles', () => {
      display.roles(cluster);
      this.#serveIfMaster();
    });
    cluster.on('plan', (plan) => display.plan(plan, cluster));
    cluster.on('progress', (progress) => display.progress(progress));
    cluster.on('ready', () => void this.#serving.then(() => display.ready(cluster, this.#server?.url)));
    cluster.on('lost', (error, peer) => display.lost(cluster, peer, error));
    cluster.on('warning', (line) => display.warning(line));
    cluster.on('error', (error) => {
      // Nothing that others do will help, and whoever started this waits for it.
      if (error instanceof DroidLlamaError && FINAL_CODES.test(error.code)) this.#fail(error);
      else display.warning(error.message);
    });
    stop.throwIfAborted();
    this.#serveIfMaster();
    try {
      await ended;
    } finally {
      display.end();
      await this.#serving;
      await this.#server?.close();
    }
  }

  /** One change after the other: a server that closes still holds the port. */
  #serveIfMaster(): void {
    this.#serving = this.#serving
      .then(async () => {
        const wanted = this.#cluster.roles.master === this.#cluster.id;
        if (wanted && !this.#server) {
          const { host, port, apiKey } = this.#options;
          const onWarning = (line: string): void => this.#display.warning(line);
          this.#server = await this.#cluster.listen({ host, port, apiKey, onWarning });
          this.#display.serving(this.#server.url);
        } else if (!wanted && this.#server) {
          await this.#server.close();
          this.#server = undefined;
        }
      })
      .catch((error: unknown) => this.#fail(error));
  }
}
