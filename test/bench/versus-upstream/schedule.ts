/** What is measured on one link, in which order. */
import { loadavg } from 'node:os';
import type { PhoneProcess } from '../../phones/phone-process.js';
import { CONTEXT_SIZE, type Contender, isSpeculative, type ModelShape, type Programs } from './contenders.js';
import { type BenchLink, contendersOn, loadsOf } from './links.js';
import type { Measurements } from './measurements.js';
import {
  answerReport,
  benchReport,
  breakdownReport,
  linkReport,
  loadReport,
  type Traffic,
  trafficReport,
} from './program-reports.js';
import { MASTER_URL, Rig } from './rig.js';
import { bestUbatch } from './ubatch.js';

export const PROMPT_TOKENS = 512;
export const GENERATED_TOKENS = 64;
export const STREAMS = 4;
/** Of each stream. */
export const STREAM_TOKENS = 32;
const METER_PORT = 50053;
const ECHOES = 100;
const REQUEST_TIMEOUT_MS = 10 * 60_000;
/** What n-gram lookup is asked to go on with, to see how many of its drafts are right. */
const TEXT = 'The river does not ask how wide the valley is; it takes the way that is there.';

export interface Schedule {
  readonly contenders: readonly Contender[];
  readonly shape: ModelShape;
  readonly programs: Programs;
  /** The `main.js` whose `bench` measures everybody. */
  readonly benchMain: string;
  /** The directory of droid-llama's compiled files. */
  readonly dist: string;
  readonly token: string;
  readonly rounds: number;
  readonly ubatches: readonly number[];
  readonly measurements: Measurements;
  readonly note: (line: string) => void;
}

/** One link of a run. */
export class LinkRun {
  readonly #rig: Rig;
  readonly #link: BenchLink;
  readonly #schedule: Schedule;

  private constructor(rig: Rig, link: BenchLink, schedule: Schedule) {
    this.#rig = rig;
    this.#link = link;
    this.#schedule = schedule;
  }

  /** Measures everything on a link; what fails is noted, and the rest goes on. */
  static async all(link: BenchLink, schedule: Schedule): Promise<void> {
    await using rig = await Rig.up(link, schedule.programs, schedule.token);
    const run = new LinkRun(rig, link, schedule);
    const contenders = contendersOn(link, schedule.contenders);
    for (const contender of contenders) {
      if (contender.ubatch === 'sweep') await run.#attempt(contender, 'ubatches', () => run.#sweep(contender));
    }
    for (const contender of contenders) {
      if (contender.measures.includes('traffic')) {
        await run.#attempt(contender, 'traffic', () => run.traffic(contender));
      }
    }
    for (let round = 1; round <= schedule.rounds; round++) {
      await run.#meter(round);
      for (const contender of inTurn(contenders, round)) await run.#round(contender, round);
    }
  }

  /** Only the messages and bytes of a token. */
  static async onlyTraffic(link: BenchLink, schedule: Schedule): Promise<void> {
    await using rig = await Rig.up(link, schedule.programs, schedule.token);
    const run = new LinkRun(rig, link, schedule);
    for (const contender of schedule.contenders) {
      if (contender.measures.includes('traffic')) await run.traffic(contender);
    }
  }

  async #round(contender: Contender, round: number): Promise<void> {
    const { measures } = contender;
    if (round <= loadsOf(this.#link, contender)) {
      await this.#attempt(contender, 'load', () => this.#loads(contender, round));
    }
    if (measures.includes('prompt') || measures.includes('generation')) {
      await this.#attempt(contender, 'speed', () => this.#speed(contender, round));
    }
    if (measures.includes('streams') && round <= this.#link.rareRounds) {
      await this.#attempt(contender, 'streams', () => this.#streams(contender, round));
    }
    if (measures.includes('breakdown') && round <= this.#link.rareRounds) {
      await this.#attempt(contender, 'breakdown', () => this.#breakdown(contender, round));
    }
  }

