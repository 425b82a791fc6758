// @ts-check
// One completion of a server on this phone.
//
//   ask.mjs URL PROMPT GENERATED   {event: answer, timings}; PROMPT is a number of tokens, or a text
import { request } from 'node:http';

const [url = '', prompt = '', generated = ''] = process.argv.slice(2);
const body = JSON.stringify({
  // Ids of ordinary tokens.
  prompt: /^\d+$/.test(prompt) ? Array.from({ length: Number(prompt) }, (_, i) => 100 + ((i * 37) % 800)) : prompt,
  n_predict: Number(generated),
  temperature: 0,
  ignore_eos: true,
  cache_prompt: false,
});
// Not fetch(): it gives up after five minutes without a head.
const sent = request(`${url}/completion`, { method: 'POST', headers: { 'content-type': 'application/json' } });
sent.on('error', (error) => {
  throw error;
});
sent.on('response', async (response) => {
  let text = '';
  for await (const chunk of response) text += chunk;
  if (response.statusCode !== 200) throw new Error(`${response.statusCode}: ${text.slice(0, 500)}`);
  process.stdout.write(`${JSON.stringify({ event: 'answer', timings: JSON.parse(text).timings })}\n`);
});
sent.end(body);
