import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { encodeFrame, FrameDecoder, MAX_FRAME_BYTES } from '../../lib/cluster/control/frames.js';
import {
  CONTROL_PROTOCOL,
  hello,
  mismatch,
  readFirstMessage,
  readMessage,
  readPeer,
} from '../../lib/cluster/control/messages.js';
import { createPeerId, isPeerId, NO_PEER, peerIdFromBytes, peerIdToBytes } from '../../lib/cluster/control/peer-id.js';
import { checkOwnRecord, cleanText, peerSchema } from '../../lib/cluster/control/record-schemas.js';
import type { Lead } from '../../lib/cluster/types.js';
import { idOf, linkOf, peerOf } from '../support/peers.js';

const lead: Lead = {
  epoch: 3,
  state: 'ready',
  progress: 1,
  reason: null,
  plan: {
    fits: true,
    missingBytes: 0,
    parts: [{ id: idOf('a'), firstLayer: 0, layers: 12, bytes: 1e8, memoryNeeded: 2e8 }],
    contextSize: 1024,
    batchSize: 128,
    ubatchSize: 64,
    prediction: { loadSeconds: 20.5, promptTokensPerSecond: 90, generationTokensPerSecond: 22 },
    leftOut: [{ id: idOf('c'), reason: 'nobody reaches it' }],
    reasons: ['a holds the model'],
  },
  measured: { loadSeconds: 21, promptTokensPerSecond: null, generationTokensPerSecond: 20 },
};

const full = peerOf('a', {
  addresses: ['192.168.1.2', '2001:db8::1'],
  pin: 'master',
  model: { name: 'tiny.gguf', bytes: 1e9, layers: 24 },
  compute: { threads: 4, weightBytesPerSecond: 1e10, flopsPerSecond: 1e11 },
  battery: { percent: 80, charging: false, temperatureCelsius: -5.5 },
  neighbours: [idOf('b')],
  links: [linkOf('a', 'b')],
  lead,
});

const bytesOf = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));

