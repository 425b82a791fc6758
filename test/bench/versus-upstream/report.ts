/** A run as a page of Markdown. */
import { LINKS } from './links.js';
import { STREAM_TOKENS } from './schedule.js';
import type { Ratio, Spread } from './statistics.js';
import type { LinkSummary, Row, Summary } from './summary.js';
import type { Outcome, Quantity, Verdict } from './targets.js';

export function report(summary: Summary): string {
  const { about, links } = summary;
  return [
    '# droid-llama and upstream’s programs on the same phones',
    '',
    `As it came out of \`${about.command}\` on ${about.date.slice(0, 10)}, on ${about.machine}; ${about.versions}. The model is ` +
      `\`${about.model}\`.`,
    '',
    ...howItWasMeasured(summary),
    '',
    ...(summary.targets.length > 0 ? ['## What is to be reached', '', ...targetTable(summary), ''] : []),
    ...links.flatMap((link) => [...linkSection(link), '']),
    ...ubatchSection(links),
    ...trafficSection(links),
    ...commandSection(summary),
    ...problems(summary),
  ]
    .join('\n')
    .replace(/\n{3,}/g, '\n\n');
}

function howItWasMeasured({ about, links }: Summary): string[] {
  return [
    ...about.conditions.map((line) => `- ${line}`),
    ...busyness(links),
    `- The contenders take turns: in every round (${about.rounds} of them) each is started, warmed up, measured and ended, and each round begins ` +
      'with another one. Nothing of the others runs meanwhile.',
    `- Numbers are medians, in brackets the smallest and the largest, and ×n where n is not ${about.rounds}. A prompt has ${about.promptTokens} ` +
      `tokens, a generation ${about.generatedTokens} after a prompt of 16; speeds are the server’s own timings, which ` +
      `\`droid-llama bench --url\` asks of both programs. Streams are four requests at once of ${STREAM_TOKENS} tokens each, by the clock of the client.`,
    '- A load is from the start of the master’s process until `/health` answers 200, asked every 20 ms. It is cold when the worker ' +
      'has never seen the model, and warm when another master loaded it before, the worker still runs, and only the master is new. ' +
      'The model file itself is in the page cache of the master’s phone. On loopback the call of the library is timed as well, in a ' +
      'process that runs already: the other rows have the start of Node in them.',
    '- Before prompts and generations are measured, weights go over a link as fast as the machine; then the link becomes what it is ' +
      'said to be, and the warm-up follows. Loads are measured on their own, over the real link.',
    `- The ubatch is the one of ${sweptUbatches(links)} with the quickest prompt, found anew for each link and contender, unless it says otherwise.`,
    '- The floor is what a token takes on one phone alone (droid-llama, same round) + one round trip + ' +
      '(3 × n_embd × 4 + 2 × n_kv) bytes ÷ bandwidth.',
    '- † looks up what to say next in what was said before and verifies several tokens at once: its speed depends on the text. ' +
      'The model’s weights are random, so its text stands for no other. How many drafts were right is of one completion of its own.',
  ];
}

/** A reader sees by it whether something else computed meanwhile. */
function busyness(links: readonly LinkSummary[]): string[] {
  const loads = links.flatMap(({ measured }) => (measured ? [measured.loadAverage] : []));
  if (loads.length === 0) return [];
  const least = Math.min(...loads.map(({ min }) => min)).toFixed(1);
  const most = Math.max(...loads.map(({ max }) => max)).toFixed(1);
  return [`- The load average at the beginning of each round was ${least} to ${most}; a contender alone makes 1 to 2.`];
}

function sweptUbatches(links: readonly LinkSummary[]): string {
  const all = links.flatMap(({ rows }) => rows.flatMap(({ sweep }) => sweep.map(({ ubatch }) => ubatch)));
  return [...new Set(all)].sort((a, b) => a - b).join(', ');
}

