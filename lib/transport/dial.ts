/** Connects to a member: TCP, then TLS until both sides have proven the token. */
import { connect as connectTcp, isIP } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { connect as connectTls, createSecureContext, type TLSSocket } from 'node:tls';
import type { EndpointAddress } from '../endpoint.js';
import { limitTime } from '../link-signals.js';
import { DialErrors, type DialPhase } from './dial-errors.js';
import { plainAddress } from './listener.js';
import type { DialRequest } from './messages.js';
import { alpnName, CONTEXT_OPTIONS, clientPsk, handshakeFault, SOCKET_OPTIONS } from './psk-tls.js';

/** A phone whose Wi-Fi sleeps needs longer for its first packet than the 250 ms Node gives each address of a name. */
const ATTEMPT_MS = 1500;
/**
 * A member in a flood of strangers may have to hang up on us to make room for the next one. What is no member hangs up
 * again and again, which is known after these pauses.
 */
const RETRY_PAUSES_MS = [50, 200, 600];

/** All dials share it: it holds no keys. */
const secureContext = createSecureContext(CONTEXT_OPTIONS);

export interface Dialled {
  readonly secure: TLSSocket;
  readonly remote: EndpointAddress;
  readonly localAddress: string;
}

interface Progress {
  phase: DialPhase;
}

/** The other end hung up and did not say why. */
class HungUp extends Error {}

/** Rejects with the errors of `Transport.dial`, and with the reason of `signal` when that is aborted. */
export async function dial(request: DialRequest, psk: Uint8Array, signal: AbortSignal): Promise<Dialled> {
  const { address, kind, timeoutMs } = request;
  const errors = new DialErrors(address, kind);
  const progress: Progress = { phase: isIP(address.host) ? 'connecting' : 'resolving' };
  const limit = limitTime(timeoutMs, () => errors.expired(progress.phase, timeoutMs), signal);
  try {
    for (let attempt = 0; ; attempt++) {
      try {
        return await tryOnce(request, psk, errors, progress, limit.signal);
      } catch (error) {
        if (!(error instanceof HungUp)) throw error;
        const pause = RETRY_PAUSES_MS[attempt];
        if (pause === undefined) throw errors.handshakeFailed('hung-up', error.cause);
        await delay(pause, undefined, { signal: limit.signal }).catch(() => limit.signal.throwIfAborted());
      }
    }
  } finally {
    limit.unlink();
  }
}

function tryOnce(
  { address: { host, port }, kind, preamble }: DialRequest,
  psk: Uint8Array,
  errors: DialErrors,
  progress: Progress,
  signal: AbortSignal,
): Promise<Dialled> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const raw = connectTcp({
      ...SOCKET_OPTIONS,
      host,
      port,
      autoSelectFamily: true,
      autoSelectFamilyAttemptTimeout: ATTEMPT_MS,
    });
    let secure: TLSSocket | undefined;
    const fail = (error: unknown): void => {
      signal.removeEventListener('abort', onAbort);
      // Never the socket below TLS: in a callback of TLS that crashes Node.
      (secure ?? raw).destroy();
      reject(error);
    };
    const onAbort = (): void => fail(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });

    raw.on('lookup', () => {
      if (progress.phase === 'resolving') progress.phase = 'connecting';
    });
    raw.on('error', (error: NodeJS.ErrnoException) => {
      if (!secure) fail(errors.connectFailed(error));
    });
    raw.once('connect', () => {
      progress.phase = 'greeting';
      const remote = { host: plainAddress(raw.remoteAddress ?? host), port };
      const localAddress = plainAddress(raw.localAddress ?? '');
      secure = connectTls({
        socket: raw,
        secureContext,
        ALPNProtocols: [alpnName(kind)],
        pskCallback: () => clientPsk(psk),
        // There are no certificates: who has the key is a member, by whatever name it was reached.
        checkServerIdentity: () => undefined,
      });
      // It stays, and does nothing once the promise is settled: no stream may be without a listener for errors.
      secure.on('error', (error: NodeJS.ErrnoException) => {
        const fault = handshakeFault(error.code);
        fail(fault === 'hung-up' ? new HungUp('hung up', { cause: error }) : errors.handshakeFailed(fault, error));
      });
      const onClose = (): void => fail(new HungUp('hung up'));
      secure.once('close', onClose);
      secure.once('secureConnect', () => {
        if (!secure || signal.aborted) return;
        signal.removeEventListener('abort', onAbort);
        secure.off('close', onClose);
        if (secure.alpnProtocol !== alpnName(kind)) return fail(errors.handshakeFailed('unwanted-kind'));
        secure.allowHalfOpen = true;
        if (preamble.length > 0) secure.write(preamble);
        resolve({ secure, remote, localAddress });
      });
    });
  });
}
