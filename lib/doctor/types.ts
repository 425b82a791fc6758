/** What the checks of `droid-llama doctor` are made of. */

/** `skip`: it does not apply here, or cannot be found out. Only `fail` keeps a cluster from working. */
export type CheckStatus = 'ok' | 'warn' | 'fail' | 'skip';

export interface CheckResult {
  readonly id: string;
  /** A few words, for a table. */
  readonly title: string;
  readonly status: CheckStatus;
  /** What was found. */
  readonly found: string;
  /** What to do about it; commands stand on lines of their own. Null when there is nothing to do. */
  readonly advice: string | null;
}

export type Finding = Pick<CheckResult, 'status' | 'found'> & { readonly advice?: string };

export interface Check {
  readonly id: string;
  readonly title: string;
  /** Makes sense on Android only; skipped elsewhere. */
  readonly android?: true;
  run(probes: Probes, options: DoctorOptions): Promise<Finding> | Finding;
}

export interface DoctorOptions {
  /** Port of the HTTP API. */
  readonly port: number;
  readonly clusterPort: number;
  /** Where a worker keeps weights. */
  readonly cacheDir: string;
}

/** Everything the checks ask of the machine; tests put their own in place. Nothing here throws or rejects unless said. */
export interface Probes {
  readonly android: boolean;
  /** API level of Android; null elsewhere and where it cannot be found out. */
  readonly androidSdk: number | null;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly nodeVersion: string;
  readonly packageVersion: string;
  /** Throws as `os.networkInterfaces` does on Android. */
  networkInterfaces(): Readonly<
    Record<string, readonly { readonly address: string; readonly family: string }[] | undefined>
  >;
  /** The address that packets to `host` would come from; null when there is no way there. No packet is sent. */
  localAddressTowards(host: string): Promise<string | null>;
  /** Sends an empty datagram to the discard port; the error's code if the system refused. */
  sendDatagram(host: string): Promise<string | null>;
  /** Joins the mDNS group for a moment; the error's code if the system refused. */
  joinMulticast(): Promise<string | null>;
  /** Listens for a moment; the error's code if the system refused. */
  tryListen(host: string, port: number): Promise<string | null>;
  /** Whether an `up` of this HOME runs. */
  ownUpRuns(): Promise<boolean>;
  /** What a program printed; null when it is not there, failed, or said nothing for three seconds. */
  exec(program: string, ...args: readonly string[]): Promise<string | null>;
  /** Bytes free to this user where the path is or would be; null when that cannot be found out. */
  freeStorage(path: string): Promise<number | null>;
  memory(): { readonly total: number; readonly available: number };
  cores(): {
    readonly clusters: readonly { count: number; megahertz: number | null }[];
    readonly all: number;
    readonly threads: number;
  };
  /** Throws what loading throws. */
  addon(): { readonly llamaCpp: string; readonly rpcProtocol: string };
}
