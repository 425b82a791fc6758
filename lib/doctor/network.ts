/** Whether other devices can be found and reached from here. That they can reach this one, only they can tell. */
import { isIPv4 } from 'node:net';
import { z } from 'zod';
import { termuxBuild } from './android.js';
import type { Check, Finding, Probes } from './types.js';

/** Any private address: which way out it takes tells this device's own address in that network. */
const SOME_PRIVATE_ADDRESSES = ['192.168.43.1', '192.168.1.1', '10.0.0.1', '172.16.0.1'];
const tailscaleStatus = z.object({
  BackendState: z.string(),
  Self: z.object({ TailscaleIPs: z.array(z.string()).max(16).nullish() }).nullish(),
});

const interfaces: Check = {
  id: 'interfaces',
  title: 'own addresses',
  run: async (probes) => {
    const { addresses, hidden } = await ownAddresses(probes);
    if (addresses.length > 0) {
      const how = hidden ? ' (Android hides the interfaces; found by the way packets would go)' : '';
      return { status: 'ok', found: addresses.join(', ') + how };
    }
    return {
      status: 'warn',
      found: hidden ? 'Android hides the interfaces, and there is no way to a private network' : 'none but loopback',
      advice: 'Join the Wi-Fi or the hotspot of the other devices.',
    };
  },
};

const localNetwork: Check = {
  id: 'local-network',
  title: 'local network',
  run: async (probes) => {
    const { addresses } = await ownAddresses(probes);
    const own = addresses.find(isPrivate);
    if (own === undefined) return { status: 'skip', found: 'this device is in no private network' };
    const neighbour = own.replace(/\d+$/, (last) => (last === '1' ? '2' : '1'));
    const code = await probes.sendDatagram(neighbour);
    if (code === null) return { status: 'ok', found: `${own} may send to its neighbours` };
    if (code === 'EPERM' || code === 'EACCES') {
      return {
        status: 'fail',
        found: `the system forbids it to send to ${neighbour} (${code})`,
        advice: permission(probes),
      };
    }
    return {
      status: 'warn',
      found: `sending to ${neighbour} failed with ${code}`,
      advice: 'Is Wi-Fi still connected?',
    };
  },
};

/** Android 17 gates the local network for apps that target it; TCP just times out then. */
function permission(probes: Probes): string {
  if (!probes.android) return 'A firewall of this device drops it: allow outgoing UDP and TCP to the local network.';
  const allow = 'Settings, Apps, Termux, Permissions, Nearby devices: Allow. Then start Termux anew.';
  if (termuxBuild(probes) !== 'play') return allow;
  return `${allow} If there is no such permission to be given, this build of Termux cannot ask for it: the one from F-Droid or GitHub can reach the local network.`;
}

const clusterPort: Check = {
  id: 'cluster-port',
  title: 'cluster port',
  run: (probes, options) => portFinding(probes, '0.0.0.0', options.clusterPort, '--cluster-port'),
};

const httpPort: Check = {
  id: 'http-port',
  title: 'HTTP port',
  run: (probes, options) => portFinding(probes, '127.0.0.1', options.port, '--port'),
};

async function portFinding(probes: Probes, host: string, port: number, flag: string): Promise<Finding> {
  const code = await probes.tryListen(host, port);
  if (code === null) return { status: 'ok', found: `${port} is free` };
  if (code === 'EADDRINUSE') {
    if (await probes.ownUpRuns()) return { status: 'ok', found: `${port} is taken, and an up of yours runs` };
    return {
      status: 'fail',
      found: `${port} is taken by another program`,
      advice: `Choose another one: up ${flag} ${port + 1}`,
    };
  }
  return {
    status: 'fail',
    found: `${port} cannot be listened on (${code})`,
    advice: `Choose one above 1023: up ${flag} 60000`,
  };
}

const multicast: Check = {
  id: 'multicast',
  title: 'mDNS',
  run: async (probes) => {
    const code = await probes.joinMulticast();
    if (code !== null) {
      return {
        status: 'warn',
        found: `the multicast group cannot be joined (${code})`,
        advice: 'The scan of the own network finds the others all the same; so does up --peer HOST:PORT',
      };
    }
    if (!probes.android) return { status: 'ok', found: 'the multicast group can be joined' };
    return {
      status: 'ok',
      found: 'can announce, may hear nothing: Termux holds no multicast lock; up scans its network too',
    };
  },
};

const tailscale: Check = {
  id: 'tailscale',
  title: 'Tailscale',
  run: async (probes) => {
    const { addresses } = await ownAddresses(probes);
    const own = addresses.filter(isTailscale);
    if (own.length > 0) return { status: 'ok', found: `connected as ${own.join(', ')}` };
    const text = await probes.exec('tailscale', 'status', '--json');
    const status = text === null ? null : parseTailscale(text);
    if (!status) return { status: 'skip', found: 'not in use; it helps where phones drop connections from each other' };
    if (status.BackendState !== 'Running') {
      return { status: 'warn', found: `installed, but ${status.BackendState}`, advice: 'Connect it:\n  tailscale up' };
    }
    return {
      status: 'ok',
      found: `connected as ${status.Self?.TailscaleIPs?.join(', ') || 'a device without address'}`,
    };
  },
};

function parseTailscale(text: string): z.infer<typeof tailscaleStatus> | null {
  try {
    return tailscaleStatus.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null;
  }
}

async function ownAddresses(probes: Probes): Promise<{ addresses: readonly string[]; hidden: boolean }> {
  try {
    const all = Object.values(probes.networkInterfaces()).flatMap((list) => list ?? []);
    const addresses = all
      .map(({ address }) => address)
      .filter((address) => isIPv4(address) && !address.startsWith('127.'));
    if (addresses.length > 0) return { addresses, hidden: false };
    if (!probes.android) return { addresses, hidden: false };
  } catch {
    // Android forbids it.
  }
  const found = await Promise.all(SOME_PRIVATE_ADDRESSES.map((host) => probes.localAddressTowards(host)));
  return { addresses: [...new Set(found.filter((address) => address !== null))], hidden: true };
}

function isPrivate(address: string): boolean {
  return /^(10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.)/.test(address);
}

/** 100.64.0.0/10. */
function isTailscale(address: string): boolean {
  const [first, second] = address.split('.').map(Number);
  return first === 100 && second !== undefined && second >= 64 && second < 128;
}

export const networkChecks: readonly Check[] = [interfaces, localNetwork, clusterPort, httpPort, multicast, tailscale];
