/** The checks of `droid-llama doctor` on machines that the tests make up. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { doctorLines } from '../../lib/cli/doctor.js';
import { CHECKS, examine } from '../../lib/doctor/doctor.js';
import type { CheckResult, Probes } from '../../lib/doctor/types.js';
import { projectRoot } from '../support/paths.js';

const GIB = 2 ** 30;
const options = { port: 8080, clusterPort: 60000, cacheDir: '/home/u/.cache/droid-llama/rpc' };
const wlan =
  (...addresses: string[]) =>
  () => ({
    lo: [{ address: '127.0.0.1', family: 'IPv4' }],
    wlan0: addresses.map((address) => ({ address, family: address.includes(':') ? 'IPv6' : 'IPv4' })),
  });
const forbidden = () => {
  throw Object.assign(new Error('uv_interface_addresses returned Unknown system error 13'), {
    code: 'ERR_SYSTEM_ERROR',
  });
};

/** A computer on which nothing is wrong. */
const computer: Probes = {
  android: false,
  androidSdk: null,
  env: {},
  nodeVersion: 'v20.20.2',
  packageVersion: '1.2.3',
  networkInterfaces: wlan('192.168.43.2', 'fe80::1'),
  localAddressTowards: async () => null,
  sendDatagram: async () => null,
  joinMulticast: async () => null,
  tryListen: async () => null,
  ownUpRuns: async () => false,
  exec: async () => null,
  freeStorage: async () => 20 * GIB,
  memory: () => ({ total: 8 * GIB, available: 4 * GIB }),
  cores: () => ({ clusters: [{ count: 8, megahertz: 3000 }], all: 8, threads: 8 }),
  addon: () => ({ llamaCpp: '0.5.0', rpcProtocol: '7.0.0' }),
};
const phone: Probes = {
  ...computer,
  android: true,
  androidSdk: 34,
  env: { TERMUX_VERSION: '0.118.3', TERMUX_APK_RELEASE: 'F_DROID' },
};

async function check(id: string, probes: Probes): Promise<CheckResult> {
  const found = (await examine(options, probes)).find((result) => result.id === id);
  if (!found) throw new Error(`there is no check ${id}`);
  return found;
}

/** The status of a check, and how what it found and advised reads. */
async function verdict(id: string, change: Partial<Probes>, base: Probes = phone): Promise<string> {
  const { status, found, advice } = await check(id, { ...base, ...change });
  return `${status}: ${found}${advice ? ` | ${advice}` : ''}`;
}

describe('all checks', () => {
  it('find nothing on a computer without faults, and skip what is about Android', async () => {
    const results = await examine(options, computer);
    expect(results.map(({ id }) => id)).toEqual(CHECKS.map(({ id }) => id));
    expect(new Set(CHECKS.map(({ id }) => id)).size).toBe(CHECKS.length);
    for (const { id, status, advice } of results) {
      const android = CHECKS.find((entry) => entry.id === id)?.android === true;
      expect([id, status]).toEqual([id, android || id === 'tailscale' ? 'skip' : 'ok']);
      expect(advice).toBeNull();
    }
  });

  it('say what to do on a phone about what cannot be seen, and fail nothing', async () => {
    const results = await examine(options, phone);
    expect(results.filter(({ status }) => status === 'fail')).toEqual([]);
    const warned = results.filter(({ status }) => status === 'warn');
    expect(warned.map(({ id }) => id)).toEqual(['wake-lock', 'phantom-processes', 'battery-optimisation']);
    for (const { advice } of warned) expect(advice).not.toBeNull();
  });

  it('go on after one that breaks', async () => {
    const broken = {
      ...computer,
      memory: () => {
        throw new Error('no /proc');
      },
    };
    expect(await check('memory', broken)).toMatchObject({ status: 'warn', found: 'could not be checked: no /proc' });
    expect(await check('tailscale', broken)).toMatchObject({ status: 'skip' });
  });
});

