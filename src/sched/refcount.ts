/** Reference counts that cannot wrap: a put too many, or a get from zero, is a `KernelBug`. */
import { KernelBug } from "../lib/kernel_bug.ts";

export class Refcount {
  readonly name: string;
  #n: number;

  constructor(name: string, initial = 1) {
    this.name = name;
    this.#n = initial;
  }

  get count(): number {
    return this.#n;
  }

  get(): void {
    if (this.#n <= 0) throw new KernelBug(`refcount ${this.name}: get from zero (use after free)`);
    this.#n++;
  }

  /** Takes a reference unless the last one is gone. */
  getNotZero(): boolean {
    if (this.#n <= 0) return false;
    this.#n++;
    return true;
  }

  /** Drops one; true when it was the last. */
  put(): boolean {
    if (this.#n <= 0) throw new KernelBug(`refcount ${this.name}: underflow`);
    this.#n--;
    return this.#n === 0;
  }

  /** Sets it anew, as kref_init does after the object came back to life. */
  reinit(n = 1): void {
    this.#n = n;
  }
}
