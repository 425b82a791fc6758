/** From checked options to an engine that loads: the model, the workers' memory, the layers, the streams. */
import { access, constants } from 'node:fs/promises';
import { freemem } from 'node:os';
import { addon, type NativeEngine, toDroidLlamaError, workerFailure } from './addon.js';
import type { CheckedOptions } from './context-options.js';
import { DroidLlamaError } from './errors.js';
import { type DeviceMemory, planLayers } from './placement.js';
import type { LoadProgress } from './types.js';
import type { WorkerAccess, WorkerSocket } from './worker-link.js';

/** Everything that can be known to fail is checked here, before the engine sees the model. */
export async function startEngine(options: CheckedOptions, workers: readonly WorkerAccess[]): Promise<NativeEngine> {
  const { signal } = options;
  try {
    const model = await addon().inspectModel(options.model);
    signal?.throwIfAborted();
    await Promise.all([...options.loras.map(({ path }) => path), options.draft].filter(Boolean).map(checkReadable));
    const described = await Promise.all(workers.map((worker) => describeWorker(worker, options)));
    signal?.throwIfAborted();
    const plan = planLayers({
      model,
      devices: [{ device: 'master', memoryFree: freemem() }, ...described],
      tensorSplit: options.tensorSplit,
      headOnWorker: options.headOnWorker,
      contextSize: options.contextSize,
      mmap: options.mmap,
    });
    const { tensorSplit, logLevel, onProgress, onWorkerLost, signal: _, ...rest } = options;
    const sockets = await connectAll(
      workers,
      (i) => plan.layers[i + 1] !== 0 || (options.headOnWorker && i + 1 === workers.length),
      signal,
    );
    const native = {
      ...rest,
      workers: workers.map(({ endpoint }, i) => ({
        endpoint,
        ...(sockets[i] as WorkerSocket),
        layers: plan.layers[i + 1] ?? 0,
      })),
      tensors: model.tensors,
    };
    return new (addon().Engine)(
      native,
      (stage, fraction) => onProgress({ stage: stage as LoadProgress['stage'], fraction }),
      (index, code, message) => {
        const failure = workerFailure({ code, message, endpoint: workers[index]?.endpoint as string });
        onWorkerLost(new DroidLlamaError(failure.code, failure.message), failure.endpoint);
      },
    );
  } catch (error) {
    throw toDroidLlamaError(error);
  }
}

async function describeWorker(worker: WorkerAccess, options: CheckedOptions): Promise<DeviceMemory> {
  const info = await worker.probe({ timeoutMs: options.timeouts.connectMs, signal: options.signal });
  return { device: worker.endpoint, memoryFree: info.devices[0]?.memoryFree ?? 0 };
}

const UNUSED: WorkerSocket = { host: '', port: 0, fd: -1 };

/** The engine connects to no worker that has no part of the model, so none of their streams is opened. */
async function connectAll(
  workers: readonly WorkerAccess[],
  isUsed: (index: number) => boolean,
  signal: AbortSignal | undefined,
): Promise<WorkerSocket[]> {
  const results = await Promise.allSettled(
    workers.map((worker, i) => (isUsed(i) ? worker.connect(signal) : Promise.resolve(UNUSED))),
  );
  const sockets = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  if (!failed && !signal?.aborted) return sockets;
  // Nobody else knows of the streams that were opened.
  for (const { fd } of sockets) if (fd >= 0) addon().closeDescriptor(fd);
  signal?.throwIfAborted();
  throw failed?.reason;
}

async function checkReadable(path: string): Promise<void> {
  try {
    await access(path, constants.R_OK);
  } catch (cause) {
    throw new DroidLlamaError('DROID_MODEL_NOT_FOUND', `Cannot open ${path}: ${(cause as Error).message}`, { cause });
  }
}
