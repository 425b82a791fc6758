/** A request's body as bytes on the wire; with files it is a form again, which the master takes apart. */
import { randomBytes } from 'node:crypto';
import { type RequestBody, toBytes } from '../../engine-request.js';
import { isMultipart } from '../../http/body.js';
import type { RequestOptions, UploadedFile } from '../../types.js';
import { invalid } from '../../validate.js';

export interface ForwardBody {
  readonly bytes: Uint8Array;
  readonly contentType: string | undefined;
}

/**
 * Throws `DROID_INVALID_ARGUMENT` for a body that is neither an object nor text nor bytes, and with files for one that
 * is no JSON object. A form holds text alone: of a field that is none its JSON is sent.
 */
export function forwardBody(body: RequestBody, { files, headers = {} }: RequestOptions): ForwardBody {
  if (files && Object.keys(files).length > 0) return form(fieldsOf(body), files);
  const bytes = toBytes(body);
  const given = Object.entries(headers).find(([name]) => name.toLowerCase() === 'content-type')?.[1];
  // What was a form has become JSON when the HTTP server took it apart.
  const isJson = given === undefined || isMultipart(given);
  return { bytes, contentType: bytes.length > 0 && isJson ? 'application/json' : isJson ? undefined : given };
}

function fieldsOf(body: RequestBody): Record<string, unknown> {
  const bytes = toBytes(body);
  if (bytes.length === 0) return {};
  let fields: unknown;
  try {
    fields = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    invalid(`The body is not valid JSON: ${(error as Error).message}; with files it must hold the form's fields.`);
  }
  if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) {
    invalid("The body must be an object: with files it holds the form's fields.");
  }
  return fields as Record<string, unknown>;
}

function form(fields: Record<string, unknown>, files: Record<string, UploadedFile>): ForwardBody {
  const boundary = `droid-llama-${randomBytes(16).toString('hex')}`;
  const parts: Uint8Array[] = [];
  const part = (header: string, data: Uint8Array): void => {
    parts.push(Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; ${header}\r\n\r\n`));
    parts.push(data, Buffer.from('\r\n'));
  };
  for (const [name, value] of Object.entries(fields)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      const text = typeof item === 'string' ? item : JSON.stringify(item);
      part(`name="${quoted(name)}"`, Buffer.from(text));
    }
  }
  for (const [name, { data, filename, contentType }] of Object.entries(files)) {
    const type = contentType === '' ? 'application/octet-stream' : contentType;
    if (/[^\t\x20-\x7e]/.test(type)) invalid(`The content type of the file ${JSON.stringify(name)} is malformed.`);
    part(`name="${quoted(name)}"; filename="${quoted(filename || 'file')}"\r\nContent-Type: ${type}`, data);
  }
  parts.push(Buffer.from(`--${boundary}--\r\n`));
  return { bytes: Buffer.concat(parts), contentType: `multipart/form-data; boundary=${boundary}` };
}

/** Line breaks cannot stand in a header; they go as browsers send them. */
function quoted(text: string): string {
  return text.replace(/["\\]/g, '\\$&').replace(/\r/g, '%0D').replace(/\n/g, '%0A');
}
