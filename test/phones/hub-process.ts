/** A hub on a phone (test/support/hub.ts): `hub-process.ts OWNER/NAME FILE_NAME FILE`. Says `{event: "hub", url}`. */
import { readFile } from 'node:fs/promises';
import { FakeHub } from '../support/hub.js';

const [repository = '', path = '', file = ''] = process.argv.slice(2);
const hub = await FakeHub.start();
hub.repos.set(repository, [{ path, data: await readFile(file) }]);
process.stdout.write(`${JSON.stringify({ event: 'hub', url: hub.url })}\n`);
