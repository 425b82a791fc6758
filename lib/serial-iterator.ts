/**
 * An iterator over what `read` gives, one call at a time: a second next() waits for the first. `end` is called by
 * return(), also while a read runs, which it has to cut short.
 */
export function serialIterator<T>(read: () => Promise<IteratorResult<T>>, end: () => void): AsyncIterableIterator<T> {
  let previous: Promise<unknown> = Promise.resolve();
  return {
    next() {
      const result = previous.then(read);
      previous = result.catch(() => {});
      return result;
    },
    async return() {
      end();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
