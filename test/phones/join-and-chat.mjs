// A member that is a program of its own: joins with the token of argv as a worker, asks the cluster, and leaves.
import { Cluster } from '../../dist/index.js';

const [token = '', question = ''] = process.argv.slice(2);
const cluster = await Cluster.join({ token, name: 'program', role: 'worker' });
await cluster.ready({ signal: AbortSignal.timeout(120_000) });
let text = '';
for await (const chunk of cluster.chat({ messages: [{ role: 'user', content: question }], temperature: 0 })) {
  text += chunk.choices[0]?.delta.content ?? '';
}
console.log(JSON.stringify({ event: 'answer', text, role: cluster.role }));
await cluster.leave();
