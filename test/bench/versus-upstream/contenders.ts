/** Who is compared, and the commands that start them. */

export type Measured = 'load' | 'prompt' | 'generation' | 'streams' | 'traffic' | 'breakdown';

export interface Contender {
  readonly id: string;
  readonly title: string;
  readonly program: 'llama-server' | 'droid-llama';
  /** Whether half of the layers, or all, are on a worker. */
  readonly worker: boolean;
  /** Whether the two speak with a token, so over TLS. */
  readonly encrypted: boolean;
  /** Whether the master is a call in a Node process that runs already, and not a command. Default false. */
  readonly inProcess?: boolean;
  /** `sweep` finds its best one, `own` gives no flag; otherwise the contender whose best one it takes. */
  readonly ubatch: 'sweep' | 'own' | string;
  readonly measures: readonly Measured[];
  /** Beside what all masters get. */
  readonly flags: (shape: ModelShape, endpoint: string) => readonly string[];
}

export interface ModelShape {
  readonly path: string;
  readonly layers: number;
  /** Elements of a hidden state. */
  readonly width: number;
}

/** What the two programs of a contender are started with. */
export interface Launch {
  readonly shape: ModelShape;
  /** Of the worker, as the master reaches it. */
  readonly endpoint: string;
  /** Undefined: what the program takes by itself. */
  readonly ubatch?: number;
  readonly streams: number;
}

export interface Programs {
  readonly llamaServer: string;
  readonly rpcServer: string;
  readonly droidLlama: string;
}

/** Tokens of context for each stream. */
export const CONTEXT_SIZE = 2048;
export const UBATCHES = [32, 64, 128, 512] as const;
export const MASTER_PORT = 8080;
export const WORKER_PORT = 50052;

const RPC = (_: ModelShape, endpoint: string) => ['--rpc', endpoint];

/** The placement of `[0.5, 0.5]`: a tied embedding is the head, and another one is on the CPU anyway. */
const tuned = (shape: ModelShape, endpoint: string) => [
  ...RPC(shape, endpoint),
  ...['-ngl', String(shape.layers / 2 + 1)],
  ...['-ot', '^output\\.weight=CPU,^output_norm\\.weight=CPU,^token_embd\\.weight=CPU'],
  ...['--cache-ram', '0', '--fit', 'off'],
];
const split = (shape: ModelShape, endpoint: string) => [...RPC(shape, endpoint), '--tensor-split', '0.5,0.5'];
/** Shorter than llama.cpp's default of twelve, which never comes again within a short text. */
const NGRAM = ['--spec-type', 'ngram-simple', '--spec-ngram-simple-size-n', '3', '--spec-ngram-simple-size-m', '8'];

export const CONTENDERS: readonly Contender[] = [
  {
    id: 'upstream-guide',
    title: 'upstream, the guide’s flags',
    program: 'llama-server',
    worker: true,
    encrypted: false,
    ubatch: 'own',
    measures: ['load', 'prompt', 'generation', 'traffic'],
    flags: (shape, endpoint) => [...RPC(shape, endpoint), '-ngl', '99', '--cache-ram', '0'],
  },
  {
    id: 'upstream-tuned',
    title: 'upstream, hand-tuned',
    program: 'llama-server',
    worker: true,
    encrypted: false,
    ubatch: 'sweep',
    measures: ['load', 'prompt', 'generation', 'streams', 'traffic'],
    flags: tuned,
  },
  {
    id: 'upstream-alone',
    title: 'upstream, one phone alone',
    program: 'llama-server',
    worker: false,
    encrypted: false,
    ubatch: 'sweep',
    measures: ['load', 'prompt', 'generation', 'streams'],
    flags: () => [],
  },
  {
    id: 'droid-alone',
    title: 'droid-llama, one phone alone',
    program: 'droid-llama',
    worker: false,
    encrypted: false,
    ubatch: 'sweep',
    measures: ['load', 'prompt', 'generation', 'streams'],
    flags: () => [],
  },
  {
    id: 'droid-split',
    title: 'droid-llama `[0.5, 0.5]`, plain',
    program: 'droid-llama',
    worker: true,
    encrypted: false,
    ubatch: 'sweep',
    measures: ['load', 'prompt', 'generation', 'streams', 'traffic', 'breakdown'],
    flags: split,
  },
  {
    id: 'droid-split-own',
    title: 'droid-llama `[0.5, 0.5]`, plain, ubatch its own choice',
    program: 'droid-llama',
    worker: true,
    encrypted: false,
    ubatch: 'own',
    measures: ['prompt'],
    flags: split,
  },
  {
    id: 'droid-split-call',
    title: 'droid-llama `[0.5, 0.5]`, plain, createDistributedContext() in a running process',
    program: 'droid-llama',
    worker: true,
    encrypted: false,
    inProcess: true,
    ubatch: 'droid-split',
    measures: ['load'],
    flags: split,
  },
  {
    id: 'droid-split-token',
    title: 'droid-llama `[0.5, 0.5]`, encrypted',
    program: 'droid-llama',
    worker: true,
    encrypted: true,
    ubatch: 'droid-split',
    measures: ['load', 'prompt', 'generation', 'streams', 'breakdown'],
    flags: split,
  },
  {
    id: 'upstream-tuned-ngram',
    title: 'upstream, hand-tuned, n-gram lookup †',
    program: 'llama-server',
    worker: true,
    encrypted: false,
    ubatch: 'upstream-tuned',
    measures: ['generation'],
    flags: (shape, endpoint) => [...tuned(shape, endpoint), ...NGRAM],
  },
  {
    id: 'droid-split-ngram',
    title: 'droid-llama `[0.5, 0.5]`, plain, n-gram lookup †',
    program: 'droid-llama',
    worker: true,
    encrypted: false,
    ubatch: 'droid-split',
    measures: ['generation'],
    flags: (shape, endpoint) => [...split(shape, endpoint), ...NGRAM],
  },
];

/** Whether it drafts tokens by looking up what was said before, so that its speed depends on the text. */
export function isSpeculative({ id }: Contender): boolean {
  return id.endsWith('-ngram');
}

/** The command of the master, which listens on its phone's loopback. */
export function masterCommand(contender: Contender, programs: Programs, launch: Launch): string[] {
  const { shape, endpoint, ubatch, streams } = launch;
  const ours = contender.program === 'droid-llama';
  return [
    ...(ours ? [process.execPath, programs.droidLlama, 'serve'] : [programs.llamaServer]),
    ...['-m', shape.path],
    ...contender.flags(shape, endpoint),
    ...(ours && contender.worker && !contender.encrypted ? ['--insecure'] : []),
    ...['-t', '1', '-c', String(CONTEXT_SIZE * streams), '-np', String(streams)],
    ...(ubatch === undefined ? [] : ['-ub', String(ubatch)]),
    ...['--host', '127.0.0.1', '--port', String(MASTER_PORT)],
  ];
}

/** The command of the worker, which keeps on disk what it can. */
export function workerCommand({ program, encrypted, id }: Contender, programs: Programs, host: string): string[] {
  const port = String(WORKER_PORT);
  if (program === 'llama-server') {
    // The guide's worker has no cache.
    return [programs.rpcServer, '-H', host, '-p', port, '-t', '1', ...(id === 'upstream-guide' ? [] : ['-c'])];
  }
  const security = encrypted ? [] : ['--insecure'];
  const command = [process.execPath, programs.droidLlama, 'worker', '--host', host, '--port', port, '-t', '1'];
  return [...command, ...security, '--cache', '--json'];
}
