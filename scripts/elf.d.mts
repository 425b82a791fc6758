import type { ElfRules } from './prebuild-targets.mjs';

export declare function checkElf(file: string, rules: ElfRules, secrets?: readonly string[]): string[];
export declare function outlineAtomics(file: string): string[];
export declare function madeWithNdk(file: string): boolean;
