import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const dist = fileURLToPath(new URL('dist', import.meta.url));
const shared = { pool: 'forks' as const, environment: 'node', testTimeout: 60_000, hookTimeout: 120_000 };

export default defineConfig({
  test: {
    // Two cores: files that load models or measure tokens run one after the other.
    projects: [
      { test: { ...shared, name: 'unit', include: ['test/unit/**/*.test.ts'] } },
      { test: { ...shared, name: 'cluster', include: ['test/cluster/**/*.test.ts'], fileParallelism: false } },
      { test: { ...shared, name: 'native', include: ['test/native/**/*.test.ts'], fileParallelism: false } },
      {
        test: {
          ...shared,
          name: 'faults',
          include: ['test/faults/**/*.test.ts'],
          fileParallelism: false,
          // The allocator of a process with several arenas spreads what is freed, which looks like a leak.
          env: { MALLOC_ARENA_MAX: '1' },
        },
      },
      {
        // Once more with what ships: fastify and its plugins are CommonJS that makes code as it runs.
        resolve: { alias: [{ find: /^.*\/lib\/(index|errors|http\/server)\.js$/, replacement: `${dist}/$1.js` }] },
        test: {
          ...shared,
          name: 'bundle',
          server: { deps: { external: [/\/dist\//] } },
          include: ['test/unit/http.test.ts', 'test/unit/http-handler.test.ts', 'test/e2e/http-api.test.ts'],
          fileParallelism: false,
        },
      },
      {
        test: {
          ...shared,
          name: 'e2e',
          include: ['test/e2e/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 300_000,
        },
      },
    ],
  },
});
