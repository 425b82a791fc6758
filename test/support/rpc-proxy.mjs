// @ts-check
// A man in the middle between a master and its worker: it knows what was asked and what was answered, counts it, and
// stops the traffic at an exact place.
import { connect, createServer } from 'node:net';
import { AnswerParser, hasAnswer, RequestParser } from './rpc-frames.mjs';

/** @import { CommandName } from './rpc-frames.d.mts' */
/** @import { Breakpoint, ProxiedRequest } from './rpc-proxy.d.mts' */
/** @import { Server, Socket } from 'node:net' */

function noTraffic() {
  /** @type {Partial<Record<CommandName, { messages: number, bytes: number }>>} */
  const requests = {};
  return { requests, messagesSent: 0, bytesSent: 0, messagesReceived: 0, bytesReceived: 0 };
}

export class RpcProxy {
  /** @type {{ host: string, port: number }} */
  #target;
  /** @type {Server} */
  #server;
  /** @type {Set<Connection>} */
  #connections = new Set();
  #traffic = noTraffic();
  /** @type {{ matches: (request: ProxiedRequest) => boolean, place: 'before' | 'middle' | 'after', hit: (request: ProxiedRequest) => void } | undefined} */
  #breakpoint;
  #accepted = 0;

  /** @param {{ host: string, port: number }} target */
  constructor(target) {
    this.#target = target;
    this.#server = createServer((socket) => this.#accept(socket));
  }

