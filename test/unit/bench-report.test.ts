/** A benchmark's report as text. */
import { describe, expect, it } from 'vitest';
import { csvCell, formatReport, reportSections } from '../../lib/cli/bench-report.js';
import { benchReport, splitCase, worker } from '../support/bench-report.js';

const lines = (text: string) => text.split('\n');
const lineOf = (text: string, ...parts: string[]) =>
  lines(text).find((line) => parts.every((part) => line.includes(part)));

describe('a report as tables', () => {
  const text = formatReport(benchReport(), 'table', 100);

  it('shows predicted beside measured, the floor and how far it is', () => {
    expect(
      lineOf(text, '[0.5, 0.5]', 'tg128', '%')
        ?.trim()
        .split(/\s{2,}/),
    ).toEqual(['[0.5, 0.5]', 'tg128', '25.0', '(23.0–27.0)', '28.0', '31.3', '80 %']);
    expect(lineOf(text, 'one device', 'pp512')).toMatch(/120 +\(119–121\) +130$/);
  });

  it('shows what a token spends its time with, and what passes for it', () => {
    expect(lineOf(text, '[0.5, 0.5]', '40.0')).toMatch(/tg128 +40\.0 +15\.0 +15\.0 +10\.0$/);
    expect(lineOf(text, worker, '7927')).toMatch(/7927 +3600 +3\.00 +1\.00$/);
    expect(lineOf(text, worker, '1.00', '15.0')).toMatch(/2\.0 +1\.00 +15\.0 +10\.0$/);
    expect(lineOf(text, '[0.5, 0.5]', '333')).toMatch(/4 +200 +333 +111 +155$/);
    expect(lineOf(text, worker, '50.0')).toMatch(/5\.00 +50\.0 +40\.0$/);
    expect(lineOf(text, 'warm')).toMatch(/1\.25 +0\.0 +1\.0$/);
  });

  it('leaves out tables without anything in them', () => {
    const titles = reportSections(benchReport({ links: [], cases: [{ ...splitCase, streams: [], workers: [] }] }));
    expect(titles.map(({ title }) => title)).toEqual([
      'Placement',
      'Loading',
      'Speed in tokens/s',
      'Where one token spends its milliseconds',
      'The least it could take',
    ]);
  });

  it('fits a terminal of 80 columns, and a phone held upright', () => {
    expect(
      lines(formatReport(benchReport(), 'table', 80))
        .filter((line) => /^\S.{80}/.test(line))
        .slice(1),
    ).toEqual([]);
    const narrow = lines(formatReport(benchReport({ notes: [] }), 'table', 40)).slice(2);
    expect(narrow.filter((line) => line.length > 60)).toEqual([]);
    expect(narrow).toContain('  of floor: 80 %');
  });

  it('lets no name write on the terminal', () => {
    const named = formatReport(
      benchReport({ model: 'evil\x1b[2J', cases: [{ ...splitCase, name: 'a\nb\x07' }] }),
      'table',
    );
    expect(named.replaceAll('\n', '')).not.toMatch(/\p{Cc}/u);
    expect(named).toContain('a b');
  });

  it('says unknown things with a dash', () => {
    const [plain] = splitCase.workers;
    const entry = {
      ...splitCase,
      workers: [{ ...plain, computeMsPerToken: null, networkMsPerToken: null, memoryBytes: null }],
    };
    const shown = formatReport(benchReport({ cases: [entry as typeof splitCase] }), 'table', 100);
    expect(lineOf(shown, worker, '1.00', '-')).toMatch(/- +1\.00 +- +-$/);
  });
});

describe('a report as Markdown', () => {
  const text = formatReport(benchReport({ cases: [{ ...splitCase, name: 'a|b<c>' }] }), 'md');

  it('has a table for each section, with numbers to the right', () => {
    expect(text).toContain('**Speed in tokens/s**\n\n| case | test | t/s | range | predicted | floor | of floor |\n');
    expect(text).toContain('| --- | --- | ---: | --- | ---: | ---: | ---: |');
    expect(text).toContain('- Something was assumed.');
  });

  it('escapes what would be read as Markdown', () => {
    expect(text).toContain('| a\\|b\\<c> | tg128 | 25.0 |');
    for (const line of lines(text).filter((row) => row.startsWith('| a'))) {
      expect(line.replaceAll('\\|', '').split('|').length).toBeGreaterThan(4);
    }
  });
});

describe('a report as CSV', () => {
  it('quotes what needs it', () => {
    expect(csvCell('a,b')).toBe('"a,b"');
    expect(csvCell('say "x"')).toBe('"say ""x"""');
    expect(csvCell('a\nb')).toBe('"a\nb"');
    expect(csvCell(0.25)).toBe('0.25');
    expect(csvCell(null)).toBe('');
  });

  it('has one number a line, all lines with as many cells', () => {
    const { date, model } = benchReport();
    const [head, ...measured] = lines(formatReport(benchReport(), 'csv'));
    expect(head).toBe('date,model,case,ubatch,threads,device,test,unit,median,min,max,predicted,floor');
    const rows = measured.map((row) => row.replace(`${date},${model},`, ''));
    expect(rows).toContain('"[0.5, 0.5]",,4,,tg128,tokens/s,25,23,27,28,31.25');
    expect(rows).toContain(`"[0.5, 0.5]",,4,${worker},sent,bytes/token,7927,,,,`);
    expect(rows).toContain('"[0.5, 0.5]",,4,,"load 1, cold",s,20,,,,');
    expect(rows).toContain('"[0.5, 0.5]",,4,,"load 2, warm",s,1.25,,,,');
    expect(rows).toContain(`,,,${worker},up,bytes/s,6250000,,,,`);
    for (const row of rows) expect(row.replace(/"[^"]*"/g, '').split(',')).toHaveLength(11);
  });
});

it('a report as JSON is one line with everything', () => {
  const report = benchReport();
  const text = formatReport(report, 'json');
  expect(text).not.toContain('\n');
  expect(JSON.parse(text)).toEqual(report);
});
