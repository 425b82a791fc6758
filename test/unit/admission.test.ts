import { describe, expect, it } from 'vitest';
import { ADMISSION_LIMITS, Admission, type AdmissionLimits } from '../../lib/transport/admission.js';
import { TurnedAway } from '../../lib/transport/turned-away.js';

const LIMITS: AdmissionLimits = { halfOpen: 6, halfOpenPerAddress: 3, budget: 40, refillPerSecond: 20, addresses: 5 };

function setUp(limits: Partial<AdmissionLimits> = {}): { admission: Admission; clock: { ms: number } } {
  const clock = { ms: 1000 };
  return { admission: new Admission({ ...LIMITS, ...limits }, () => clock.ms), clock };
}

/** Enters, and reports what has to make room as dropped in silence, as the listener does. */
function enter(admission: Admission, address: string): { ticket: number; dropped?: number } | undefined {
  const admitted = admission.enter(address);
  if (admitted?.drop !== undefined) admission.failed(admitted.drop, 'silent');
  return admitted && { ticket: admitted.ticket, dropped: admitted.drop };
}

describe('Admission', () => {
  it('drops the oldest unproven connection of an address that has too many', () => {
    const { admission } = setUp();
    const first = enter(admission, '10.0.0.1')?.ticket;
    const second = enter(admission, '10.0.0.1')?.ticket;
    enter(admission, '10.0.0.2');
    expect(enter(admission, '10.0.0.1')?.dropped).toBeUndefined();
    expect(enter(admission, '10.0.0.1')?.dropped).toBe(first);
    expect(enter(admission, '10.0.0.1')?.dropped).toBe(second);
    expect(admission.halfOpen).toBe(4);
  });

  it('drops the oldest of all when there are too many in all', () => {
    const { admission } = setUp({ addresses: 100 });
    const tickets = Array.from({ length: 6 }, (_, i) => enter(admission, `10.0.0.${i}`)?.ticket);
    expect(enter(admission, '10.0.1.1')?.dropped).toBe(tickets[0]);
    expect(enter(admission, '10.0.1.2')?.dropped).toBe(tickets[1]);
    expect(admission.halfOpen).toBe(6);
  });

  it('rather drops a stranger than somebody from an address of a member', () => {
    const { admission } = setUp({ addresses: 100 });
    admission.opened('10.0.0.9');
    const member = enter(admission, '10.0.0.9')?.ticket;
    const stranger = enter(admission, '10.0.0.1')?.ticket;
    for (let i = 2; i < 6; i++) enter(admission, `10.0.0.${i}`);
    expect(enter(admission, '10.0.1.1')?.dropped).toBe(stranger);
    for (let i = 0; i < 20; i++) expect(enter(admission, `10.0.2.${i}`)?.dropped).not.toBe(member);
  });

  it('forgets a connection that went, so that it makes room for none', () => {
    const { admission } = setUp();
    for (let i = 0; i < 50; i++) {
      const entered = enter(admission, '10.0.0.1');
      expect(entered?.dropped).toBeUndefined();
      admission.failed(entered?.ticket ?? 0, 'silent');
      admission.failed(entered?.ticket ?? 0, 'wrong-token'); // said twice, counted once
    }
    expect(admission.halfOpen).toBe(0);
  });

  it('closes the door to an address after some wrong tokens, and opens it again in time', () => {
    const { admission, clock } = setUp();
    const attempt = (): boolean => {
      const entered = enter(admission, '10.0.0.1');
      if (entered) admission.failed(entered.ticket, 'wrong-token');
      return entered !== undefined;
    };
    expect([attempt(), attempt(), attempt()]).toEqual([true, true, false]);
    expect(enter(admission, '10.0.0.2')).toBeDefined();
    clock.ms += 999;
    expect(attempt()).toBe(false);
    clock.ms += 1;
    expect([attempt(), attempt()]).toEqual([true, false]);
    clock.ms += 3_600_000;
    expect([attempt(), attempt(), attempt()]).toEqual([true, true, false]);
  });

  it('lets talk cost less than a wrong token, and silence nothing', () => {
    const tries = (outcome: 'silent' | 'spoke' | 'wrong-token'): number => {
      const { admission } = setUp();
      for (let count = 0; count < 1000; count++) {
        const entered = enter(admission, '10.0.0.1');
        if (!entered) return count;
        admission.failed(entered.ticket, outcome);
      }
      return Number.POSITIVE_INFINITY;
    };
    expect(tries('wrong-token')).toBe(2);
    expect(tries('spoke')).toBe(21);
    expect(tries('silent')).toBe(Number.POSITIVE_INFINITY);
  });

  it('keeps the door open to an address with a proven stream, until that ends', () => {
    const { admission } = setUp();
    const member = enter(admission, '10.0.0.1');
    admission.proved(member?.ticket ?? 0);
    expect(admission.halfOpen).toBe(0);
    for (let i = 0; i < 20; i++) admission.failed(enter(admission, '10.0.0.1')?.ticket ?? 0, 'wrong-token');
    expect(enter(admission, '10.0.0.1')).toBeDefined();
    admission.closed('10.0.0.1');
    expect(enter(admission, '10.0.0.1')).toBeUndefined();
    admission.closed('10.0.0.1'); // one too many must not make it negative
    admission.opened('10.0.0.1');
    expect(enter(admission, '10.0.0.1')).toBeDefined();
  });

  it('takes the addresses of one IPv6 network for one', () => {
    const { admission } = setUp();
    for (const address of ['fe80::1%wlan0', 'FE80:0:0:0:aaaa::1', 'fe80::bbbb:1:2:3']) enter(admission, address);
    expect(admission.addresses).toBe(1);
    expect(enter(admission, 'fe80::ffff')?.dropped).toBeDefined();
    expect(enter(admission, '2001:db8:1:2::1')?.dropped).toBeUndefined();
    expect(enter(admission, '2001:db8:1:3::1')?.dropped).toBeUndefined();
    expect(enter(admission, '::1')?.dropped).toBeUndefined();
    expect(admission.addresses).toBe(4);
  });

  it('remembers a bounded number of addresses, and no longer than it matters', () => {
    const { admission, clock } = setUp({ halfOpen: 100 });
    admission.opened('10.9.9.9');
    const open = enter(admission, '10.8.8.8');
    for (let i = 0; i < 200; i++) {
      clock.ms += 1;
      const entered = enter(admission, `10.0.${i}.1`);
      admission.failed(entered?.ticket ?? 0, 'wrong-token');
      expect(admission.addresses).toBeLessThanOrEqual(5);
    }
    // Whoever has something open is not forgotten.
    admission.failed(open?.ticket ?? 0, 'wrong-token');
    admission.failed(enter(admission, '10.8.8.8')?.ticket ?? 0, 'wrong-token');
    expect(enter(admission, '10.8.8.8')).toBeUndefined();
    clock.ms += 60_000;
    enter(admission, '10.7.7.7');
    expect(admission.addresses).toBe(2); // the member and this one
  });

  it('lets a member in past any number of silent strangers, with the limits there are', () => {
    const clock = { ms: 0 };
    const admission = new Admission(ADMISSION_LIMITS, () => clock.ms);
    for (let i = 0; i < 1000; i++) enter(admission, `10.0.${i % 250}.1`);
    for (let i = 0; i < 1000; i++) enter(admission, '10.0.0.1');
    expect(admission.halfOpen).toBeLessThanOrEqual(ADMISSION_LIMITS.halfOpen);
    const member = enter(admission, '10.0.0.1');
    expect(member).toBeDefined();
    // While it proves itself, some more come, which push out those before it.
    for (let i = 0; i < ADMISSION_LIMITS.halfOpenPerAddress - 1; i++) {
      expect(enter(admission, '10.0.0.1')?.dropped).not.toBe(member?.ticket);
    }
  });
});