describe('the package and the device', () => {
  it('need the Node that package.json names and an addon that loads', async () => {
    expect(await verdict('version', {})).toBe('ok: droid-llama 1.2.3, Node v20.20.2');
    const { engines } = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8'));
    const oldest = engines.node.replace('>=', '');
    expect(await verdict('version', { nodeVersion: `v${oldest}.0` })).toMatch(/^ok/);
    for (const nodeVersion of ['v20.0.0', 'v18.20.0']) {
      const told = new RegExp(`^fail: .*${nodeVersion}.*Node ${oldest} or later.*pkg install nodejs-lts`, 's');
      expect(await verdict('version', { nodeVersion })).toMatch(told);
    }
    const addon = () => {
      throw new Error('The native addon is missing.\nCompile it with:  node build.mjs');
    };
    expect(await verdict('addon', { addon })).toBe(
      'fail: The native addon is missing. | Compile it with:  node build.mjs',
    );
  });

  it('tell which processors compute', async () => {
    const clusters = [
      { count: 1, megahertz: 2840 },
      { count: 3, megahertz: 2420 },
      { count: 4, megahertz: 1800 },
    ];
    expect(await verdict('cpu', { cores: () => ({ clusters, all: 8, threads: 4 }) })).toBe(
      'ok: 1 × 2.84 GHz + 3 × 2.42 GHz + 4 × 1.80 GHz; computes with 4 threads (the fast ones, a graph waits for the slowest)',
    );
    const unknown = { clusters: [{ count: 1, megahertz: null }], all: 1, threads: 1 };
    expect(await verdict('cpu', { cores: () => unknown })).toBe('ok: 1; computes with 1 thread (all of them)');
    expect(await verdict('cpu', { cores: () => ({ clusters: [], all: 6, threads: 6 }) })).toMatch(/^ok: 6; /);
  });

  it('warn of little memory and storage', async () => {
    expect(await verdict('memory', { memory: () => ({ total: 4 * GIB, available: GIB / 4 }) })).toMatch(
      /^warn: 0.3 GiB of 4.0 GiB available \| Close/,
    );
    expect(await verdict('storage', { freeStorage: async () => GIB / 2 })).toMatch(/^warn: 0.5 GiB.*--no-cache$/);
    expect(await verdict('storage', { freeStorage: async () => null })).toMatch(/^skip/);
  });
});

