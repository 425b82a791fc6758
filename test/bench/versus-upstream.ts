// Upstream's llama-server and ggml-rpc-server against droid-llama: the same emulated phones, model file, threads, cores
// and links, in one run, in turns.
//
//   node --import ./test/support/typescript.mjs test/bench/versus-upstream.ts    prints a page of Markdown
//     --rounds 5                 how often everything is measured
//     --links loopback,hotspot   of loopback, lan, hotspot and poor (default: all)
//     --only a,b                 these contenders alone
//     --ubatches 32,64,128,512   of which the best one is taken, for prompts
//     --tiny                     models/droid-tiny.gguf, in place of a file of the guide's shape
//     --json                     prints what was measured as JSON
//     --write                    writes docs/bench/versus-upstream.json and .md, too
//     --update-traffic           counts messages and bytes of a token with the tiny model, and holds tests to them
//     --report FILE              no measuring: prints what an earlier run left in build/versus-upstream
//
// Wants root (network namespaces), dist and the addon built; builds upstream's programs when they are missing.
import { runCli } from './versus-upstream/cli.js';

process.exitCode = await runCli(process.argv.slice(2));