  /** What the link itself does, when nothing else is on it. */
  async #meter(round: number): Promise<void> {
    const { name: link, meterBytes } = this.#link;
    const { child } = await this.#rig.serve('worker', 'meter', ['serve', '0.0.0.0', String(METER_PORT)]);
    try {
      const args = ['measure', this.#rig.workerHost, String(METER_PORT), String(ECHOES), String(meterBytes)];
      const said = linkReport.parse(await this.#rig.ask('meter', args, REQUEST_TIMEOUT_MS));
      this.#schedule.measurements.add({ kind: 'link', link, round, ...said, loadAverage: loadavg()[0] ?? 0 });
      this.#note(
        `round ${round}: round trip ${said.roundTripMs.toFixed(2)} ms, up ${mbit(said.upBytesPerSecond)}, ` +
          `down ${mbit(said.downBytesPerSecond)}`,
      );
    } finally {
      await child.kill();
    }
  }

  /** The prompt speed with each ubatch; that of one phone alone is the same on every link. */
  async #sweep(contender: Contender): Promise<void> {
    const { measurements, ubatches } = this.#schedule;
    const known = measurements.all.some((record) => record.kind === 'ubatch' && record.contender === contender.id);
    if (!contender.worker && known) return;
    for (const ubatch of ubatches) {
      // The quickest was disturbed least by what else the machine does.
      const { bestPrompt } = await this.#with(contender, { ubatch }, () =>
        this.#bench(PROMPT_TOKENS, 0, this.#link.sweepPrompts),
      );
      const promptPerSecond = bestPrompt ?? Number.NaN;
      measurements.add({ kind: 'ubatch', link: this.#link.name, contender: contender.id, ubatch, promptPerSecond });
      this.#note(`${contender.title}, ubatch ${ubatch}: prompt ${promptPerSecond.toFixed(1)} t/s`);
    }
  }

