import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { createProgram, prepareArgs } from '../../lib/cli/program.js';
import {
  byteSize,
  defaultCacheDir,
  endpoints,
  integer,
  isSwitchedOn,
  scaledLoras,
  seconds,
  shares,
} from '../../lib/cli/values.js';
import { type WorkerOptions, workerFlags } from '../../lib/cli/worker.js';
import { workerCommand } from '../../lib/cli/worker-process.js';

const serve = (line: string): string[] => prepareArgs(createProgram(), ['serve', ...line.split(' ')]);

describe('arguments of serve', () => {
  it("takes the guide's command as it is", () => {
    const line =
      '-m model.gguf --port 8080 --host 127.0.0.1 --rpc 192.168.37.219:60000 --tensor-split 0.5,0.5 --no-mmap ' +
      '-c 1024 --batch-size 128 --verbose';
    expect(serve(line)).toEqual([
      'serve',
      '--model=model.gguf',
      '--port=8080',
      '--host=127.0.0.1',
      '--rpc=192.168.37.219:60000',
      '--tensor-split=0.5,0.5',
      '--no-mmap',
      '--ctx-size=1024',
      '--batch-size=128',
      '--verbose',
    ]);
  });

  it("keeps llama-server's flags in order, with their values, around its own", () => {
    expect(serve('--spec-type draft -c 64 -ngl -1 -m a.gguf --control-vector-layer-range 1 4 -ctk q8_0 -np 2')).toEqual(
      ['serve', '--ctx-size=64', '--model=a.gguf', '--parallel=2', '--'].concat(
        '--spec-type draft -ngl -1 --control-vector-layer-range 1 4 -ctk q8_0'.split(' '),
      ),
    );
  });

  it.each([
    ['-ub 32', '--ubatch-size=32'],
    ['-ts 1/3', '--tensor-split=1/3'],
    ['-md d.gguf', '--model-draft=d.gguf'],
    ['--embedding', '--embeddings'],
    ['--rerank', '--reranking'],
    ['--ctx_size 8', '--ctx-size=8'],
    ['--ctx-size=8', '--ctx-size=8'],
    ['-t -1', '--threads=-1'],
    ['--token -m_is_not_a_flag_here-', '--token=-m_is_not_a_flag_here-'],
    ['--insecure', '--insecure'],
    ['-h', '--help'],
  ])('understands %s', (line, expected) => {
    expect(serve(line)).toEqual(['serve', expected]);
  });

  it('leaves everything after -- alone', () => {
    expect(serve('-m a --flag -- -m b --')).toEqual(['serve', '--model=a', '--', '--flag', '-m', 'b', '--']);
  });

  it.each([
    ['-m', /'-m' needs a value/],
    ['-m --rpc a:1', /'-m' needs a value/],
    ['-m -- x', /'-m' needs a value/],
    ['--token --insecure', /'--token' needs a value/],
    ['model.gguf', /unexpected argument 'model.gguf'/],
    ['-m a b', /unexpected argument 'b'/],
    ['--flag 1 2 3', /unexpected argument '3'/],
    ['--no-mmap=1', /takes no value/],
  ])('refuses %s', (line, message) => {
    expect(() => serve(line)).toThrow(message);
  });

  it('leaves other commands alone', () => {
    const args = ['worker', '-H', '0.0.0.0', '-p', '60000', '-t', '4', '-c'];
    expect(prepareArgs(createProgram(), args)).toEqual(args);
  });
});

