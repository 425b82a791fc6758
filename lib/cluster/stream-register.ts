import type { SecureStream } from '../transport/transport.js';

/** How many of a member's streams are remembered; those that have ended are among them. */
const MAX_STREAMS = 256;
const MAX_MEMBERS = 256;

/** Which streams belong to which member, so that they can be cut when it is gone before TCP notices. */
export class StreamRegister {
  readonly #cut: (id: number) => void;
  readonly #streams = new Map<string, number[]>();

  /** @param cut ends a stream by its id; without effect on one that has ended. */
  constructor(cut: (id: number) => void) {
    this.#cut = cut;
  }

  add(member: string, stream: SecureStream): SecureStream {
    const ids = this.#streams.get(member) ?? [];
    // Whoever has the token can claim any id.
    if (ids.length === 0 && this.#streams.size >= MAX_MEMBERS)
      this.#streams.delete(this.#streams.keys().next().value ?? '');
    ids.push(stream.id);
    if (ids.length > MAX_STREAMS) ids.shift();
    this.#streams.set(member, ids);
    return stream;
  }

  cutAll(member: string): void {
    for (const id of this.#streams.get(member) ?? []) this.#cut(id);
    this.#streams.delete(member);
  }
}
