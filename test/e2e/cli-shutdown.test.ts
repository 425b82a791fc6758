/** Ctrl-C and what a service manager sends, at any moment. */
import { describe, expect, it } from 'vitest';
import { Cli, runCli, startWorkerCli } from '../support/cli.js';
import { endless, settled } from '../support/contexts.js';
import { guideModel } from '../support/guide.js';
import { tinyModel } from '../support/paths.js';

const serveTiny = (endpoint: string) =>
  new Cli(`serve -m ${tinyModel} --port 0 --rpc ${endpoint} -ts 1,1 -c 1024 -t 1`.split(' '));

describe.each(['SIGINT', 'SIGTERM'] as const)('%s', (signal) => {
  it('ends a worker and a master that have nothing to do', async () => {
    const { worker, endpoint } = await startWorkerCli();
    const serve = serveTiny(endpoint);
    await serve.says(/listening on/);
    serve.signal(signal);
    expect((await serve.ended()).status).toBe(0);
    await worker.says(/client \S+ disconnected/);
    worker.signal(signal);
    expect(await worker.ended()).toMatchObject({ status: 0 });
  });

  it('ends a master while it loads; /health says so meanwhile, and the worker serves the next one', async () => {
    const { worker, endpoint } = await startWorkerCli();
    const serve = new Cli(`serve -m ${await guideModel()} --port 0 --rpc ${endpoint} -ts 1,1 -c 512 -t 1`.split(' '));
    const [, health = ''] = await serve.says(/loading; (\S+) answers 503/);
    const response = await fetch(health);
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({ error: { message: 'Loading model' } });
    await serve.says(/loading model: \d+%/);
    serve.signal(signal);
    const { status, stdout, stderr } = await serve.ended();
    // Nothing was there to be announced yet.
    expect([status, stdout]).toEqual([0, '']);
    expect(stderr).not.toContain('error');

    await worker.says(/client \S+ disconnected/);
    const next = serveTiny(endpoint);
    await next.says(/listening on/);
    next.signal(signal);
    expect((await next.ended()).status).toBe(0);
    worker.signal(signal);
    expect((await worker.ended()).status).toBe(0);
  });

  it('ends a master in the middle of a stream, and with it the stream', async () => {
    const { worker, endpoint } = await startWorkerCli();
    const serve = serveTiny(endpoint);
    const text = await stream(serve, (count) => count === 1 && serve.signal(signal));
    expect(text).not.toContain('[DONE]');
    const { status, stderr } = await serve.ended();
    expect(status).toBe(0);
    expect(stderr).not.toContain('error');
    await worker.says(/client \S+ disconnected/);
    worker.signal(signal);
    expect((await worker.ended()).status).toBe(0);
  });

  it('ends a worker in the middle of a stream', async () => {
    const { worker, endpoint } = await startWorkerCli();
    const serve = serveTiny(endpoint);
    await stream(serve, (count) => count === 1 && worker.signal(signal));
    expect((await worker.ended()).status).toBe(0);
    serve.signal(signal);
    expect((await serve.ended()).status).toBe(0);
  });
});

it('is held up by a silent worker for no longer than moments', async () => {
  const { worker, endpoint } = await startWorkerCli('--no-supervisor');
  const serve = serveTiny(endpoint);
  let chunks = 0;
  await new Promise<void>((resolve, reject) => {
    stream(serve, (count) => {
      chunks = count;
      if (count === 1) worker.signal('SIGSTOP');
      resolve();
    }).catch(reject);
  });
  // The next token needs the worker.
  await settled(() => chunks);
  const start = performance.now();
  serve.signal('SIGINT');
  expect((await serve.ended()).status).toBe(0);
  expect(performance.now() - start).toBeLessThan(10_000);
});

it('ends a probe with the status of an interrupted command', async () => {
  const { worker, endpoint } = await startWorkerCli('--no-supervisor');
  worker.signal('SIGSTOP');
  const probe = new Cli(['probe', '--timeout', '60000', '--json', endpoint]);
  // Once its handler is there; before, the signal itself ends the process.
  const status = await interruptUntilGone(probe);
  expect([130, null]).toContain(status);
  worker.signal('SIGCONT');
  expect((await runCli('probe', endpoint)).status).toBe(0);
});

/** Starts a long stream, calls `onChunk` with each chunk, and returns all that came once it has ended. */
async function stream(serve: Cli, onChunk: (count: number) => unknown): Promise<string> {
  const [, url = ''] = await serve.says(/listening on (\S+)\n/);
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...endless(900), stream: true }),
  });
  let text = '';
  let count = 0;
  try {
    for await (const chunk of response.body as ReadableStream<Uint8Array>) {
      onChunk(++count);
      text += Buffer.from(chunk).toString();
    }
  } catch {
    // The connection was cut; what came before counts.
  }
  return text;
}

async function interruptUntilGone(cli: Cli): Promise<number | null> {
  const again = setInterval(() => cli.signal('SIGINT'), 20);
  try {
    return (await cli.ended()).status;
  } finally {
    clearInterval(again);
  }
}