describe('TurnedAway', () => {
  it('says it once a minute and address, and then how often it was', () => {
    const clock = { ms: 5000 };
    const turnedAway = new TurnedAway(() => clock.ms);
    expect(turnedAway.note('192.168.1.7', 'it does not have the token')).toBe(
      'turned away 192.168.1.7: it does not have the token',
    );
    for (let i = 0; i < 10; i++) expect(turnedAway.note('192.168.1.7', 'it does not have the token')).toBeUndefined();
    expect(turnedAway.note('192.168.1.8', 'it did not say anything')).toMatch(/^turned away 192\.168\.1\.8: /);
    clock.ms += 60_000;
    expect(turnedAway.note('192.168.1.7', 'it does not have the token')).toBe(
      'turned away 192.168.1.7 11 times: it does not have the token',
    );
    clock.ms += 60_000;
    expect(turnedAway.note('192.168.1.7', 'it does not have the token')).toMatch(/^turned away 192\.168\.1\.7: /);
  });

  it('says little in all when strangers come from many addresses', () => {
    const clock = { ms: 0 };
    const turnedAway = new TurnedAway(() => clock.ms);
    const flood = (): number => {
      let lines = 0;
      for (let i = 0; i < 5000; i++) if (turnedAway.note(`10.0.${i >> 8}.${i & 255}`, 'it spoke')) lines++;
      return lines;
    };
    expect(flood()).toBe(20);
    clock.ms += 60_000;
    expect(flood()).toBe(20);
  });
});
