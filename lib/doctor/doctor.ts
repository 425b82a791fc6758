/** Looks for what keeps phones from working together in practice, and says what to do about it. */
import { androidChecks } from './android.js';
import { machineChecks } from './machine.js';
import { networkChecks } from './network.js';
import { systemProbes } from './probes.js';
import type { Check, CheckResult, DoctorOptions, Finding, Probes } from './types.js';

export const CHECKS: readonly Check[] = [...machineChecks, ...networkChecks, ...androidChecks];

/** Every check's result, in a fixed order. Never rejects because of a check: one that breaks is a warning. */
export async function examine(options: DoctorOptions, probes?: Probes): Promise<CheckResult[]> {
  const machine = probes ?? (await systemProbes());
  const results: CheckResult[] = [];
  for (const check of CHECKS) {
    const { advice = null, ...finding } = await findingOf(check, machine, options);
    results.push({ id: check.id, title: check.title, ...finding, advice });
  }
  return results;
}

async function findingOf(check: Check, probes: Probes, options: DoctorOptions): Promise<Finding> {
  if (check.android && !probes.android) return { status: 'skip', found: 'Android only' };
  try {
    return await check.run(probes, options);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { status: 'warn', found: `could not be checked: ${message}` };
  }
}