  /** A load whose worker has never seen the model, and one after which it has. */
  async #loads(contender: Contender, round: number): Promise<void> {
    const { name: link } = this.#link;
    await this.#rig.slowDown();
    await this.#rig.forget(contender);
    const worker = contender.worker ? await this.#rig.startWorker(contender) : undefined;
    try {
      // A worker without a cache begins anew each time, and so does one phone alone.
      const twice = contender.worker && contender.id !== 'upstream-guide';
      for (const load of twice ? (['cold', 'warm'] as const) : (['cold'] as const)) {
        const seconds = contender.inProcess ? await this.#loadInProcess(contender) : await this.#loadCommand(contender);
        this.#schedule.measurements.add({ kind: 'load', link, contender: contender.id, round, load, seconds });
        this.#note(`round ${round}, ${contender.title}: ${load} load ${seconds.toFixed(2)} s`);
      }
    } finally {
      await worker?.kill();
    }
  }

  async #loadCommand(contender: Contender): Promise<number> {
    const { master, seconds } = await this.#rig.startMaster(contender, this.#launch(contender));
    await master.kill();
    return seconds;
  }

  async #loadInProcess(contender: Contender): Promise<number> {
    const { shape, dist } = this.#schedule;
    const args = [dist, shape.path, this.#contextOptions(contender)];
    return loadReport.parse(await this.#rig.ask('load', args, REQUEST_TIMEOUT_MS)).seconds;
  }

  /** What createDistributedContext() is given where a contender is not a command. */
  #contextOptions(contender: Contender): string {
    const ubatchSize = this.#ubatch(contender);
    const common = { rpc: [this.#rig.endpoint], tensorSplit: [0.5, 0.5], threads: 1, contextSize: CONTEXT_SIZE };
    const security = contender.encrypted ? { token: this.#schedule.token } : { insecure: true };
    return JSON.stringify({ ...common, ...security, ...(ubatchSize === undefined ? {} : { ubatchSize }) });
  }

  async #speed(contender: Contender, round: number): Promise<void> {
    const { measures, id } = contender;
    const promptTokens = measures.includes('prompt') ? PROMPT_TOKENS : 0;
    const generatedTokens = measures.includes('generation') ? (this.#link.fewerTokens[id] ?? GENERATED_TOKENS) : 0;
    const speed = await this.#with(contender, {}, async () => {
      const measured = await this.#bench(promptTokens, generatedTokens, 1);
      const { timings } = isSpeculative(contender)
        ? await this.#complete(generatedTokens, TEXT)
        : { timings: undefined };
      return { ...measured, drafted: timings?.draft_n ?? null, accepted: timings?.draft_n_accepted ?? null };
    });
    this.#schedule.measurements.add({
      kind: 'speed',
      link: this.#link.name,
      contender: id,
      round,
      ubatch: this.#ubatch(contender) ?? null,
      promptPerSecond: speed.prompt,
      generatedPerSecond: speed.generation,
      generatedTokens: generatedTokens || null,
      drafted: speed.drafted,
      accepted: speed.accepted,
    });
    const of = (name: string, value: number | null) => (value === null ? [] : [`${name} ${value.toFixed(1)} t/s`]);
    const text = [...of('prompt', speed.prompt), ...of('generation', speed.generation)].join(', ');
    this.#note(`round ${round}, ${contender.title}: ${text}`);
  }

  async #streams(contender: Contender, round: number): Promise<void> {
    const { streams } = await this.#with(contender, { streams: STREAMS }, () =>
      this.#bench(0, STREAM_TOKENS, 1, STREAMS),
    );
    if (!streams) throw new Error('the streams were not measured');
    this.#schedule.measurements.add({
      kind: 'streams',
      link: this.#link.name,
      contender: contender.id,
      round,
      streams: STREAMS,
      tokensPerSecond: streams.tokensPerSecond.median,
      perStream: streams.perStream.median,
      firstTokenMs: streams.firstTokenMs.p50,
    });
    const total = streams.tokensPerSecond.median.toFixed(1);
    this.#note(`round ${round}, ${contender.title}: ${STREAMS} streams ${total} t/s in all`);
  }

  async #breakdown(contender: Contender, round: number): Promise<void> {
    const { shape, dist } = this.#schedule;
    await this.#rig.slowDown();
    const worker = await this.#rig.startWorker(contender);
    try {
      const args = [dist, shape.path, String(GENERATED_TOKENS), this.#contextOptions(contender)];
      const said = breakdownReport.parse(await this.#rig.ask('breakdown', args, REQUEST_TIMEOUT_MS));
      this.#schedule.measurements.add({
        kind: 'breakdown',
        link: this.#link.name,
        contender: contender.id,
        round,
        ...said,
      });
      this.#note(
        `round ${round}, ${contender.title}: a token takes ${said.totalMs.toFixed(1)} ms: master ` +
          `${said.masterMs.toFixed(1)}, worker ${said.workerMs.toFixed(1)}, network ${said.networkMs.toFixed(1)}`,
      );
    } finally {
      await worker.kill();
    }
  }

  /** What passes between the two for a token, counted by a proxy on the master's phone. */
  async traffic(contender: Contender): Promise<void> {
    await this.#rig.hurry();
    const worker = await this.#rig.startWorker(contender);
    const { child: proxy, first } = await this.#rig.serve('master', 'proxy', endpointArgs(this.#rig.endpoint));
    let master: PhoneProcess | undefined;
    try {
      const launch = { ...this.#launch(contender), endpoint: `127.0.0.1:${first.port}` };
      ({ master } = await this.#rig.startMaster(contender, launch));
      await this.#rig.slowDown();
      await this.#complete(4); // sets up the graphs
      const trafficOf = async (tokens: number): Promise<Traffic> => {
        await counted(proxy);
        await this.#complete(tokens);
        return counted(proxy);
      };
      // The difference is the generation's alone: both have the prompt, and the start and the end of a request.
      const short = await trafficOf(2);
      const tokens = this.#link.fewerTokens[contender.id] ?? GENERATED_TOKENS;
      const long = await trafficOf(2 + tokens);
      const perToken = (name: keyof Traffic) => (long[name] - short[name]) / tokens;
      const record = {
        messagesSent: perToken('messagesSent'),
        messagesReceived: perToken('messagesReceived'),
        bytesSent: perToken('bytesSent'),
        bytesReceived: perToken('bytesReceived'),
      };
      this.#schedule.measurements.add({
        kind: 'traffic',
        link: this.#link.name,
        contender: contender.id,
        ...record,
      });
      this.#note(
        `${contender.title}: ${record.messagesSent} requests of ${record.bytesSent} bytes and ` +
          `${record.messagesReceived} answers of ${record.bytesReceived} bytes a token`,
      );
    } finally {
      await master?.kill();
      await proxy.kill();
      await worker.kill();
    }
  }

  /** Starts a contender, does something with it, and ends it. */
  async #with<T>(
    contender: Contender,
    options: { ubatch?: number; streams?: number },
    work: () => Promise<T>,
  ): Promise<T> {
    // One that chooses for itself may look at the link, so it loads over the real one.
    if (contender.ubatch === 'own' && contender.program === 'droid-llama') await this.#rig.slowDown();
    else await this.#rig.hurry();
    const worker = contender.worker ? await this.#rig.startWorker(contender) : undefined;
    let master: PhoneProcess | undefined;
    try {
      ({ master } = await this.#rig.startMaster(contender, { ...this.#launch(contender), ...options }));
      await this.#rig.slowDown();
      return await work();
    } finally {
      await master?.kill();
      await worker?.kill();
    }
  }

  #launch(contender: Contender) {
    const { shape } = this.#schedule;
    return { shape, endpoint: this.#rig.endpoint, ubatch: this.#ubatch(contender), streams: 1 };
  }

  /** The one that was fastest at prompts; undefined for one's own choice. */
  #ubatch({ ubatch, id }: Contender): number | undefined {
    if (ubatch === 'own') return undefined;
    const { measurements } = this.#schedule;
    return bestUbatch(measurements, this.#link.name, ubatch === 'sweep' ? id : ubatch);
  }

  async #bench(promptTokens: number, generatedTokens: number, repetitions: number, streams?: number) {
    const args = ['-p', String(promptTokens), '-n', String(generatedTokens), '-r', String(repetitions)];
    const more = streams === undefined ? [] : ['--streams', String(streams)];
    const command = [process.execPath, this.#schedule.benchMain, 'bench', '--url', MASTER_URL, ...args, ...more];
    const said = await this.#rig.onMaster([...command, '-o', 'json'], REQUEST_TIMEOUT_MS);
    const report = benchReport.parse(JSON.parse(said));
    if (report.error) throw new Error(report.error.message);
    const [measured] = report.cases;
    return {
      prompt: measured?.prompts[0]?.tokensPerSecond.median ?? null,
      bestPrompt: measured?.prompts[0]?.tokensPerSecond.max ?? null,
      generation: measured?.generations[0]?.tokensPerSecond.median ?? null,
      streams: measured?.streams[0],
    };
  }

  async #complete(tokens: number, prompt = '16') {
    const args = [MASTER_URL, prompt, String(tokens)];
    const said = answerReport.parse(await this.#rig.ask('ask', args, REQUEST_TIMEOUT_MS));
    if (said.timings.predicted_n !== tokens) throw new Error(`${said.timings.predicted_n} of ${tokens} tokens`);
    return said;
  }

  async #attempt(contender: Contender, what: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      const message = (error as Error).message;
      const link = this.#link.name;
      this.#schedule.measurements.add({ kind: 'failure', link, contender: contender.id, what, message });
      this.#note(`${contender.title}: ${what} failed: ${message}`);
    }
  }

  #note(line: string): void {
    this.#schedule.note(`${this.#link.name}: ${line}`);
  }
}

/** Every contender once, each round beginning with another one. */
function inTurn(contenders: readonly Contender[], round: number): Contender[] {
  const first = (round - 1) % Math.max(contenders.length, 1);
  return [...contenders.slice(first), ...contenders.slice(0, first)];
}

async function counted(proxy: PhoneProcess): Promise<Traffic> {
  const from = proxy.events.length;
  proxy.write('count\n');
  return trafficReport.parse(await proxy.waitFor('the count', ({ event }) => event === 'counted', { from }));
}

function endpointArgs(endpoint: string): string[] {
  const at = endpoint.lastIndexOf(':');
  return [endpoint.slice(0, at), endpoint.slice(at + 1)];
}

function mbit(bytesPerSecond: number): string {
  return `${((bytesPerSecond * 8) / 1e6).toFixed(1)} Mbit/s`;
}
