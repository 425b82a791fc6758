// Behaves as `droid-llama worker --child` does, but for the worker in it. Each start takes the next of the behaviours
// that it is given, and the last one again and again:
//
//   run          say that it is ready, answer `stats`, end with its stdin
//   deaf         the same, but never end by itself
//   crash        be ready, and end by SIGABRT at the first `stats`
//   exit:<n>     end with that status before it is ready
//   error:<code> report an error and end with status 1
//   hang         never be ready
//   chatty       as run, among lines that are not the worker's
//   prattle      print such lines and nothing else
//
//   node fake-worker.mjs <file that counts the starts> <port> <behaviour>…
import { appendFileSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

const [counter, port, ...behaviours] = process.argv.slice(2);
appendFileSync(counter, `${process.pid} ${port}\n`);
const start = readFileSync(counter, 'utf8').split('\n').length - 2;
const [behaviour, value] = (behaviours[start] ?? behaviours.at(-1)).split(':');
const strays = ['hello', '', '{', '5', 'null', '[]', '{"level":"info"}', '{"error":null}'];
const say = (message) => {
  if (behaviour === 'chatty') process.stdout.write(`${strays.join('\n')}\nno line break`);
  process.stdout.write(`${JSON.stringify(message)}\n`);
};

if (behaviour === 'prattle') process.stdout.write('hello\n'.repeat(20_000));

if (behaviour === 'exit') process.exit(Number(value));
if (behaviour === 'error') {
  say({ error: { code: value, message: `it says ${value}` } });
  process.exitCode = 1;
} else {
  const lines = createInterface({ input: process.stdin });
  lines.on('line', () => {
    if (behaviour === 'crash') process.kill(process.pid, 'SIGABRT');
    say({ graphsComputed: start });
  });
  if (['deaf', 'hang', 'prattle'].includes(behaviour)) setInterval(() => {}, 60_000);
  if (behaviour !== 'hang' && behaviour !== 'prattle')
    say({ endpoint: `127.0.0.1:${port === '0' ? 4242 : port}`, pid: process.pid, childPid: null });
}
