/** A worker that speaks RPC protocol 7 without computing anything, and lies where a test tells it to. */
import { createServer, type Server, type Socket } from 'node:net';
import { type CommandName, hasAnswer, RequestParser } from './rpc-frames.mjs';

export interface Asked {
  readonly command: CommandName;
  readonly payload: Buffer;
  /** From 1 on, over all connections. */
  readonly count: number;
}

/** What a liar does in place of the honest answer; nothing to be honest. */
export type Lie = (asked: Asked, honest: Buffer | undefined, socket: Socket) => 'lied' | undefined;

const MIB = 1048576;
const TENSOR_BYTES = 296;
const HELLO_STATUS_OFFSET = 4 + 4 + 4 + 1;

/** The bytes of an answer with its size in front. */
export function frame(payload: Buffer, size: bigint = BigInt(payload.length)): Buffer {
  return Buffer.concat([u64(size), payload]);
}

export function u64(...values: (bigint | number)[]): Buffer {
  const bytes = Buffer.alloc(8 * values.length);
  for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(BigInt(value), 8 * i);
  return bytes;
}

export function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, 4 * i);
  return bytes;
}

export class FakeWorker implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #counts = new Map<string, number>();
  readonly #extended: boolean;
  readonly #lie: Lie;
  #handles = 0;
  /** Whether the lie was told: a test of a lie that nobody heard shows nothing. */
  lied = 0;

  private constructor(lie: Lie, extended: boolean) {
    this.#lie = lie;
    this.#extended = extended;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  static async start(lie: Lie = () => undefined, { extended = false } = {}): Promise<FakeWorker> {
    const worker = new FakeWorker(lie, extended);
    await new Promise<void>((resolve) => worker.#server.listen(0, '127.0.0.1', resolve));
    return worker;
  }

  get endpoint(): string {
    return `127.0.0.1:${(this.#server.address() as { port: number }).port}`;
  }

  get connections(): number {
    return this.#sockets.size;
  }

  /** How often the command came, over all connections. */
  count(command: CommandName): number {
    return this.#counts.get(command) ?? 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    const parser = new RequestParser();
    let pieces: Buffer[] = [];
    socket.on('data', (chunk) => {
      parser.push(chunk, (piece, { command }, { first, last }) => {
        if (first) pieces = [];
        else pieces.push(piece);
        if (last) this.#answer(command, Buffer.concat(pieces), socket);
      });
    });
  }

  #answer(command: CommandName, payload: Buffer, socket: Socket): void {
    if (socket.destroyed) return;
    const count = (this.#counts.get(command) ?? 0) + 1;
    this.#counts.set(command, count);
    const honest = hasAnswer(command) ? frame(this.#honest(command, payload)) : undefined;
    if (this.#lie({ command, payload, count }, honest, socket) === 'lied') {
      this.lied++;
      return;
    }
    if (honest) socket.write(honest);
  }

  #honest(command: CommandName, payload: Buffer): Buffer {
    switch (command) {
      case 'hello': {
        const answer = Buffer.alloc(28);
        answer[0] = 7;
        if (this.#extended) {
          answer.write('drdl', 8, 'latin1');
          answer[12] = 1;
          answer[HELLO_STATUS_OFFSET] = 0;
          answer[HELLO_STATUS_OFFSET + 1] = 1; // it holds weights, so that it is asked for them
        }
        return answer;
      }
      case 'device_count':
        return u32(1);
      case 'get_device_memory':
        return u64(4096 * MIB, 4096 * MIB);
      case 'alloc_buffer':
        return Buffer.concat([u64(++this.#handles), payload.subarray(4, 12)]);
      case 'buffer_get_base':
        return u64(0x10_0000_0000n + payload.readBigUInt64LE() * 0x1_0000_0000n);
      case 'get_alignment':
        return u64(64);
      case 'get_max_size':
        return u64(0xffff_ffff_ffff_ffffn);
      case 'get_alloc_size':
        return u64(tensorBytes(payload.subarray(4)));
      case 'get_tensor':
        return Buffer.alloc(Number(payload.readBigUInt64LE(TENSOR_BYTES + 8)));
      case 'read':
        return Buffer.concat([u64(1), Buffer.alloc(Number(payload.readBigUInt64LE(16)))]);
      case 'offer':
        return Buffer.alloc(payload.length / 40);
      default: // set_tensor_hash, copy_tensor
        return Buffer.from([0]);
    }
  }
}

/** Enough for a contiguous tensor of the wire's struct. */
function tensorBytes(tensor: Buffer): bigint {
  const ne3 = BigInt(tensor.readUInt32LE(8 + 4 + 8 + 12));
  const nb3 = BigInt(tensor.readUInt32LE(8 + 4 + 8 + 16 + 12));
  return ne3 * nb3;
}
