/**
 * A small seeded generator of numbers, for tests and for the explorer's random
 * strategies: the core has no randomness of its own, so a seed replays a run.
 *
 * Source: xoshiro128** (Blackman, Vigna), seeded by splitmix32.
 */
export class Rng {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** @param seed any number; its low 32 bits count */
  constructor(seed: number) {
    let s = seed | 0;
    const mix = (): number => {
      s = (s + 0x9e3779b9) | 0;
      let z = s;
      z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
      z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
      return z ^ (z >>> 16);
    };
    this.#a = mix();
    this.#b = mix();
    this.#c = mix();
    this.#d = mix();
  }

  /** 0 … 2^32 - 1. */
  u32(): number {
    const b = this.#b;
    const m = Math.imul(b, 5);
    const out = Math.imul((m << 7) | (m >>> 25), 9) >>> 0;
    const t = b << 9;
    this.#c ^= this.#a;
    this.#d ^= b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return out;
  }

  /** 0 … n - 1, each as likely as another to within 2^-32; n is 1 … 2^32. */
  below(n: number): number {
    if (!(n >= 1 && n <= 0x1_0000_0000)) throw new RangeError(`Rng.below(${n}): not in 1 … 2^32`);
    return Math.floor((this.u32() / 0x1_0000_0000) * n);
  }

  /** 0 … 2^64 - 1. */
  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  /** True with probability `p`. */
  chance(p: number): boolean {
    return this.u32() < p * 0x1_0000_0000;
  }

  /** One of `items`, which is not empty. */
  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new RangeError("Rng.pick: nothing to pick from");
    return items[this.below(items.length)] as T;
  }

  /** `items` in an order of its choosing, in place. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const t = items[i] as T;
      items[i] = items[j] as T;
      items[j] = t;
    }
    return items;
  }
}
