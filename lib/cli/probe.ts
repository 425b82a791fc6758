import type { Command } from 'commander';
import { probeEndpoint } from '../probe.js';
import { deviceLines } from './format.js';
import { helpText } from './help.js';
import { shutdownSignal } from './shutdown.js';
import { print, printJson, styled } from './terminal.js';
import { securityOf, TOKEN_HELP, tokenOption } from './token.js';
import { endpointValue, integer } from './values.js';

interface ProbeCommandOptions {
  timeout: number;
  json?: boolean;
}

const ROUND_TRIPS = 10;

const HELP = `
Ends with status 0 if a worker answers and 1 if not; the error tells a port that is closed from a device that drops
connections (Android does: swap the roles then), from one that is not there and from one with another token.

${TOKEN_HELP}

Examples:
  $ droid-llama probe 192.168.37.219:60000
  $ droid-llama probe 192.168.37.219:60000 --token AbCdEfGhIjKlMnOpQrStUv
  $ droid-llama probe --timeout 1000 --json 192.168.37.219:60000
`;

export function addProbeCommand(program: Command): void {
  program
    .command('probe')
    .description('test whether a worker can be reached from here, and show its devices')
    .argument('<host:port>', 'endpoint of the worker', endpointValue)
    .addOption(tokenOption('the token the worker shows, if it is encrypted'))
    .option('--timeout <ms>', 'milliseconds to wait', integer(1), 5000)
    .option('--json', 'print one line of JSON')
    .addHelpText('after', helpText(HELP))
    .action(runProbe);
}

async function runProbe(endpoint: string, options: ProbeCommandOptions, command: Command): Promise<void> {
  const { token } = securityOf(command);
  const info = await probeEndpoint(endpoint, {
    timeoutMs: options.timeout,
    roundTrips: ROUND_TRIPS,
    token,
    signal: shutdownSignal(),
  });
  if (options.json) {
    printJson(info);
    return;
  }
  print(`${styled(process.stdout, 'bold', info.endpoint)} is open${token === undefined ? '' : ', encrypted'}`);
  print(`  protocol   : ${info.protocol}`);
  print(`  server     : ${info.extended ? 'droid-llama' : 'not droid-llama: no shared cache, no compute times'}`);
  print(`  round trip : ${info.roundTripMs.toFixed(2)} ms (median of ${ROUND_TRIPS})`);
  print(`  connecting : ${info.connectMs.toFixed(2)} ms`);
  print('Devices:');
  for (const line of deviceLines(info.devices)) print(line);
}
