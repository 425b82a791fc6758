export interface ApiSymbol {
  readonly soname: string;
  readonly version: string;
  readonly name: string;
  readonly data: boolean;
}

export declare const API_LEVEL: number;
export declare function readApi(): ApiSymbol[];
export declare function versionScript(symbols: readonly ApiSymbol[]): string;
