/** Requests that ended the process once. They run in a process of their own, which must answer them all and live. */
import { spawn } from 'node:child_process';
import { expect, it, onTestFinished } from 'vitest';
import { projectRoot, tinyModel } from '../support/paths.js';

const deep = (open: string, close: string, n: number) => open.repeat(n) + close.repeat(n);
const inString = 'arguments nested deeply inside a string';
const bodies: Record<string, [path: string, body: string]> = {
  'a grammar for llguidance': ['/completion', JSON.stringify({ prompt: 'x', grammar: '%llguidance {}\nstart: "a"' })],
  'a repetition that cannot be': ['/completion', JSON.stringify({ prompt: 'x', grammar: 'root ::= "a"{3,1}' })],
  'a grammar nested deeply': [
    '/completion',
    JSON.stringify({ prompt: 'x', grammar: `root ::= ${deep('(', ')', 100_000).replace('()', '("a")')}` }),
  ],
  'a schema nested deeply': [
    '/completion',
    `{"prompt":"x","json_schema":${'{"type":"array","items":'.repeat(100_000)}{}${'}'.repeat(100_000)}}`,
  ],
  'messages nested deeply': [
    '/v1/chat/completions',
    `{"messages":[{"role":"user","content":"x","tool_calls":${deep('[', ']', 100_000)}}]}`,
  ],
  'tools nested deeply': ['/apply-template', `{"messages":[],"tools":${deep('[', ']', 1_000_000)}}`],
  [inString]: [
    '/apply-template',
    JSON.stringify({
      messages: [
        { role: 'user', content: 'x' },
        {
          role: 'assistant',
          tool_calls: [{ type: 'function', id: 'a', function: { name: 'f', arguments: deep('[', ']', 1_000_000) } }],
        },
        { role: 'tool', tool_call_id: 'a', content: 'x' },
      ],
    }),
  ],
  'brackets that never close': ['/tokenize', `{"content":${'['.repeat(1_000_000)}`],
};

it('are answered with an error, and the next request as ever', async () => {
  const script = `
    import { createDistributedContext } from ${JSON.stringify(`${projectRoot}/dist/index.js`)};
    let input = '';
    for await (const chunk of process.stdin) input += chunk;
    const ctx = await createDistributedContext({ model: ${JSON.stringify(tinyModel)}, threads: 1, contextSize: 256 });
    for (const [name, [path, body]] of Object.entries(JSON.parse(input))) {
      const response = await ctx.request('POST', path, body);
      for await (const _ of response.body);
      console.log(response.status + ' ' + name);
    }
    const answer = await ctx.request('POST', '/completion', { prompt: 'x', n_predict: 4, grammar: 'root ::= ("a"{2,3})' });
    let text = '';
    for await (const chunk of answer.body) text += Buffer.from(chunk);
    console.log(JSON.parse(text).content);
    await ctx.close();
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script]);
  onTestFinished(() => {
    child.kill('SIGKILL');
  });
  let out = '';
  child.stdout.on('data', (chunk) => {
    out += chunk;
  });
  child.stdin.end(JSON.stringify(bodies));
  const end = await new Promise((resolve) => child.on('close', (code, signal) => resolve({ code, signal })));
  expect(end, out).toEqual({ code: 0, signal: null });
  const lines = out.trim().split('\n');
  expect(lines.slice(0, -1)).toEqual(Object.keys(bodies).map((name) => `${name === inString ? 500 : 400} ${name}`));
  expect(lines.at(-1)).toMatch(/^aaa?$/);
});
