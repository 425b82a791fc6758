/** What `GET /health` of any member tells about the cluster's engine. */

import type { HealthAnswer } from '../../http/backend.js';
import { errorDetails } from '../../http/errors.js';
import type { Lead } from '../types.js';

/**
 * 200 `{"status":"ok"}` while requests are answered at once. Otherwise 503 with llama-server's error, the lead's state
 * as `status`, and while loading its `progress` from 0 to 1.
 *
 * @param lead what the master says of itself; null while nobody leads
 */
export function healthAnswer(lead: Pick<Lead, 'state' | 'progress' | 'reason'> | null): HealthAnswer {
  if (lead?.state === 'ready') return { status: 200, body: { status: 'ok' } };
  const status = lead?.state ?? 'waiting';
  return {
    status: 503,
    body: {
      error: errorDetails(503, notReadyMessage(lead)),
      status,
      ...(lead?.state === 'loading' && { progress: percentOf(lead) / 100 }),
    },
  };
}

/** Why no request is answered at the moment. */
export function notReadyMessage(lead: Pick<Lead, 'state' | 'progress' | 'reason'> | null): string {
  const because = lead?.reason ? `: ${lead.reason}` : '.';
  switch (lead?.state) {
    case undefined:
      return 'No device leads the cluster yet.';
    case 'loading':
      return `Loading model (${percentOf(lead)} %)`;
    case 'degraded':
      return `A worker is lost, and the model is not placed anew yet${because}`;
    case 'failed':
      return `The model could not be loaded${because}`;
    default:
      return `The cluster waits${because}`;
  }
}

function percentOf({ progress }: Pick<Lead, 'progress'>): number {
  return Math.round(progress * 100);
}
