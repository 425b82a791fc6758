export declare function presetVariables(name: string): Record<string, string>;
