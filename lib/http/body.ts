import type { Multipart } from '@fastify/multipart';
import type { FastifyRequest } from 'fastify';
import type { UploadedFile } from '../types.js';
import { bodyTooLarge, messageOf, requestError, statusOf } from './errors.js';

/** A request body as the engine takes it. */
export interface RequestBody {
  readonly body: Uint8Array | undefined;
  /** Files of a multipart upload, by field name. */
  readonly files?: Record<string, UploadedFile>;
}

/** Whether a `Content-Type` announces a form that has to be taken apart. */
export function isMultipart(contentType: string | undefined): boolean {
  return contentType !== undefined && /^\s*multipart\/form-data\s*(;|$)/i.test(contentType);
}

/**
 * Reads the body of a request whose plain bytes Fastify has already collected in `request.body`.
 *
 * A JSON body is parsed only to answer a malformed one with 400: the engine would answer 500, and it has to get
 * the bytes as they came in any case.
 *
 * @param limit - bytes a multipart upload may have; Fastify holds other bodies to it itself.
 * @throws an error whose `statusOf` is 400 for a malformed body, 413 for one over the limit.
 */
export async function readBody(request: FastifyRequest, limit: number): Promise<RequestBody> {
  if (request.isMultipart()) return readMultipart(request, limit);
  if (!(request.body instanceof Uint8Array) || request.body.length === 0) return { body: undefined };
  checkJson(request.body);
  return { body: request.body };
}

function checkJson(bytes: Uint8Array): void {
  try {
    // Fatal, because the engine's parser refuses ill-formed UTF-8 too.
    JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw requestError(400, `The request body is not valid JSON: ${messageOf(error)}`, error);
  }
}

async function readMultipart(request: FastifyRequest, limit: number): Promise<RequestBody> {
  const { raw } = request;
  // The plugin limits each part, so a thousand parts would hold a thousand times the limit; count the upload itself.
  let count: ((chunk: Buffer) => void) | undefined;
  const overflow = new Promise<never>((_, reject) => {
    let received = 0;
    count = (chunk) => {
      received += chunk.length;
      if (received > limit) reject(bodyTooLarge(limit));
    };
    raw.on('data', count);
  });
  try {
    if (Number(request.headers['content-length']) > limit) throw bodyTooLarge(limit);
    return await Promise.race([collectParts(request, limit), overflow]);
  } catch (error) {
    // Nobody reads the parser any more, and a client that cannot finish its upload never reads the answer.
    raw.unpipe();
    raw.resume();
    // What the parser throws for a form it cannot read has no status of its own.
    throw statusOf(error) < 500 ? error : requestError(400, `The form is malformed: ${messageOf(error)}`, error);
  } finally {
    if (count) raw.off('data', count);
  }
}

async function collectParts(request: FastifyRequest, limit: number): Promise<RequestBody> {
  const fields = new Map<string, string | string[]>();
  const files = new Map<string, UploadedFile>();
  const parts: AsyncIterable<Multipart> = request.parts({
    limits: { fileSize: limit, fieldSize: limit },
    // As in llama-server the file name makes a file; the default would take an unnamed octet-stream for one.
    isPartAFile: (_field, _type, filename) => Boolean(filename),
  });
  for await (const part of parts) {
    if (part.type === 'file') {
      files.set(part.fieldname, {
        data: await part.toBuffer(),
        filename: part.filename,
        contentType: part.mimetype,
      });
    } else {
      // The plugin has parsed a part of type application/json; the engine expects the text of every field.
      const text = typeof part.value === 'string' ? part.value : JSON.stringify(part.value);
      const earlier = fields.get(part.fieldname);
      fields.set(part.fieldname, earlier === undefined ? text : [earlier, text].flat());
    }
  }
  return { body: Buffer.from(JSON.stringify(Object.fromEntries(fields))), files: Object.fromEntries(files) };
}