function targetTable({ targets, links }: Summary): string[] {
  const title = (name: string) => links.find((link) => link.name === name)?.title ?? name;
  return table(
    ['link', 'droid-llama `[0.5, 0.5]`', 'against', 'at least', 'plain', 'per round', '', 'encrypted', ''],
    targets.map((outcome) => {
      const { target, plain, encrypted } = outcome;
      return [
        title(target.link).split(',')[0] ?? '',
        `${target.quantity}${target.of === undefined ? '' : ' (call, not command)'}${target.stretch ? ' (stretch)' : ''}`,
        againstWhom(outcome, links),
        `${target.bar} ×`,
        times(plain),
        plain?.perRound ? `${plain.perRound.min.toFixed(2)}–${plain.perRound.max.toFixed(2)}` : '',
        word(plain),
        times(encrypted),
        target.of === undefined ? word(encrypted) : '',
      ];
    }),
  );
}

function againstWhom({ target, other }: Outcome, links: readonly LinkSummary[]): string {
  if (target.against === 'floor') return 'the floor';
  const ids = other === null ? target.against : [other];
  const rows = links.flatMap(({ rows }) => rows);
  return ids.map((id) => rows.find(({ contender }) => contender.id === id)?.contender.title ?? id).join(' or ');
}

function word(verdict: Verdict | null): string {
  if (verdict === null) return 'not measured';
  return verdict.reached ? 'reached' : '**not reached**';
}

function times(ratio: Ratio | null): string {
  return ratio === null ? '–' : `${ratio.ratio.toFixed(2)} ×`;
}

function linkSection(link: LinkSummary): string[] {
  const rounds = Math.max(0, ...link.rows.map(({ quantities }) => quantities.generation?.count ?? 0));
  const cell = (row: Row, quantity: Quantity, digits: number) => spread(row.quantities[quantity], digits, rounds);
  const few = LINKS.find(({ name }) => name === link.name)?.fewerTokens ?? {};
  return [
    `## ${capital(link.title)}`,
    '',
    ...table(
      [
        '',
        'ubatch',
        'cold load s',
        'warm load s',
        'prompt t/s',
        'generation t/s',
        '4 streams t/s',
        'first token of 4 ms',
      ],
      link.rows.map((row) => [
        row.contender.title + (few[row.contender.id] ? ` (generations of ${few[row.contender.id]})` : ''),
        row.ubatch === null ? 'own' : String(row.ubatch),
        cell(row, 'cold load', 2),
        cell(row, 'warm load', 2),
        cell(row, 'prompt', 1),
        cell(row, 'generation', 2) + (row.acceptance === null ? '' : `, ${percent(row.acceptance)} of drafts right`),
        cell(row, 'streams', 1),
        spread(row.firstTokenMs, 0, rounds),
      ]),
    ),
    '',
    ...measuredLink(link),
    ...breakdowns(link),
  ];
}

function measuredLink({ measured, floor, floorShare, rows }: LinkSummary): string[] {
  if (!measured) return [];
  const { roundTripMs, upBytesPerSecond, downBytesPerSecond } = measured;
  const link =
    `Round trip ${roundTripMs.median.toFixed(2)} ms (${roundTripMs.min.toFixed(2)}–${roundTripMs.max.toFixed(2)}), ` +
    `${mbit(upBytesPerSecond.median)} Mbit/s up, ${mbit(downBytesPerSecond.median)} down.`;
  if (!floor) return [link, ''];
  const shares = Object.entries(floorShare).flatMap(([name, share]) =>
    share === null ? [] : [`${percent(share.ratio)} ${name}`],
  );
  const split = rows.some(({ contender }) => contender.worker);
  const text =
    `The floor of a split is ${floor.tokensPerSecond.toFixed(2)} t/s: ${floor.computeMs.toFixed(1)} ms computing, ` +
    `${floor.roundTripMs.toFixed(1)} ms round trip, ${floor.transferMs.toFixed(1)} ms transfer. ` +
    `droid-llama’s \`[0.5, 0.5]\` reaches ${shares.join(', ')}.`;
  return [link, ...(split && shares.length > 0 ? [text] : []), ''];
}

