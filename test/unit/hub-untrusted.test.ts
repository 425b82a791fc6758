/** Hubs that are none, that answer nothing, or that would have what is not theirs. */
import { readFile, rm } from 'node:fs/promises';
import { expect, it, vi } from 'vitest';
import { listModels, pullModel } from '../../lib/hub/pull.js';
import { bytes, FakeHub, rejection, useHub } from '../support/hub.js';

const rig = useHub();
const data = bytes(40_000);

it('believes no path and no server that it should not', async () => {
  rig.hub.repos.set('owner/evil', [
    { path: '../../evil.gguf', data },
    { path: '/etc/evil.gguf', data },
    { path: 'a/../../evil-Q8_0.gguf', data },
    { path: 'bell\u0007.gguf', data },
  ]);
  expect((await rejection(rig.pull('owner/evil'))).message).toContain('holds no GGUF model');
  rig.hub.failures.push(500);
  expect(await rejection(rig.pull('owner/tiny-GGUF'))).toMatchObject({
    code: 'DROID_DOWNLOAD_FAILED',
    message: expect.stringContaining('answered 500'),
  });
});

it('shows its token to no other server', async () => {
  const other = await FakeHub.start();
  try {
    other.repos.set('owner/tiny-GGUF', rig.hub.repos.get('owner/tiny-GGUF') ?? []);
    for (const cache of ['', 'Hit from cloudfront']) {
      other.requests.length = 0;
      // As a content network marks its answers, by which the library goes there at once the next time.
      other.instead = (_, response) => !response.setHeader('x-cache', cache);
      rig.hub.instead = ({ url = '' }, response) => {
        if (!url.includes('/resolve/')) return false;
        response.writeHead(302, { location: other.url + url }).end();
        return true;
      };
      const { path } = await rig.pull('owner/tiny-GGUF', { hubToken: 'hf_secret' });
      expect((await readFile(path)).equals(data)).toBe(true);
      expect(rig.hub.requests.at(-1)?.authorization).toBe('Bearer hf_secret');
      expect(other.requests.map(({ authorization }) => authorization)).toEqual([undefined, undefined]);
      await rm(path);
    }
    other.requests.length = 0;
    rig.hub.instead = (_, response) => {
      response.writeHead(200, { link: `<${other.url}/api/models/owner/tiny-GGUF/tree/main>; rel="next"` }).end('[]');
      return true;
    };
    expect(await rejection(rig.pull('owner/tiny-GGUF', { hubToken: 'hf_secret' }))).toMatchObject({
      code: 'DROID_DOWNLOAD_FAILED',
      message: expect.stringContaining('to another server'),
    });
    expect(other.requests).toEqual([]);
  } finally {
    await other.close();
  }
});

it('reads no list without an end', async () => {
  rig.hub.instead = ({ url }, response) => {
    response.writeHead(200, { link: `<${rig.hub.url}${url}>; rel="next"` }).end('[]');
    return true;
  };
  expect(await rejection(rig.pull('owner/tiny-GGUF'))).toMatchObject({
    code: 'DROID_DOWNLOAD_FAILED',
    message: expect.stringContaining('lists without an end'),
  });
  expect(rig.hub.requests).toHaveLength(100);
});

it('waits half a minute for a hub that does not answer, and takes what was downloaded before', async () => {
  const { path } = await rig.pull('owner/tiny-GGUF');
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  try {
    for (const begins of [false, true]) {
      rig.hub.instead = (_, response) => {
        if (begins) response.write('[');
        setImmediate(() => vi.advanceTimersByTime(30_000));
        return true;
      };
      const warnings: string[] = [];
      expect((await rig.pull('owner/tiny-GGUF', { onWarning: (text) => warnings.push(text) })).path).toBe(path);
      expect(warnings).toEqual([expect.stringContaining('did not answer within 30 s')]);
      expect((await rejection(rig.pull('owner/tiny-GGUF:Q8_0'))).code).toBe('DROID_DOWNLOAD_FAILED');
    }
  } finally {
    vi.useRealTimers();
  }
});

it.each(['<html>Log in</html>', '{}', '[null]', '', `["${'x'.repeat(17 * 2 ** 20)}"]`])(
  'takes nothing else for a hub (%#)',
  async (text) => {
    rig.hub.instead = (_, response) => !!response.writeHead(200).end(text);
    expect(await rejection(rig.pull('owner/tiny-GGUF'))).toMatchObject({
      code: 'DROID_DOWNLOAD_FAILED',
      message: expect.stringMatching(/is no Hugging Face hub.*captive portal/),
    });
  },
);

it.each(['', 'file:///etc/passwd'])('does not try again what leads nowhere (%j)', async (location) => {
  rig.hub.instead = ({ url = '' }, response) =>
    url.includes('/resolve/') && !!response.writeHead(302, { location: location || url }).end();
  const warnings: string[] = [];
  const error = await rejection(rig.pull('owner/tiny-GGUF', { onWarning: (text) => warnings.push(text) }));
  expect([error.code, warnings]).toEqual(['DROID_DOWNLOAD_FAILED', []]);
});

it('refuses what the environment names no hub and no token by, and shows neither', async () => {
  for (const [name, value] of [
    ['HF_ENDPOINT', 'https://user:geheim@127.0.0.1'],
    ['HF_ENDPOINT', 'https://user:geheim@'],
    ['HF_TOKEN', 'geheim'],
    ['HF_TOKEN', 'hf_geheim\nx'],
  ] as const) {
    vi.stubEnv(name, value);
    const error = await rejection(pullModel('a/b', { directory: rig.directory }));
    expect(error).toMatchObject({
      code: 'DROID_INVALID_ARGUMENT',
      message: expect.stringMatching(`^${name} is no `),
    });
    expect(error.message).not.toContain('geheim');
    expect(await listModels({ directory: rig.directory })).toEqual([]);
    vi.unstubAllEnvs();
  }
});
