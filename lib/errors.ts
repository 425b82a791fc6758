/**
 * Every error this package throws on purpose is a {@link DroidLlamaError}; match its `code`, never its text.
 * The list is part of the public interface: a code keeps its meaning for good.
 */
export const ERROR_CODES = {
  DROID_INVALID_ARGUMENT:
    'An option or a llama-server flag is missing, malformed, out of range or owned by this package.',
  DROID_ADDON_NOT_FOUND: 'The native addon could not be loaded; the message lists what was tried and how to get it.',
  DROID_MODEL_NOT_FOUND: 'The model file does not exist or cannot be read, or the hub has none of that name.',
  DROID_MODEL_INVALID: 'The file is not a GGUF model, or it is damaged.',
  DROID_MODEL_UNSUPPORTED: 'The model has an architecture that the bundled llama.cpp does not know.',
  DROID_DOWNLOAD_FAILED:
    'A model could not be downloaded, or is damaged; what arrived is kept unless the message says otherwise.',
  DROID_DISK_FULL: 'There is too little room on the disk for the model.',
  DROID_LOAD_FAILED: 'llama.cpp refused to load the model for another reason, which the message quotes.',
  DROID_OUT_OF_MEMORY: 'A device has less free memory than its share of the model needs.',
  DROID_ENDPOINT_TIMEOUT:
    'Nothing answered at the endpoint in time: Android drops incoming connections like this, and what is no worker may keep silent.',
  DROID_ENDPOINT_REFUSED: 'The device answered, but nothing listens on that port.',
  DROID_ENDPOINT_UNREACHABLE: 'There is no route to the host, or its name does not resolve.',
  DROID_VERSION_MISMATCH:
    'The endpoint answered in another version of the RPC protocol, or in none; or a member of the cluster runs another build.',
  DROID_MEMBER_REFUSED:
    'A member of the cluster was turned away, or turned this device away: two have the same id, or one sent what no member sends.',
  DROID_TOKEN_REJECTED: 'The other end has another join token, or is no droid-llama at all.',
  DROID_INSECURE:
    'Plain, unauthenticated RPC with another device was not asked for by name: use a token, or `insecure` and know why.',
  DROID_NOT_READY: 'The cluster had no loaded model within the time that a request waits.',
  DROID_WORKER_BUSY: 'The worker has as many masters as it takes, or is about to end.',
  DROID_WORKER_LOST:
    'A worker hung up or fell silent while it was needed; close the context, and make a new one once the worker is back.',
  DROID_WORKER_REFUSED: 'A worker would not do what it was asked to and hung up; the message has its reason.',
  DROID_WORKER_OUT_OF_MEMORY: 'A worker has less left of the memory it lends than it was asked for.',
  DROID_WORKER_PROTOCOL: 'A worker answered what no worker answers; the connection to it was given up.',
  DROID_PORT_IN_USE: 'The port to listen on is taken.',
  DROID_CLOSED: 'The context or server was closed before or during the call.',
  DROID_REQUEST_FAILED: 'The engine answered the request with an error; `status` has its HTTP status.',
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface DroidLlamaErrorOptions {
  cause?: unknown;
  /** HTTP status of the engine's answer, with `DROID_REQUEST_FAILED` and with `DROID_WORKER_*` from a request. */
  status?: number;
}

export class DroidLlamaError extends Error {
  override readonly name = 'DroidLlamaError';
  readonly code: ErrorCode;
  // Declared, not defined: an error without a status has no such property.
  declare readonly status?: number;

  constructor(code: ErrorCode, message: string, options: DroidLlamaErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    if (options.status !== undefined) this.status = options.status;
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(ERROR_CODES, value);
}

/** Whether the error is about a worker that a loaded or loading model needs. */
export function isWorkerCode(code: ErrorCode): boolean {
  return code.startsWith('DROID_WORKER_');
}

/**
 * Takes the code off the end of a message: `'… (DROID_WORKER_LOST)'`. The native side puts it there for what passes
 * through llama.cpp, which hands on nothing of an error but its text.
 */
export function splitCode(message: string): { message: string; code?: ErrorCode } {
  const match = /\S \((DROID_\w+)\)$/.exec(message);
  const code = match?.[1];
  return match && isErrorCode(code) ? { message: message.slice(0, match.index + 1), code } : { message };
}
