import { accessSync, constants, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import type { BenchReport, TestOptions } from '../bench/index.js';
import { DroidLlamaError } from '../errors.js';
import { invalid } from '../validate.js';
import { BenchDisplay } from './bench-progress.js';
import { type BenchFormat, formatReport } from './bench-report.js';
import { helpText } from './help.js';
import { addHubOption, HUB_ALIASES, modelFile } from './hub-model.js';
import { report as reportError } from './report.js';
import { warnIfInsecure } from './serve.js';
import { Interrupted, shutdownSignal } from './shutdown.js';
import { askStatus } from './status-socket.js';
import { note, print, stdoutColumns } from './terminal.js';
import { insecureOption, securityOf, TOKEN_HELP, tokenOption } from './token.js';
import { endpoints, integer, integerOrAuto, nonEmpty, orAuto, port, shares } from './values.js';

interface BenchCommandOptions {
  model?: string;
  hfRepo?: string;
  url?: string;
  cluster?: boolean;
  clusterPort?: number;
  apiKey?: string;
  rpc?: string[];
  tensorSplit?: number[][];
  sweep?: number | true;
  head?: 'master' | 'worker';
  activations?: 'f32' | 'f16';
  nPrompt: number[];
  nGen: number[];
  repetitions: number;
  streams?: number[];
  ubatchSize?: number[];
  batchSize?: number;
  ctxSize?: number;
  threads?: number;
  mmap: boolean;
  single: boolean;
  loads?: number;
  output: BenchFormat;
  plot?: string;
}

/** llama.cpp's spellings that commander cannot express. */
export const BENCH_ALIASES: Readonly<Record<string, string>> = {
  '-ub': '--ubatch-size',
  '-ts': '--tensor-split',
  ...HUB_ALIASES,
};

const DEFAULT_STEPS = 4;
const MAX_TOKENS = 1 << 20;

/** Options that say how to load a model, and so make no sense for one that is loaded. */
const SPLITTING = ['tensorSplit', 'sweep', 'head', 'activations', 'token', 'insecure'];
const OWN_ONLY = ['rpc', ...SPLITTING, 'ubatchSize', 'batchSize', 'ctxSize', 'threads', 'mmap', 'single', 'loads'];

const HELP = `
One of -m, --url and --cluster says what to measure. With -m the model is loaded in every way asked for: on this device
alone, which tells what the floor of a split is, and over the workers of --rpc. The workers are \`droid-llama worker\`, or
llama.cpp's own rpc-server with --insecure. What follows -- goes to llama.cpp as it stands.

pp512 is a prompt of 512 tokens, tg128 a generation of 128. docs/bench.md explains every number.

Examples:
  $ droid-llama bench -m model.gguf
  $ droid-llama bench -hf Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  $ droid-llama bench -m model.gguf --rpc 192.168.37.219:60000 --token TOKEN --tensor-split 0.5,0.5
  $ droid-llama bench -m model.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 --token TOKEN --sweep --plot sweep.svg
  $ droid-llama bench -m model.gguf --rpc 10.0.0.2:50052 --token TOKEN -ts 0.5,0.5 -ts 0,1 -ub 64,512 -o md
  $ droid-llama bench -m model.gguf --streams 1,2,4,8
  $ droid-llama bench --url http://127.0.0.1:8080 -p 512 -n 64 --streams 4 -o json
  $ droid-llama bench --cluster

${TOKEN_HELP}
`;

export function addBenchCommand(program: Command): void {
  const command = program.command('bench');
  command
    .description('measure how fast a model runs: here, split over workers, or behind a server')
    .usage('-m <file> | --url <url> | --cluster  [options]')
    .argument('[llama-args...]', 'further flags of llama-server, after --')
    .option('-m, --model <file>', 'the GGUF model to load', nonEmpty);
  addHubOption(command)
    .option('--url <url>', 'measure the llama-server or droid-llama that runs there', nonEmpty)
    .option('--cluster', 'measure the cluster that this device leads: the droid-llama up that runs here')
    .option('--cluster-port <number>', 'which cluster, where several run on this device', port)
    .addOption(
      // The environment keeps it out of the list of processes.
      command.createOption('--api-key <key>', 'key that the server wants').env('LLAMA_API_KEY'),
    )
    .option('--rpc <endpoints>', 'workers to split over, as host:port,host:port', endpoints)
    .addOption(tokenOption('the token the workers were started with'))
    .addOption(insecureOption('speak with the workers without encryption'))
    .option(
      '--tensor-split <shares>',
      'share of the layers per device, master first; again for another split (also -ts; default: by free memory)',
      (text: string, previous: number[][] = []) => [...previous, shares(text)],
    )
    .option(
      '--sweep [steps]',
      `compare splits from everything on the master to all layers on the workers (default: ${DEFAULT_STEPS} steps)`,
      integer(1, 256),
    )
    .addOption(command.createOption('--head <device>', 'where the output head goes').choices(['master', 'worker']))
    .addOption(
      command
        .createOption('--activations <type>', 'how hidden states travel; f16 halves them and rounds (default: f32)')
        .choices(['f32', 'f16']),
    )
    .option('-p, --n-prompt <n>', 'lengths of prompts in tokens, e.g. 64,512; 0 for none', counts(0), [512])
    .option('-n, --n-gen <n>', 'numbers of tokens to generate, from 2; 0 for none', generations, [128])
    .option('-r, --repetitions <n>', 'how many times each test runs', integer(1, 10_000), 5)
    .option('--streams <n>', 'numbers of requests at once, e.g. 1,2,4,8', counts(1))
    .option(
      '--ubatch-size <n>',
      'physical batch sizes to compare: tokens computed at once, e.g. 64,128,512 (also -ub)',
      counts(1),
    )
    .option('-b, --batch-size <n>', 'logical batch size in tokens', integer(1, MAX_TOKENS))
    .option(
      '-c, --ctx-size <n>',
      'tokens of context, of all streams (default: what the tests need)',
      integer(0, 1 << 24),
    )
    .option('-t, --threads <n>', 'threads the master computes with', integerOrAuto(1, 512))
    .option('--no-mmap', 'read the model into memory instead of mapping it')
    .option('--no-single', 'do not measure this device alone; there is no floor then')
    .option('--loads <n>', 'how often each split is loaded, 1 or 2 (default: 2, the second is warm)', integer(1, 2))
    .addOption(
      command
        .createOption('-o, --output <format>', 'what to print')
        .choices(['table', 'json', 'csv', 'md'])
        .default('table'),
    )
    .option('--plot <file>', 'also draw the speeds of the splits and the time of a token, as SVG', nonEmpty)
    .addHelpText('after', helpText(HELP))
    .action(runBench);
}

/** Whether these arguments ask for JSON, in which an error is told then. */
export function wantsJson(args: readonly string[]): boolean {
  if (args[0] !== 'bench') return false;
  const given = args.findLast((arg, i) => /^-o.|^--output=/.test(arg) || /^(-o|--output)$/.test(args[i - 1] ?? ''));
  return given !== undefined && /^(-o=?|--output=)?json$/.test(given);
}

async function runBench(llamaArgs: string[], options: BenchCommandOptions, command: Command): Promise<void> {
  const stop = shutdownSignal();
  checkCombination(options, llamaArgs, command);
  checkPlot(options.plot);
  const display = new BenchDisplay(process.stderr);
  let last: BenchReport | undefined;
  const tests: TestOptions = {
    promptTokens: options.nPrompt.filter((tokens) => tokens > 0),
    generatedTokens: options.nGen.filter((tokens) => tokens > 0),
    streams: options.streams,
    repetitions: options.repetitions,
    onProgress: (progress) => display.update(progress),
    onReport: (report) => {
      last = report;
    },
    signal: stop,
  };
  let failure: { readonly error: unknown } | undefined;
  try {
    last = await measure(options, llamaArgs, command, tests, display);
  } catch (error) {
    // What was measured until then took minutes, perhaps.
    if (!last) throw error;
    failure = { error };
    last = { ...last, error: errorOf(error) };
  } finally {
    display.clear();
  }
  print(formatReport(last, options.output, stdoutColumns()));
  if (!failure) {
    if (options.plot) await plot(options.plot, last);
  } else if (options.output !== 'json' || failure.error instanceof Interrupted) {
    if (failure.error instanceof Interrupted) note('interrupted: cases that were not finished are missing above');
    throw failure.error;
  } else {
    // The report on stdout holds it already, and is to be the only document there.
    process.exitCode = reportError(failure.error, false);
  }
}

async function measure(
  options: BenchCommandOptions,
  llamaArgs: readonly string[],
  command: Command,
  tests: TestOptions,
  display: BenchDisplay,
): Promise<BenchReport> {
  const { bench, benchUrl } = await import('../bench/index.js');
  if (options.url !== undefined) return benchUrl(options.url, { ...tests, apiKey: options.apiKey || undefined });
  if (options.cluster) {
    const { url, facts } = await runningCluster(options.clusterPort);
    return benchUrl(url, { ...tests, apiKey: options.apiKey || undefined, cluster: facts });
  }
  const model = (await modelFile(options, tests.signal as AbortSignal)) as string;
  const security = options.rpc ? securityOf(command) : {};
  warnIfInsecure(options.rpc, security);
  return bench({
    ...tests,
    ...security,
    model,
    rpc: options.rpc,
    tensorSplits: options.tensorSplit,
    sweep: options.sweep === true ? DEFAULT_STEPS : options.sweep,
    head: options.head,
    activations: options.activations,
    ubatchSizes: options.ubatchSize,
    batchSize: options.batchSize,
    contextSize: options.ctxSize,
    threads: orAuto(options.threads),
    mmap: options.mmap ? undefined : false,
    single: options.single,
    loads: options.loads,
    llamaArgs,
    onLoad: (progress) => display.load(progress),
  });
}

/** The `up` of this device, where it leads and has loaded a model. */
async function runningCluster(clusterPort: number | undefined) {
  const { parseClusterStatus } = await import('../bench/index.js');
  const facts = parseClusterStatus(await askStatus(clusterPort));
  if (facts.self.role !== 'master' || facts.url === null) {
    const master = facts.peers.find(({ role }) => role === 'master')?.name;
    const advice = master === undefined ? 'No device leads the cluster yet' : `The master is ${master}: measure there`;
    invalid(`This device does not lead the cluster, so it serves no HTTP. ${advice}.`);
  }
  if (facts.state !== 'ready') {
    throw new DroidLlamaError('DROID_NOT_READY', `The cluster is ${facts.state}; measure it once the model is loaded.`);
  }
  return { url: facts.url, facts };
}

function checkCombination(options: BenchCommandOptions, llamaArgs: readonly string[], command: Command): void {
  const [stray] = llamaArgs;
  if (stray !== undefined && !stray.startsWith('-')) invalid(`unexpected argument '${stray}'; the model goes after -m`);
  const own = options.model !== undefined || options.hfRepo !== undefined;
  const given = [
    options.model !== undefined && '-m',
    options.hfRepo !== undefined && '-hf',
    options.url !== undefined && '--url',
    options.cluster && '--cluster',
  ];
  const chosen = given.filter(Boolean);
  if (chosen.length === 0)
    invalid('Say what to measure: -m model.gguf, -hf owner/name:quantization, --url http://…, or --cluster.');
  if (chosen.length > 1)
    invalid(
      `${chosen.join(' and ')} are ${chosen.length === 2 ? 'both' : 'all'} given; each says what to measure, so give one.`,
    );
  const typed = (name: string) => command.getOptionValueSource(name) === 'cli';
  const flag = (name: string) => command.options.find((option) => option.attributeName() === name)?.long ?? name;
  const useless = own
    ? ['apiKey', 'clusterPort'].find(typed)
    : (OWN_ONLY.find(typed) ?? (options.cluster ? undefined : ['clusterPort'].find(typed)));
  if (useless !== undefined) {
    const why = own ? 'is of a server' : 'says how a model is loaded, so it needs -m';
    invalid(`${flag(useless)} ${why}; with ${chosen[0]} it means nothing.`);
  }
  if (!own && llamaArgs.length > 0) invalid(`${stray} is for llama.cpp, and so needs -m.`);
  if (!own && options.plot !== undefined) {
    invalid(`--plot draws splits that are loaded here, so it needs -m; with ${chosen[0]} there is nothing to draw.`);
  }
  const split = SPLITTING.find(typed);
  if (own && !options.rpc && split !== undefined) {
    invalid(`${flag(split)} is about workers; name them with --rpc.`);
  }
}

/** Known before minutes of measuring. */
function checkPlot(file: string | undefined): void {
  if (file === undefined) return;
  try {
    if (!statSync(dirname(file)).isDirectory()) throw new Error(`${dirname(file)} is no directory`);
    accessSync(dirname(file), constants.W_OK);
  } catch (cause) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `--plot ${file}: ${(cause as Error).message}`, { cause });
  }
}

async function plot(file: string, report: BenchReport): Promise<void> {
  const { plotReport } = await import('../bench/index.js');
  const svg = plotReport(report);
  try {
    writeFileSync(file, svg);
  } catch (cause) {
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `--plot ${file}: ${(cause as Error).message}`, { cause });
  }
}

function errorOf(error: unknown): BenchReport['error'] {
  if (error instanceof DroidLlamaError) return { code: error.code, message: error.message };
  return { code: null, message: error instanceof Error ? error.message : String(error) };
}

/** One token comes out of the prompt, so there is nothing to measure of it. */
function generations(text: string): number[] {
  const lengths = counts(0)(text);
  if (lengths.includes(1)) throw new InvalidArgumentError('A generation has at least 2 tokens; 0 is for none.');
  return lengths;
}

/** `64,128,512`. */
function counts(min: number): (text: string) => number[] {
  const parse = integer(min, MAX_TOKENS);
  return (text) =>
    text.split(',').map((part) => {
      if (part.trim() === '') throw new InvalidArgumentError('One of its comma-separated values is empty.');
      return parse(part.trim());
    });
}
