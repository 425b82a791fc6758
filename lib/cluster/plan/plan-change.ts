/** When a new plan is worth loading the model again, which takes as long as the link takes for the workers' weights. */

import type { Plan, PlanInput } from '../types.js';
import { promptTokens } from './estimate.js';
import { predictPlan } from './plan.js';
import { SHARING } from './plan-candidate.js';

/** What a reload must bring. Measurements vary by some percent from one to the next, and nobody should wait for that. */
export const CHANGE_THRESHOLDS = {
  /** Prompt speed with `share`, generation speed with `fastest`: new ÷ old. */
  speed: 1.1,
  /** A device is too small for the part it holds when it lends less than this part of what was planned with. */
  memory: 0.9,
};

/** Whether to load `next` in place of `current`; see {@link whyChange}. */
export function isWorthChanging(current: Plan, next: Plan, input: PlanInput): boolean {
  return whyChange(current, next, input) !== null;
}

/**
 * Why `next` should be loaded in place of `current`, in words.
 * @param current the plan that is loaded, or that waits for memory
 * @param input what `next` was made from: `current` is judged by the devices and speeds of now
 * @returns null when it is not worth it
 */
export function whyChange(current: Plan, next: Plan, input: PlanInput): string | null {
  if (!current.fits) return next.fits ? 'The model fits now.' : null;
  const devices = new Map([input.master, ...input.workers].map((device) => [device.id, device]));
  if (current.parts[0]?.id !== input.master.id) return 'The master has changed.';
  for (const { id, memoryNeeded } of current.parts) {
    const device = devices.get(id);
    if (!device) return 'A device that holds layers is gone.';
    if (device.memory < memoryNeeded * CHANGE_THRESHOLDS.memory) return `${device.name} has too little memory by now.`;
  }
  if (!next.fits) return null;
  if (next.contextSize > current.contextSize) return `The context can grow to ${next.contextSize} tokens.`;

  const held = new Set(current.parts.map(({ id }) => id));
  const added = next.parts.filter(({ id }) => !held.has(id));
  const pinned = added.map(({ id }) => devices.get(id)).find((device) => device?.pinned);
  if (pinned) return `${pinned.name} is pinned as a worker.`;
  if (next.contextSize < current.contextSize) return null;
  return whyFaster(current, next, input, added.length > 0);
}

function whyFaster(current: Plan, next: Plan, input: PlanInput, addsDevices: boolean): string | null {
  const before = predictPlan(input, current);
  const after = next.prediction;
  // Nothing to share the work with so far: what the user brought is used, unless it is known to slow things down.
  const firstWorkers = input.objective === 'share' && current.parts.length === 1 && addsDevices;
  if (!before || !after) return firstWorkers ? 'There is somebody to share the work with.' : null;
  if (input.objective === 'fastest') {
    const gain = after.generationTokensPerSecond / before.generationTokensPerSecond;
    return gain >= CHANGE_THRESHOLDS.speed ? `Tokens are generated ${gain.toFixed(1)} times as fast.` : null;
  }
  const tokens = promptTokens(next.contextSize);
  const seconds = (prediction: typeof after) =>
    Math.max(SHARING.sufficientSeconds, tokens / prediction.promptTokensPerSecond);
  const gain = seconds(before) / seconds(after);
  if (gain >= CHANGE_THRESHOLDS.speed) return `Prompts are read ${gain.toFixed(1)} times as fast.`;
  const sharesMore = addsDevices && next.parts.length > current.parts.length;
  if (sharesMore && (firstWorkers || gain >= 1 / SHARING.tolerance)) {
    return 'The work is shared with more devices, and prompts are read as fast.';
  }
  return null;
}
