import { readFileSync } from 'node:fs';

let known: string | undefined;

/** This package's version, as in its package.json. */
export function packageVersion(): string {
  if (known === undefined) {
    // The same distance from lib/ and from dist/.
    const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
    known =
      typeof manifest === 'object' && manifest !== null && 'version' in manifest ? String(manifest.version) : '0.0.0';
  }
  return known;
}