function breakdowns({ rows }: LinkSummary): string[] {
  const known = rows.flatMap(({ contender, breakdown }) => (breakdown ? [{ contender, ...breakdown }] : []));
  if (known.length === 0) return [];
  return [
    'Where the time of a token goes (the worker by its own clock, the network what the master waited beyond that):',
    '',
    ...table(
      ['', 'token ms', 'master ms', 'worker ms', 'network ms', 'waits', 'writes'],
      known.map((row) => [
        row.contender.title,
        row.totalMs.toFixed(1),
        row.masterMs.toFixed(1),
        row.workerMs.toFixed(1),
        row.networkMs.toFixed(1),
        row.waits.toFixed(2),
        row.writes.toFixed(2),
      ]),
    ),
  ];
}

function ubatchSection(links: readonly LinkSummary[]): string[] {
  const rows = links.flatMap(({ title, rows }) => rows.map((row) => ({ title, row })));
  const swept = rows.filter(({ row }) => row.sweep.length > 0);
  const sizes = [...new Set(swept.flatMap(({ row }) => row.sweep.map(({ ubatch }) => ubatch)))].sort((a, b) => a - b);
  if (swept.length === 0) return [];
  return [
    '## Prompt by ubatch',
    '',
    'Tokens per second, the best of one or two prompts each; one phone alone uses no link, so it is measured once.',
    '',
    ...table(
      ['', 'link', ...sizes.map(String)],
      swept.map(({ title, row }) => [
        row.contender.title,
        row.contender.worker ? title : '–',
        ...sizes.map((size) => row.sweep.find(({ ubatch }) => ubatch === size)?.promptPerSecond.toFixed(1) ?? '–'),
      ]),
    ),
    '',
  ];
}

function trafficSection(links: readonly LinkSummary[]): string[] {
  const counted = links.flatMap(({ title, rows }) =>
    rows.flatMap(({ contender, traffic }) => (traffic ? [{ ...traffic, title, contender }] : [])),
  );
  if (counted.length === 0) return [];
  return [
    '## Messages and bytes of a generated token',
    '',
    'Counted by a proxy between master and worker, in a run of its own.',
    '',
    ...table(
      ['', 'link', 'requests', 'bytes up', 'answers', 'bytes down'],
      counted.map((row) => [
        row.contender.title,
        row.title,
        row.messagesSent.toFixed(2),
        row.bytesSent.toFixed(0),
        row.messagesReceived.toFixed(2),
        row.bytesReceived.toFixed(0),
      ]),
    ),
    '',
  ];
}

function commandSection({ about, links }: Summary): string[] {
  const titles = new Map(links.flatMap(({ rows }) => rows.map(({ contender }) => [contender.id, contender.title])));
  const commands = Object.entries(about.commands).flatMap(([id, { master, worker }]) => [
    `# ${titles.get(id) ?? id}`,
    ...(worker === null ? [] : [worker]),
    master,
  ]);
  return [
    '## Commands',
    '',
    'The worker’s, then the master’s; B is the worker’s phone.',
    '',
    '```sh',
    ...commands,
    '```',
    '',
  ];
}

function problems({ missing, failures }: Summary): string[] {
  if (missing.length + failures.length === 0) return [];
  return [
    '## What could not be measured',
    '',
    ...missing.map((line) => `- ${line}`),
    ...failures.map(
      ({ link, contender, what, message }) => `- ${link}: ${contender}: ${what}: ${message.split('\n')[0]}`,
    ),
    '',
  ];
}

function spread(value: Spread | null, digits: number, usual: number): string {
  if (value === null) return '–';
  const { median, min, max, count } = value;
  const range = count > 1 ? ` (${min.toFixed(digits)}–${max.toFixed(digits)})` : '';
  return `${median.toFixed(digits)}${range}${count === usual ? '' : ` ×${count}`}`;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(line)];
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}

function mbit(bytesPerSecond: number): string {
  return ((bytesPerSecond * 8) / 1e6).toFixed(1);
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
