/** Devices of the same tailnet, when Tailscale runs here and its command line tool is installed. */
import { execFile } from 'node:child_process';
import { z } from 'zod';
import { isTailscaleAddress } from './ip.js';

const TIMEOUT_MS = 3000;
const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;
const MAX_PEERS = 256;

const addresses = z.array(z.string().max(64)).nullish();
// Of the much that it prints; what is not there in some version counts as offline.
const statusSchema = z.object({
  BackendState: z.string(),
  Peer: z.record(z.string(), z.object({ Online: z.boolean().nullish(), TailscaleIPs: addresses })).nullish(),
});

/** Runs a program and gives what it printed; rejects when there is no such program or it fails. */
export type RunProgram = (file: string, args: readonly string[], signal?: AbortSignal) => Promise<string>;

const runProgram: RunProgram = (file, args, signal) =>
  new Promise((resolve, reject) => {
    execFile(
      file,
      [...args],
      { timeout: TIMEOUT_MS, killSignal: 'SIGKILL', maxBuffer: MAX_OUTPUT_BYTES, windowsHide: true, signal },
      (error, stdout) => (error ? reject(error) : resolve(stdout)),
    );
  });

/**
 * One address of each device of the tailnet that is online, IPv4 where it has one. Empty without Tailscale, without its
 * tool (an Android app has none), and when its answer is not understood. Does not reject.
 */
export async function tailscalePeers(signal?: AbortSignal, run: RunProgram = runProgram): Promise<readonly string[]> {
  let status: z.infer<typeof statusSchema>;
  try {
    status = statusSchema.parse(JSON.parse(await run('tailscale', ['status', '--json'], signal)));
  } catch {
    return [];
  }
  if (status.BackendState !== 'Running') return [];
  return Object.values(status.Peer ?? {})
    .filter((peer) => peer.Online === true)
    .map((peer) => {
      const usable = (peer.TailscaleIPs ?? []).filter(isTailscaleAddress);
      return usable.find((address) => address.includes('.')) ?? usable[0];
    })
    .filter((address) => address !== undefined)
    .slice(0, MAX_PEERS);
}
