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
import { checkMacho } from '../../scripts/macho.mjs';
import { type ElfRules, gnuSymbols, TARGETS } from '../../scripts/prebuild-targets.mjs';
import { buildBionic, noAndroid, onAndroid } from '../support/android.js';
import { fetchNode, noArm64, onArm64, PROCESSORS } from '../support/arm64.js';
import { projectRoot, tinyModel } from '../support/paths.js';

const MINUTE = 60_000;
/** Three targets, eleven levels, without a warm compiler cache on two busy cores. */
const BUILD_BUDGET = 60 * MINUTE;
/** An emulated Node is some twenty times slower. */
const EMULATED = 5 * MINUTE;

const run = promisify(execFile);
const unavailable = process.env.CI ? undefined : (noArm64() ?? noAndroid());
const prebuilt = (target: string) => join(projectRoot, 'prebuilds', TARGETS[target]?.file ?? 'none');
const rules = (target: string) => TARGETS[target]?.elf as ElfRules;
const MADE_HERE = ['linux-x64', 'linux-arm64', 'android-arm64'];
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
  let bionic: string;

  beforeAll(async () => {
    arm64 = await fetchNode();
    bionic = await buildBionic();
    await run('npm', ['run', 'prebuild'], {
      cwd: projectRoot,
      // Without an NDK also where there is one: the experiment is what is tested here.
      env: { ...process.env, ANDROID_NDK_HOME: '' },
      timeout: BUILD_BUDGET,
    });
  }, BUILD_BUDGET);

  it.each(MADE_HERE)('of %s ask nothing of a machine that it may not have', async (target) => {
    expect(checkElf(prebuilt(target), rules(target), [projectRoot])).toEqual([]);
    expect((await stat(prebuilt(target))).size).toBeLessThan(32 * 2 ** 20);
    expect(await readdir(join(projectRoot, 'prebuilds', target))).toHaveLength(1);
  });

  it('are refused for another machine, and when they ask for more', () => {
    const strict = { ...rules('linux-arm64'), imports: gnuSymbols({ GLIBC: '2.2' }), libraries: /^libc\.so\.6$/ };
    const wrong = checkElf(prebuilt('linux-x64'), strict, ['napi_']);
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
      expect(checkElf(bad, rules('linux-x64'))).toEqual(
        expect.arrayContaining([
          'it wants a stack that can be executed',
          'a segment is aligned to 0x1000, less than 16 KiB',
          'it has a run path',
          'its symbols are not bound when it is loaded',
          "nobody is nobody's",
          expect.stringContaining('it exports exported'),
        ]),
      );
      await writeFile(
        source,
        'static int x;\nint *pointer = &x;\n__thread int own;\nint *use(void) { return &own; }\n',
      );
      const lld = ['-shared', '-fPIC', '-fuse-ld=lld-19', '-Wl,-z,execstack', '-Wl,--pack-dyn-relocs=relr'];
      await run('clang-19', [...lld, '-o', bad, source]);
      expect(checkElf(bad, { ...rules('linux-x64'), tls: false })).toEqual(
        expect.arrayContaining([
          'it wants a stack that can be executed',
          'it has variables of threads that the loader has to know',
          'it has packed relocations, which older loaders do not know',
        ]),
      );
      const inline = join(directory, 'inline.cc');
      await writeFile(inline, 'struct A { static inline int x = 1; };\nint * use() { return &A::x; }\n');
      const object = join(directory, 'inline.o');
      await run('x86_64-linux-gnu-g++', ['-c', '-fPIC', '-std=c++17', '-o', object, inline]);
      await run('clang-19', ['-shared', '-fuse-ld=lld-19', '-Wl,-z,nognustack', '-o', bad, object]);
      expect(checkElf(bad, rules('linux-x64'))).toEqual(
        expect.arrayContaining([
          'it does not say that its stack is not to be executed',
          expect.stringMatching(/^it exports .*_ZN1A1xE/),
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

  it('for Android are refused with symbols of glibc and of later Androids', async () => {
    const wrong = checkElf(prebuilt('linux-arm64'), rules('android-arm64'));
    expect(wrong).toEqual(expect.arrayContaining(['it needs libc.so.6', 'malloc is of GLIBC_2.17']));
    const directory = await mkdtemp(join(tmpdir(), 'droid-elf-'));
    try {
      // In Android since API level 26, in bionic's LIBC_O.
      const [source, script, later] = ['later.c', 'later.map', 'libc.so'].map((name) => join(directory, name)) as [
        string,
        string,
        string,
      ];
      await writeFile(source, 'int getsubopt(void) { return 0; }\n');
      await writeFile(script, 'LIBC_O { global: getsubopt; };\n');
      await run('aarch64-linux-gnu-gcc', [
        ...['-shared', '-fPIC', '-nostdlib', '-Wl,-soname,libc.so', `-Wl,--version-script,${script}`],
        ...['-o', later, source],
      ]);
      const user = join(directory, 'user.node');
      await writeFile(source, 'int getsubopt(void);\nint use(void) { return getsubopt(); }\n');
      await run('aarch64-linux-gnu-gcc', ['-shared', '-fPIC', '-nostdlib', '-o', user, source, later]);
      expect(checkElf(user, rules('android-arm64'))).toContain('getsubopt is of LIBC_O');
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('for macOS are refused for each thing that would not do', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'droid-macho-'));
    try {
      const [source, object, addon] = ['a.c', 'a.o', 'a.node'].map((name) => join(directory, name)) as [
        string,
        string,
        string,
      ];
      const seen = ['napi_register_module_v1', 'node_api_module_get_api_version_v1'];
      await writeFile(source, seen.map((name) => `int ${name}(void) { return 8; }\n`).join(''));
      await run('clang-19', ['--target=arm64-apple-macos13.5', '-c', source, '-o', object]);
      const link = ['-arch', 'arm64', '-platform_version', 'macos', '13.5', '13.5', '-undefined', 'dynamic_lookup'];
      await run('ld64.lld-19', [...link, '-bundle', '-o', addon, object]);
      const macho = TARGETS['darwin-arm64']?.macho as NonNullable<(typeof TARGETS)[string]['macho']>;
      expect(checkMacho(addon, macho, [projectRoot])).toEqual([]);
      expect(checkMacho(addon, { ...macho, cpu: 'x86_64', oldest: '12.0' }, ['napi_'])).toEqual([
        'it is for arm64, not x86_64',
        'it is for macOS 13.5, not 12.0',
        'it holds the path napi_',
      ]);
      await writeFile(source, 'int more(void) { return 8; }\n');
      await run('clang-19', ['--target=arm64-apple-macos13.5', '-c', source, '-o', object]);
      const library = join(directory, 'libother.dylib');
      await run('ld64.lld-19', [...link, '-dylib', '-install_name', '/opt/libother.dylib', '-o', library, object]);
      await run('ld64.lld-19', [
        ...link,
        '-dylib',
        '-rpath',
        '/opt',
        '-o',
        addon,
        object,
        library,
        '-needed_library',
        library,
      ]);
      expect(checkMacho(addon, macho)).toEqual([
        'it is no bundle',
        expect.stringMatching(/^it (needs \/opt\/libother\.dylib|has a run path)$/),
        expect.stringMatching(/^it (needs \/opt\/libother\.dylib|has a run path)$/),
        'it exports _more',
      ]);
      expect(checkMacho(source, macho)).toEqual(['it is no Mach-O file of 64 bits']);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  });

  it('are not published when one is missing or was made without an NDK', async () => {
    const check = async () => {
      const failed = await run(process.execPath, ['scripts/prebuild.mjs', '--check'], { cwd: projectRoot }).catch(
        (error: { stdout: string; stderr: string }) => error,
      );
      return { there: failed.stdout.split('\n').slice(0, -1), wrong: failed.stderr.split('\n').slice(1, -1) };
    };
    const absent = [/ prebuilds\/darwin-arm64\/\S+ is missing/, / prebuilds\/darwin-x64\/\S+ is missing/];
    const withoutNdk = / prebuilds\/android-arm64\/droid-llama.node was made without an NDK/;
    const matching = (patterns: readonly RegExp[]) => patterns.map((pattern) => expect.stringMatching(pattern));
    const all = await check();
    expect(all.there).toEqual(matching(MADE_HERE.map((target) => new RegExp(`^prebuilds/${target}/.* MiB packed$`))));
    expect(all.wrong).toEqual(matching([withoutNdk, ...absent]));
    const hidden = `${prebuilt('linux-arm64')}.hidden`;
    await rename(prebuilt('linux-arm64'), hidden);
    try {
      expect((await check()).wrong).toEqual(
        matching([/ prebuilds\/linux-arm64\/\S+ is missing/, withoutNdk, ...absent]),
      );
    } finally {
      await rename(hidden, prebuilt('linux-arm64'));
    }
  });

  describe.each(['linux', 'android'])('on %s for arm64', (platform) => {
    /** What node-gyp-build takes for process.platform. */
    const env = { npm_config_platform: platform };
    const node = (processor: keyof typeof PROCESSORS): [string, ...string[]] =>
      platform === 'linux' ? onArm64(processor, arm64) : onAndroid(processor, bionic, arm64);

    it.each(Object.entries(PROCESSORS))(
      'a %s runs the level %s, and the model answers',
      async (processor, level) => {
        const { stdout } = await evaluate(node(processor as keyof typeof PROCESSORS), ALONE, env);
        expect(stdout).toBe(`${level}\n2+2 equals 4.\n`);
      },
      EMULATED,
    );

    it(
      'a processor is never given a level that it cannot run',
      async () => {
        const refused = evaluate(node('cortex-a53'), ALONE, { ...env, DROID_LLAMA_CPU_LEVEL: 'armv8.6' });
        await expect(refused).rejects.toThrow(
          'This processor cannot run the level DROID_LLAMA_CPU_LEVEL=armv8.6; it has the levels armv8.0, armv8.2, armv8.6',
        );
      },
      EMULATED,
    );

    it(
      'a worker computes for a master on x64',
      async () => {
        const [program, ...args] = node('cortex-a76');
        const script = `
          import { startRpcServer } from '${projectRoot}/dist/index.js';
          const worker = await startRpcServer({ host: '127.0.0.1', port: 0, threads: 1 });
          console.log(worker.endpoint);
          process.stdin.on('end', () => worker.close().then(() => process.exit(0))).resume();`;
        const worker = spawn(program, [...args, '--input-type=module', '-e', script], {
          cwd: projectRoot,
          env: { ...environment, ...env },
          stdio: ['pipe', 'pipe', 'inherit'],
        });
        const exited = once(worker, 'exit');
        try {
          const ended = exited.then(([code, signal]) =>
            Promise.reject(new Error(`the worker ended: ${code ?? signal}`)),
          );
          const line = once(createInterface(worker.stdout), 'line');
          const [endpoint] = (await Promise.race([line, ended])) as [string];
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
          await exited;
        }
      },
      EMULATED,
    );
  });

  it(
    'on Android a worker lends at most half of the memory',
    async () => {
      const script = `
        import { totalmem } from 'node:os';
        import { startRpcServer } from '${projectRoot}/dist/index.js';
        const worker = await startRpcServer({ host: '127.0.0.1', port: 0 });
        console.log(worker.devices[0].memoryTotal <= totalmem() / 2);
        await worker.close();`;
      const env = { npm_config_platform: 'android' };
      expect((await evaluate(onAndroid('cortex-a76', bionic, arm64), script, env)).stdout).toBe('true\n');
    },
    EMULATED,
  );

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
