/** Lets members in: accepts connections, has TLS prove them, reads the preamble, and turns everyone else away. */
import { createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from 'node:tls';
import type { EndpointAddress } from '../endpoint.js';
import { DroidLlamaError } from '../errors.js';
import type { Admission, Outcome } from './admission.js';
import type { Counter, ListenRequest } from './messages.js';
import { alpnName, CONTEXT_OPTIONS, handshakeFault, kindOfAlpn, SOCKET_OPTIONS, serverPsk } from './psk-tls.js';
import type { StreamKind } from './transport.js';
import { TurnedAway } from './turned-away.js';

/** For the handshake and the preamble; a phone whose Wi-Fi sleeps needs seconds for each of its packets. */
const PROOF_MS = 10_000;
const BACKLOG = 511;

const REASONS = {
  'wrong-token': 'it does not have the token',
  'unwanted-kind': 'it asked for a stream that is not served here; it may run another version of droid-llama',
  'no-member': 'what it sent is not from a droid-llama with a token',
  'hung-up': 'it did not finish proving that it has the token',
  silent: 'it did not say anything',
} as const;

export interface Incoming {
  readonly secure: TLSSocket;
  readonly kind: StreamKind;
  readonly remote: EndpointAddress;
  readonly localAddress: string;
  readonly preamble: Uint8Array;
  /** Decrypted bytes that came with the preamble. */
  readonly rest: Uint8Array;
}

export interface ListenerHooks {
  readonly psk: Uint8Array;
  readonly admission: Admission;
  /** Takes over the stream, or throws. */
  onStream(incoming: Incoming): void;
  onWarning(line: string): void;
  count(counter: Counter): void;
}

/** A connection that has not become a stream yet. */
interface Candidate {
  readonly raw: Socket;
  readonly ticket: number;
  readonly key: string;
  readonly remote: EndpointAddress;
  readonly localAddress: string;
  readonly deadline: NodeJS.Timeout;
  /** Undefined until TLS is through, or has failed. */
  secure?: TLSSocket;
  proven: boolean;
}

export class Listener {
  readonly #request: ListenRequest;
  readonly #hooks: ListenerHooks;
  readonly #turnedAway = new TurnedAway(() => performance.now());
  readonly #tcp: Server;
  readonly #tls: TlsServer;
  readonly #candidates = new Map<number, Candidate>();
  /** The unproven ones by address and port, which is all that TLS tells about them. */
  readonly #byRemote = new Map<string, Candidate>();

  private constructor(request: ListenRequest, hooks: ListenerHooks) {
    this.#request = request;
    this.#hooks = hooks;
    this.#tls = createTlsServer({
      ...CONTEXT_OPTIONS,
      ALPNProtocols: request.kinds.map(alpnName),
      pskCallback: (_socket, identity) => serverPsk(hooks.psk, identity),
    });
    this.#tls.on('secureConnection', (secure) => this.#proved(secure));
    this.#tls.on('tlsClientError', (error: NodeJS.ErrnoException, secure) => {
      const candidate = this.#byRemote.get(remoteKey(secure));
      if (!candidate) return void secure.destroy();
      candidate.secure = secure;
      this.#refuse(candidate, handshakeFault(error.code));
    });
    this.#tcp = createTcpServer(SOCKET_OPTIONS, (raw) => this.#accepted(raw));
  }

  /** Rejects with `DROID_PORT_IN_USE` or `DROID_INVALID_ARGUMENT`. */
  static async open(request: ListenRequest, hooks: ListenerHooks): Promise<{ listener: Listener; port: number }> {
    const listener = new Listener(request, hooks);
    const server = listener.#tcp;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(listenError(request, error)));
      server.listen({ host: request.host, port: request.port, backlog: BACKLOG }, resolve);
    });
    // From here on it is accept() that fails, for one connection; the next one may be luckier.
    server.removeAllListeners('error');
    server.on('error', (error: NodeJS.ErrnoException) => listener.#acceptFailed(error));
    const address = server.address();
    return { listener, port: typeof address === 'object' && address ? address.port : request.port };
  }

  close(): void {
    this.#tcp.close();
    for (const candidate of this.#candidates.values()) {
      clearTimeout(candidate.deadline);
      cutOff(candidate);
    }
    this.#candidates.clear();
    this.#byRemote.clear();
  }

  #accepted(raw: Socket): void {
    // An error is always followed by 'close'.
    raw.on('error', () => {});
    const { remoteAddress, remotePort } = raw;
    if (remoteAddress === undefined || remotePort === undefined) {
      raw.destroy(); // gone already
      return;
    }
    const remote = { host: plainAddress(remoteAddress), port: remotePort };
    const admitted = this.#hooks.admission.enter(remote.host);
    if (!admitted) {
      raw.destroy();
      this.#hooks.count('rejected');
      this.#warn(remote.host, 'it failed to prove that it has the token too often');
      return;
    }
    const oldest = admitted.drop === undefined ? undefined : this.#candidates.get(admitted.drop);
    if (oldest) this.#refuse(oldest);

    const { ticket } = admitted;
    const candidate: Candidate = {
      raw,
      ticket,
      key: remoteKey(raw),
      remote,
      localAddress: plainAddress(raw.localAddress ?? ''),
      deadline: setTimeout(() => this.#refuse(candidate), PROOF_MS),
      proven: false,
    };
    this.#candidates.set(ticket, candidate);
    this.#byRemote.set(candidate.key, candidate);
    raw.once('close', () => {
      if (!this.#candidates.has(ticket)) return;
      // It left by itself, which is not worth a word: members give dials up, and a connection that is closed at once is
      // how ports are scanned, which members do, too.
      const spoke = raw.bytesRead > 0;
      this.#forget(candidate, spoke ? 'spoke' : 'silent');
      if (spoke && !candidate.proven) this.#hooks.count('rejected');
    });
    this.#tls.emit('connection', raw);
  }

  #proved(secure: TLSSocket): void {
    secure.on('error', () => secure.destroy());
    const candidate = this.#byRemote.get(remoteKey(secure));
    const kind = kindOfAlpn(secure.alpnProtocol);
    if (!candidate || kind === undefined || !this.#request.kinds.includes(kind)) {
      // TLS lets in who names no protocol at all.
      if (!candidate) return void secure.destroy();
      candidate.secure = secure;
      this.#refuse(candidate, 'unwanted-kind');
      return;
    }
    candidate.secure = secure;
    candidate.proven = true;
    // Only now: a stranger who ends the stream is through with it.
    secure.allowHalfOpen = true;
    this.#byRemote.delete(candidate.key);
    const { admission, count } = this.#hooks;
    admission.proved(candidate.ticket);
    secure.once('close', () => admission.closed(candidate.remote.host));
    count('handshakes');
    this.#readPreamble(candidate, secure, kind);
  }

  #readPreamble(candidate: Candidate, secure: TLSSocket, kind: StreamKind): void {
    const wanted = this.#request.preambleBytes[kind] ?? 0;
    let received: Buffer = Buffer.alloc(0);
    const announce = (): void => {
      this.#candidates.delete(candidate.ticket);
      clearTimeout(candidate.deadline);
      const { remote, localAddress } = candidate;
      // A copy: a view would show the receiver what else is in the memory it came from.
      const preamble = Uint8Array.from(received.subarray(0, wanted));
      try {
        this.#hooks.onStream({ secure, kind, remote, localAddress, preamble, rest: received.subarray(wanted) });
      } catch (error) {
        secure.destroy();
        this.#warn(remote.host, `there was no room for its stream (${(error as Error).message})`);
      }
    };
    if (wanted === 0) {
      announce();
      return;
    }
    const onData = (chunk: Buffer): void => {
      received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
      if (received.length < wanted) return;
      secure.pause();
      secure.off('data', onData);
      secure.off('end', onEnd);
      announce();
    };
    // It will never send the rest.
    const onEnd = (): void => void secure.destroy();
    secure.on('data', onData);
    secure.on('end', onEnd);
  }

  /** Cuts a connection that is no stream yet and says why. */
  #refuse(candidate: Candidate, fault?: keyof typeof REASONS): void {
    const spoke = candidate.raw.bytesRead > 0;
    const reason = fault ?? (spoke ? 'hung-up' : 'silent');
    this.#forget(candidate, reason === 'wrong-token' ? 'wrong-token' : spoke ? 'spoke' : 'silent');
    cutOff(candidate);
    if (candidate.proven) return;
    this.#hooks.count('rejected');
    this.#warn(candidate.remote.host, REASONS[reason]);
  }

  #forget(candidate: Candidate, outcome: Outcome): void {
    clearTimeout(candidate.deadline);
    this.#candidates.delete(candidate.ticket);
    if (this.#byRemote.get(candidate.key) === candidate) this.#byRemote.delete(candidate.key);
    this.#hooks.admission.failed(candidate.ticket, outcome);
  }

  #acceptFailed(error: NodeJS.ErrnoException): void {
    const full = error.code === 'EMFILE' || error.code === 'ENFILE';
    const why = full ? 'this process has no file descriptors left' : 'the system did not accept the connection';
    this.#warn('a connection', `${why} (${error.code})`);
  }

  #warn(who: string, reason: string): void {
    const line = this.#turnedAway.note(who, reason);
    if (line !== undefined) this.#hooks.onWarning(line);
  }
}

function cutOff({ raw, secure }: Candidate): void {
  // Never the socket below a TLS socket that is known: in a callback of TLS that crashes Node.
  (secure ?? raw).destroy();
}

/** An IPv4 address is one, also on a socket that listens for IPv6. */
export function plainAddress(address: string): string {
  return address.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, '');
}

function remoteKey(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress}`;
}

function listenError({ host, port }: ListenRequest, error: NodeJS.ErrnoException): DroidLlamaError {
  const where = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  if (error.code === 'EADDRINUSE') {
    return new DroidLlamaError(
      'DROID_PORT_IN_USE',
      `Cannot listen on ${where}: another program uses that port. Choose another one, or 0 for any that is free.`,
      { cause: error },
    );
  }
  const fix = error.code === 'EADDRNOTAVAIL' ? '; no interface of this device has that address' : '';
  return new DroidLlamaError('DROID_INVALID_ARGUMENT', `Cannot listen on ${where} (${error.code})${fix}.`, {
    cause: error,
  });
}
