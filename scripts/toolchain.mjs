// Finds the tools a build from source needs and says how to install the missing ones.
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';

const isTermux = existsSync('/data/data/com.termux') || process.env.PREFIX?.includes('com.termux') === true;

function answers(command, args = ['--version']) {
  try {
    execFileSync(command, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** @returns {{ missing: string[], install: string, ninja: boolean, ccache: boolean }} */
export function checkToolchain() {
  const missing = [];
  if (!answers('cmake')) missing.push('cmake');
  if (!['c++', 'g++', 'clang++', process.env.CXX].some((name) => name && answers(name))) missing.push('a C++ compiler');
  const ninja = answers('ninja');
  if (!ninja && !answers('make')) missing.push('make');
  if (!answers('git')) missing.push('git');
  return { missing, install: installLine(), ninja, ccache: answers('ccache') };
}

function installLine() {
  if (isTermux) return 'pkg install nodejs-lts clang cmake ninja git';
  if (process.platform === 'darwin') return 'xcode-select --install && brew install cmake ninja';
  if (existsSync('/etc/debian_version')) return 'apt-get install cmake g++ make git';
  if (existsSync('/etc/fedora-release')) return 'dnf install cmake gcc-c++ make git';
  if (existsSync('/etc/alpine-release')) return 'apk add cmake g++ make git';
  return 'install cmake, a C++17 compiler, make and git with your package manager';
}
