/** Slices of a buffer as pieces of its ranges. */
import { minN } from "../../../lib/addr.ts";
import type { PhysRange } from "./contract.ts";

/** A piece of one range. */
export interface RangePiece {
  readonly range: PhysRange;
  readonly paddr: bigint;
  readonly len: bigint;
}

/** The pieces that hold `length` bytes from `offset` on, in order; fewer bytes where the ranges end before. */
export function* piecesOf(ranges: readonly PhysRange[], offset: bigint, length: bigint): Generator<RangePiece, void, void> {
  let skip = offset;
  let left = length;
  for (const range of ranges) {
    if (left === 0n) return;
    if (skip >= range.len) {
      skip -= range.len;
      continue;
    }
    const len = minN(range.len - skip, left);
    yield { range, paddr: range.paddr + skip, len };
    left -= len;
    skip = 0n;
  }
}