describe('the network', () => {
  it('tells the own addresses, also where Android hides the interfaces', async () => {
    expect(await verdict('interfaces', {})).toBe('ok: 192.168.43.2');
    const towards = async (host: string) => (host.startsWith('192.168.43.') ? '192.168.43.7' : null);
    const hidden = { networkInterfaces: forbidden, localAddressTowards: towards };
    expect(await verdict('interfaces', hidden)).toMatch(/^ok: 192.168.43.7 \(Android hides/);
    expect(await verdict('interfaces', { networkInterfaces: forbidden })).toMatch(
      /^warn: Android hides.*Join the Wi-Fi/,
    );
    expect(await verdict('interfaces', { networkInterfaces: () => ({}) }, computer)).toMatch(
      /^warn: none but loopback/,
    );
  });

  it('fails where the system forbids the local network, with what helps in that build of Termux', async () => {
    const asked: string[] = [];
    const sendDatagram = async (host: string) => {
      asked.push(host);
      return 'EPERM';
    };
    expect(await verdict('local-network', { sendDatagram })).toMatch(
      /^fail: .*192.168.43.1 \(EPERM\).*Nearby devices: Allow/,
    );
    const play = { sendDatagram, env: { TERMUX_VERSION: 'googleplay.2026.06.21' } };
    expect(await verdict('local-network', play)).toMatch(/^fail: .*the one from F-Droid or GitHub can/);
    expect(await verdict('local-network', { sendDatagram }, computer)).toMatch(/^fail: .*firewall/);
    // A neighbour, never itself.
    await verdict('local-network', { sendDatagram, networkInterfaces: wlan('10.69.1.1') });
    expect(new Set(asked)).toEqual(new Set(['192.168.43.1', '10.69.1.2']));
  });

  it('sends nothing where there is no private network', async () => {
    const sendDatagram = async () => {
      throw new Error('sent');
    };
    for (const address of ['203.0.113.7', '100.64.1.2', '172.32.0.1']) {
      const change = { sendDatagram, networkInterfaces: wlan(address) };
      expect(await verdict('local-network', change)).toMatch(/^skip/);
    }
    expect(await verdict('local-network', { sendDatagram: async () => 'ENETUNREACH' })).toMatch(/^warn: .*ENETUNREACH/);
  });

  it('tells a port that its own up has from one that another program has', async () => {
    const tryListen = async (_: string, port: number) => (port === 60000 ? 'EADDRINUSE' : null);
    expect(await verdict('cluster-port', { tryListen })).toBe(
      'fail: 60000 is taken by another program | Choose another one: up --cluster-port 60001',
    );
    expect(await verdict('cluster-port', { tryListen, ownUpRuns: async () => true })).toMatch(/^ok: .*an up of yours/);
    expect(await verdict('http-port', { tryListen })).toBe('ok: 8080 is free');
    expect(await verdict('http-port', { tryListen: async () => 'EACCES' })).toMatch(/^fail: .*EACCES.*above 1023/);
  });

  it('says what mDNS can do', async () => {
    expect(await verdict('multicast', {})).toMatch(/^ok: .*no multicast lock/);
    expect(await verdict('multicast', { joinMulticast: async () => 'ENODEV' })).toMatch(/^warn: .*ENODEV.*--peer/);
  });

  it('finds Tailscale by its addresses, or asks it', async () => {
    expect(await verdict('tailscale', { networkInterfaces: wlan('100.101.1.2') })).toBe('ok: connected as 100.101.1.2');
    expect(await verdict('tailscale', { networkInterfaces: wlan('100.128.0.1') })).toMatch(/^skip/);
    const says = (value: unknown) => ({
      exec: async (program: string) => (program === 'tailscale' ? JSON.stringify(value) : null),
    });
    expect(await verdict('tailscale', says({ BackendState: 'Running', Self: { TailscaleIPs: ['100.64.0.1'] } }))).toBe(
      'ok: connected as 100.64.0.1',
    );
    expect(await verdict('tailscale', says({ BackendState: 'Stopped', Self: null }))).toMatch(
      /^warn: .*Stopped.*tailscale up/s,
    );
    expect(await verdict('tailscale', says('nonsense'))).toMatch(/^skip/);
  });
});

describe('Android', () => {
  it('wants Termux from F-Droid or GitHub', async () => {
    const env = (value: Record<string, string>) => ({ env: value });
    expect(await verdict('termux', {})).toBe('ok: 0.118.3 from F-Droid');
    expect(await verdict('termux', env({ TERMUX_VERSION: '0.118.3', TERMUX_APP__APK_RELEASE: 'GITHUB' }))).toMatch(
      /^ok: .*GitHub/,
    );
    expect(await verdict('termux', env({ TERMUX_VERSION: 'googleplay.2026.06.21' }))).toMatch(
      /^warn: .*Google Play.*uninstall/,
    );
    expect(await verdict('termux', env({ TERMUX_APK_RELEASE: 'GOOGLE_PLAY_STORE' }))).toMatch(/^warn: .*Google Play/);
    expect(await verdict('termux', env({ TERMUX_VERSION: '9' }))).toMatch(/^warn: 9, a build of somebody else/);
    expect(await verdict('termux', env({}))).toMatch(/^warn: not Termux/);
  });

  it('has a command for the wake lock', async () => {
    expect((await verdict('wake-lock', {})).split('\n')).toContain('  termux-wake-lock');
  });

  it('kills phantom processes from version 12 on, and each version is told otherwise', async () => {
    const sdk = (androidSdk: number | null, setting: string | null = null) => ({
      androidSdk,
      exec: async () => setting,
    });
    expect(await verdict('phantom-processes', sdk(30))).toMatch(/^ok/);
    expect(await verdict('phantom-processes', sdk(31))).toMatch(/^warn: .*max_phantom_processes 2147483647$/s);
    const modern = /settings put global settings_enable_monitor_phantom_procs false$/;
    const twelveL = await verdict('phantom-processes', sdk(33));
    expect(twelveL).toMatch(modern);
    expect(twelveL).not.toContain('Developer options');
    for (const level of [34, null]) {
      const text = await verdict('phantom-processes', sdk(level));
      expect(text).toMatch(modern);
      expect(text).toContain('Disable child process restrictions');
    }
    expect(await verdict('phantom-processes', sdk(34, 'false\n'))).toBe('ok: switched off');
    expect(await verdict('phantom-processes', sdk(34, 'null\n'))).toMatch(/^warn: on \|/);
    expect(await verdict('phantom-processes', sdk(34, 'cmd: Failure calling service settings'))).toMatch(
      /^warn: .*may not read/,
    );
  });

  it('looks at the battery where Termux:API answers', async () => {
    const says = (value: object) => ({ exec: async () => JSON.stringify(value) });
    expect(await verdict('battery', {})).toMatch(/^skip: .*pkg install termux-api$/s);
    expect(await verdict('battery', says({ percentage: 80, plugged: 'PLUGGED_AC', temperature: 30 }))).toBe(
      'ok: 80 %, on power, 30 °C',
    );
    expect(await verdict('battery', says({ percentage: 19, plugged: 'UNPLUGGED' }))).toBe(
      'warn: 19 %, not on power | Plug it in.',
    );
    expect(await verdict('battery', says({ percentage: 19, plugged: 'PLUGGED_USB' }))).toMatch(/^ok/);
    expect(await verdict('battery', says({ percentage: 90, plugged: 'UNPLUGGED', temperature: 45 }))).toMatch(
      /^warn: .*warm/,
    );
  });
});

describe('what is printed', () => {
  const results: CheckResult[] = [
    { id: 'a', title: 'short', status: 'ok', found: 'all is well', advice: null },
    {
      id: 'b',
      title: 'a longer title',
      status: 'warn',
      found: 'one two three four five six seven eight nine ten',
      advice: 'Do it:\n  command --flag',
    },
    { id: 'c', title: 'third', status: 'fail', found: 'broken', advice: 'Mend it.' },
  ];

  it('is a table with the advice under its row', () => {
    expect(doctorLines(results, 60)).toEqual([
      'ok    short           all is well',
      'warn  a longer title  one two three four five six seven',
      '                      eight nine ten',
      '      Do it:',
      '        command --flag',
      'fail  third           broken',
      '      Mend it.',
      '',
      '1 ok, 1 to look at, 1 failed',
    ]);
  });

  it('is a list on a narrow screen', () => {
    expect(doctorLines(results, 40).slice(0, 6)).toEqual([
      'ok    short',
      '      all is well',
      'warn  a longer title',
      '      one two three four five six seven',
      '      eight nine ten',
      '      Do it:',
    ]);
  });
});
