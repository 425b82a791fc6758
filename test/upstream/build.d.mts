/** The paths of upstream's programs, after a build of whatever is not up to date. Takes minutes the first time. */
export declare function ensureUpstream(): Promise<{ llamaServer: string; rpcServer: string }>;

/** The directory of the unpatched sources, fetched if need be. */
export declare function upstreamSources(): Promise<string>;
