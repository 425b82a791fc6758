/** Which ubatch a contender is measured with. */

import { median } from '../../../lib/statistics.js';
import type { Measurements } from './measurements.js';

/** The ubatch whose prompts were fastest on this link, or on another one for who uses no link; undefined: not measured. */
export function bestUbatch(measurements: Measurements, link: string, contender: string): number | undefined {
  const here = measurements.of('ubatch', link, contender);
  const anywhere = measurements.all.filter((record) => record.kind === 'ubatch' && record.contender === contender);
  const candidates = (here.length > 0 ? here : anywhere) as typeof here;
  const speeds = [...new Set(candidates.map(({ ubatch }) => ubatch))].map((ubatch) => ({
    ubatch,
    speed: median(candidates.filter((record) => record.ubatch === ubatch).map((record) => record.promptPerSecond)),
  }));
  return speeds.sort((a, b) => b.speed - a.speed)[0]?.ubatch;
}
