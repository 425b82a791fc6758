// Finds the tools a build from source needs and says how to install the missing ones.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';

/** A tool is there if one of its commands answers; the packages are those that bring it. */
const TOOLS = [
  { name: 'cmake', commands: ['cmake'], apt: 'cmake', brew: 'cmake', dnf: 'cmake', apk: 'cmake' },
  {
    // cmake-js looks for these two and no others.
    name: 'a C++ compiler (g++ or clang++)',
    commands: ['g++', 'clang++'],
    apt: 'g++',
    brew: 'llvm',
    dnf: 'gcc-c++',
    apk: 'g++',
  },
  {
    name: 'make or ninja',
    commands: ['ninja', 'make'],
    apt: 'make',
    brew: 'ninja',
    dnf: 'make',
    apk: 'make',
  },
  { name: 'git', commands: ['git'], apt: 'git', brew: 'git', dnf: 'git', apk: 'git' },
];

const INSTALL = {
  apt: 'apt-get install',
  dnf: 'dnf install',
  apk: 'apk add',
  brew: 'brew install',
};

/**
 * All of it, whatever is missing: Termux has one version of each package, so a compiler that is installed beside a Node of
 * last year does not fit it. The other package of Node there would remove this one.
 */
const TERMUX_INSTALL = `pkg install ${process.release.lts ? 'nodejs-lts' : 'nodejs'} clang cmake ninja git`;

/** Whether a command is there. */
export function answers(command) {
  try {
    execFileSync(command, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** What is missing, by name, and the command line that installs it; `install` is empty when nothing is missing. */
export function checkToolchain() {
  const missing = TOOLS.filter(({ commands }) => !commands.some(answers));
  const manager = packageManager();
  const install = !manager
    ? `your package manager (${missing.map(({ name }) => name).join(', ')})`
    : manager === 'pkg'
      ? TERMUX_INSTALL
      : `${INSTALL[manager]} ${missing.map((tool) => tool[manager]).join(' ')}`;
  return {
    missing: missing.map(({ name }) => name),
    install: missing.length > 0 ? install : '',
    ninja: answers('ninja'),
    ccache: answers('ccache'),
  };
}

/** @returns {'pkg' | 'apt' | 'dnf' | 'apk' | 'brew' | undefined} */
function packageManager() {
  // Termux sets PREFIX, and its Node calls the platform android; a Debian below it (proot-distro) has its own of both and
  // wants apt.
  if (process.env.PREFIX?.includes('com.termux') || process.platform === 'android') return 'pkg';
  if (process.platform === 'darwin') return 'brew';
  if (existsSync('/etc/debian_version')) return 'apt';
  if (existsSync('/etc/fedora-release')) return 'dnf';
  if (existsSync('/etc/alpine-release')) return 'apk';
  return undefined;
}
