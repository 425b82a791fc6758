import { describe, expect, it, vi } from 'vitest';
import { Changes } from '../../lib/cluster/changes.js';

describe('Changes', () => {
  it('wakes everybody who waits, once', async () => {
    const changes = new Changes();
    const waiting = [changes.next(), changes.next()];
    changes.tell();
    await Promise.all(waiting);
    const later = vi.fn();
    void changes.next().then(later);
    await Promise.resolve();
    expect(later).not.toHaveBeenCalled();
    changes.tell();
    await vi.waitFor(() => expect(later).toHaveBeenCalledOnce());
  });

  it('gives up with the reason of a signal, also of one that was aborted before, and after its time', async () => {
    const changes = new Changes();
    const controller = new AbortController();
    const waiting = changes.next(controller.signal);
    controller.abort(new Error('enough'));
    await expect(waiting).rejects.toThrow('enough');
    await expect(changes.next(controller.signal)).rejects.toThrow('enough');
    await changes.next(undefined, 1);
  });
});