  /** @param {number | { host: string, port: number }} target */
  static async start(target) {
    const proxy = new RpcProxy(typeof target === 'number' ? { host: '127.0.0.1', port: target } : target);
    await new Promise((resolve) => proxy.#server.listen(0, '127.0.0.1', () => resolve(undefined)));
    return proxy;
  }

  get port() {
    return /** @type {import('node:net').AddressInfo} */ (this.#server.address()).port;
  }

  get endpoint() {
    return `127.0.0.1:${this.port}`;
  }

  get traffic() {
    return structuredClone(this.#traffic);
  }

  get connections() {
    return this.#connections.size;
  }

  /** Commands that the worker got in full and whose answers the master has not got in full. */
  get awaiting() {
    return [...this.#connections].flatMap((connection) => connection.awaiting);
  }

  get held() {
    return [...this.#connections].some((connection) => connection.held);
  }

  reset() {
    this.#traffic = noTraffic();
  }

  /**
   * @param {(request: ProxiedRequest) => boolean} matches
   * @param {'before' | 'middle' | 'after'} place
   * @returns {Breakpoint}
   */
  stopAt(matches, place = 'after') {
    /** @type {ProxiedRequest | undefined} */
    let request;
    /** @type {(request: ProxiedRequest) => void} */
    let resolve;
    const reached = new Promise((done) => {
      resolve = done;
    });
    this.#breakpoint = {
      matches,
      place,
      hit: (found) => {
        request = found;
        resolve(found);
      },
    };
    return {
      reached,
      get request() {
        return request;
      },
    };
  }

  resume() {
    for (const connection of this.#connections) connection.release();
  }

  cut() {
    for (const connection of this.#connections) connection.destroy();
  }

  async close() {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  /** @param {Socket} master */
  #accept(master) {
    const worker = connect({ ...this.#target, noDelay: true });
    master.setNoDelay(true);
    const number = ++this.#accepted;
    const connection = new Connection(master, worker, {
      request: (command, bytes) => {
        const traffic = this.#traffic;
        traffic.messagesSent++;
        traffic.bytesSent += bytes;
        traffic.requests[command] ??= { messages: 0, bytes: 0 };
        const kind = traffic.requests[command];
        kind.messages++;
        kind.bytes += bytes;
        const found = { command, bytes, connection: number, count: kind.messages };
        const breakpoint = this.#breakpoint;
        if (!breakpoint?.matches(found)) return undefined;
        this.#breakpoint = undefined;
        return { place: breakpoint.place, hit: () => breakpoint.hit(found) };
      },
      answered: (bytes) => {
        this.#traffic.messagesReceived++;
        this.#traffic.bytesReceived += bytes;
      },
      closed: () => this.#connections.delete(connection),
    });
    this.#connections.add(connection);
  }
}

/**
 * @typedef {{ place: 'before' | 'middle' | 'after', hit: () => void }} Stop
 * @typedef {{ piece: Buffer, frame: { command: CommandName, size: number }, first: boolean, last: boolean }} Piece
 * @typedef {{
 *   request: (command: CommandName, bytes: number) => Stop | undefined,
 *   answered: (bytes: number) => void,
 *   closed: () => void,
 * }} Observer
 */

class Connection {
  /** @type {string[]} */
  awaiting = [];
  /** What waits for release(): requests in pieces, answers as they came. @type {Piece[]} */
  #up = [];
  /** @type {Buffer[]} */
  #down = [];
  #upHeld = false;
  #downHeld = false;
  #requests = new RequestParser();
  #answers = new AnswerParser();
  /** The header that was last counted: one that waits before its stop comes again. @type {Piece | undefined} */
  #seen;
  /** Set while the request to stop after is on its way. @type {Stop | undefined} */
  #stopping;

  /**
   * @param {Socket} master
   * @param {Socket} worker
   * @param {Observer} observer
   */
  constructor(master, worker, observer) {
    this.master = master;
    this.worker = worker;
    this.observer = observer;
    master.on('data', (chunk) => this.#fromMaster(chunk));
    worker.on('data', (chunk) => {
      if (this.#downHeld) this.#down.push(chunk);
      else this.#toMaster(chunk);
    });
    worker.on('drain', () => master.resume());
    master.on('drain', () => worker.resume());
    // How the worker ends is how the proxy ends: a reset is one for the master too, and what it said last arrives.
    worker.on('error', () => {
      // Node loses the descriptor of a socket that it is told to reset while it shuts down.
      if (master.writableEnded) master.destroy();
      else master.resetAndDestroy();
    });
    worker.on('end', () => {
      if (this.#downHeld) master.destroy();
      else master.end();
    });
    master.on('error', () => {});
    for (const socket of [master, worker]) socket.on('close', () => this.#closed());
  }

  get held() {
    return this.#upHeld || this.#downHeld;
  }

  release() {
    this.#upHeld = false;
    this.#downHeld = false;
    for (const chunk of this.#down.splice(0)) this.#toMaster(chunk);
    // One of them may meet the next breakpoint; what follows then waits again.
    while (!this.#upHeld) {
      const piece = this.#up.shift();
      if (!piece) break;
      this.#toWorker(piece);
    }
  }

  destroy() {
    this.master.destroy();
    this.worker.destroy();
  }

  #closed() {
    this.worker.destroy();
    // Unless it still has something to send; then end() closes it.
    if (this.master.writableLength === 0) this.master.destroy();
    if (this.master.destroyed) this.observer.closed();
  }

  /** @param {Buffer} chunk */
  #fromMaster(chunk) {
    this.#requests.push(chunk, (piece, frame, { first, last }) => {
      const next = { piece, frame, first, last };
      if (this.#upHeld) this.#up.push(next);
      else this.#toWorker(next);
    });
  }

  /** @param {Piece} next */
  #toWorker(next) {
    const { piece, frame, first, last } = next;
    if (first && next !== this.#seen) {
      this.#seen = next;
      const stop = this.observer.request(frame.command, frame.size + piece.length);
      if (stop) {
        this.#downHeld = true;
        this.#stopping = stop;
        if (stop.place === 'before') {
          this.#up.push(next);
          return this.#stop();
        }
      }
    }
    if (!this.worker.write(piece)) this.master.pause();
    if (last && hasAnswer(frame.command)) this.awaiting.push(frame.command);
    if (last || this.#stopping?.place === 'middle') this.#stop();
  }

  #stop() {
    if (!this.#stopping) return;
    this.#upHeld = true;
    this.#stopping.hit();
    this.#stopping = undefined;
  }

  /** @param {Buffer} chunk */
  #toMaster(chunk) {
    this.#answers.push(chunk, (_piece, { command, size }, { last }) => {
      if (!last) return;
      if (command === 'answer') this.awaiting.shift();
      this.observer.answered(size + 8);
    });
    if (!this.master.write(chunk)) this.worker.pause();
  }
}
