import { describe, expect, it } from 'vitest';
import { deviceLines, layerRanges, placementTable, table } from '../../lib/cli/format.js';
import { bar, LoadingBar } from '../../lib/cli/progress.js';
import { type Output, styled } from '../../lib/cli/terminal.js';

const MIB = 1024 * 1024;

function screen(isTTY: boolean): Output & { text: string } {
  return {
    isTTY,
    text: '',
    hasColors: () => isTTY,
    write(chunk: string | Uint8Array) {
      this.text += String(chunk);
      return true;
    },
  };
}

describe('layerRanges', () => {
  it.each([
    [[], 'none'],
    [[3], '3'],
    [[0, 1, 2], '0-2'],
    [[0, 2, 3, 5], '0,2-3,5'],
  ])('%j is %s', (layers, text) => {
    expect(layerRanges(layers)).toBe(text);
  });
});

describe('tables', () => {
  it('aligns columns without trailing spaces', () => {
    expect(
      table(
        [
          ['a', 'long', 'x'],
          ['bb', 'c', 'y'],
        ],
        [1],
      ),
    ).toBe('a   long  x\nbb     c  y');
    expect(
      table([
        ['a', 'b'],
        ['a', ''],
      ]),
    ).toBe('a  b\na');
  });

  it('shows who holds what', () => {
    const text = placementTable([
      { device: 'master', layers: [0, 1, 2], head: true, bytes: 345 * MIB },
      { device: '192.168.37.219:60000', layers: [], head: false, bytes: 115 * MIB },
    ]);
    expect(text.split('\n')).toEqual([
      'device                layers  head     MiB  share',
      'master                0-2     yes   345.00  75.0%',
      '192.168.37.219:60000  none    no    115.00  25.0%',
    ]);
    expect(placementTable([{ device: 'master', layers: [], head: false, bytes: 0 }])).toContain('0.0%');
  });

  it('shows devices in MiB', () => {
    expect(deviceLines([{ name: 'CPU', description: 'A76', memoryTotal: 11358 * MIB, memoryFree: 9.9 * MIB }])).toEqual(
      ['  CPU: A76 (11358 MiB, 9 MiB free)'],
    );
  });
});

describe('LoadingBar', () => {
  it('fills', () => {
    expect([0, 0.5, 1, 2].map((fraction) => bar(fraction, 4))).toEqual(['[----]', '[##--]', '[####]', '[####]']);
  });

  it('adds a line every ten percent where the output is no terminal', () => {
    const output = screen(false);
    const loading = new LoadingBar(output);
    for (let i = 0; i <= 250; i++) loading.update({ stage: 'text_model', fraction: i / 1000 });
    loading.update({ stage: 'spec_model', fraction: 1 });
    loading.clear();
    expect(output.text).toBe('loading model: 0%\nloading model: 10%\nloading model: 20%\nloading draft model: 100%\n');
  });

  it('redraws one line on a terminal, and takes it away', () => {
    const output = screen(true);
    const loading = new LoadingBar(output);
    loading.update({ stage: 'text_model', fraction: 0.5 });
    loading.update({ stage: 'text_model', fraction: 0.501 });
    loading.clear();
    loading.clear();
    expect(output.text.split('\r')).toHaveLength(3);
    expect(output.text).not.toContain('\n');
    expect(output.text.endsWith('\r\x1b[2K')).toBe(true);
  });
});

describe('styled', () => {
  it('colours terminals only', () => {
    expect(styled(screen(true), 'red', 'x')).toBe('\x1b[31mx\x1b[39m');
    expect(styled(screen(false), 'red', 'x')).toBe('x');
    expect(styled({ ...screen(true), hasColors: () => false }, 'red', 'x')).toBe('x');
  });
});
