import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import type { DistributedContext } from '../context.js';
import type { DistributedContextOptions } from '../context-options.js';
import { isLoopbackHost, parseEndpoint } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { placementTable } from './format.js';
import { helpText } from './help.js';
import { addHubOption, HUB_ALIASES, modelFile } from './hub-model.js';
import { LoadingBar } from './progress.js';
import { aborted, Interrupted, shutdownSignal } from './shutdown.js';
import { note, print, printJson, styled, warn } from './terminal.js';
import { type CliSecurity, insecureOption, securityOf, TOKEN_HELP, tokenOption } from './token.js';
import type { ScaledLora } from './values.js';
import {
  endpoints,
  integer,
  integerOrAuto,
  list,
  nonEmpty,
  orAuto,
  port,
  scaledLoras,
  seconds,
  shares,
} from './values.js';

interface ServeOptions {
  model?: string;
  hfRepo?: string;
  rpc?: string[];
  tensorSplit?: number[];
  head?: 'master' | 'worker';
  activations?: 'f32' | 'f16';
  ctxSize?: number;
  batchSize?: number;
  ubatchSize?: number;
  threads?: number;
  parallel?: number;
  host: string;
  port: number;
  apiKey?: string[];
  apiKeyFile?: string;
  mmap: boolean;
  embeddings?: boolean;
  reranking?: boolean;
  pooling?: DistributedContextOptions['pooling'];
  lora?: string[];
  loraScaled?: ScaledLora[];
  modelDraft?: string;
  chatTemplate?: string;
  connectTimeout?: number;
  answerTimeout?: number;
  llamaEnv?: boolean;
  verbose?: boolean;
  json?: boolean;
}

/** llama-server's spellings that commander cannot express, by the long flag they stand for. */
export const SERVE_ALIASES: Readonly<Record<string, string>> = {
  '-ub': '--ubatch-size',
  '-np': '--parallel',
  '-ts': '--tensor-split',
  '-md': '--model-draft',
  '--spec-draft-model': '--model-draft',
  '--embedding': '--embeddings',
  '--rerank': '--reranking',
  '--log-verbose': '--verbose',
  '--usage': '--help',
  ...HUB_ALIASES,
};

const HELP = `
Every other flag of llama-server is handed to llama.cpp as it stands, e.g. --spec-type ngram-simple or -ctk q8_0;
what stands after -- is handed over unread.

Examples:
  $ droid-llama serve -m model.gguf
  $ droid-llama serve -hf Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  $ droid-llama serve -m model.gguf --rpc 192.168.37.219:60000 --token AbCdEfGhIjKlMnOpQrStUv -c 1024
  $ droid-llama serve -m model.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 --insecure --tensor-split 0.4,0.3,0.3
  $ droid-llama serve -m model.gguf --host 0.0.0.0 --api-key secret
  $ droid-llama serve -m embed.gguf --embeddings --pooling mean

RPC with workers on other devices is encrypted with the token that they were started with, or asked for in the clear
with --insecure. ${TOKEN_HELP}

When a worker is lost, requests fail and /health answers 503: start this command again once the worker is back.

For scripts: with --json one line on stdout says when the model is loaded, and another when a worker is lost,
  {"url":"http://127.0.0.1:8080","placement":[...]}
  {"workerLost":{"endpoint":"10.0.0.2:50052","code":"DROID_WORKER_LOST","message":"..."}}
`;

