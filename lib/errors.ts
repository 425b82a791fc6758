/**
 * Every error this package throws on purpose is a {@link DroidLlamaError}; match its `code`, never its text.
 * The list is part of the public interface: a code keeps its meaning for good.
 */
export const ERROR_CODES = {
  DROID_INVALID_ARGUMENT:
    'An option or a llama-server flag is missing, malformed, out of range or owned by this package.',
  DROID_ADDON_NOT_FOUND: 'The native addon could not be loaded; the message lists what was tried and how to get it.',
  DROID_MODEL_NOT_FOUND: 'The model file does not exist or cannot be read.',
  DROID_MODEL_INVALID: 'The file is not a GGUF model, or it is damaged.',
  DROID_MODEL_UNSUPPORTED: 'The model has an architecture that the bundled llama.cpp does not know.',
  DROID_LOAD_FAILED: 'llama.cpp refused to load the model for another reason, which the message quotes.',
  DROID_OUT_OF_MEMORY: 'A device has less free memory than its share of the model needs.',
  DROID_ENDPOINT_TIMEOUT:
    'Nothing answered at the endpoint in time: Android drops incoming connections like this, and what is no worker may keep silent.',
  DROID_ENDPOINT_REFUSED: 'The device answered, but nothing listens on that port.',
  DROID_ENDPOINT_UNREACHABLE: 'There is no route to the host, or its name does not resolve.',
  DROID_VERSION_MISMATCH: 'The endpoint answered in another version of the RPC protocol, or in none.',
  DROID_PORT_IN_USE: 'The port to listen on is taken.',
  DROID_CLOSED: 'The context or server was closed before or during the call.',
  DROID_REQUEST_FAILED: 'The engine answered the request with an error; `status` has its HTTP status.',
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface DroidLlamaErrorOptions {
  cause?: unknown;
  /** HTTP status of the engine's answer, with `DROID_REQUEST_FAILED`. */
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
