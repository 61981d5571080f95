/**
 * A queue that takes back what was taken from it: push at the end, take and put
 * back at the front, all in constant time on average.
 *
 * The front is an index into an array; what lies before it is dropped once it is
 * more than half of the array.
 */
export class Fifo<T> implements Iterable<T> {
  #items: T[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  /** The first, which stays. */
  get first(): T | undefined {
    return this.#items[this.#head];
  }

  /** The last, which stays. */
  get last(): T | undefined {
    return this.length === 0 ? undefined : this.#items[this.#items.length - 1];
  }

  push(item: T): void {
    this.#items.push(item);
  }

  /** Takes the last out. */
  pop(): T | undefined {
    return this.length === 0 ? undefined : this.#items.pop();
  }

  /** Takes the first out. */
  shift(): T | undefined {
    if (this.length === 0) return undefined;
    const item = this.#items[this.#head];
    this.#head++;
    if (this.#head > this.#items.length >> 1 && this.#head > 32) {
      this.#items.splice(0, this.#head);
      this.#head = 0;
    }
    return item;
  }

  /** Puts one before the first. */
  unshift(item: T): void {
    if (this.#head === 0) {
      this.#items.unshift(item);
      return;
    }
    this.#head--;
    this.#items[this.#head] = item;
  }

  /** Takes out, in order, every one for which `which` holds. */
  extract(which: (item: T) => boolean): T[] {
    const out: T[] = [];
    const kept: T[] = [];
    for (const item of this) (which(item) ? out : kept).push(item);
    this.#items = kept;
    this.#head = 0;
    return out;
  }

  *[Symbol.iterator](): Generator<T, void, void> {
    for (let i = this.#head; i < this.#items.length; i++) yield this.#items[i] as T;
  }
}