export function addServeCommand(program: Command): void {
  const command = program.command('serve');
  command
    .description('load a model over this device and its workers, and serve it over HTTP')
    .usage("-m <file>|-hf <name> [options] [llama-server's flags]")
    // main hands over what argv.ts took out as llama-server's, after a `--`.
    .argument('[llama-args...]')
    .option('-m, --model <file>', 'the GGUF model', nonEmpty);
  addHubOption(command)
    .option('--rpc <endpoints>', 'workers, as host:port,host:port', endpoints)
    .addOption(tokenOption('the token the workers were started with'))
    .addOption(insecureOption('speak with the workers without encryption'))
    .option('--tensor-split <shares>', 'share of the layers per device, master first, e.g. 0.5,0.5 (also -ts)', shares)
    .addOption(command.createOption('--head <device>', 'where the output head goes').choices(['master', 'worker']))
    .addOption(
      command
        .createOption('--activations <type>', 'how hidden states travel; f16 halves them and rounds (default: f32)')
        .choices(['f32', 'f16']),
    )
    .option('-c, --ctx-size <n>', 'context size in tokens, 0 for that of the model', integer(0))
    .option('-b, --batch-size <n>', 'logical batch size in tokens', integer(1))
    .option('--ubatch-size <n>', 'physical batch size in tokens (also -ub)', integer(1))
    .option('-t, --threads <n>', 'threads the master computes with', integerOrAuto(1, 512))
    .option('--parallel <n>', 'requests answered at the same time (also -np)', integerOrAuto(1))
    .option('--no-mmap', 'read the model into memory instead of mapping it')
    .option('--embeddings', 'serve embeddings')
    .option('--reranking', 'serve reranking')
    .addOption(
      command
        .createOption('--pooling <type>', 'pooling of embeddings')
        .choices(['none', 'mean', 'cls', 'last', 'rank']),
    )
    .option('--lora <files>', 'LoRA adapters, comma-separated', list)
    .option('--lora-scaled <files>', 'LoRA adapters with their scale, as file:scale,…', scaledLoras)
    .option('--model-draft <file>', 'draft model for speculative decoding (also -md)', nonEmpty)
    .option('--chat-template <template>', 'chat template to use instead of the one in the model')
    .option('--host <address>', 'address to listen on', nonEmpty, '127.0.0.1')
    .option('--port <number>', 'port to listen on, 0 for any', port, 8080)
    .addOption(
      command
        .createOption('--api-key <keys>', 'keys of which clients must send one, comma-separated')
        // The environment keeps them out of the list of processes.
        .env('LLAMA_API_KEY')
        .argParser(list),
    )
    .option('--api-key-file <file>', 'file with one such key a line', nonEmpty)
    .option('--connect-timeout <seconds>', 'how long a worker may take to be reached (default: 10)', seconds)
    .option(
      '--answer-timeout <seconds>',
      'how long it may take to answer, besides the computing it was asked for (default: 15)',
      seconds,
    )
    .option('--llama-env', 'let LLAMA_ARG_* variables set what no flag sets, as llama-server does')
    .option('-v, --verbose', "print llama.cpp's own log")
    .option('--json', 'print one line of JSON when ready')
    .addHelpText('after', helpText(HELP))
    .action(runServe);
}

async function runServe(llamaArgs: string[], options: ServeOptions, command: Command): Promise<void> {
  const stop = shutdownSignal();
  const security = securityOf(command);
  warnIfInsecure(options.rpc, security);
  try {
    const model = await modelFile(options, stop);
    if (model === undefined) {
      throw new DroidLlamaError(
        'DROID_INVALID_ARGUMENT',
        'Say which model: -m model.gguf, or -hf owner/name:quantization.',
      );
    }
    await serve({ ...contextOptions(options, llamaArgs), model, ...security }, options, stop);
  } catch (error) {
    // Ending a server by a signal is how it is meant to end, also while it loads.
    if (!(error instanceof Interrupted)) throw error;
  }
}

/** Says what plain RPC with another device means, once it was asked for. */
export function warnIfInsecure(rpc: readonly string[] = [], { insecure }: CliSecurity): void {
  const others = rpc.filter((endpoint) => !isLoopbackHost(parseEndpoint(endpoint).host));
  if (!insecure || others.length === 0) return;
  warn(
    `RPC with ${others.join(', ')} is neither encrypted nor authenticated: the network can read what is asked and ` +
      'answered, and change it. Do it on a network of your own only',
  );
}

