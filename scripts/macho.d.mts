import type { MachoRules } from './prebuild-targets.mjs';

export declare function checkMacho(file: string, rules: MachoRules, secrets?: readonly string[]): string[];
