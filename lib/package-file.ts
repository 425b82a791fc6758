/** Finds the files that come with this package: the same ones from lib/, from dist/ and from a chunk of a bundle. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

let root: string | undefined;

/** The absolute path of a file of this package, which is given as seen from the package's own directory. */
export function packageFile(path: string): string {
  const here = dirname(fileURLToPath(import.meta.url));
  root ??= packageAbove(here) ?? here;
  return join(root, path);
}

/** The directory at or above this one that has a package.json. Ours has one, and no directory in it has. */
function packageAbove(directory: string): string | undefined {
  if (existsSync(join(directory, 'package.json'))) return directory;
  const parent = dirname(directory);
  return parent === directory ? undefined : packageAbove(parent);
}
