/** The paths of the C++ cores' test programs, after a build of whatever is not up to date. Takes a minute or two the first time. */
export declare function buildCores(options?: { sanitize?: string }): Promise<string[]>;
