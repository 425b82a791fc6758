import type { DroidLlamaError } from '../errors.js';
import type { LoadProgress } from '../types.js';
import type { ClusterStatus } from './status.js';
import type { Link, Peer, Plan, Roles } from './types.js';

/** What a cluster tells while it runs. */
export interface ClusterEvents {
  /** A device can be reached from now on, or can not any more. */
  peer: [peer: Peer, state: 'joined' | 'lost'];
  link: [links: readonly Link[]];
  roles: [roles: Roles];
  plan: [plan: Plan];
  /** Loading, on the master. */
  progress: [progress: LoadProgress];
  /** The model can be asked, also from here. */
  ready: [status: ClusterStatus];
  /** A worker failed while the master needed it; the master makes a new plan. */
  lost: [error: DroidLlamaError, peer: string];
  /** A line that the user should see: a stranger was turned away, a device has another version. */
  warning: [line: string];
  /** Something that this device cannot do; the cluster goes on. Without a listener it becomes a warning. */
  error: [error: Error];
}
