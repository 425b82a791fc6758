// Formats the C++ sources with the machine's clang-format, or with --check says which files it would change.
// Exit code 3: there is no clang-format here (Debian: apt-get install clang-format).
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const files = ['android', 'native', 'test'].flatMap((dir) =>
  readdirSync(join(root, dir), { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.(c|cc|h)$/.test(file))
    .map((file) => join(root, dir, file)),
);
const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
const { status, error } = spawnSync('clang-format', [...mode, ...files], { stdio: 'inherit' });
if (error) {
  console.error('clang-format is not installed');
  process.exitCode = 3;
} else {
  process.exitCode = status ?? 1;
}
