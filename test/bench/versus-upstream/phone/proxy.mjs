// @ts-check
// Stands between a master and its worker, on the master's phone, and counts what they say to each other.
//
//   proxy.mjs HOST PORT   {event: listening, port}; a line `count` on stdin: {event: counted, ...traffic}, and counts anew
import { createInterface } from 'node:readline';
import { RpcProxy } from '../../../support/rpc-proxy.mjs';

const [host = '', port = ''] = process.argv.slice(2);
const tell = (/** @type {object} */ event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const proxy = await RpcProxy.start({ host, port: Number(port) });
tell({ event: 'listening', port: proxy.port });
for await (const _line of createInterface({ input: process.stdin })) {
  tell({ event: 'counted', ...proxy.traffic });
  proxy.reset();
}
await proxy.close();
