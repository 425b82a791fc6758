/** What the scenes of a cluster on phones have in common: `up` on a phone, its status, and chats with it. */
import { randomBytes } from 'node:crypto';
import { onTestFinished } from 'vitest';
import { Phones, type PhonesOptions } from '../support/phones.js';
import type { PhoneProcess } from './phone-process.js';

/** A model of the guide's size needs half a minute over its link, on a machine with nothing else to do. */
export const READY_MS = 180_000;

export interface PeerStatus {
  readonly id: string;
  readonly name: string;
  readonly role: string;
  /** Why it is left out. */
  readonly reason: string | null;
  readonly layers: number;
  readonly bytes: number;
  readonly graphsComputed: number;
}

export interface Status {
  readonly self: { readonly id: string; readonly name: string; readonly role: string };
  readonly peers: readonly PeerStatus[];
  readonly links: readonly { readonly from: string; readonly to: string; readonly dial: string }[];
  readonly state: string;
}

export interface Up {
  readonly name: string;
  readonly process: PhoneProcess;
  readonly id: string;
  readonly token: string;
}

export interface Answer {
  readonly status: number;
  readonly text: string;
  /** Why the connection ended early; null when it did not. */
  readonly failure: string | null;
}

/** Phones that are gone when the test ends. */
export async function phonesUp(options: PhonesOptions): Promise<Phones> {
  const phones = await Phones.up(options);
  onTestFinished(() => phones.down());
  return phones;
}

export function newToken(): string {
  return randomBytes(16).toString('base64url');
}

/** `droid-llama up` on a phone, named like it. */
export async function up(phones: Phones, name: string, ...args: readonly string[]): Promise<Up> {
  const process = phones.cli(name, ['up', '--json', '--name', name, ...args]);
  const started = await process.waitFor('it started', ({ event }) => event === 'started');
  return { name, process, id: String(started.id), token: String(started.token) };
}

export async function readyAs(device: Up, role: 'master' | 'worker', from = 0): Promise<void> {
  const options = { timeoutMs: READY_MS, from };
  await device.process.waitFor(`it is ready as ${role}`, (e) => e.event === 'ready' && e.role === role, options);
}

export async function statusOf(phones: Phones, name: string): Promise<Status> {
  const child = phones.cli(name, ['status', '--json']);
  const { status, stdout, stderr } = await phones.finished(child);
  if (status !== 0) throw new Error(`status on ${name} ended with ${status}: ${stdout}${stderr}`);
  return JSON.parse(stdout) as Status;
}

/** The first status of a phone that `test` accepts; the error shows the last one. */
export async function statusWhen(
  phones: Phones,
  name: string,
  what: string,
  test: (status: Status) => boolean,
  timeoutMs = 60_000,
): Promise<Status> {
  const end = Date.now() + timeoutMs;
  for (;;) {
    const status = await statusOf(phones, name);
    if (test(status)) return status;
    if (Date.now() > end) {
      throw new Error(`waited ${timeoutMs} ms in vain until ${what}; ${name} says ${JSON.stringify(status, null, 1)}`);
    }
  }
}

export function peerNamed(status: Status, name: string): PeerStatus | undefined {
  return status.peers.find((peer) => peer.name === name);
}

/** Graphs that the worker has computed, as a member knows it by now. */
export function graphsOf(status: Status, name: string): number {
  return peerNamed(status, name)?.graphsComputed ?? 0;
}

/** Begins a request to the HTTP API on a phone, from that phone. */
export function post(phones: Phones, name: string, path: string, body: object): PhoneProcess {
  return phones.tool(name, 'http', 'POST', `http://127.0.0.1:8080${path}`, JSON.stringify(body));
}

/** Waits for the end of a request. */
export async function answer(phones: Phones, request: PhoneProcess, timeoutMs = READY_MS): Promise<Answer> {
  await phones.finished(request, timeoutMs);
  const text = request.all('chunk').map((chunk) => String(chunk.text));
  const failure = request.last('error');
  return {
    status: Number(request.last('head')?.status ?? 0),
    text: text.join(''),
    failure: failure ? String(failure.message) : null,
  };
}

export interface Chat {
  readonly content: string;
  readonly tokens: number;
}

/** A chat of so many tokens over HTTP on a phone. */
export async function chat(phones: Phones, name: string, content: string, tokens = 12): Promise<Chat> {
  const body = { messages: [{ role: 'user', content }], max_tokens: tokens, temperature: 0, ignore_eos: true };
  const { status, text, failure } = await answer(phones, post(phones, name, '/v1/chat/completions', body));
  if (status !== 200 || failure) throw new Error(`chat on ${name}: ${status} ${text} ${failure ?? ''}`);
  const parsed = JSON.parse(text) as {
    choices: [{ message: { content: string } }];
    usage: { completion_tokens: number };
  };
  return { content: parsed.choices[0].message.content, tokens: parsed.usage.completion_tokens };
}

/** Chats, and waits until the master knows that each of the workers computed a graph for every token. */
export async function chatWithWorkers(
  phones: Phones,
  master: string,
  workers: readonly string[],
  tokens = 12,
): Promise<Chat> {
  const before = await statusOf(phones, master);
  const said = await chat(phones, master, 'What is 2+2?', tokens);
  const everyone = (status: Status): boolean =>
    workers.every((name) => graphsOf(status, name) >= graphsOf(before, name) + said.tokens);
  await statusWhen(phones, master, `${workers.join(' and ')} computed a graph for each token`, everyone);
  return said;
}
