/** The README quotes the benchmark as it came out. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { projectRoot } from '../support/paths.js';

const read = (path: string) => readFileSync(join(projectRoot, path), 'utf8');

/** The rows of the first table below a heading. */
function tableBelow(text: string, heading: string): string[] {
  const lines = text.split('\n');
  const from = lines.indexOf(heading);
  const start = lines.findIndex((line, i) => i > from && line.startsWith('|'));
  const end = lines.findIndex((line, i) => i > start && !line.startsWith('|'));
  return from < 0 || start < 0 ? [] : lines.slice(start, end);
}

it('quotes docs/bench/versus-upstream.md word for word', () => {
  const measured = tableBelow(read('docs/bench/versus-upstream.md'), '## What is to be reached');
  expect(measured.length).toBeGreaterThan(5);
  expect(tableBelow(read('README.md'), '## How fast it is')).toEqual(measured);
});

it('quotes the run whose measurements are in docs/bench/versus-upstream.json', () => {
  const { about } = JSON.parse(read('docs/bench/versus-upstream.json')) as { about: { date: string } };
  expect(read('docs/bench/versus-upstream.md')).toContain(` on ${about.date.slice(0, 10)}, `);
});
