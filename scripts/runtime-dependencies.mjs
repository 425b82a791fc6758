// The packages that the compiled JavaScript needs when it runs, by package-lock.json.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Dependencies that are there to compile the addon. */
const BUILD_ONLY = ['cmake-js', 'node-addon-api', 'node-api-headers'];

/**
 * The directories of all packages that are needed to run, dependencies of dependencies as well; each relative to root, e.g.
 * `node_modules/a/node_modules/b`.
 * @param {string} root the project's directory
 * @returns {string[]} sorted
 * @throws when the lock names one that it does not hold
 */
export function runtimeDependencies(root) {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'));
  const found = new Set();
  const visit = (dependent, names) => {
    for (const name of names) {
      const directory = resolve(packages, dependent, name);
      if (!directory) {
        // One that only other systems have.
        if (name in (packages[dependent].optionalDependencies ?? {})) continue;
        throw new Error(
          `package-lock.json does not hold ${name}, which ${dependent || 'the package'} needs: npm install`,
        );
      }
      if (found.has(directory)) continue;
      found.add(directory);
      const { dependencies, optionalDependencies } = packages[directory];
      visit(directory, Object.keys({ ...dependencies, ...optionalDependencies }));
    }
  };
  // As package.json has them: the lock may be of before a change.
  const { dependencies = {} } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  visit(
    '',
    Object.keys(dependencies).filter((name) => !BUILD_ONLY.includes(name)),
  );
  return [...found].sort();
}

/** Where Node finds a package: beside the one that asks for it, or in the directories above. */
function resolve(packages, dependent, name) {
  for (let directory = dependent; ; directory = directory.replace(/(^|\/)node_modules\/(@[^/]+\/)?[^/]+$/, '')) {
    const candidate = `${directory && `${directory}/`}node_modules/${name}`;
    if (candidate in packages) return candidate;
    if (directory === '') return undefined;
  }
}
