/** Starts and ends everything that a member is made of; what they tell each other is wired in cluster.ts. */
import { access, constants, mkdir } from 'node:fs/promises';
import { isIPv4 } from 'node:net';
import { defaultThreads } from '../cpu.js';
import { DroidLlamaError } from '../errors.js';
import { startTransport } from '../transport/tls-transport.js';
import { clusterTag } from '../transport/token.js';
import { type SecureStream, STREAM_KINDS, type Transport } from '../transport/transport.js';
import { packageVersion } from '../version.js';
import { buildId } from './build-id.js';
import { Membership } from './control/membership.js';
import { peerIdToBytes } from './control/peer-id.js';
import { dialAddresses } from './control/routes.js';
import { computeSpeed } from './device/device.js';
import { type ModelFile, readModelFile } from './device/model-file.js';
import { SelfReport, type SelfReportOptions } from './device/self-report.js';
import { Discovery } from './discovery/discovery.js';
import { plainAddress } from './discovery/ip.js';
import { LinkProber } from './links.js';
import type { CheckedClusterOptions } from './options.js';
import { PeerWatch } from './peer-watch.js';
import { StreamRegister } from './stream-register.js';
import { PREAMBLE_BYTES } from './streams.js';
import { WorkerPart } from './worker-part.js';

/** What the stages ask of the cluster they belong to, which is made after them. */
export interface StageHooks {
  /** Changes this device's own record. */
  tell: SelfReportOptions['tell'];
  /** Bytes of a model that this device holds as the master. */
  bytesLoaded: () => number;
  isGenerating: () => boolean;
  warn: (line: string) => void;
}

export interface Stages {
  /** The port that streams are accepted on. */
  readonly port: number;
  readonly transport: Transport;
  readonly membership: Membership;
  readonly prober: LinkProber;
  readonly peerWatch: PeerWatch;
  readonly worker: WorkerPart;
  readonly report: SelfReport;
  readonly streams: StreamRegister;
  readonly model: ModelFile | undefined;
}

/** Rejects as `Cluster.join` does. The hooks are asked only after the next turn of the event loop. */
export async function startStages(options: CheckedClusterOptions, hooks: StageHooks): Promise<Stages> {
  const { id, threads = defaultThreads(), memoryLimit, cacheDir, cacheLimit } = options;
  if (cacheDir !== undefined) await checkDirectory(cacheDir);
  const model = options.model === undefined ? undefined : await readModelFile(options.model);
  const transport = await startTransport({ token: options.token, onWarning: (line) => hooks.warn(line) });
  try {
    const worker = new WorkerPart({ threads, memoryLimit, cacheDir, cacheLimit });
    const report = new SelfReport({
      memoryLimit,
      bytesHeld: () => worker.bytesHeld() + hooks.bytesLoaded(),
      graphsComputed: () => worker.graphsComputed(),
      tell: (change) => hooks.tell(change),
    });
    // Where it cannot be measured, the planner takes this device for one like the others.
    const compute = await computeSpeed(threads).catch(() => null);
    options.signal?.throwIfAborted();
    // The port is in the record, so somebody may come before there is anybody to receive him.
    const early: SecureStream[] = [];
    let receive = (stream: SecureStream): void => void early.push(stream);
    const { port } = await transport.listen({
      host: options.host,
      port: options.port,
      kinds: STREAM_KINDS,
      preambleBytes: PREAMBLE_BYTES,
      onStream: (stream) => receive(stream),
    });
    const membership = Membership.start({
      transport,
      build: buildId(),
      onListenerError: (error) => hooks.warn(`a listener failed: ${error instanceof Error ? error.message : error}`),
      self: {
        id,
        name: options.name,
        incarnation: Date.now(),
        version: packageVersion(),
        port,
        addresses: [],
        pin: options.pin,
        model: model?.summary ?? null,
        memory: report.memory,
        compute,
        battery: null,
        graphsComputed: 0,
        lead: null,
      },
    });
    const prober = LinkProber.start({
      transport,
      id,
      peers: () => membership.peers(),
      addressesOf: (peer) => dialAddresses(peer, membership.dialledAt(peer.id)),
      // A transfer beside a generation would measure what is left, and slow the tokens down.
      busy: () => hooks.isGenerating(),
    });
    receive = (stream) => {
      if (stream.kind === 'probe') prober.serve(stream);
      else membership.accept(stream);
    };
    for (const stream of early) receive(stream);
    const peerWatch = new PeerWatch({
      transport,
      preamble: peerIdToBytes(id),
      named: options.peers,
      members: () => membership.peers().filter((peer) => peer.id !== id),
      warn: (line) => hooks.warn(line),
    });
    const streams = new StreamRegister((stream) => transport.cut(stream));
    return { port, transport, membership, prober, peerWatch, worker, report, streams, model };
  } catch (error) {
    await transport.close();
    throw error;
  }
}

/** A worker that could not keep its cache would fail each time a master asks. */
async function checkDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true });
    await access(path, constants.W_OK);
  } catch (cause) {
    const why = (cause as Error).message;
    throw new DroidLlamaError('DROID_INVALID_ARGUMENT', `cacheDir ${path} cannot be written: ${why}`, { cause });
  }
}

/** The last stage to start: what it finds is told at once, to listeners that are attached in the same turn. */
export function startDiscovery(options: CheckedClusterOptions, { port, membership }: Stages): Discovery {
  return Discovery.start({
    tag: clusterTag(options.token),
    port,
    host: options.host,
    peers: options.peers,
    mdns: options.mdns,
    scan: options.scan,
    tailscale: options.tailscale,
    known: () => connectedAddresses(membership),
  });
}

/** Says goodbye first, and closes what others stand on last. */
export async function closeStages(stages: Stages): Promise<void> {
  stages.report.stop();
  stages.peerWatch.close();
  await Promise.allSettled([stages.prober.close(), stages.membership.close()]);
  await stages.worker.close();
  await stages.transport.close();
}

/** IPv4 addresses of the members this device has a connection with: they need not be looked for. */
function connectedAddresses(membership: Membership): readonly string[] {
  const connected = new Set(membership.self().neighbours);
  return membership
    .peers()
    .flatMap(({ id, addresses }) => (connected.has(id) ? addresses.map(plainAddress).filter(isIPv4) : []));
}
