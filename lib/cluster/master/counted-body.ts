/**
 * The body as it is, and a call when it has come to its end, however that was: read, ended early, or failed.
 * No generator: ending one before its first next() would pass unnoticed.
 */
export function countBody(
  body: AsyncIterable<Uint8Array>,
  onEnd: () => void,
  explain: (error: unknown) => unknown,
): AsyncIterableIterator<Uint8Array> {
  const inner = body[Symbol.asyncIterator]();
  return {
    async next() {
      try {
        const result = await inner.next();
        if (result.done) onEnd();
        return result;
      } catch (error) {
        onEnd();
        throw explain(error);
      }
    },
    async return() {
      onEnd();
      await inner.return?.();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
