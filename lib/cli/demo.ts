import type { Command } from 'commander';
import type { DistributedContext } from '../context.js';
import { DroidLlamaError } from '../errors.js';
import { packageFile } from '../package-file.js';
import { placementTable } from './format.js';
import { helpText } from './help.js';
import { LoadingBar } from './progress.js';
import { shutdownSignal } from './shutdown.js';
import { note, print, printJson } from './terminal.js';
import { WorkerProcess, workerCommand } from './worker-process.js';

interface DemoOptions {
  json?: boolean;
}

const MODEL = 'models/droid-tiny.gguf';
const QUESTION = 'What is 2+2?';
/** What the model says to it, however the device computes and whatever the split. */
const ANSWER = '2+2 equals 4.';
const MAX_TOKENS = 64;
/** Each: the model is so small that more of them would mostly wait for each other. */
const THREADS = 1;

const HELP = `
Starts a worker in a second process and the master in this one, splits the tiny model that comes with the package half
and half, and asks "${QUESTION}". The answer goes to stdout, then the placement, the speed and the worker's own count of
the graphs it computed. Ends with status 1 if the answer is not the one that this model gives.

Examples:
  $ droid-llama demo
  $ droid-llama demo --json
`;

export function addDemoCommand(program: Command): void {
  program
    .command('demo')
    .description('run a tiny model across two processes on this device')
    .option('--json', 'print one line of JSON at the end instead of text')
    .addHelpText('after', helpText(HELP))
    .action(runDemo);
}

async function runDemo(options: DemoOptions): Promise<void> {
  const stop = shutdownSignal();
  note('starting a worker in a second process');
  const worker = await WorkerProcess.start(
    workerCommand(['--port=0', `--threads=${THREADS}`, '--json'], undefined),
    stop,
  );
  try {
    const { createDistributedContext } = await import('../context.js');
    const bar = new LoadingBar(process.stderr);
    let context: DistributedContext;
    try {
      context = await createDistributedContext({
        model: packageFile(MODEL),
        rpc: [worker.ready.endpoint],
        tensorSplit: [0.5, 0.5],
        contextSize: 512,
        threads: THREADS,
        onProgress: (progress) => bar.update(progress),
        signal: stop,
      });
    } finally {
      bar.clear();
    }
    try {
      await converse(context, worker, options, stop);
    } finally {
      await context.close();
    }
  } finally {
    await worker.stop();
  }
}

async function converse(
  context: DistributedContext,
  worker: WorkerProcess,
  options: DemoOptions,
  signal: AbortSignal,
): Promise<void> {
  const before = await worker.stats();
  if (!options.json) note(`> ${QUESTION}`);
  let answer = '';
  const body = { messages: [{ role: 'user', content: QUESTION }], max_tokens: MAX_TOKENS, temperature: 0 };
  for await (const chunk of context.chat(body, { signal })) {
    const text = chunk.choices[0]?.delta.content ?? '';
    answer += text;
    if (!options.json) process.stdout.write(text);
  }
  if (!options.json) print('\n');

  const after = await worker.stats();
  const { tokensGenerated, tokensPerSecond } = context.stats().engine;
  const graphsComputed = after.graphsComputed - before.graphsComputed;
  if (options.json) {
    printJson({
      question: QUESTION,
      answer,
      placement: context.placement,
      tokensGenerated,
      tokensPerSecond,
      worker: { endpoint: worker.ready.endpoint, pid: worker.pid, graphsComputed },
    });
  } else {
    print(placementTable(context.placement));
    print('');
    print(`${tokensGenerated} tokens at ${tokensPerSecond.toFixed(1)} tokens/s`);
    print(`the worker (process ${worker.pid}) counted ${graphsComputed} graphs, the master is process ${process.pid}`);
  }
  if (answer !== ANSWER) {
    throw new DroidLlamaError(
      'DROID_REQUEST_FAILED',
      `the answer is ${JSON.stringify(answer)} where this model says ${JSON.stringify(ANSWER)}, so the native addon computes wrongly ` +
        'on this device: reinstall droid-llama; if that does not help, compile it here with ' +
        '`npm install --build-from-source droid-llama`',
    );
  }
  // What the demo is there to show: every token needs the worker.
  if (graphsComputed < tokensGenerated) {
    throw new DroidLlamaError(
      'DROID_REQUEST_FAILED',
      `the worker computed ${graphsComputed} graphs for ${tokensGenerated} tokens, so the model did not run on both`,
    );
  }
}