async function serve(request: DistributedContextOptions, options: ServeOptions, stop: AbortSignal): Promise<void> {
  const [{ createDistributedContext }, { startHttpServer }, { engineRoutes }] = await Promise.all([
    import('../context.js'),
    import('../http/server.js'),
    import('../addon.js'),
  ]);
  // llama.cpp's log goes to stderr as well and would tear a bar that is redrawn in place.
  const inPlace = process.stderr.isTTY === true && options.verbose !== true;
  const bar = new LoadingBar(process.stderr, { inPlace });
  const loaded = deferred<DistributedContext>();
  // HTTP first: a taken port is known before minutes of loading, and /health has something to say meanwhile.
  const server = await startHttpServer(engineRoutes(), loaded.promise, {
    host: options.host,
    port: options.port,
    apiKey: apiKeys(options),
    onWarning: (text) => {
      bar.clear();
      warn(text);
    },
    signal: stop,
  });
  let context: DistributedContext | undefined;
  try {
    note(`loading; ${server.url}/health answers 503 until the model is there`);
    context = await createDistributedContext({
      ...request,
      onProgress: (progress) => bar.update(progress),
      onWorkerLost: (error, endpoint) => {
        // While the model loads the failure ends the command, which tells it.
        if (context) announceLoss(error, endpoint, options.json === true);
      },
      signal: stop,
    });
    bar.clear();
    loaded.resolve(context);
    announce(server.url, context, options.json === true);
    await aborted(stop);
  } catch (error) {
    loaded.reject(error);
    throw error;
  } finally {
    bar.clear();
    // Both at once: streams that HTTP waits for end because the context stops generating.
    await Promise.all([server.close(), context?.close()]);
  }
}

function announce(url: string, { placement }: DistributedContext, json: boolean): void {
  if (json) {
    printJson({ url, placement });
  } else {
    print(placementTable(placement));
    print(`listening on ${styled(process.stdout, 'bold', url)}`);
  }
}

function announceLoss({ code, message }: DroidLlamaError, endpoint: string, json: boolean): void {
  if (json) printJson({ workerLost: { endpoint, code, message } });
  note(`${styled(process.stderr, 'red', `the worker ${endpoint} is lost:`)} ${message} (${code})`);
  note('requests fail now, and /health answers 503; start this command again once the worker is back');
}

function contextOptions(options: ServeOptions, llamaArgs: readonly string[]): Omit<DistributedContextOptions, 'model'> {
  return {
    rpc: options.rpc,
    tensorSplit: options.tensorSplit,
    head: options.head,
    activations: options.activations,
    contextSize: options.ctxSize,
    batchSize: options.batchSize,
    ubatchSize: options.ubatchSize,
    threads: orAuto(options.threads),
    parallel: orAuto(options.parallel),
    // Without the flag the library's default stands.
    mmap: options.mmap ? undefined : false,
    embeddings: options.embeddings,
    reranking: options.reranking,
    pooling: options.pooling,
    loras: options.lora || options.loraScaled ? [...(options.lora ?? []), ...(options.loraScaled ?? [])] : undefined,
    draft: options.modelDraft,
    chatTemplate: options.chatTemplate,
    timeouts: {
      connectMs: options.connectTimeout,
      handshakeMs: options.connectTimeout,
      answerMs: options.answerTimeout,
    },
    llamaArgs,
    llamaEnv: options.llamaEnv,
    logLevel: options.verbose ? 'debug' : undefined,
  };
}

function apiKeys({ apiKey = [], apiKeyFile }: ServeOptions): string[] {
  if (apiKeyFile === undefined) return apiKey;
  try {
    const keys = readFileSync(apiKeyFile, 'utf8')
      .split(/\r?\n/)
      .filter((line) => line !== '');
    // Serving without a key must never be the answer to a file that was meant to hold one.
    if (keys.length === 0) throw new Error('it holds no key');
    return [...apiKey, ...keys];
  } catch (cause) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `--api-key-file ${apiKeyFile}: ${(cause as Error).message}`, {
      cause,
    });
  }
}

interface Deferred<T> {
  readonly promise: Promise<T>;
  readonly resolve: (value: T) => void;
  readonly reject: (reason: unknown) => void;
}

function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<T>((res, rej) => {
    resolve = res;
    reject = rej;
  });
  // A load that fails before HTTP looks at the promise is reported by the command, not as an unhandled rejection.
  promise.catch(() => {});
  return { promise, resolve, reject };
}
