/** Numbers worth trying: mostly such that calls meet each other, now and then a boundary. */
import { DATA, DATA_PAGES, GUARD, PAGE, RO } from "./program.ts";
import type { Context, World } from "./world.ts";

export const P = 0x1000n;
/** The mock's smallest page. */
const HALF = 0x800n;
const U64 = 0xffff_ffff_ffff_ffffn;
const BASE = 0x100_0000n;

const MOCK_BOUNDS = [0n, 0xfff000n, 0x7fff_f000n, 0x7fff_f800n, 0x8000_0000n];
const REAL_BOUNDS = [0n, 0xfedf_f000n, 0xfee0_0000n, 0xfeef_f000n, 0xfef0_0000n, (1n << 39n) - P, (1n << 48n) - P, 1n << 48n];
const BOUNDS = [0n, 1n, U64, U64 - 0xfffn, U64 - 1n, 1n << 63n, 0x100_0001n, 0x100_07ffn, 1n << 40n];

export function iova(w: World, c: Context): bigint {
  if (w.chance(0.03)) return w.pick(BOUNDS);
  if (w.chance(0.03)) return w.pick(c.kind === "real" ? REAL_BOUNDS : MOCK_BOUNDS);
  const at = BASE + BigInt(w.rng.below(48)) * P;
  return w.chance(c.kind === "mock" ? 0.06 : 0.02) ? at + HALF : at;
}

export function length(w: World, c: Context): bigint {
  if (w.chance(0.03)) return w.pick([0n, 1n, 0x7ffn, 0x801n, 0xfffn, 0x1001n, U64, U64 - 1n, 1n << 63n, 1n << 40n, 1n << 31n]);
  const pages = BigInt(w.chance(0.1) ? 1 + w.rng.below(64) : 1 + w.rng.below(6)) * P;
  return w.chance(c.kind === "mock" ? 0.06 : 0.02) ? pages - HALF : pages;
}

/** An address in the memory that is mapped for devices. */
export function va(w: World, c: Context): bigint {
  if (w.chance(0.03))
    return w.pick([
      0n,
      GUARD,
      RO,
      RO - P,
      DATA + BigInt((DATA_PAGES - 1) * PAGE),
      0xffff_8880_0000_0000n,
      U64 - 0xfffn,
      DATA + 1n,
      DATA - P,
    ]);
  const at = DATA + BigInt(w.rng.below(DATA_PAGES - 8)) * P;
  return w.chance(c.kind === "mock" ? 0.06 : 0.02) ? at + HALF : at;
}
