import type { Command } from 'commander';
import type { ClusterStatus, MemberStatus } from '../cluster/status.js';
import type { Link } from '../cluster/types.js';
import { mebibytes, tableWithin, wrapText } from './format.js';
import { helpText } from './help.js';
import { askStatus } from './status-socket.js';
import { print, printJson, stdoutColumns } from './terminal.js';
import { port } from './values.js';

interface StatusOptions {
  clusterPort?: number;
  json?: boolean;
}

const HELP = `
Asks the droid-llama up of this device and user. With --json one line on stdout:
  {"self":{"id","name","role"},"state","url","peers":[{"id","name","role","layers","bytes","graphsComputed",...}],
   "links":[...],"roles":{...},"plan":{...},"measured":{...}}

Examples:
  $ droid-llama status
  $ droid-llama status --json | jq '.peers[] | {name, role, layers}'
`;

export function addStatusCommand(program: Command): void {
  program
    .command('status')
    .description('who is in the cluster, what each holds, predicted and measured speed')
    .option('--cluster-port <number>', 'which cluster, where several run on this device', port)
    .option('--json', 'print one line of JSON')
    .addHelpText('after', helpText(HELP))
    .action(runStatus);
}

async function runStatus(options: StatusOptions): Promise<void> {
  const status = (await askStatus(options.clusterPort)) as ClusterStatus;
  if (options.json) printJson(status);
  else print(statusText(status, stdoutColumns()));
}

/** The whole status as people read it. */
export function statusText(status: ClusterStatus, columns = 80): string {
  const { plan, measured } = status;
  const parts = [`${status.self.name} is ${roleText(status.self.role)}; the cluster is ${stateText(status)}`, ''];
  parts.push(memberTable(status.peers, status.self.id, columns));
  for (const { name, reason } of status.peers) {
    if (reason) parts.push(`${name}: ${reason}`);
  }
  if (status.links.length > 0) parts.push('', linkTable(status.links, status.peers, columns));
  if (plan?.fits) {
    const { prediction } = plan;
    parts.push(
      '',
      tableWithin(
        columns,
        [
          ['', 'load s', 'prompt t/s', 'generation t/s'],
          [
            'predicted',
            number(prediction?.loadSeconds),
            number(prediction?.promptTokensPerSecond),
            number(prediction?.generationTokensPerSecond),
          ],
          [
            'measured',
            number(measured?.loadSeconds),
            number(measured?.promptTokensPerSecond),
            number(measured?.generationTokensPerSecond),
          ],
        ],
        [1, 2, 3],
      ),
    );
    parts.push('', `context ${plan.contextSize}, batch ${plan.batchSize}, ubatch ${plan.ubatchSize}`);
  }
  const reasons = [...status.roles.reasons, ...(plan?.reasons ?? [])];
  if (reasons.length > 0) parts.push('', ...reasons.map((reason) => wrapText(`- ${reason}`, columns)));
  return parts.join('\n');
}

function roleText(role: MemberStatus['role']): string {
  return role === 'left-out' ? 'left out' : role === 'undecided' ? 'without a role yet' : `the ${role}`;
}

function stateText({ state, progress, reason }: ClusterStatus): string {
  const percent = state === 'loading' ? ` (${Math.round(100 * progress)} %)` : '';
  return `${state}${percent}${reason && state !== 'ready' ? `: ${reason}` : ''}`;
}

/** Role, layers and graphs of each device, one line a device. */
export function memberTable(members: readonly MemberStatus[], self: string, columns = 80): string {
  const rows = members.map((member) => [
    member.id === self ? `${member.name} (this device)` : member.name,
    member.role,
    String(member.layers),
    mebibytes(member.bytes),
    mebibytes(member.memory),
    String(member.graphsComputed),
    member.battery ? `${Math.round(member.battery.percent)} %${member.battery.charging ? ' charging' : ''}` : '',
  ]);
  const head = ['device', 'role', 'layers', 'weights', 'lends', 'graphs', 'battery'];
  return tableWithin(columns, [head, ...rows], [2, 3, 4, 5]);
}

function linkTable(links: readonly Link[], members: readonly MemberStatus[], columns: number): string {
  const name = (id: string): string => members.find((member) => member.id === id)?.name ?? id;
  const rows = links.map((link) => [
    `${name(link.from)} → ${name(link.to)}`,
    link.dial,
    link.roundTripMs === null ? '' : `${number(link.roundTripMs)} ms`,
    link.bytesPerSecond === null ? '' : `${number((link.bytesPerSecond * 8) / 1e6)} Mbit/s`,
    link.endpoint ?? '',
  ]);
  return tableWithin(columns, [['link', 'dial', 'round trip', 'throughput', 'endpoint'], ...rows], [2, 3]);
}

function number(value: number | null | undefined): string {
  if (value === null || value === undefined) return '-';
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}
