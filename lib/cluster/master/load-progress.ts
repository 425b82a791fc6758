import type { LoadProgress } from '../../types.js';

/** With workers, about what hashing the weights takes of a load that then sends them. */
const HASHING_SHARE = 0.2;

/** Where a load stands as a whole, from 0 to 1; the draft model and the projector are small beside the model. */
export function overallProgress({ stage, fraction }: LoadProgress, hasWorkers: boolean): number {
  const hashing = hasWorkers ? HASHING_SHARE : 0;
  switch (stage) {
    case 'weights':
      return hashing * fraction;
    case 'text_model':
      return hashing + (1 - hashing) * fraction;
    default:
      return 1;
  }
}
