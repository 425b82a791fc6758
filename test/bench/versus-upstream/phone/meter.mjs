// @ts-check
// What a link does without any model on it: round trip and throughput, by plain TCP between two phones.
//
//   meter.mjs serve HOST PORT                   {event: listening}, until it is ended
//   meter.mjs measure HOST PORT ECHOES BYTES    {event: link, roundTripMs, shortestMs, upBytesPerSecond, downBytesPerSecond}
//
// A connection begins with eight bytes: 0 asks for every further byte back, a positive number of bytes is sent by who
// connected and acknowledged with one byte, a negative one is sent back.
import { Buffer } from 'node:buffer';
import { once } from 'node:events';
import { createServer, Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { median } from '../../../../dist/statistics.js';

const tell = (/** @type {object} */ event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const CHUNK = Buffer.alloc(64 * 1024, 'x');

/** @param {Socket} socket @param {number} bytes */
async function send(socket, bytes) {
  for (let left = bytes; left > 0; left -= CHUNK.length) {
    if (!socket.write(CHUNK.subarray(0, left))) await once(socket, 'drain');
  }
}

/** Resolves when so many bytes have come. @param {Socket} socket @param {number} bytes */
function receive(socket, bytes) {
  return new Promise((resolve, reject) => {
    let got = 0;
    socket.on('data', (chunk) => {
      got += chunk.length;
      if (got >= bytes) resolve(undefined);
    });
    socket.once('close', () => reject(new Error(`the link ended after ${got} of ${bytes} bytes`)));
  });
}

/** @param {Socket} socket */
function serve(socket) {
  socket.setNoDelay(true);
  socket.once('data', async (first) => {
    const bytes = Number(first.readBigInt64BE());
    // What comes next may have arrived with it.
    socket.unshift(first.subarray(8));
    if (bytes === 0) socket.on('data', (chunk) => socket.write(chunk));
    else if (bytes < 0) await send(socket, -bytes);
    else {
      await receive(socket, bytes);
      socket.write('.');
    }
  });
}

/** @param {string} host @param {number} port @param {number} bytes */
async function open(host, port, bytes) {
  const socket = new Socket().setNoDelay(true);
  socket.connect(port, host);
  await once(socket, 'connect');
  const head = Buffer.alloc(8);
  head.writeBigInt64BE(BigInt(bytes));
  socket.write(head);
  return socket;
}

const [verb, host = '', port = '', echoes = '', size = ''] = process.argv.slice(2);
if (verb === 'serve') {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    serve(socket);
  });
  server.listen(Number(port), host, () => tell({ event: 'listening' }));
} else if (verb === 'measure') {
  const echo = await open(host, Number(port), 0);
  const times = [];
  for (let i = 0; i < Number(echoes); i++) {
    const start = performance.now();
    echo.write('.');
    await once(echo, 'data');
    times.push(performance.now() - start);
  }
  echo.destroy();
  const roundTripMs = median(times);
  const bytes = Number(size);
  /** @param {number} direction */
  const rate = async (direction) => {
    const start = performance.now();
    const socket = await open(host, Number(port), direction * bytes);
    if (direction > 0) await send(socket, bytes);
    await receive(socket, direction > 0 ? 1 : bytes);
    const ms = performance.now() - start;
    socket.destroy();
    // Connecting takes one round trip, and asking or being acknowledged another one.
    return (bytes * 1000) / Math.max(ms - 2 * roundTripMs, 1e-3);
  };
  const upBytesPerSecond = await rate(1);
  const downBytesPerSecond = await rate(-1);
  tell({ event: 'link', roundTripMs, shortestMs: Math.min(...times), upBytesPerSecond, downBytesPerSecond });
} else throw new Error(`unknown verb ${verb}`);
