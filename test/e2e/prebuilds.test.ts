/** The addons that the package carries: how they are made, what they need, and that each processor gets its level. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { checkElf, outlineAtomics } from '../../scripts/elf.mjs';
import { TARGETS } from '../../scripts/prebuild-targets.mjs';
import { fetchNode, noArm64, onArm64, PROCESSORS } from '../support/arm64.js';
import { projectRoot, tinyModel } from '../support/paths.js';

const MINUTE = 60_000;
/** Two architectures, four levels and three, without a warm compiler cache on two busy cores. */
const BUILD_BUDGET = 45 * MINUTE;
/** An emulated Node is some twenty times slower. */
const EMULATED = 5 * MINUTE;

const run = promisify(execFile);
const unavailable = process.env.CI ? undefined : noArm64();
const prebuilt = (target: string) => join(projectRoot, 'prebuilds', TARGETS[target]?.file ?? 'none');
/** The addon below prebuilds/, not the one that was compiled here. */
const environment = { ...process.env, PREBUILDS_ONLY: '1' };

const QUESTION = `
  let text = '';
  const request = { messages: [{ role: 'user', content: 'What is 2+2?' }], max_tokens: 16, temperature: 0 };
  for await (const chunk of ctx.chat(request)) text += chunk.choices[0]?.delta.content ?? '';
  console.log(text.trim());
  await ctx.close();`;
/** A whole master on this machine alone, and what it found. */
const ALONE = `
  import { addon } from '${projectRoot}/dist/addon.js';
  import { createDistributedContext } from '${projectRoot}/dist/index.js';
  console.log(addon().buildInfo().cpuLevel);
  const ctx = await createDistributedContext({ model: '${tinyModel}', threads: 2, contextSize: 256 });
  ${QUESTION}`;

function evaluate(command: readonly string[], script: string, env: NodeJS.ProcessEnv = {}) {
  const [program = '', ...args] = command;
  return run(program, [...args, '--input-type=module', '-e', script], {
    cwd: projectRoot,
    env: { ...environment, ...env },
    timeout: EMULATED,
  });
}