describe('flags of a worker process', () => {
  const parse = (args: readonly string[]): WorkerOptions => {
    const command = createProgram().commands.find((candidate) => candidate.name() === 'worker');
    const { operands, unknown } = command?.parseOptions([...args]) ?? {};
    expect([operands, unknown]).toEqual([[], []]);
    return command?.opts() as WorkerOptions;
  };

  it.each([
    '',
    '-H :: -p 0 -t -1 -c --json --insecure',
    '--host=-odd --threads 4 --memory 1.5G --client-memory 300K --max-clients 1 --cache=-dir --cache-limit 7B --verbose',
  ])('are those of the command: %j', (line) => {
    const options = parse(line.split(' ').filter(Boolean));
    expect(parse(workerFlags({ ...options, port: 4242 }))).toEqual({ ...options, port: 4242 });
  });

  it('never hold the token, which every user of the device could read there', () => {
    const token = 'a'.repeat(22);
    expect(workerFlags(parse(['--token', token])).join(' ')).not.toContain(token);
    expect(workerCommand([], token).env).toMatchObject({ DROID_LLAMA_TOKEN: token });
    vi.stubEnv('DROID_LLAMA_TOKEN', token);
    onTestFinished(() => {
      vi.unstubAllEnvs();
    });
    expect(workerCommand([], undefined).env).not.toHaveProperty('DROID_LLAMA_TOKEN');
  });

  it('ask for a child of their own only where the user has not', () => {
    expect(parse([])).toMatchObject({ supervisor: true, maxClients: 8 });
    expect(parse(['--no-supervisor']).supervisor).toBe(false);
  });
});

describe('values of flags', () => {
  it('reads sizes as MiB or with a unit', () => {
    const mib = 2 ** 20;
    expect(['512', '512M', '512m', '512MiB', '512MB'].map(byteSize)).toEqual(Array(5).fill(512 * mib));
    expect(['2G', '1.5G', '800K', '4096B', '1T', '0.5'].map(byteSize)).toEqual([
      2048 * mib,
      1536 * mib,
      800 * 1024,
      4096,
      2 ** 40,
      mib / 2,
    ]);
    for (const text of ['', '0', '-1', 'G', '1X', '1 G', '1.G', '1e3', '1BB', '1iB', '99999999T']) {
      expect(() => byteSize(text), text).toThrow(/MiB or a size/);
    }
  });

  it('reads seconds as milliseconds', () => {
    expect(['10', '0.5', '0.001', '2147483'].map(seconds)).toEqual([10_000, 500, 1, 2_147_483_000]);
    for (const text of ['', '0', '0.0001', '-1', '1s', '1e3', '2147484', 'Infinity']) {
      expect(() => seconds(text), text).toThrow(/number of seconds/);
    }
  });

  it('reads shares with commas or slashes', () => {
    expect(shares('0.5,0.5')).toEqual([0.5, 0.5]);
    expect(shares('1/3')).toEqual([1, 3]);
    for (const text of ['', '1,', '1,x', '-1,2', 'Infinity,1']) expect(() => shares(text)).toThrow(/share per device/);
  });

  it('reads integers within bounds', () => {
    expect(integer(0, 10)('10')).toBe(10);
    for (const text of ['', '11', '-1', '1.5', '0x1', '1e1', ' 1']) {
      expect(() => integer(0, 10)(text)).toThrow('It must be an integer from 0 to 10.');
    }
  });

  it('collects endpoints over several flags and checks each', () => {
    expect(endpoints('b:2, [::1]:3', ['a:1'])).toEqual(['a:1', 'b:2', '[::1]:3']);
    expect(() => endpoints('a:1,')).toThrow(/port is missing/);
  });

  it('reads scaled LoRA adapters', () => {
    expect(scaledLoras('a.gguf:0.5,b.gguf:-2')).toEqual([
      { path: 'a.gguf', scale: 0.5 },
      { path: 'b.gguf', scale: -2 },
    ]);
    for (const text of ['a.gguf', 'a.gguf:', ':1', 'a:x']) expect(() => scaledLoras(text)).toThrow(/file:scale/);
  });

  it('keeps the cache where XDG says, or under the home directory', () => {
    expect(defaultCacheDir({ XDG_CACHE_HOME: '/x' })).toBe('/x/droid-llama/rpc');
    expect(defaultCacheDir({ XDG_CACHE_HOME: 'x' })).toMatch(/\/\.cache\/droid-llama\/rpc$/);
    expect(defaultCacheDir({})).toMatch(/\/\.cache\/droid-llama\/rpc$/);
  });

  it('reads switches from the environment', () => {
    expect(['1', 'yes', '0', '', undefined].map(isSwitchedOn)).toEqual([true, true, false, false, false]);
  });
});
