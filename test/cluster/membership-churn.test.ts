/** Members whose ways to each other open and close, who are cut, end and come back, until nothing happens any more. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FakeNetwork, type FakeTransport } from '../support/fake-transport.js';
import { idOf, type Member, openDescriptors, startMember, until } from '../support/members.js';

const names = ['a', 'b', 'c', 'd', 'e'] as const;
const name = fc.constantFrom(...names);
const act = fc.oneof(
  fc.record({ what: fc.constantFrom('cut' as const, 'restart' as const, 'update' as const), who: name }),
  fc.record({ what: fc.constantFrom('open' as const, 'close' as const), who: name, to: name }),
  fc.record({ what: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 80 }) }),
);

describe('a cluster that does not come to rest', () => {
  it('agrees on who is there and what they say once it does', { timeout: 120_000 }, async () => {
    const before = openDescriptors();
    await fc.assert(
      fc.asyncProperty(fc.array(act, { minLength: 5, maxLength: 25 }), async (acts) => {
        const network = new FakeNetwork();
        const hosts = new Map(names.map((one, index) => [one as string, `10.0.0.${index + 1}`]));
        const closed = new Set<string>();
        network.fate = (from, { host }) => (closed.has(`${from}>${host}`) ? 'refuse' : 'open');
        const members = new Map<string, Member & { transport: FakeTransport }>();
        let incarnation = 1000;
        const start = async (who: string): Promise<void> => {
          const host = hosts.get(who) ?? '';
          const transport = network.transport([host]);
          const options = { self: { incarnation: incarnation++ }, heartbeatMs: 100, lostAfterMs: 1000 };
          members.set(who, Object.assign(await startMember(who, transport, host, options), { transport }));
          for (const other of hosts.values()) {
            if (other !== host) members.get(who)?.membership.offer({ host: other, port: 60_000 });
          }
        };
        for (const who of names) await start(who);
        for (const step of acts) {
          if (step.what === 'wait') {
            await new Promise((resolve) => setTimeout(resolve, step.ms));
            continue;
          }
          if (step.what === 'open' || step.what === 'close') {
            const way = `${hosts.get(step.who)}>${hosts.get(step.to)}`;
            if (step.what === 'close') closed.add(way);
            else closed.delete(way);
            continue;
          }
          const member = members.get(step.who);
          if (step.what === 'cut') for (let id = 0; id < 300; id++) member?.transport.cut(id);
          else if (step.what === 'update') member?.membership.update({ memory: incarnation++ });
          else {
            await member?.close();
            await start(step.who);
          }
        }
        closed.clear();
        const offers = setInterval(() => {
          for (const { membership } of members.values()) {
            for (const host of hosts.values()) membership.offer({ host, port: 60_000 });
          }
        }, 200);
        try {
          const seen = (member: Member): string => JSON.stringify(member.membership.peers());
          const ring = (member: Member): boolean => member.membership.self().neighbours.length === names.length - 1;
          const all = [...members.values()];
          await until(
            'all know the same',
            () => all.every((member) => ring(member) && seen(member) === seen(all[0] as Member)),
            20_000,
          );
          for (const member of all) {
            expect(member.names()).toEqual([...names]);
            // What the events told comes to the same.
            const there = new Set<string>();
            for (const line of member.comings) {
              const [what, who = ''] = line.split(' ');
              expect(there.has(who)).toBe(what === 'lost');
              if (what === 'lost') there.delete(who);
              else there.add(who);
            }
            expect([...there, member.membership.self().name].sort()).toEqual([...names]);
            expect(member.told.rejected).toEqual([]);
            expect(member.membership.roundTripMs(idOf(member.membership.self().name))).toBeNull();
          }
        } finally {
          clearInterval(offers);
          await Promise.all([...members.values()].map((member) => member.close()));
        }
      }),
      { numRuns: 12, endOnFailure: true },
    );
    await until(`${openDescriptors()} descriptors are ${before} again`, () => openDescriptors() <= before);
  });
});
