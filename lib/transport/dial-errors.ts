/** What a dial that failed tells its caller: what happened, why, and what to do. */
import { isIPv6 } from 'node:net';
import { connectFault } from '../connect-errors.js';
import type { EndpointAddress } from '../endpoint.js';
import { DroidLlamaError, type ErrorCode } from '../errors.js';
import type { HandshakeFault } from './psk-tls.js';
import type { StreamKind } from './transport.js';

/** How far a dial got. */
export type DialPhase = 'resolving' | 'connecting' | 'greeting';

export class DialErrors {
  readonly #endpoint: string;
  readonly #kind: StreamKind;

  constructor({ host, port }: EndpointAddress, kind: StreamKind) {
    this.#endpoint = `${isIPv6(host) ? `[${host}]` : host}:${port}`;
    this.#kind = kind;
  }

  /** The deadline passed. */
  expired(phase: DialPhase, timeoutMs: number): DroidLlamaError {
    const within = `within ${timeoutMs} ms`;
    if (phase === 'resolving') {
      return this.#error('DROID_ENDPOINT_UNREACHABLE', `its name did not resolve ${within}; try its IP address`);
    }
    if (phase === 'connecting') return this.#timedOut(within);
    return this.#error(
      'DROID_ENDPOINT_TIMEOUT',
      `it accepted the connection but did not prove ${within} that it has the token. It may be no droid-llama, be ` +
        'frozen by Android, or the network loses too many packets',
    );
  }

  /** The TCP connection did not come about. */
  connectFailed(error: NodeJS.ErrnoException): DroidLlamaError {
    const { code, why } = connectFault(error);
    if (code === 'DROID_ENDPOINT_TIMEOUT') return this.#timedOut('in time', error);
    const text =
      code === 'DROID_ENDPOINT_REFUSED'
        ? 'the device is up, but nothing listens on that port: start droid-llama there, and check the port'
        : why;
    return this.#error(code, text, error);
  }

  /** Something accepted the connection, but TLS did not come about. */
  handshakeFailed(fault: HandshakeFault, cause?: unknown): DroidLlamaError {
    switch (fault) {
      case 'wrong-token':
        return this.#error(
          'DROID_TOKEN_REJECTED',
          'it has another join token. Start this device with the `--token` that the first one printed; capitals count',
          cause,
        );
      case 'unwanted-kind':
        return this.#error(
          'DROID_VERSION_MISMATCH',
          `it does not serve ${this.#kind} streams. Run the same droid-llama on both devices, and check the port`,
          cause,
        );
      case 'no-member':
        return this.#error(
          'DROID_TOKEN_REJECTED',
          'what answers there is no droid-llama with a token. Check the port, and that it was not started with ' +
            '`--insecure`',
          cause,
        );
      case 'hung-up':
        return this.#error(
          'DROID_TOKEN_REJECTED',
          'it hung up instead of proving that it has the token. It is no droid-llama with a token, or turns this ' +
            'device away for a while because wrong tokens came from its address',
          cause,
        );
    }
  }

  noRoom(cause: unknown): DroidLlamaError {
    const why = cause instanceof Error ? cause.message : String(cause);
    return this.#error('DROID_ENDPOINT_UNREACHABLE', `this process has no room for the stream: ${why}`, cause);
  }

  #timedOut(within: string, cause?: unknown): DroidLlamaError {
    return this.#error(
      'DROID_ENDPOINT_TIMEOUT',
      `it did not answer ${within}. Android drops incoming connections, on the phone that hosts a hotspot always: ` +
        'let that phone dial. A wrong address looks the same',
      cause,
    );
  }

  #error(code: ErrorCode, text: string, cause?: unknown): DroidLlamaError {
    return new DroidLlamaError(code, `${this.#endpoint}: ${text}`, { cause });
  }
}
