/** A server that speaks the endpoints of the Hugging Face hub that are used here, and misbehaves on demand. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach } from 'vitest';
import { pullModel } from '../../lib/hub/pull.js';

export interface HubFile {
  path: string;
  data: Buffer;
  /** What the hub says it is, where that is another one. */
  sha256?: string;
  size?: number;
}

export interface HubRequest {
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

export class FakeHub {
  readonly repos = new Map<string, HubFile[]>();
  /** Repositories that want this token. */
  readonly gated = new Map<string, string>();
  readonly requests: HubRequest[] = [];
  /** The next downloads are cut off after that many bytes each. */
  readonly cuts: number[] = [];
  /** The next requests are answered with these. */
  readonly failures: number[] = [];
  /** Answers with the whole file whatever was asked for. */
  ignoresRanges = false;
  /** Answers requests itself where it returns true. */
  instead: (request: IncomingMessage, response: ServerResponse) => boolean = () => false;
  /** Called before each piece of a download. */
  beforePiece: (sent: number) => void | Promise<void> = () => {};
  readonly #server = createServer((request, response) => void this.#answer(request, response));

  url = '';

  static async start(): Promise<FakeHub> {
    const hub = new FakeHub();
    await new Promise<void>((resolve) => hub.#server.listen(0, '127.0.0.1', resolve));
    hub.url = `http://127.0.0.1:${(hub.#server.address() as AddressInfo).port}`;
    return hub;
  }

  /** Downloads that were asked for, without the library's question for the size. */
  get downloads(): HubRequest[] {
    return this.requests.filter(({ path, range }) => path.includes('/resolve/') && range !== 'bytes=0-0');
  }

  close(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? '/', this.url);
    const { range, authorization } = request.headers;
    this.requests.push({ path: pathname, range, authorization });
    if (this.instead(request, response)) return;
    const failure = this.failures.shift();
    if (failure !== undefined) return fail(response, failure, 'out of order');
    if (pathname === '/api/models') return this.#search(response, searchParams.get('search') ?? '');
    const [, tree, name, path] =
      /^\/(api\/models\/)?([^/]+\/[^/]+)\/(?:tree|resolve)\/main\/?(.*)$/.exec(pathname) ?? [];
    const files = this.repos.get(name ?? '');
    const token = this.gated.get(name ?? '');
    if (!files) return fail(response, 401, 'Invalid username or password.');
    if (token !== undefined && authorization !== `Bearer ${token}`) return fail(response, 401, 'Access is restricted.');
    if (tree) return list(response, files);
    const file = files.find((candidate) => candidate.path === decodeURIComponent(path ?? ''));
    if (!file) return fail(response, 404, 'Entry not found', { 'x-error-code': 'EntryNotFound' });
    await this.#send(response, file, range);
  }

  #search(response: ServerResponse, query: string): void {
    const names = [...this.repos.keys()].filter((name) => name.toLowerCase().includes(query.toLowerCase()));
    json(
      response,
      names.map((id) => ({
        _id: id,
        id,
        modelId: id,
        likes: 0,
        private: false,
        downloads: 0,
        gated: false,
        lastModified: '2026-01-01',
      })),
    );
  }

  async #send(response: ServerResponse, { data }: HubFile, range: string | undefined): Promise<void> {
    const [, from = '0', to] = /^bytes=(\d+)-(\d*)$/.exec(range ?? '') ?? [];
    const probe = range === 'bytes=0-0';
    const partial = range !== undefined && (!this.ignoresRanges || probe);
    const start = partial ? Number(from) : 0;
    const end = partial && to ? Number(to) + 1 : data.length;
    const headers = {
      etag: '"x"',
      'content-length': end - start,
      'content-range': `bytes ${start}-${end - 1}/${data.length}`,
    };
    response.writeHead(partial ? 206 : 200, headers);
    const cut = probe ? undefined : this.cuts.shift();
    if (cut === 0) {
      response.flushHeaders();
      setTimeout(() => response.destroy(), 20);
      return;
    }
    const piece = Math.max(1, Math.ceil((end - start) / 8));
    for (let at = start; at < end; at += piece) {
      if (!probe) await this.beforePiece(at);
      const next = Math.min(at + piece, end);
      if (cut !== undefined && next - start > cut) {
        response.write(data.subarray(at, start + cut), () => response.destroy());
        return;
      }
      response.write(data.subarray(at, next));
    }
    response.end();
  }
}

function list(response: ServerResponse, files: readonly HubFile[]): void {
  json(
    response,
    files.map(({ path, data, sha256, size = data.length }) => ({
      type: 'file',
      oid: '0'.repeat(40),
      size,
      path,
      lfs: { oid: sha256 ?? createHash('sha256').update(data).digest('hex'), size, pointerSize: 130 },
    })),
  );
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(value));
}

function fail(response: ServerResponse, status: number, error: string, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify({ error }));
}

/** Content that repeats only after 251 bytes. */
export function bytes(length: number, seed = 1): Buffer {
  return Buffer.from(Array.from({ length }, (_, i) => (i * 31 + seed) % 251));
}

export function rejection(promise: Promise<unknown>): Promise<Error & { code?: string }> {
  return promise.then(
    () => {
      throw new Error('it resolved');
    },
    (error) => error,
  );
}

/** What {@link useHub} makes for each test. */
export interface HubRig {
  /** Has `owner/tiny-GGUF`. */
  readonly hub: FakeHub;
  /** Of the models; empty at first. */
  readonly directory: string;
  /** Pulls from the one into the other. */
  readonly pull: typeof pullModel;
}

/** A rig that is another one in each test of the file or group that calls this. */
export function useHub(): HubRig {
  const rig = {} as HubRig;
  beforeEach(async () => {
    const hub = await FakeHub.start();
    const directory = await mkdtemp(join(tmpdir(), 'droid-hub-'));
    hub.repos.set('owner/tiny-GGUF', [
      { path: 'README.md', data: Buffer.from('hello') },
      { path: 'tiny-q4_k_m.gguf', data: bytes(40_000) },
      { path: 'tiny-q8_0.gguf', data: bytes(60_000, 2) },
    ]);
    const pull: typeof pullModel = (reference, options) =>
      pullModel(reference, { hubUrl: hub.url, directory, ...options });
    Object.assign(rig, { hub, directory, pull });
    return async () => {
      await hub.close();
      await rm(directory, { recursive: true, force: true });
    };
  });
  return rig;
}
