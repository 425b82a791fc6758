import type { Command } from 'commander';
import type { CheckResult } from '../doctor/types.js';
import { DEFAULT_CLUSTER_PORT } from '../endpoint.js';
import { wrapText } from './format.js';
import { helpText, NARROWEST } from './help.js';
import { print, printJson, type Style, stdoutColumns, styled } from './terminal.js';
import { defaultCacheDir, integer } from './values.js';

interface DoctorCommandOptions {
  port: number;
  clusterPort: number;
  json?: boolean;
}

const HELP = `
Ends with status 1 if something keeps a cluster from working, else 0. What it cannot see from inside of Termux it says,
with what to look at. It sends one empty UDP packet into the own network, to see whether the system lets it.

Examples:
  $ droid-llama doctor
  $ droid-llama doctor --json --cluster-port 60001
`;

const STYLES: Readonly<Partial<Record<CheckResult['status'], Style>>> = { fail: 'red', warn: 'yellow', skip: 'dim' };
const INDENT = '      ';

export function addDoctorCommand(program: Command): void {
  program
    .command('doctor')
    .description('look for what keeps this device from working in a cluster, and say what to do')
    .option('--port <port>', 'port of the HTTP API to look at', integer(1, 65535), 8080)
    .option('--cluster-port <port>', 'port for the other devices to look at', integer(1, 65535), DEFAULT_CLUSTER_PORT)
    .option('--json', 'print one line of JSON')
    .addHelpText('after', helpText(HELP))
    .action(runDoctor);
}

async function runDoctor({ port, clusterPort, json }: DoctorCommandOptions): Promise<void> {
  // Here, because what it needs would make every other command start later.
  const { examine } = await import('../doctor/doctor.js');
  const checks = await examine({ port, clusterPort, cacheDir: defaultCacheDir() });
  const failed = checks.filter(({ status }) => status === 'fail').length;
  if (json) printJson({ ok: failed === 0, checks });
  else for (const line of doctorLines(checks, stdoutColumns())) print(line);
  if (failed > 0) process.exitCode = 1;
}

/** A table of what was found, with the advice under each row that has one; on a phone's narrow screen, a list. */
export function doctorLines(checks: readonly CheckResult[], columns: number): string[] {
  const widest = Math.max(0, ...checks.map(({ title }) => title.length));
  const beside = INDENT.length + widest + 2;
  const narrow = columns - beside < NARROWEST;
  const lines = checks.flatMap(({ status, title, found, advice }) => {
    const style = STYLES[status];
    const shown = style ? styled(process.stdout, style, status) : status;
    const head = `${shown}${INDENT.slice(status.length)}${title}`;
    const [first = '', ...more] = wrapped(found, columns - (narrow ? INDENT.length : beside));
    const rows = narrow
      ? [head, ...[first, ...more].map((line) => INDENT + line)]
      : [
          `${head.padEnd(head.length - title.length + widest)}  ${first}`,
          ...more.map((line) => ' '.repeat(beside) + line),
        ];
    return [...rows, ...wrapped(advice ?? '', columns - INDENT.length).map((line) => `${INDENT}${line}`)];
  });
  const count = (status: CheckResult['status']): number => checks.filter((check) => check.status === status).length;
  return [...lines, '', `${count('ok')} ok, ${count('warn')} to look at, ${count('fail')} failed`];
}

function wrapped(text: string, width: number): string[] {
  return text === '' ? [] : wrapText(text, width).trimEnd().split('\n');
}