describe('a record', () => {
  it('comes through as it was', () => {
    expect(readPeer(JSON.parse(JSON.stringify(full)))).toEqual({ ok: true, value: full });
    expect(checkOwnRecord(full)).toEqual(full);
  });

  it.each<[string, object]>([
    ['an id that is none', { id: 'x'.repeat(22) }],
    ['the id of nobody', { id: NO_PEER }],
    ['a name that is empty', { name: '' }],
    ['a name that is too long', { name: 'x'.repeat(65) }],
    ['a name with an escape sequence', { name: '\u001b[2Jphone' }],
    ['a name that turns the direction of writing', { name: 'a\u202eb' }],
    ['an incarnation that is no date', { incarnation: 9e15 }],
    ['an incarnation below 0', { incarnation: -1 }],
    ['a revision that is no whole number', { revision: 1.5 }],
    ['a port that is none', { port: 65_536 }],
    ['an address that is a name', { addresses: ['localhost'] }],
    ['too many addresses', { addresses: Array(33).fill('10.0.0.1') }],
    ['a memory below 0', { memory: -1 }],
    ['an endless memory', { memory: Number.POSITIVE_INFINITY }],
    ['no memory', { memory: undefined }],
    ['too many neighbours', { neighbours: Array.from({ length: 65 }, (_, n) => idOf(`n${n}`)) }],
    ['links of another peer', { links: [linkOf('b', 'a')] }],
    ['too many links', { links: Array(65).fill(linkOf('a', 'b')) }],
    ['a link that took time backwards', { links: [linkOf('a', 'b', { roundTripMs: -1 })] }],
    ['a link that took too long', { links: [linkOf('a', 'b', { roundTripMs: 2e7 })] }],
    ['a link that carries nothing', { links: [linkOf('a', 'b', { bytesPerSecond: 5e-324 })] }],
    ['a link without end', { links: [linkOf('a', 'b', { bytesPerSecond: 1e300 })] }],
    ['more memory than there are numbers', { memory: 2 ** 54 }],
    ['weights that are hardly read', { compute: { ...full.compute, weightBytesPerSecond: 5e-324 } }],
    ['operations out of all bounds', { compute: { ...full.compute, flopsPerSecond: 1e300 } }],
    ['an epoch that has no next one', { lead: { ...lead, epoch: Number.MAX_SAFE_INTEGER } }],
    ['progress above 1', { lead: { ...lead, progress: 1.1 } }],
    ['a state that is none', { lead: { ...lead, state: 'fine' } }],
    ['a reason that is too long', { lead: { ...lead, reason: 'x'.repeat(1001) } }],
  ])('is refused with %s', (_, change) => {
    const reading = readPeer(JSON.parse(JSON.stringify({ ...full, ...change })));
    expect(reading.ok).toBe(false);
  });

  it('takes any name of 64 printable characters, however many code units they have', () => {
    const name = '📱'.repeat(64);
    expect(readPeer({ ...full, name }).ok).toBe(true);
    expect(readPeer({ ...full, name: `${name}x` }).ok).toBe(false);
  });

  it('loses what is not known', () => {
    const reading = readPeer({ ...full, extra: 1, another: 2 });
    expect(reading).toEqual({ ok: true, value: full });
  });

  it('of this device has its texts made printable and cut', () => {
    const own = checkOwnRecord({
      ...full,
      name: ` my\nphone${'x'.repeat(100)}`,
      lead: { ...lead, reason: 'r'.repeat(5000), plan: lead.plan && { ...lead.plan, reasons: ['a\u0007b'] } },
    });
    expect(own.name).toBe(`my phone${'x'.repeat(64)}`.slice(0, 63));
    expect(own.lead?.reason).toHaveLength(1000);
    expect(own.lead?.plan?.reasons).toEqual(['a b']);
    expect(readPeer(JSON.parse(JSON.stringify(own))).ok).toBe(true);
  });

  it('of this device has its measurements brought within what they may be', () => {
    const plan = lead.plan && {
      ...lead.plan,
      prediction: { loadSeconds: 1e300, promptTokensPerSecond: 1, generationTokensPerSecond: 1 },
    };
    const own = checkOwnRecord({
      ...full,
      compute: { threads: 1, weightBytesPerSecond: 0, flopsPerSecond: Number.POSITIVE_INFINITY },
      links: [linkOf('a', 'b', { roundTripMs: 1e300, bytesPerSecond: 0.5 }), linkOf('a', 'c', { roundTripMs: null })],
      lead: {
        ...lead,
        plan,
        measured: { loadSeconds: null, promptTokensPerSecond: Number.POSITIVE_INFINITY, generationTokensPerSecond: 2 },
      },
    });
    expect(own.compute).toEqual({ threads: 1, weightBytesPerSecond: 1e3, flopsPerSecond: 1e18 });
    expect(own.links).toMatchObject([{ roundTripMs: 1e7, bytesPerSecond: 1 }, { roundTripMs: null }]);
    expect(own.lead?.plan?.prediction?.loadSeconds).toBe(1e18);
    expect(own.lead?.measured).toEqual({
      loadSeconds: null,
      promptTokensPerSecond: 1e18,
      generationTokensPerSecond: 2,
    });
  });

  it('of this device is refused with numbers that nobody would accept', () => {
    expect(() => checkOwnRecord({ ...full, memory: Number.NaN })).toThrow(/at memory/);
    expect(() => checkOwnRecord({ ...full, name: '\u0000' })).toThrow(/at name/);
  });

  it('fits a frame whatever texts it has', () => {
    const reason = '"'.repeat(1000);
    const largest = {
      ...full,
      addresses: Array(32).fill('2001:db8:1111:2222:3333:4444:5555:6666'),
      neighbours: Array(64).fill(idOf('b')),
      links: Array(64).fill(linkOf('a', 'b', { endpoint: '"'.repeat(300) })),
      lead: {
        ...lead,
        reason,
        plan: {
          ...lead.plan,
          parts: Array(64).fill(lead.plan?.parts[0]),
          leftOut: Array(64).fill({ id: idOf('c'), reason: '📱'.repeat(1000) }),
          reasons: Array(64).fill('📱'.repeat(1000)),
        },
      },
    };
    expect(peerSchema.safeParse(largest).error).toBeUndefined();
    expect(Buffer.byteLength(JSON.stringify(largest))).toBeLessThan(MAX_FRAME_BYTES - 256 * 1024);
  });
});

describe('texts', () => {
  it('that were cleaned are accepted', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 300 }), (text) => {
        const name = cleanText(text, 64);
        expect(Array.from(name).length).toBeLessThanOrEqual(64);
        if (name !== '') expect(readPeer({ ...full, name }).ok).toBe(true);
      }),
    );
  });
});

