// @ts-check
// A worker in a process of its own that a test may kill or freeze: node worker-process.mjs '{"port":0,"threads":1}'
// Needs an IPC channel: sends { endpoint, port }, and answers every message with the server's counters.
import { startRpcServer } from '../../dist/index.js';

const server = await startRpcServer(JSON.parse(process.argv[2] ?? '{}'));
process.send?.({ endpoint: server.endpoint, port: server.port });
process.on('message', () => process.send?.(server.stats()));
// The test is gone.
process.on('disconnect', () => process.exit(0));
