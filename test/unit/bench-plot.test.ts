/** The picture of a report. */
import { describe, expect, it } from 'vitest';
import { plotReport } from '../../lib/bench/index.js';
import { escapeXml, ticks } from '../../lib/bench/plot/svg.js';
import { aloneCase, benchReport, splitCase, spreadOf } from '../support/bench-report.js';

interface Node {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly text: string;
}

/** The elements of a document; throws where it is not well-formed. */
function parseXml(document: string): Node[] {
  const nodes: (Node & { text: string })[] = [];
  const open: Node[] = [];
  let at = document.startsWith('<?xml') ? document.indexOf('?>') + 2 : 0;
  const token = /<(\/?)([a-z]+)((?:\s[\w:-]+="[^"<]*")*)(\/?)>|([^<]+)/y;
  while (at < document.length) {
    token.lastIndex = at;
    const match = token.exec(document);
    if (!match) throw new Error(`not well-formed: ${document.slice(at, at + 80)}`);
    at = token.lastIndex;
    const [, closing, name = '', attributes = '', empty, text] = match;
    if (text !== undefined) {
      if (/&(?!(amp|lt|gt|quot|apos);)/.test(text)) throw new Error(`a bare & in ${text}`);
      const inner = nodes.findLast((node) => open.at(-1) === node);
      if (inner) inner.text += text;
      else if (text.trim() !== '') throw new Error(`text outside: ${text}`);
    } else if (closing) {
      if (open.pop()?.name !== name) throw new Error(`</${name}> closes nothing`);
    } else {
      if (/&(?!(amp|lt|gt|quot|apos);)/.test(attributes)) throw new Error(`a bare & in ${attributes}`);
      const pairs = [...attributes.matchAll(/([\w:-]+)="([^"]*)"/g)].map(([, key, value]) => [key, value]);
      const node = { name, attributes: Object.fromEntries(pairs), text: '' };
      nodes.push(node);
      if (!empty) open.push(node);
    }
  }
  if (open.length > 0) throw new Error(`<${open.at(-1)?.name}> is never closed`);
  return nodes;
}

const number = (node: Node | undefined, name: string) => Number(node?.attributes[name]);
const sweep = () =>
  benchReport({
    cases: [
      aloneCase,
      splitCase,
      {
        ...splitCase,
        name: '[0, 1]',
        masterShare: 0,
        prompts: [{ tokens: 512, tokensPerSecond: spreadOf(60), predicted: null }],
      },
    ],
  });

describe('the picture of a sweep', () => {
  const nodes = parseXml(plotReport(sweep()));
  const texts = nodes.filter(({ name }) => name === 'text').map(({ text }) => text);

  it('has titles, axes with units, and a legend', () => {
    for (const text of [
      'droid-llama bench: guide',
      'Prompt, tokens/s',
      'Generation, tokens/s',
      'layers on the master',
      '50 %',
      'milliseconds per token',
      'measured, median and range',
      'predicted',
      'master',
      '10.0.0.2:50052 computing',
      'network',
      'floor',
      '40.0 ms',
    ]) {
      expect(texts).toContain(text);
    }
  });

  it('places speeds by the share and by their size', () => {
    const dots = nodes.filter(({ name }) => name === 'circle');
    expect(dots).toHaveLength(6);
    const [none, half, all] = dots; // of the prompt, by share: 60, 150 and 120 tokens/s
    expect(number(half, 'cx') - number(none, 'cx')).toBeCloseTo(number(all, 'cx') - number(half, 'cx'));
    const perToken = (number(none, 'cy') - number(half, 'cy')) / (150 - 60);
    expect(perToken).toBeGreaterThan(0);
    expect((number(all, 'cy') - number(half, 'cy')) / (150 - 120)).toBeCloseTo(perToken, 1);
  });

  it('draws a bar as long as its time, of the parts of that time', () => {
    const bars = nodes.filter(({ name, attributes }) => name === 'rect' && attributes.height === '18');
    const [alone, master, computing, network] = bars;
    const scale = number(alone, 'width') / 25;
    expect(number(master, 'width') / scale).toBeCloseTo(15, 1);
    expect(number(computing, 'width') / scale).toBeCloseTo(15, 1);
    expect(number(network, 'width') / scale).toBeCloseTo(10, 1);
    expect(number(network, 'x')).toBeCloseTo(number(computing, 'x') + number(computing, 'width'), 1);
    const floors = nodes.filter(({ name, attributes }) => name === 'line' && attributes.class === 'floor');
    expect((number(floors[0], 'x1') - number(alone, 'x')) / scale).toBeCloseTo(32, 1);
  });

  it('stays on the page', () => {
    const { width, height } = nodes[0]?.attributes ?? {};
    for (const node of nodes) {
      for (const name of ['x', 'x1', 'x2', 'cx']) {
        if (node.attributes[name] !== undefined) expect(number(node, name)).toBeLessThanOrEqual(Number(width));
      }
      for (const name of ['y', 'y1', 'y2', 'cy']) {
        if (node.attributes[name] === undefined) continue;
        expect(number(node, name)).toBeGreaterThanOrEqual(0);
        expect(number(node, name)).toBeLessThanOrEqual(Number(height));
      }
    }
  });

  it('has colours for dark pages', () => {
    expect(nodes.find(({ name }) => name === 'style')?.text).toContain('prefers-color-scheme: dark');
  });
});

describe('a picture', () => {
  it('is well-formed whatever the names are', () => {
    const evil = `</text><script>"&'\x00\ud800]]>${'x'.repeat(300)}`;
    const report = sweep();
    const svg = plotReport({
      ...report,
      model: evil,
      machine: { ...report.machine, processor: evil },
      cases: report.cases.map((entry) => ({
        ...entry,
        name: evil,
        generations: entry.generations.map((test) => ({
          ...test,
          breakdown: test.breakdown && {
            ...test.breakdown,
            workers: test.breakdown.workers.map((part) => ({ ...part, endpoint: evil })),
          },
        })),
      })),
    });
    expect(parseXml(svg).some(({ name }) => name === 'script')).toBe(false);
  });

  it('has one line for each ubatch', () => {
    const cases = [64, 512].flatMap((ubatchSize) => [
      { ...aloneCase, ubatchSize },
      { ...splitCase, ubatchSize },
    ]);
    const texts = parseXml(plotReport(benchReport({ cases }))).map(({ text }) => text);
    expect(texts).toContain('ubatch 64');
    expect(texts).toContain('ubatch 512');
  });

  it('has bars alone where there is one split, and is refused where there is nothing', () => {
    const nodes = parseXml(plotReport(benchReport({ cases: [splitCase] })));
    expect(nodes.some(({ name }) => name === 'circle')).toBe(false);
    expect(nodes.some(({ text }) => text === 'Time of one generated token')).toBe(true);
    const cases = [{ ...splitCase, generations: [] }];
    expect(() => plotReport(benchReport({ cases }))).toThrow(
      expect.objectContaining({ code: 'DROID_INVALID_ARGUMENT' }),
    );
  });

  it('is without overlaps in its texts', () => {
    const texts = parseXml(plotReport(sweep())).filter(({ name, text }) => name === 'text' && text !== '');
    const boxes = texts.map((node) => {
      const width = [...node.text].length * 6.7;
      const anchor = node.attributes['text-anchor'];
      const x = number(node, 'x') - (anchor === 'end' ? width : anchor === 'middle' ? width / 2 : 0);
      return { text: node.text, left: x, right: x + width, top: number(node, 'y') - 9, bottom: number(node, 'y') + 2 };
    });
    for (const [i, a] of boxes.entries()) {
      for (const b of boxes.slice(i + 1)) {
        const apart = a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
        expect(apart, `${a.text} and ${b.text}`).toBe(true);
      }
    }
  });
});

it('marks of an axis are round and reach the largest value', () => {
  expect(ticks(97, 5)).toEqual([0, 20, 40, 60, 80, 100]);
  expect(ticks(100, 5)).toEqual([0, 20, 40, 60, 80, 100]);
  expect(ticks(0.7, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8]);
  expect(ticks(0, 5)).toEqual([0, 1]);
  expect(escapeXml('<a b="c">&\u0007</a>')).toBe('&lt;a b=&quot;c&quot;&gt;&amp;&lt;/a&gt;');
});
