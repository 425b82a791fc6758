/** A plan in words, for people. */

import type { PlanDevice } from '../types.js';
import { deviceTimes, headSeconds, memoryNeeds, type Sizing } from './estimate.js';
import { type Candidate, evaluate, isKnown, SHARING, type Workplace } from './plan-candidate.js';
import type { DeviceSpeed } from './speeds.js';

/** @param wished the context that would have been taken if everything fitted it */
export function contextReason({ input }: Workplace, contextSize: number, wished: number): string {
  if (input.contextSize) return `A context of ${contextSize} tokens was asked for.`;
  if (contextSize < wished) {
    return `The context is ${contextSize} tokens instead of ${wished}, because that is what makes the model fit.`;
  }
  return contextSize === input.model.contextLength
    ? `The context is ${contextSize} tokens, as long as the model was trained for.`
    : `The context is ${contextSize} tokens, which is enough for most chats.`;
}

export function planReasons(workplace: Workplace, candidate: Candidate): string[] {
  const { input, master, workers, speeds } = workplace;
  const reasons: string[] = [];
  const names = candidate.shares.map(({ worker }) => (workers[worker] as PlanDevice).name);
  if (names.length === 0) {
    reasons.push(`${master.name} holds the whole model${workers.length > 0 ? ', without any worker' : ''}.`);
  } else if (!fitsAlone(workplace, master, candidate.sizing)) {
    reasons.push(
      `The model does not fit ${master.name} alone; ${listed(names)} ${names.length > 1 ? 'hold' : 'holds'} the rest.`,
    );
  } else if (input.objective === 'share') {
    reasons.push(sharingReason(workplace, candidate, names));
  } else {
    reasons.push(`With ${listed(names)}, tokens are generated faster than without.`);
  }
  if (!input.ubatchSize && names.length > 0) {
    reasons.push(
      `A prompt is read ${candidate.sizing.ubatchSize} tokens at a time: while the last worker computes some, the others ` +
        'compute the next.',
    );
  }
  [master, ...workers].forEach(({ name }, i) => {
    const used = i === 0 || candidate.shares.some(({ worker }) => worker === i - 1);
    const assumed = speeds.devices[i]?.assumed;
    if (used && assumed) reasons.push(`The ${assumed} of ${name} is not measured; something average is assumed.`);
  });
  return [...reasons, ...aloneReason(workplace, candidate)];
}

function sharingReason(workplace: Workplace, candidate: Candidate, names: readonly string[]): string {
  const alone = evaluate(workplace, candidate.sizing, []);
  if (candidate.promptSeconds <= SHARING.sufficientSeconds) {
    const long = isKnown(workplace, candidate) ? ` (${candidate.promptSeconds.toFixed(1)} s)` : '';
    return `The work is shared with ${listed(names)}: a long prompt is read soon enough${long}.`;
  }
  if (candidate.promptSeconds <= alone.promptSeconds * SHARING.tolerance) {
    const times = isKnown(workplace, candidate)
      ? `, ${ratio(alone.promptSeconds / candidate.promptSeconds)} as fast`
      : '';
    return `With ${listed(names)}, prompts are read faster than on ${workplace.master.name} alone${times}.`;
  }
  return `${listed(names)} ${names.length > 1 ? 'are' : 'is'} used, as pinned, though prompts are read faster without.`;
}

/** Says when one device alone would generate faster, and by how much: a split never makes a single stream faster. */
function aloneReason(workplace: Workplace, candidate: Candidate): string[] {
  const { input, master, workers, speeds } = workplace;
  if (!isKnown(workplace, candidate) || candidate.shares.length === 0) return [];
  const layers = input.model.layerBytes.length;
  const fastest = [master, ...workers]
    .map((device, i) => {
      const { compute } = speeds.devices[i] as DeviceSpeed;
      const times = deviceTimes(input.model, candidate.sizing, compute, null);
      return { device, seconds: (times.token[layers] ?? 0) + headSeconds(input.model, compute) };
    })
    .filter(({ device }) => fitsAlone(workplace, device, candidate.sizing))
    .sort((a, b) => a.seconds - b.seconds)[0];
  if (!fastest || fastest.seconds >= candidate.tokenSeconds) return [];
  const condition = fastest.device === master ? '' : ', if it had the model file,';
  return [
    `${fastest.device.name} alone${condition} would generate ${perSecond(fastest.seconds)} tokens/s instead of ` +
      `${perSecond(candidate.tokenSeconds)}, ${ratio(candidate.tokenSeconds / fastest.seconds)} as fast.`,
  ];
}

/** @param withIt the best split that uses the device; null when there is none */
export function leftOutReason(
  workplace: Workplace,
  chosen: Candidate,
  device: PlanDevice,
  withIt: Candidate | null,
): string {
  const { input } = workplace;
  const needs = memoryNeeds(input.model, chosen.sizing);
  const layers = needs.before.slice(1).map((bytes, i) => bytes - (needs.before[i] ?? 0));
  const least = needs.worker + Math.min(...layers);
  if (device.memory < least) {
    return `It lends ${inMiB(device.memory)}, and one layer with its buffers needs ${inMiB(least)}.`;
  }
  if (!withIt) return 'No split has a layer for it.';
  const known = isKnown(workplace, withIt);
  if (input.objective === 'fastest') {
    const numbers = `: ${perSecond(withIt.tokenSeconds)} tokens/s with it, ${perSecond(chosen.tokenSeconds)} without`;
    return `It would slow generation down${known ? numbers : ''}.`;
  }
  const tokens = (candidate: Candidate) => Math.min(512, candidate.sizing.contextSize) / candidate.promptSeconds;
  const numbers = `: ${tokens(withIt).toFixed(0)} tokens/s with it, ${tokens(chosen).toFixed(0)} without`;
  return `It would slow the reading of prompts down${known ? numbers : ''}.`;
}

export function unfitReasons({ input, master, workers }: Workplace, sizing: Sizing, missingBytes: number): string[] {
  const needs = memoryNeeds(input.model, sizing);
  const all = needs.master + (needs.before.at(-1) ?? 0);
  const reasons = [
    `The model needs ${inMiB(all)} with a context of ${sizing.contextSize} tokens, and ${inMiB(missingBytes)} more than ` +
      `${listed([master, ...workers].map(({ name, memory }) => `${name} (${inMiB(memory)})`))} can give it.`,
  ];
  if (master.memory < needs.master) {
    reasons.push(
      `${master.name} has the model file and must hold what is outside the layers, ${inMiB(needs.master)}, itself.`,
    );
  }
  const shorter = input.contextSize && input.contextSize > 512 ? 'ask for a shorter context, ' : '';
  reasons.push(`Close apps on these devices, let another device join, ${shorter}or take a smaller model.`);
  return reasons;
}

function fitsAlone({ input }: Workplace, device: PlanDevice, sizing: Sizing): boolean {
  const needs = memoryNeeds(input.model, sizing);
  return needs.master + (needs.before.at(-1) ?? 0) <= device.memory;
}

function inMiB(bytes: number): string {
  return `${Math.ceil(bytes / 1048576)} MiB`;
}

function perSecond(seconds: number): string {
  const rate = 1 / seconds;
  return rate.toFixed(rate < 10 ? 1 : 0);
}

function ratio(times: number): string {
  return `${times.toFixed(times < 10 ? 1 : 0)} times`;
}

function listed(names: readonly string[]): string {
  return names.length < 2 ? (names[0] ?? '') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}
