/**
 * Who wants to know when a file becomes ready.
 *
 * A poll call, and a kernel user such as an interrupt's unmask eventfd, adds a
 * callback; a wake calls them all, in order of addition. A callback may remove
 * itself or others. When the object goes for good each is told so (`hungUp`),
 * which is the last it hears. Source: wait_queue_head and its entries'
 * functions, EPOLLHUP of eventfd_release.
 */
export type PollCallback = (hungUp: boolean) => void;

export class PollQueue {
  #entries: Set<PollCallback> | undefined = undefined;

  add(callback: PollCallback): void {
    this.#entries ??= new Set();
    this.#entries.add(callback);
  }

  remove(callback: PollCallback): void {
    this.#entries?.delete(callback);
  }

  /** Everyone looks again. */
  wakeUp(): void {
    if (this.#entries === undefined || this.#entries.size === 0) return;
    for (const cb of [...this.#entries]) cb(false);
  }

  /** The object is going: everyone is told, and forgotten. */
  hangUp(): void {
    const all = this.#entries;
    this.#entries = undefined;
    if (all !== undefined) for (const cb of [...all]) cb(true);
  }

  get size(): number {
    return this.#entries?.size ?? 0;
  }
}
