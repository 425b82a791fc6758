// What tests do on a phone's network, each in a process there; results are lines of JSON with an `event`.
//
//   sink PORT                     accepts connections, reads all and answers each of 64 bytes or less with itself
//   dial HOST PORT TIMEOUT_MS     one connection: {event: open | refused | timeout | unreachable, ms}
//   echo HOST PORT COUNT          the shortest exchange of one byte: {event: echo, ms}
//   send HOST PORT BYTES          {event: sent, seconds}
//   say HOST PORT BASE64 WAIT_MS  sends, then waits for the end or so long: {event: said, received, closed, ms}
//   flood HOST PORT COUNT         holds so many connections that say nothing: {event: flooding, opened} until it is ended
//   pass FROM TO           hands connections on; each end is a port of all addresses, of 127.0.0.1 when TO, or a socket's path
//   http METHOD URL [BODY]        {event: head, status}, {event: chunk, text}…, {event: end} or {event: error, message}
import { Buffer } from 'node:buffer';
import { createServer, Socket } from 'node:net';
import { performance } from 'node:perf_hooks';

const tell = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);

function connect(host, port, timeoutMs = 5000) {
  return new Promise((resolve, reject) => {
    const socket = new Socket();
    socket.setNoDelay(true);
    const timer = setTimeout(() => {
      socket.destroy();
      reject(Object.assign(new Error('timeout'), { code: 'ETIMEDOUT' }));
    }, timeoutMs);
    socket.once('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    socket.connect(Number(port), host, () => {
      clearTimeout(timer);
      socket.on('error', () => {});
      resolve(socket);
    });
  });
}

const verbs = {
  sink: async (port) => {
    const server = createServer((socket) => {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('data', (bytes) => bytes.length <= 64 && socket.write(bytes));
    });
    server.listen(Number(port), '0.0.0.0', () => tell('listening'));
  },

  dial: async (host, port, timeoutMs) => {
    const start = performance.now();
    const results = { ECONNREFUSED: 'refused', ETIMEDOUT: 'timeout' };
    try {
      (await connect(host, port, Number(timeoutMs))).destroy();
      tell('open', { ms: performance.now() - start });
    } catch (error) {
      tell(results[error.code] ?? 'unreachable', { ms: performance.now() - start });
    }
  },

  echo: async (host, port, count) => {
    const socket = await connect(host, port);
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < Number(count); i++) {
      const start = performance.now();
      socket.write('.');
      await new Promise((resolve) => socket.once('data', resolve));
      best = Math.min(best, performance.now() - start);
    }
    socket.destroy();
    tell('echo', { ms: best });
  },

  send: async (host, port, bytes) => {
    const socket = await connect(host, port);
    const chunk = Buffer.alloc(64 * 1024, 'x');
    const start = performance.now();
    for (let left = Number(bytes); left > 0; left -= chunk.length) {
      if (!socket.write(chunk.subarray(0, left))) await new Promise((resolve) => socket.once('drain', resolve));
    }
    // The other end closes when it has read everything.
    await new Promise((resolve) => socket.resume().once('close', resolve).end());
    tell('sent', { seconds: (performance.now() - start) / 1000 });
  },

  say: async (host, port, base64, waitMs) => {
    const start = performance.now();
    const socket = await connect(host, port);
    const received = [];
    socket.on('data', (bytes) => received.push(bytes));
    socket.write(Buffer.from(base64, 'base64'));
    const closed = await new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), Number(waitMs));
      socket.once('close', () => {
        clearTimeout(timer);
        resolve(true);
      });
    });
    socket.destroy();
    const ms = performance.now() - start;
    tell('said', { received: Buffer.concat(received).toString('base64'), closed, ms });
  },

  flood: async (host, port, count) => {
    const sockets = new Set();
    const open = async () => {
      try {
        const socket = await connect(host, port);
        sockets.add(socket);
        // Turned away: take its place again.
        socket.resume().once('close', () => {
          sockets.delete(socket);
          setTimeout(open, 50);
        });
      } catch {
        setTimeout(open, 50);
      }
    };
    await Promise.all(Array.from({ length: Number(count) }, open));
    tell('flooding', { opened: sockets.size });
  },

  pass: async (from, to) => {
    const end = (text, host) => (text.startsWith('/') ? { path: text } : { port: Number(text), host });
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      const onward = new Socket({ allowHalfOpen: true }).connect(end(to, '127.0.0.1'));
      for (const [one, other] of [
        [socket, onward],
        [onward, socket],
      ]) {
        one.setNoDelay(true);
        one.on('error', () => other.destroy()).on('close', () => other.destroy());
        one.pipe(other);
      }
    });
    server.listen(end(from, '0.0.0.0'), () => tell('listening'));
  },

  http: async (method, url, body) => {
    const headers = body === undefined ? {} : { 'content-type': 'application/json' };
    try {
      const response = await fetch(url, { method, headers, body });
      tell('head', { status: response.status });
      const decoder = new TextDecoder();
      for await (const bytes of response.body ?? []) tell('chunk', { text: decoder.decode(bytes, { stream: true }) });
      tell('end');
    } catch (error) {
      tell('error', { message: `${error.message}: ${error.cause?.message ?? ''}` });
    }
  },
};

const [verb = '', ...args] = process.argv.slice(2);
if (!verbs[verb]) throw new Error(`unknown verb ${verb}`);
await verbs[verb](...args);