describe('messages', () => {
  it('of another version tell who it is', () => {
    const first = readFirstMessage(
      bytesOf({ type: 'hello', protocol: 7, build: { new: 1 }, version: '9.9\n', more: [] }),
    );
    expect(first).toMatchObject({ ok: true, value: { hello: { protocol: 7, build: 'unknown', version: '9.9' } } });
    if (!first.ok || !('hello' in first.value)) throw new Error('no hello');
    const text = mismatch(hello('abc', full), first.value.hello);
    expect(text).toContain('droid-llama 9.9, build unknown, cluster protocol 7');
    expect(text).toContain(`build abc, cluster protocol ${CONTROL_PROTOCOL}`);
  });

  it('begin with a hello or a goodbye', () => {
    expect(readFirstMessage(bytesOf({ type: 'heartbeat', sequence: 1 })).ok).toBe(false);
    expect(readFirstMessage(Buffer.from('hello')).ok).toBe(false);
    expect(readFirstMessage(bytesOf({ type: 'goodbye', code: 'from the future', reason: 1 }))).toEqual({
      ok: true,
      value: { goodbye: { type: 'goodbye', code: 'protocol', reason: '' } },
    });
  });

  it.each<[string, unknown]>([
    ['a sequence below 0', { type: 'heartbeat', sequence: -1 }],
    ['no sequence', { type: 'heartbeat' }],
    ['no records', { type: 'records', peers: [] }],
    ['one bad record', { type: 'records', peers: [full, { ...full, port: -1 }] }],
    ['too many records', { type: 'records', peers: Array(65).fill(full) }],
    ['a kind that nobody serves', { type: 'dial-me', kind: 'control', ticket: idOf('t') }],
    ['a short ticket', { type: 'dial-me', kind: 'rpc', ticket: 'short' }],
    ['a long reason', { type: 'dial-failed', ticket: idOf('t'), reason: 'x'.repeat(3000) }],
    ['an incarnation out of all time', { type: 'outdated', incarnation: 1e300 }],
    ['a second hello', { type: 'hello', protocol: 1 }],
    ['a type that is none', { type: 'what' }],
    ['an array', []],
    ['null', null],
  ])('are refused with %s', (_, message) => {
    expect(readMessage(bytesOf(message)).ok).toBe(false);
  });

  it('never throw, whatever comes', () => {
    fc.assert(
      fc.property(fc.oneof(fc.json(), fc.string()), (text) => {
        readMessage(Buffer.from(text));
        readFirstMessage(Buffer.from(text));
      }),
    );
  });
});

describe('frames', () => {
  it('come out whole, however the bytes are cut', () => {
    const texts = fc.array(fc.string({ minLength: 1, maxLength: 50 }), { maxLength: 10 });
    fc.assert(
      fc.property(texts, fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }), (messages, cuts) => {
        const bytes = Buffer.concat(messages.map(encodeFrame));
        const decoder = new FrameDecoder();
        const got: string[] = [];
        for (let at = 0, turn = 0; at < bytes.length; turn++) {
          const length = cuts[turn % cuts.length] ?? 1;
          expect(decoder.push(bytes.subarray(at, at + length), (frame) => got.push(frame.toString()) > 0)).toBe(true);
          at += length;
        }
        expect(got).toEqual(messages.map((text) => Buffer.from(text).toString()));
      }),
    );
  });

  it('have a length of 1 to a limit', () => {
    const header = Buffer.alloc(4);
    expect(new FrameDecoder().push(header, () => true)).toBe(false);
    header.writeUInt32BE(MAX_FRAME_BYTES + 1);
    expect(new FrameDecoder().push(header, () => true)).toBe(false);
    expect(() => encodeFrame('x'.repeat(MAX_FRAME_BYTES + 1))).toThrow(RangeError);
  });
});

describe('the id of a peer', () => {
  it('is text and bytes', () => {
    for (let count = 0; count < 100; count++) {
      const id = createPeerId();
      expect(isPeerId(id)).toBe(true);
      expect(peerIdFromBytes(Buffer.concat([peerIdToBytes(id), Buffer.from('more')]))).toBe(id);
    }
    expect(peerIdFromBytes(Buffer.alloc(15))).toBeUndefined();
    // Two texts for the same bytes would be two peers.
    expect(isPeerId(`${'x'.repeat(21)}B`)).toBe(false);
  });
});
