export interface Target {
  readonly file: string;
  readonly flags: Readonly<Record<string, string>>;
  readonly compiler: { readonly command: string; readonly apt: string };
  readonly strip: string;
  readonly elf: ElfRules;
}

export interface ElfRules {
  readonly machine: string;
  readonly libraries: RegExp;
  readonly unversioned: RegExp;
  readonly newest: Readonly<Record<string, string>>;
}

export declare const TARGETS: Readonly<Record<string, Target>>;
