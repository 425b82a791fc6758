/** The man in the middle of the fault tests: what it says was asked and answered must be so. */
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { AnswerParser, COMMANDS, type CommandName, RequestParser } from '../support/rpc-frames.mjs';
import { RpcProxy } from '../support/rpc-proxy.mjs';

function request(command: CommandName, payload: Buffer): Buffer {
  const header = Buffer.alloc(9);
  header[0] = COMMANDS[command];
  header.writeBigUInt64LE(BigInt(payload.length), 1);
  return Buffer.concat([header, payload]);
}

function answer(payload: Buffer): Buffer {
  const header = Buffer.alloc(8);
  header.writeBigUInt64LE(BigInt(payload.length));
  return Buffer.concat([header, payload]);
}

function notice(text: string): Buffer {
  const header = Buffer.alloc(16, 0xff);
  header.writeUInt32LE(1, 8);
  header.writeUInt32LE(text.length, 12);
  return Buffer.concat([header, Buffer.from(text)]);
}

describe('the parsers', () => {
  const requests = Buffer.concat([
    request('hello', Buffer.alloc(24)),
    request('device_count', Buffer.alloc(0)),
    request('put_weight', Buffer.alloc(1000, 7)),
    request('graph_recompute', Buffer.alloc(4)),
  ]);
  const answers = Buffer.concat([answer(Buffer.alloc(28)), answer(Buffer.alloc(0)), notice('no'), notice('')]);

  it.each([1, 2, 7, 9, 100, 5000])('give the same frames for pieces of %i bytes, and lose none', (bytes) => {
    const asked: string[] = [];
    const said: string[] = [];
    const passed: Buffer[] = [];
    const parser = new RequestParser();
    const back = new AnswerParser();
    for (let at = 0; at < requests.length; at += bytes) {
      parser.push(requests.subarray(at, at + bytes), (piece, { command, size }, { last }) => {
        passed.push(piece);
        if (last) asked.push(`${command} ${size}`);
      });
    }
    for (let at = 0; at < answers.length; at += bytes) {
      back.push(answers.subarray(at, at + bytes), (_, { command }, { last }) => {
        if (last) said.push(command);
      });
    }
    expect(asked).toEqual(['hello 24', 'device_count 0', 'put_weight 1000', 'graph_recompute 4']);
    expect(Buffer.concat(passed).equals(requests)).toBe(true);
    expect(said).toEqual(['answer', 'answer', 'notice', 'notice']);
  });
});

describe('the proxy', () => {
  /** A worker that only records, a proxy before it and a master that connects. */
  async function setUp() {
    let received = Buffer.alloc(0);
    let worker: Socket | undefined;
    const server = createServer((socket) => {
      worker = socket;
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        received = Buffer.concat([received, chunk]);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const proxy = await RpcProxy.start((server.address() as { port: number }).port);
    const master = connect(proxy.port, '127.0.0.1');
    let answered = Buffer.alloc(0);
    master.on('error', () => {});
    master.on('data', (chunk) => {
      answered = Buffer.concat([answered, chunk]);
    });
    onTestFinished(async () => {
      master.destroy();
      await proxy.close();
      server.close();
    });
    await once(master, 'connect');
    await expect.poll(() => worker).toBeDefined();
    return { proxy, master, worker: worker as unknown as Socket, received: () => received, answered: () => answered };
  }

  it.each([
    ['before', 0],
    ['middle', 9],
    ['after', 13],
  ] as const)('stops %s a request, holds its answer, and goes on where it stopped', async (place, bytes) => {
    const { proxy, master, worker, received, answered } = await setUp();
    const first = request('device_count', Buffer.alloc(0));
    const graph = request('graph_recompute', Buffer.from([1, 2, 3, 4]));
    const read = request('read', Buffer.alloc(24, 5));
    const stop = proxy.stopAt(({ command }) => command === 'graph_recompute', place);
    master.write(Buffer.concat([first, graph, read]));
    expect(await stop.reached).toMatchObject({ command: 'graph_recompute', bytes: 13, count: 1, connection: 1 });
    await expect.poll(() => received().length).toBe(first.length + bytes);
    expect(proxy.held).toBe(true);
    expect(proxy.awaiting).toEqual(['device_count']);
    worker.write(answer(Buffer.alloc(4, 9)));
    await new Promise((resolve) => setImmediate(resolve));
    expect(answered().length).toBe(0);
    proxy.resume();
    await expect.poll(() => received().equals(Buffer.concat([first, graph, read]))).toBe(true);
    await expect.poll(() => answered().length).toBe(12);
    expect(proxy.awaiting).toEqual(['read']);
    expect(proxy.traffic).toMatchObject({ messagesSent: 3, messagesReceived: 1, bytesSent: 55, bytesReceived: 12 });
  });

  it('hangs up on the master when the worker does, with what it said last', async () => {
    const { proxy, master, worker, answered } = await setUp();
    const gone = once(master, 'close');
    worker.end(notice('good night'));
    await gone;
    expect(answered().equals(notice('good night'))).toBe(true);
    expect(proxy.connections).toBe(0);
  });

  it('gives the master nothing more of a worker that dies behind a stop', async () => {
    const { proxy, master, worker, answered } = await setUp();
    const stop = proxy.stopAt(({ command }) => command === 'read');
    master.write(request('read', Buffer.alloc(24)));
    await stop.reached;
    expect(proxy.awaiting).toEqual(['read']);
    const gone = once(master, 'close');
    worker.write(answer(Buffer.alloc(100)));
    worker.end();
    await gone;
    expect(answered().length).toBe(0);
  });
});
