/** What a plan reckons with: the measured speeds, and where one is missing, what the others have. */

import type { ComputeSpeed, PlanDevice } from '../types.js';
import { type LinkSpeed, sum } from './estimate.js';

/** A phone of the middle class and its Wi-Fi: what a plan is made by while nothing at all is measured. */
const ASSUMED = { weightBytesPerSecond: 5e9, flopsPerSecond: 20e9, roundTrip: 0.01, bytesPerSecond: 3e6 };

export interface DeviceSpeed {
  readonly compute: ComputeSpeed;
  /** Null for the master. */
  readonly link: LinkSpeed | null;
  /** What was not measured and is assumed, in words; null when nothing is. */
  readonly assumed: string | null;
}

export interface Speeds {
  /** One for each device, in their order. */
  readonly devices: readonly DeviceSpeed[];
  /** Whether any device said how it computes; if not, there is nothing to predict from. */
  readonly computeKnown: boolean;
  /** The same of round trips and throughput. */
  readonly linksKnown: boolean;
}

export function resolveSpeeds(devices: readonly PlanDevice[]): Speeds {
  const computes = devices.flatMap(({ compute }) => (isMeasured(compute) ? [compute] : []));
  const links = devices.flatMap(({ link }) => (link ? [link] : []));
  const roundTrips = links.flatMap(({ roundTripMs }) => (isRate(roundTripMs) ? [roundTripMs / 1000] : []));
  const ups = links.flatMap((link) => (isRate(link.upBytesPerSecond) ? [link.upBytesPerSecond] : []));
  const downs = links.flatMap((link) => (isRate(link.downBytesPerSecond) ? [link.downBytesPerSecond] : []));
  const anyRates = ups.length > 0 ? ups : downs;
  const typical: ComputeSpeed = {
    threads: 1,
    weightBytesPerSecond: mean(computes.map((c) => c.weightBytesPerSecond)) ?? ASSUMED.weightBytesPerSecond,
    flopsPerSecond: mean(computes.map((c) => c.flopsPerSecond)) ?? ASSUMED.flopsPerSecond,
  };
  const typicalRate = mean(anyRates) ?? ASSUMED.bytesPerSecond;

  return {
    computeKnown: computes.length > 0,
    linksKnown: roundTrips.length > 0 && anyRates.length > 0,
    devices: devices.map((device) => {
      const missing: string[] = [];
      if (!isMeasured(device.compute)) missing.push('compute speed');
      const compute = isMeasured(device.compute) ? device.compute : typical;
      if (!device.link) return { compute, link: null, assumed: missing[0] ?? null };
      const { roundTripMs, upBytesPerSecond, downBytesPerSecond } = device.link;
      if (!isRate(roundTripMs)) missing.push('round trip');
      if (!isRate(upBytesPerSecond) || !isRate(downBytesPerSecond)) missing.push('throughput');
      const link = {
        roundTrip: isRate(roundTripMs) ? roundTripMs / 1000 : (mean(roundTrips) ?? ASSUMED.roundTrip),
        up: firstRate(upBytesPerSecond, downBytesPerSecond) ?? typicalRate,
        down: firstRate(downBytesPerSecond, upBytesPerSecond) ?? typicalRate,
      };
      return { compute, link, assumed: missing.length > 0 ? missing.join(' and ') : null };
    }),
  };
}

function isRate(value: number | null): value is number {
  return value !== null && Number.isFinite(value) && value > 0;
}

function isMeasured(compute: ComputeSpeed | null): compute is ComputeSpeed {
  return compute !== null && isRate(compute.weightBytesPerSecond) && isRate(compute.flopsPerSecond);
}

function firstRate(...values: (number | null)[]): number | undefined {
  return values.find(isRate) ?? undefined;
}

function mean(values: readonly number[]): number | undefined {
  return values.length > 0 ? sum(values) / values.length : undefined;
}
