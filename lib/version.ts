import { readFileSync } from 'node:fs';
import { packageFile } from './package-file.js';

let known: string | undefined;

/** This package's version, as in its package.json. */
export function packageVersion(): string {
  if (known === undefined) {
    const manifest: unknown = JSON.parse(readFileSync(packageFile('package.json'), 'utf8'));
    known =
      typeof manifest === 'object' && manifest !== null && 'version' in manifest ? String(manifest.version) : '0.0.0';
  }
  return known;
}
