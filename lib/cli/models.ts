import type { Command } from 'commander';
import { sizeText } from '../size-text.js';
import { tableWithin } from './format.js';
import { helpText } from './help.js';
import { pullShown } from './hub-model.js';
import { shutdownSignal } from './shutdown.js';
import { note, print, printJson, stdoutColumns } from './terminal.js';
import { nonEmpty } from './values.js';

const PULL_HELP = `
Downloads a GGUF model of the Hugging Face hub and prints where it is. Without a quantization it takes Q4_K_M, or the first
there is; a quantization that is not there lists those that are. What was broken off goes on where it ended, and what is
there already is not downloaded again. serve, up and bench take the same name with -hf.

HF_TOKEN in the environment opens gated and private models. HF_ENDPOINT names another hub.

Examples:
  $ droid-llama pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  $ droid-llama serve -m "$(droid-llama pull Qwen/Qwen2.5-0.5B-Instruct-GGUF)"
  $ HF_TOKEN=hf_... droid-llama pull owner/gated-model-GGUF:Q8_0 --json
`;

const MODELS_HELP = `
Examples:
  $ droid-llama models
  $ droid-llama models rm Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M
  $ droid-llama models --json
`;

export function addModelCommands(program: Command): void {
  program
    .command('pull')
    .description('download a model of the Hugging Face hub')
    .argument('<owner/name[:quantization]>', 'the model', nonEmpty)
    .option('--json', 'print one line of JSON')
    .addHelpText('after', helpText(PULL_HELP))
    .action(runPull);
  const models = program
    .command('models')
    .description('list the models that were downloaded')
    .option('--json', 'print one line of JSON')
    .addHelpText('after', helpText(MODELS_HELP))
    .action(runList);
  models
    .command('rm')
    .description('remove one; without a quantization, all of that name')
    .argument('<owner/name[:quantization]>', 'the model', nonEmpty)
    .action(runRemove);
}

async function runPull(reference: string, options: { json?: boolean }): Promise<void> {
  const pulled = await pullShown(reference, shutdownSignal());
  if (options.json) printJson(pulled);
  else print(pulled.path);
}

async function runList(options: { json?: boolean }): Promise<void> {
  const { listModels } = await import('../hub/pull.js');
  const models = await listModels();
  if (options.json) {
    printJson({ models });
  } else if (models.length === 0) {
    note('there are none; droid-llama pull downloads one');
  } else {
    const rows = models.map(({ reference, bytes, path }) => [reference, sizeText(bytes), path]);
    print(tableWithin(stdoutColumns(), [['model', 'size', 'file'], ...rows], [1]));
  }
}

async function runRemove(reference: string): Promise<void> {
  const { removeModel } = await import('../hub/pull.js');
  note(`${sizeText(await removeModel(reference))} are free again`);
}
