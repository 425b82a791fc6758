// @ts-check
// How long createDistributedContext() takes in a process that runs already.
//
//   load.mjs DIST MODEL OPTIONS   OPTIONS as JSON, for createDistributedContext
//   {event: load, seconds}
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';

const [dist = '', model = '', options = '{}'] = process.argv.slice(2);
const { createDistributedContext } = await import(pathToFileURL(join(dist, 'index.js')).href);
const start = performance.now();
const context = await createDistributedContext({ model, ...JSON.parse(options) });
const seconds = (performance.now() - start) / 1000;
process.stdout.write(`${JSON.stringify({ event: 'load', seconds })}\n`);
await context.close();
