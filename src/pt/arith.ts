/**
 * Arithmetic on granule numbers: integers below 2^53 in a JavaScript number,
 * taken apart into a low 32-bit word and the rest where bits are needed.
 */
export const TWO32 = 4294967296;

/** Bits 31:0, as a signed word (what bitwise operators work on). */
export const lowWord = (x: number): number => x | 0;
/** Bits 52:32. */
export const highWord = (x: number): number => Math.floor(x / TWO32);

/** Trailing zeros of the 53-bit number made of two words; 64 for zero. */
export function ctz(lo: number, hi: number): number {
  if (lo !== 0) return 31 - Math.clz32(lo & -lo);
  return hi === 0 ? 64 : 63 - Math.clz32(hi & -hi);
}

/** Trailing ones. */
export const cto = (lo: number, hi: number): number => ctz(~lo, ~hi);

/** floor(log2(x)), x > 0. */
export function floorLog2(x: number): number {
  const hi = highWord(x);
  return hi === 0 ? 31 - Math.clz32(x) : 63 - Math.clz32(hi);
}

/** 2^n for n of 0 … 52. */
export const POW2: readonly number[] = Array.from({ length: 53 }, (_, i) => 2 ** i);
export const pow2 = (n: number): number => POW2[n] as number;

/** x modulo 2^n, without the slow floating remainder. */
export function modPow2(x: number, n: number): number {
  const p = pow2(n);
  return x - Math.floor(x / p) * p;
}

/** Index into a table of `level` of the granule number (lo, hi). */
export function indexAt(lo: number, hi: number, level: number): number {
  switch (level) {
    case 0:
      return lo & 511;
    case 1:
      return (lo >>> 9) & 511;
    case 2:
      return (lo >>> 18) & 511;
    case 3:
      return ((lo >>> 27) | (hi << 5)) & 511;
    case 4:
      return (hi >>> 4) & 511;
    default:
      return (hi >>> 13) & 511;
  }
}

/** A set of log2 sizes 0 … 51, as two words of bits. */
export class SizeSet {
  readonly lo: number;
  readonly hi: number;

  constructor(bitmap: bigint) {
    this.lo = Number(BigInt.asIntN(32, bitmap));
    this.hi = Number(BigInt.asIntN(32, bitmap >> 32n));
  }

  /** Largest member ≤ n, -1 when there is none. */
  atMost(n: number): number {
    if (n >= 32) {
      const h = this.hi & (n >= 63 ? -1 : (2 << (n - 32)) - 1);
      if (h !== 0) return 63 - Math.clz32(h);
      return this.lo === 0 ? -1 : 31 - Math.clz32(this.lo);
    }
    const l = this.lo & ((2 << n) - 1);
    return l === 0 ? -1 : 31 - Math.clz32(l);
  }

  /** Smallest member, -1 when there is none. */
  least(): number {
    const z = ctz(this.lo, this.hi);
    return z === 64 ? -1 : z;
  }

  /** Smallest member > n ≥ 0, -1 when there is none. */
  above(n: number): number {
    const lo = n >= 31 ? 0 : this.lo & -(2 << n);
    const hi = n < 32 ? this.hi : n >= 62 ? 0 : this.hi & -(2 << (n - 32));
    const z = ctz(lo, hi);
    return z === 64 ? -1 : z;
  }
}
