export interface Target {
  readonly file: string;
  readonly preset: string;
  readonly madeOn: NodeJS.Platform;
  readonly compiler: { readonly command: string; readonly apt?: string };
  readonly strip?: string;
  readonly elf?: ElfRules;
  readonly macho?: MachoRules;
}

export interface ElfRules {
  readonly machine: string;
  readonly libraries: RegExp;
  readonly imports: (name: string, version?: string) => boolean;
  readonly tls?: false;
}

export interface MachoRules {
  readonly cpu: 'arm64' | 'x86_64';
  readonly libraries: RegExp;
  readonly oldest: string;
}

export declare const TARGETS: Readonly<Record<string, Target>>;
export declare const WITHOUT_NDK: string;
export declare function gnuSymbols(newest: Readonly<Record<string, string>>): ElfRules['imports'];
