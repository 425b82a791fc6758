/** The plain records that the stages of the cluster hand to each other: peers, links, roles, plan. Sizes are bytes. */

/** How fast a device computes; measured by itself (device.ts) with the threads it computes with. */
export interface ComputeSpeed {
  readonly threads: number;
  /** Weights read per second while one token is generated; what bounds generation. */
  readonly weightBytesPerSecond: number;
  /** Floating-point operations per second in a batch of tokens; what bounds prompt processing. */
  readonly flopsPerSecond: number;
}

export interface Battery {
  readonly percent: number;
  readonly charging: boolean;
  readonly temperatureCelsius: number | null;
}

/** A model file as others need to know it. */
export interface ModelSummary {
  readonly name: string;
  readonly bytes: number;
  readonly layers: number;
}

/** What the master says of the work it leads. Of two, the one with the higher epoch counts; see leads.ts. */
export interface Lead {
  readonly epoch: number;
  /** `waiting`: the model does not fit who is there. `degraded`: a worker is lost and the next plan not loaded yet. */
  readonly state: 'waiting' | 'loading' | 'ready' | 'degraded' | 'failed';
  /** 0 to 1 while loading. */
  readonly progress: number;
  /** Why it waits or failed. */
  readonly reason: string | null;
  readonly plan: Plan | null;
  readonly measured: Measured | null;
}

/** What the running placement really does, beside `Plan.prediction`. Null where nothing was measured yet. */
export interface Measured {
  readonly loadSeconds: number | null;
  readonly promptTokensPerSecond: number | null;
  readonly generationTokensPerSecond: number | null;
}

/** A device of the cluster as it describes itself; every member knows the record of every other one. */
export interface Peer {
  /** 22 URL-safe characters, made at random once for a device. */
  readonly id: string;
  readonly name: string;
  /** Milliseconds since 1970 at which this process joined; a device that was restarted has a larger one. */
  readonly incarnation: number;
  /** Grows with every change of the record. */
  readonly revision: number;
  readonly version: string;
  /** Port it accepts streams on, 0 for none. */
  readonly port: number;
  /** Its own numeric addresses, as far as it knows them. */
  readonly addresses: readonly string[];
  /** What its user wants it to be. */
  readonly pin: 'master' | 'worker' | null;
  /** The model it could be the master of. */
  readonly model: ModelSummary | null;
  /** What it lends to a model: what is available, and what this cluster's model takes of it at the moment. */
  readonly memory: number;
  /** Null until it is measured. */
  readonly compute: ComputeSpeed | null;
  readonly battery: Battery | null;
  /** Graphs its worker has computed. */
  readonly graphsComputed: number;
  /** Ids of the members it has a control connection with. */
  readonly neighbours: readonly string[];
  /** What it found out by dialling others. */
  readonly links: readonly Link[];
  /** Set by a member that leads. */
  readonly lead: Lead | null;
}

/** How an attempt to connect ended; Android drops what it does not want, so a timeout is not a refusal. */
export type DialResult = 'open' | 'refused' | 'timeout' | 'unreachable' | 'unknown';

/** One direction between two devices, found out by the one that dials. */
export interface Link {
  readonly from: string;
  readonly to: string;
  readonly dial: DialResult;
  /** `host:port` that was dialled last; null when there was none to try. */
  readonly endpoint: string | null;
  /** Of the shortest exchange; null until measured. */
  readonly roundTripMs: number | null;
  /** Throughput in the direction of the link; null until measured. */
  readonly bytesPerSecond: number | null;
}

export interface WorkerRole {
  readonly id: string;
  /** Who dials the RPC stream: the master (`direct`) or, because only it can, the worker (`reverse`). */
  readonly via: 'direct' | 'reverse';
}

/** Who does what. */
export interface Roles {
  /** Null when no device can be it; `reasons` says why. */
  readonly master: string | null;
  /** In the order of their ids. */
  readonly workers: readonly WorkerRole[];
  readonly leftOut: readonly { readonly id: string; readonly reason: string }[];
  /** In words, for people. */
  readonly reasons: readonly string[];
}

/** The sizes of a model that a plan is made of; from `inspectModel` of the addon. */
export interface ModelShape {
  readonly name: string;
  /** Bytes of weights of each repeating layer, in order. */
  readonly layerBytes: readonly number[];
  /** Bytes of everything outside the layers, head included; the master holds it. */
  readonly outerBytes: number;
  readonly headBytes: number;
  /** F16 keys and values of one token in one layer. */
  readonly kvBytesPerTokenLayer: number;
  /** Tokens the model was trained for; 0 when unknown. */
  readonly contextLength: number;
  readonly embeddingLength: number;
  /** Largest one of all layers, experts in use added up. */
  readonly feedForwardLength: number;
  readonly headCount: number;
  readonly vocabularySize: number;
  /** Bytes of the weights that one token reads; smaller than all of them in a mixture of experts. */
  readonly activeBytesPerLayer: readonly number[];
}

/** A device as the planner sees it. */
export interface PlanDevice {
  readonly id: string;
  readonly name: string;
  readonly memory: number;
  /** Null: not measured; the planner then assumes what the others have. */
  readonly compute: ComputeSpeed | null;
  /** Pinned as a worker: used even when it slows things down. */
  readonly pinned: boolean;
  /** Between the master and this worker; null for the master itself. */
  readonly link: {
    readonly roundTripMs: number | null;
    /** From the master to the worker, and back. */
    readonly upBytesPerSecond: number | null;
    readonly downBytesPerSecond: number | null;
  } | null;
}

export type Objective = 'share' | 'fastest';

export interface PlanInput {
  readonly model: ModelShape;
  readonly master: PlanDevice;
  readonly workers: readonly PlanDevice[];
  readonly objective: Objective;
  /** Tokens; null lets the planner choose. */
  readonly contextSize: number | null;
  readonly batchSize: number | null;
  readonly ubatchSize: number | null;
  readonly parallel: number;
}

/** What a device holds by the plan. */
export interface PlanPart {
  readonly id: string;
  /** Consecutive layers `firstLayer … firstLayer + layers - 1`; the master's come first. */
  readonly firstLayer: number;
  readonly layers: number;
  /** Weights. */
  readonly bytes: number;
  /** Weights, KV cache, compute buffers and a margin. */
  readonly memoryNeeded: number;
}

export interface Prediction {
  readonly loadSeconds: number;
  readonly promptTokensPerSecond: number;
  readonly generationTokensPerSecond: number;
}

export interface Plan {
  /** Whether the model fits the devices there are; if not, `parts` is empty. */
  readonly fits: boolean;
  /** How much memory more would be needed; 0 when it fits. */
  readonly missingBytes: number;
  /** The master first, then the workers that hold layers, in the order of their layers. */
  readonly parts: readonly PlanPart[];
  readonly contextSize: number;
  readonly batchSize: number;
  readonly ubatchSize: number;
  /** Null when something needed for it was not measured, and when the model does not fit. */
  readonly prediction: Prediction | null;
  /** The devices that hold nothing, and why. */
  readonly leftOut: readonly { readonly id: string; readonly reason: string }[];
  /** In words, for people. */
  readonly reasons: readonly string[];
}