describe.skipIf(unavailable)('prebuilt addons', () => {
  let arm64: string;

  beforeAll(async () => {
    arm64 = await fetchNode();
    await run(process.execPath, ['scripts/prebuild.mjs', 'linux-x64', 'linux-arm64'], {
      cwd: projectRoot,
      timeout: BUILD_BUDGET,
    });
  }, BUILD_BUDGET);

  it.each(['linux-x64', 'linux-arm64'])('of %s ask nothing of a machine that it may not have', async (target) => {
    const { elf } = TARGETS[target] as NonNullable<(typeof TARGETS)[string]>;
    expect(checkElf(prebuilt(target), elf, [projectRoot])).toEqual([]);
    expect((await stat(prebuilt(target))).size).toBeLessThan(32 * 2 ** 20);
    expect(await readdir(join(projectRoot, 'prebuilds', target))).toHaveLength(1);
  });

  it('are refused for another machine, and when they ask for more', () => {
    const { elf } = TARGETS['linux-arm64'] as NonNullable<(typeof TARGETS)[string]>;
    const wrong = checkElf(prebuilt('linux-x64'), { ...elf, newest: { GLIBC: '2.2' }, libraries: /^libc\.so\.6$/ }, [
      'napi_',
    ]);
    expect(wrong).toEqual(
      expect.arrayContaining([
        'it is for Advanced Micro Devices X86-64, not AArch64',
        'it needs libm.so.6',
        'it holds the path napi_',
        expect.stringMatching(/ is of GLIBC_2\.\d+(\.\d+)?$/),
        expect.stringMatching(/ is of GLIBCXX_3\.4/),
      ]),
    );
  });

  it('are refused for each thing that a loader would mind', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'droid-elf-'));
    try {
      const source = join(directory, 'bad.c');
      const bad = join(directory, 'bad.node');
      await writeFile(source, 'int nobody(void);\nint exported(void) { return nobody(); }\n');
      const flags = ['-rpath,/opt', '-z,execstack', '-z,max-page-size=4096', '-z,lazy'].map((flag) => `-Wl,${flag}`);
      await run('x86_64-linux-gnu-gcc', ['-shared', '-fPIC', ...flags, '-o', bad, source]);
      const { elf } = TARGETS['linux-x64'] as NonNullable<(typeof TARGETS)[string]>;
      expect(checkElf(bad, elf)).toEqual(
        expect.arrayContaining([
          'it wants a stack that can be executed',
          'a segment is aligned to 0x1000, less than 16 KiB',
          'it has a run path',
          'its symbols are not bound when it is loaded',
          "nobody is nobody's",
          expect.stringContaining('it exports exported'),
        ]),
      );
      const atomics = join(directory, 'atomics.c');
      await writeFile(atomics, 'int more(int * n) { return __atomic_add_fetch(n, 1, __ATOMIC_SEQ_CST); }\n');
      await run('aarch64-linux-gnu-gcc', ['-shared', '-fPIC', '-O2', '-moutline-atomics', '-o', bad, atomics]);
      expect(outlineAtomics(bad)).toEqual(['__aarch64_ldadd4_acq_rel']);
      expect(outlineAtomics(prebuilt('linux-x64'))).toEqual([]);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('are all there when publishing asks, or it is refused', async () => {
    const check = () => run(process.execPath, ['scripts/prebuild.mjs', '--check'], { cwd: projectRoot });
    expect((await check()).stdout).toMatch(
      /^prebuilds\/linux-x64\/.* MiB packed\nprebuilds\/linux-arm64\/.* packed\n$/,
    );
    const hidden = `${prebuilt('linux-arm64')}.hidden`;
    await rename(prebuilt('linux-arm64'), hidden);
    try {
      await expect(check()).rejects.toThrow(/prebuilds\/linux-arm64\/\S+ is missing/);
    } finally {
      await rename(hidden, prebuilt('linux-arm64'));
    }
  });

  describe('on arm64', () => {
    it.each(Object.entries(PROCESSORS))(
      'a %s runs the level %s, and the model answers',
      async (processor, level) => {
        const { stdout } = await evaluate(onArm64(processor as keyof typeof PROCESSORS, arm64), ALONE);
        expect(stdout).toBe(`${level}\n2+2 equals 4.\n`);
      },
      EMULATED,
    );

    it(
      'a processor is never given a level that it cannot run',
      async () => {
        const refused = evaluate(onArm64('cortex-a53', arm64), ALONE, { DROID_LLAMA_CPU_LEVEL: 'armv8.6' });
        await expect(refused).rejects.toThrow(
          'This processor cannot run the level DROID_LLAMA_CPU_LEVEL=armv8.6; it has the levels armv8.0, armv8.2, armv8.6',
        );
      },
      EMULATED,
    );

    it(
      'a worker computes for a master on x64',
      async () => {
        const [program, ...args] = onArm64('cortex-a76', arm64);
        const script = `
          import { startRpcServer } from '${projectRoot}/dist/index.js';
          const worker = await startRpcServer({ host: '127.0.0.1', port: 0, threads: 1 });
          console.log(worker.endpoint);
          process.stdin.on('end', () => worker.close().then(() => process.exit(0))).resume();`;
        const worker = spawn(program, [...args, '--input-type=module', '-e', script], {
          cwd: projectRoot,
          env: environment,
          stdio: ['pipe', 'pipe', 'inherit'],
        });
        try {
          const [endpoint] = (await once(createInterface(worker.stdout), 'line')) as [string];
          const { stdout } = await evaluate(
            [process.execPath],
            `import { createDistributedContext } from '${projectRoot}/dist/index.js';
             const ctx = await createDistributedContext({
               model: '${tinyModel}', rpc: ['${endpoint}'], tensorSplit: [0.5, 0.5], threads: 1, contextSize: 256,
               timeouts: { connectMs: 60000, handshakeMs: 60000, answerMs: 120000 } });
             console.log(ctx.placement.map(({ layers }) => layers.length).join(' '));
             ${QUESTION}`,
          );
          expect(stdout).toBe('3 3\n2+2 equals 4.\n');
        } finally {
          worker.stdin.end();
          await once(worker, 'exit');
        }
      },
      EMULATED,
    );
  });

  describe('on x64', () => {
    it.each([
      ['Nehalem', 'sse4.2'],
      ['Haswell', 'avx2'],
    ])(
      'a %s runs the level %s, and the model answers',
      async (processor, level) => {
        const { stdout } = await evaluate(['qemu-x86_64', '-cpu', processor, process.execPath], ALONE);
        expect(stdout).toBe(`${level}\n2+2 equals 4.\n`);
      },
      EMULATED,
    );

    it('this machine runs every level up to its own', async () => {
      const { stdout } = await evaluate([process.execPath], ALONE);
      const [best] = stdout.split('\n');
      expect(stdout).toBe(`${best}\n2+2 equals 4.\n`);
      for (const level of ['sse4.2', 'avx2']) {
        const forced = await evaluate([process.execPath], ALONE, { DROID_LLAMA_CPU_LEVEL: level });
        expect(forced.stdout).toBe(`${level}\n2+2 equals 4.\n`);
      }
    });
  });
});
