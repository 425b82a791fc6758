/** What the user of `droid-llama up` sees: lines on stderr and results on stdout, or events as JSON. */
import { renderUnicodeCompact } from 'uqr';
import type { Cluster } from '../cluster/cluster.js';
import type { MemberRole } from '../cluster/status.js';
import { wrapText } from './format.js';
import { LoadingBar } from './progress.js';
import { memberTable } from './status.js';
import { note, print, printJson, stdoutColumns, styled, warn } from './terminal.js';

/** Why a device is left out changes while it is being probed; what lasts this long is worth a line. */
const LEFT_OUT_MS = 4_000;

export class UpDisplay {
  readonly #json: boolean;
  readonly #bar = new LoadingBar(process.stderr);
  #role: MemberRole | undefined;
  #later: NodeJS.Timeout | undefined;
  readonly #told = new Set<string>();
  readonly #names = new Map<string, string>();
  #reasons: readonly string[] = [];
  #lost: string | undefined;

  constructor(json: boolean) {
    this.#json = json;
  }

  started(cluster: Cluster, token: string, show: boolean): void {
    if (this.#json) {
      printJson({ event: 'started', id: cluster.id, name: cluster.name, port: cluster.port, token });
      return;
    }
    print(`${styled(process.stdout, 'bold', cluster.name)} is up, on port ${cluster.port}`);
    if (!show) {
      this.#looking();
      return;
    }
    print('');
    const command = `droid-llama up --token ${token}`;
    print(renderUnicodeCompact(command, { border: 2 }));
    print('');
    print('Scan that on the other devices, or type there:');
    print(`  ${command}`);
    print('');
    this.#looking();
  }

  peer(id: string, name: string, state: 'joined' | 'lost'): void {
    this.#names.set(id, name);
    if (this.#json) printJson({ event: 'peer', id, name, state });
    else if (state === 'joined') this.#note(`${name} joined`);
    // Its failure as a worker has been told.
    else if (this.#lost !== id) this.#note(`${name} is gone`);
    this.#lost = undefined;
  }

  roles(cluster: Cluster): void {
    const { master, workers, leftOut } = cluster.roles;
    const name = (id: string): string => this.#name(cluster, id);
    if (this.#json) {
      printJson({
        event: 'roles',
        master,
        workers: workers.map(({ id }) => id),
        leftOut: leftOut.map(({ id, reason }) => ({ id, name: name(id), reason })),
      });
      return;
    }
    const role = cluster.role;
    if (role !== this.#role) {
      this.#role = role;
      if (role === 'master') this.#note('this device is the master');
      else if (role === 'worker') this.#note(`this device is a worker of ${name(master ?? '')}`);
    }
    clearTimeout(this.#later);
    this.#later = setTimeout(() => {
      if (master === null) for (const reason of cluster.roles.reasons) this.#once(reason);
      else for (const { id, reason } of leftOut) this.#once(`${name(id)} is left out: ${reason}`);
    }, LEFT_OUT_MS);
  }

  plan(plan: Cluster['plan'], cluster: Cluster): void {
    if (!plan) return;
    if (this.#json) {
      printJson({ event: 'plan', ...plan });
      return;
    }
    for (const reason of plan.reasons) if (!this.#reasons.includes(reason)) this.#note(reason);
    this.#reasons = plan.reasons;
    for (const { id, reason } of plan.leftOut) {
      if (id !== cluster.id) this.#once(`${this.#name(cluster, id)} is left out: ${reason}`);
    }
  }

  progress(progress: { stage: string; fraction: number }): void {
    if (this.#json) printJson({ event: 'progress', ...progress });
    else this.#bar.update(progress as Parameters<LoadingBar['update']>[0]);
  }

  serving(url: string): void {
    if (!this.#json) this.#note(`${url}/health answers; requests wait until the model is there`);
  }

  ready(cluster: Cluster, url: string | undefined): void {
    this.#bar.clear();
    if (this.#json) {
      printJson({ event: 'ready', role: cluster.role, ...(url !== undefined && { url }) });
      return;
    }
    if (cluster.role === 'left-out') return;
    print(memberTable(cluster.status().peers, cluster.id, stdoutColumns()));
    if (url !== undefined) print(`listening on ${styled(process.stdout, 'bold', url)}`);
    else print(`ready: ${this.#name(cluster, cluster.roles.master ?? '')} answers requests`);
  }

  lost(cluster: Cluster, peer: string, error: { code: string; message: string }): void {
    if (this.#json) {
      printJson({ event: 'lost', peer, code: error.code, message: error.message });
      return;
    }
    this.#lost = peer;
    const name = styled(process.stderr, 'red', `${this.#name(cluster, peer)} is lost`);
    this.#note(`${name} (${error.code}): requests that need it end, the next ones wait for a new plan`);
  }

  warning(message: string): void {
    if (this.#json) printJson({ event: 'warning', message });
    else {
      this.#bar.clear();
      warn(message);
    }
  }

  end(): void {
    clearTimeout(this.#later);
    this.#bar.clear();
  }

  /** Also of one that has gone. */
  #name(cluster: Cluster, id: string): string {
    for (const peer of cluster.peers) this.#names.set(peer.id, peer.name);
    return this.#names.get(id) ?? id;
  }

  #looking(): void {
    this.#note('looking for other devices');
  }

  #once(line: string): void {
    if (this.#told.has(line)) return;
    this.#told.add(line);
    this.#note(line);
  }

  #note(line: string): void {
    this.#bar.clear();
    note(wrapText(line, process.stderr.columns ?? 120));
  }
}
