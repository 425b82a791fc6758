/** Everything that a run's records say, added up, for docs/bench/versus-upstream.json and for the page. */
import { median } from '../../../lib/statistics.js';
import { CONTENDERS, type Contender } from './contenders.js';
import { floorOf } from './floor.js';
import { type BenchLink, contendersOn, LINKS, loadsOf } from './links.js';
import type { Measurement, MeasurementOf, Measurements } from './measurements.js';
import { type Ratio, ratioOf, type Spread, spreadOf } from './statistics.js';
import { floorSamples, type Outcome, outcomes, type Quantity, SPLITS, samplesOf } from './targets.js';
import { bestUbatch } from './ubatch.js';

export interface Summary {
  readonly about: MeasurementOf<'about'>;
  readonly links: readonly LinkSummary[];
  readonly targets: readonly Outcome[];
  /** Rows that have no number where there should be one. */
  readonly missing: readonly string[];
  readonly failures: readonly MeasurementOf<'failure'>[];
}

export interface LinkSummary {
  readonly name: string;
  readonly title: string;
  readonly measured: LinkMeasured | null;
  /** Null when one phone alone was not measured. */
  readonly floor: ReturnType<typeof floorOf> | null;
  readonly floorShare: { readonly plain: Ratio | null; readonly encrypted: Ratio | null };
  readonly rows: readonly Row[];
}

export interface LinkMeasured {
  readonly loadAverage: Spread;
  readonly roundTripMs: Spread;
  readonly upBytesPerSecond: Spread;
  readonly downBytesPerSecond: Spread;
}

export interface Row {
  readonly contender: Contender;
  /** What it was measured with; null: the program's own choice. */
  readonly ubatch: number | null;
  readonly quantities: Readonly<Record<Quantity, Spread | null>>;
  readonly firstTokenMs: Spread | null;
  /** Part of the drafted tokens that was right; null without drafts. */
  readonly acceptance: number | null;
  readonly sweep: readonly { readonly ubatch: number; readonly promptPerSecond: number }[];
  readonly traffic: MeasurementOf<'traffic'> | null;
  /** Medians. */
  readonly breakdown: Breakdown | null;
}

export interface Breakdown {
  readonly totalMs: number;
  readonly masterMs: number;
  readonly workerMs: number;
  readonly networkMs: number;
  readonly waits: number;
  readonly writes: number;
}

const QUANTITIES = ['cold load', 'warm load', 'prompt', 'generation', 'streams'] as const;

export function summarize(measurements: Measurements): Summary {
  const about = measurements.all.find((record): record is MeasurementOf<'about'> => record.kind === 'about');
  if (!about) throw new Error('the records do not say what was run');
  const contenders = CONTENDERS.filter(({ id }) => about.contenders.includes(id));
  const links = LINKS.filter(({ name }) => about.links.includes(name)).map((link) =>
    summarizeLink(measurements, link, contendersOn(link, contenders), about.width),
  );
  return {
    about,
    links,
    targets: outcomes(measurements, about.links, about.width),
    missing: links.flatMap((link) => missingOf(link, about)),
    failures: measurements.all.filter((record: Measurement) => record.kind === 'failure'),
  };
}

function summarizeLink(
  measurements: Measurements,
  { name: link, title }: BenchLink,
  contenders: readonly Contender[],
  width: number,
): LinkSummary {
  const meters = measurements.of('link', link);
  const spread = (name: keyof LinkMeasured) => spreadOf(meters.map((meter) => meter[name]));
  const [roundTripMs, upBytesPerSecond, downBytesPerSecond, loadAverage] = [
    spread('roundTripMs'),
    spread('upBytesPerSecond'),
    spread('downBytesPerSecond'),
    spread('loadAverage'),
  ];
  const measured =
    roundTripMs && upBytesPerSecond && downBytesPerSecond && loadAverage
      ? { roundTripMs, upBytesPerSecond, downBytesPerSecond, loadAverage }
      : null;
  const alone = samplesOf(measurements, link, 'droid-alone', 'generation').map(({ value }) => value);
  const floor =
    measured && alone.length > 0
      ? floorOf({
          generatedPerSecond: median(alone),
          roundTripMs: measured.roundTripMs.median,
          upBytesPerSecond: measured.upBytesPerSecond.median,
          downBytesPerSecond: measured.downBytesPerSecond.median,
          width,
        })
      : null;
  const floors = floorSamples(measurements, link, width);
  const share = (contender: string) => ratioOf(samplesOf(measurements, link, contender, 'generation'), floors);
  return {
    name: link,
    title,
    measured,
    floor,
    floorShare: { plain: share(SPLITS.plain), encrypted: share(SPLITS.encrypted) },
    rows: contenders.map((contender) => rowOf(measurements, link, contender)),
  };
}

function rowOf(measurements: Measurements, link: string, contender: Contender): Row {
  const { id, ubatch } = contender;
  const quantities = Object.fromEntries(
    QUANTITIES.map((quantity) => [
      quantity,
      spreadOf(samplesOf(measurements, link, id, quantity).map(({ value }) => value)),
    ]),
  ) as Record<Quantity, Spread | null>;
  const speeds = measurements.of('speed', link, id);
  const [drafted, accepted] = (['drafted', 'accepted'] as const).map((name) =>
    speeds.reduce((sum, speed) => sum + (speed[name] ?? 0), 0),
  ) as [number, number];
  const breakdowns = measurements.of('breakdown', link, id);
  const middle = (name: keyof Breakdown) => median(breakdowns.map((record) => record[name]));
  return {
    contender,
    ubatch: ubatch === 'own' ? null : (bestUbatch(measurements, link, ubatch === 'sweep' ? id : ubatch) ?? null),
    quantities,
    firstTokenMs: spreadOf(measurements.of('streams', link, id).map(({ firstTokenMs }) => firstTokenMs)),
    acceptance: drafted > 0 ? accepted / drafted : null,
    sweep: measurements.of('ubatch', link, id),
    traffic: measurements.of('traffic', link, id)[0] ?? null,
    breakdown:
      breakdowns.length === 0
        ? null
        : {
            totalMs: middle('totalMs'),
            masterMs: middle('masterMs'),
            workerMs: middle('workerMs'),
            networkMs: middle('networkMs'),
            waits: middle('waits'),
            writes: middle('writes'),
          },
  };
}

/** What the contenders were to be measured of, and were not. */
function missingOf({ name, rows, measured }: LinkSummary, about: MeasurementOf<'about'>): string[] {
  const link = LINKS.find((each) => each.name === name);
  const missing = rows.flatMap(({ contender, quantities, traffic, breakdown }) => {
    const { id, measures, worker } = contender;
    const loads = link !== undefined && loadsOf(link, contender) > 0;
    const wanted: [string, boolean, unknown][] = [
      ['cold load', loads, quantities['cold load']],
      ['warm load', loads && worker && id !== 'upstream-guide', quantities['warm load']],
      ['prompt', measures.includes('prompt'), quantities.prompt],
      ['generation', measures.includes('generation'), quantities.generation],
      ['streams', measures.includes('streams'), quantities.streams],
      ['traffic', measures.includes('traffic'), traffic],
      ['breakdown', measures.includes('breakdown'), breakdown],
    ];
    return wanted.flatMap(([what, wants, value]) => (wants && value === null ? [`${name}: ${id}: ${what}`] : []));
  });
  return about.rounds > 0 && measured === null ? [...missing, `${name}: the link itself`] : missing;
}
