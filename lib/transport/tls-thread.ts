/** The thread that TLS runs in: entry of the worker that tls-transport.ts starts. */
import { performance } from 'node:perf_hooks';
import type { TLSSocket } from 'node:tls';
import { parentPort, workerData } from 'node:worker_threads';
import { addon } from '../addon.js';
import type { EndpointAddress } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import { ADMISSION_LIMITS, Admission } from './admission.js';
import { Bridge } from './bridge.js';
import { dial } from './dial.js';
import { DialErrors } from './dial-errors.js';
import { type Incoming, Listener } from './listener.js';
import {
  COUNTERS,
  type Counter,
  type DialRequest,
  type FromThread,
  type ListenRequest,
  type ThreadData,
  type ToThread,
  toFailure,
} from './messages.js';

const { psk, counters } = workerData as ThreadData;
const counts = new Int32Array(counters);
const count = (counter: Counter, by = 1): void => void Atomics.add(counts, COUNTERS[counter], by);
const send = (message: FromThread): void => parentPort?.postMessage(message);

const admission = new Admission(ADMISSION_LIMITS, () => performance.now());
const bridges = new Map<number, Bridge>();
let lastStream = 0;
const dials = new Map<number, AbortController>();
let listener: Listener | undefined;
let closing = false;

parentPort?.on('message', (message: ToThread) => {
  switch (message.type) {
    case 'listen':
      void listen(message);
      break;
    case 'dial':
      void open(message);
      break;
    case 'cancel':
      dials.get(message.id)?.abort();
      break;
    case 'cut':
      bridges.get(message.id)?.destroy();
      break;
    case 'close':
      close();
  }
});

try {
  addon();
  send({ type: 'ready' });
} catch (error) {
  send({ type: 'failed', failure: toFailure(error as DroidLlamaError) });
  close();
}

async function listen(request: ListenRequest): Promise<void> {
  try {
    const opened = await Listener.open(request, {
      psk,
      admission,
      onStream,
      onWarning: (line) => send({ type: 'warning', line }),
      count,
    });
    listener = opened.listener;
    if (closing) listener.close();
    else send({ type: 'listening', address: { host: request.host, port: opened.port } });
  } catch (error) {
    send({ type: 'listen-failed', failure: toFailure(error as DroidLlamaError) });
  }
}

function onStream({ secure, rest, ...about }: Incoming): void {
  bridge(secure, rest, (id, fd) => send({ type: 'stream', stream: { ...about, id, fd } }));
}

async function open(request: DialRequest): Promise<void> {
  const { id, kind, address } = request;
  const abort = new AbortController();
  dials.set(id, abort);
  try {
    const { secure, remote, localAddress } = await dial(request, psk, abort.signal);
    count('handshakes');
    if (abort.signal.aborted) return void secure.destroy();
    trust(secure, remote);
    try {
      const preamble = new Uint8Array(0);
      bridge(secure, preamble, (streamId, fd) =>
        send({ type: 'dialled', id, stream: { id: streamId, kind, fd, remote, localAddress, preamble } }),
      );
    } catch (error) {
      secure.destroy();
      throw new DialErrors(address, kind).noRoom(error);
    }
  } catch (error) {
    // The only other thing it is rejected with is a cancellation, and who cancelled knows.
    if (error instanceof DroidLlamaError) send({ type: 'dial-failed', id, failure: toFailure(error) });
  } finally {
    dials.delete(id);
  }
}

/** Where a member was reached, a member may come from. */
function trust(secure: TLSSocket, { host }: EndpointAddress): void {
  admission.opened(host);
  secure.once('close', () => admission.closed(host));
}

/** Connects the stream with a descriptor and hands that on; throws when there are no descriptors left. */
function bridge(secure: TLSSocket, first: Uint8Array, handOn: (id: number, fd: number) => void): void {
  const id = ++lastStream;
  const [ours, theirs] = addon().createSocketPair();
  let made: Bridge;
  try {
    made = new Bridge(secure, ours, first, () => {
      bridges.delete(id);
      count('open', -1);
    });
  } catch (error) {
    for (const fd of [ours, theirs]) addon().closeDescriptor(fd);
    throw error;
  }
  bridges.set(id, made);
  count('open');
  handOn(id, theirs);
}

/** Once everything is closed, nothing keeps the thread. */
function close(): void {
  closing = true;
  listener?.close();
  for (const abort of dials.values()) abort.abort();
  for (const made of bridges.values()) made.destroy();
  parentPort?.close();
}
