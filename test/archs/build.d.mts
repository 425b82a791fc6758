/** The path of the program, after a build of whatever is not up to date. Takes minutes the first time. */
export declare function buildArchs(): Promise<string>;
