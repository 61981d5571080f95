/**
 * Filling a tree.
 *
 * A range is cut greedily: at every position the largest leaf that both
 * addresses are aligned for and that fits the rest. Leaves of one size come in
 * stretches, and a stretch is written table by table.
 */
import { EADDRINUSE, ENXIO, Errno } from "../lib/errno.ts";
import { ctz, floorLog2, highWord, indexAt, lowWord, modPow2, pow2, TWO32 } from "./arith.ts";
import { itemLg2, TABLE_ENTRIES } from "./format.ts";
import { PtGather } from "./gather.ts";
import type { PtTable } from "./table_memory.ts";
import { isEmpty, type PtTree } from "./tree.ts";

/** log2 granules of the largest leaf that may start a range; -1 for none. */
export function bestSize(tree: PtTree, lin: number, oa: number, n: number): number {
  const align = ctz(lowWord(lin) | lowWord(oa), highWord(lin) | highWord(oa));
  return tree.sizes.atMost(Math.min(align, floorLog2(n)));
}

/**
 * Fills [lin, lin + n) with leaves of the bits `tree.leafLo`, `tree.leafHi`.
 * `tree.mapped` tells how far it came: all of it, or up to where the errno arose.
 */
export function fillRange(tree: PtTree, lin: number, oa: number, n: number): Errno | undefined {
  const apart = commonAlign(lin, oa);
  let failed: Errno | undefined;
  let done = 0;
  while (done < n && failed === undefined) {
    const at = lin + done;
    const size = bestSize(tree, at, oa + done, n - done);
    if (size < 0) {
      failed = ENXIO;
      break;
    }
    // This size serves until both addresses are aligned for the next one.
    const next = tree.sizes.above(size);
    const count = next >= 0 && apart >= next ? Math.min(n - done, pow2(next) - modPow2(at, next)) : n - done;
    failed = fillLeaves(tree, at, oa + done, count - modPow2(count, size), size);
    done += tree.mapped;
  }
  tree.mapped = done;
  return failed;
}

/** Leaves of 2^size granules over [lin, lin + n), table after table; `tree.mapped` is what was filled. */
function fillLeaves(tree: PtTree, lin: number, oa: number, n: number, size: number): Errno | undefined {
  const level = Math.floor(size / 9);
  const item = itemLg2(level);
  let done = 0;
  while (done < n) {
    const at = lin + done;
    const t = tree.tableFor(at, level);
    if (t instanceof Errno) {
      tree.mapped = done;
      return t;
    }
    const first = indexAt(lowWord(at), highWord(at), level);
    const end = Math.min(TABLE_ENTRIES, first + (n - done) / pow2(item)) | 0;
    const filled = size === item ? fill(tree, t, first, end, at, oa + done) : fillRuns(tree, t, first, end, at, oa + done, size);
    done += filled * pow2(item);
    if (first + filled < end) {
      tree.mapped = done;
      return EADDRINUSE;
    }
  }
  tree.mapped = done;
  return undefined;
}

/** One-entry leaves into [first, end); returns how many went in before one was taken. */
function fill(tree: PtTree, t: PtTable, first: number, end: number, lin: number, oa: number): number {
  const w = t.words;
  const stepGn = pow2(itemLg2(t.level));
  // An address below 2^20 granules further on changes the high word: at most once per table at level 0.
  const stepLo = stepGn < 1048576 ? (stepGn * 4096) | 0 : 0;
  const stepHi = stepGn < 1048576 ? 0 : (stepGn / 1048576) | 0;
  let lo = modPow2(oa, 20) * 4096;
  let hi = Math.floor(oa / 1048576);
  const bitsLo = tree.leafLo | (t.level > 0 ? tree.format.pageSizeBit : 0);
  const bitsHi = tree.leafHi;
  let i = first;
  while (i < end) {
    let stop = end;
    if (stepLo !== 0) stop = Math.min(end, i + Math.ceil((TWO32 - lo) / stepLo));
    let j = 2 * i;
    const last = (2 * stop) | 0;
    if (stepHi === 0) {
      const h = hi | bitsHi;
      for (let l = lo | bitsLo; j < last; j += 2) {
        if (((w[j] as number) | 0) !== 0) break;
        w[j] = l;
        w[j + 1] = h;
        l = (l + stepLo) | 0;
      }
    } else {
      for (let h = hi | bitsHi; j < last; j += 2) {
        if (((w[j] as number) | 0) !== 0) break;
        w[j] = lo | bitsLo;
        w[j + 1] = h;
        h += stepHi;
      }
    }
    const reached = j >> 1;
    lo += (reached - i) * stepLo;
    hi += (reached - i) * stepHi;
    i = reached;
    if (lo >= TWO32) {
      lo -= TWO32;
      hi++;
    }
    if (i < stop && !clearWay(tree, t, i, 1, lin + (i - first) * stepGn)) break;
  }
  return i - first;
}

/** Leaves of 2^size granules, each a run of equal entries; returns how many entries went in before one was taken. */
function fillRuns(tree: PtTree, t: PtTable, first: number, end: number, lin: number, oa: number, size: number): number {
  const w = t.words;
  const item = itemLg2(t.level);
  const run = 1 << (size - item);
  // The size is the run of ones below the address: n - 1 of them for 2^n granules.
  const ones = pow2(size - 1) - 1;
  const bitsLo = tree.leafLo | tree.format.nextLevelMask;
  for (let i = first; i < end; i += run) {
    const done = (i - first) * pow2(item);
    const last = 2 * (i + run);
    let present = 0;
    for (let j = 2 * i; j < last; j += 2) present |= w[j] as number;
    if (present !== 0 && !clearWay(tree, t, i, run, lin + done)) return i - first;
    const field = oa + done + ones;
    const lo = (modPow2(field, 20) * 4096) | bitsLo;
    const hi = Math.floor(field / 1048576) | tree.leafHi;
    w[2 * i] = lo;
    w[2 * i + 1] = hi;
    for (let n = 2; n < 2 * run; n *= 2) w.copyWithin(2 * i + n, 2 * i, 2 * i + n);
  }
  return end - first;
}

/** Makes the `n` entries from `first` (at `lin`) empty by freeing emptied tables; false when something is mapped there. */
function clearWay(tree: PtTree, t: PtTable, first: number, n: number, lin: number): boolean {
  const w = t.words;
  for (let i = first; i < first + n; i++) {
    if (((w[2 * i] as number) | 0) === 0) continue;
    const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
    if (child === null || !isEmpty(child)) return false;
    const gather = new PtGather();
    tree.detach(t, i, child, gather);
    const item = itemLg2(t.level);
    gather.add(tree.addressOf(lin + (i - first) * pow2(item)), 1n << BigInt(item + tree.granule));
    tree.options.iotlbSync?.(gather);
    tree.releaseGather(gather);
  }
  return true;
}

/** log2 of the largest size for which both are equally misaligned. */
function commonAlign(a: number, b: number): number {
  return ctz(lowWord(a) ^ lowWord(b), highWord(a) ^ highWord(b));
}
