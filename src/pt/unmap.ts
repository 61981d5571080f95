/**
 * Emptying a tree, and the dirty bits of what stays.
 */
import { modPow2, pow2 } from "./arith.ts";
import { itemLg2, TABLE_ENTRIES } from "./format.ts";
import type { PtGather } from "./gather.ts";
import type { PtTable } from "./table_memory.ts";
import type { PtTree } from "./tree.ts";

/** Takes out the leaves of one table within [lin, last]; false when it met a hole or the inside of a leaf. */
export function clearRange(tree: PtTree, t: PtTable, lin: number, last: number, gather: PtGather): boolean {
  const w = t.words;
  const level = t.level;
  const item = itemLg2(level);
  const base = lin - modPow2(lin, Math.min(52, item + 9));
  const itemSize = pow2(item);
  const first = ((lin - base) / itemSize) | 0;
  const end = (Math.min(TABLE_ENTRIES - 1, (last - base) / itemSize) + 1) | 0;
  const nextLevelMask = tree.format.nextLevelMask;
  let i = first;
  let leaves = 0;
  let whole = true;

  const firstLo = w[2 * i] as number;
  if (firstLo !== 0 && (level === 0 || !tree.namesTable(firstLo))) {
    const size = tree.runLg2(firstLo, w[2 * i + 1] as number, level) + item;
    if (modPow2(lin, size) !== 0) return false;
  }
  if (level === 0) {
    while (i < end) {
      let j = 2 * i;
      const stop = (2 * end) | 0;
      for (; j < stop; j += 2) {
        const lo = (w[j] as number) | 0;
        if (lo === 0 || (lo & nextLevelMask) !== 0) break;
        w[j] = 0;
        w[j + 1] = 0;
      }
      leaves += (j >> 1) - i;
      i = j >> 1;
      if (i >= end) break;
      const lo = w[2 * i] as number;
      if (lo === 0) {
        whole = false;
        break;
      }
      const n = 1 << tree.runLg2(lo, w[2 * i + 1] as number, 0);
      w.fill(0, 2 * i, 2 * (i + n));
      leaves += n;
      i += n;
    }
  } else {
    while (i < end) {
      const lo = w[2 * i] as number;
      if (lo === 0) {
        whole = false;
        break;
      }
      const child = t.children[i] as PtTable | null;
      if (child === null) {
        const n = 1 << tree.runLg2(lo, w[2 * i + 1] as number, level);
        w.fill(0, 2 * i, 2 * (i + n));
        leaves += n;
        i += n;
        continue;
      }
      const at = i === first ? lin : base + i * itemSize;
      if (!clearRange(tree, child, at, last, gather)) {
        whole = false;
        break;
      }
      const itemBase = base + i * itemSize;
      if (at === itemBase && tree.coverLast >= itemBase + itemSize - 1) tree.detach(t, i, child, gather);
      i++;
    }
  }
  tree.unmapped += leaves * itemSize;
  return whole;
}

export function forDirty(tree: PtTree, t: PtTable, lin: number, last: number, found: (lin: number, granules: number) => boolean): void {
  const item = itemLg2(t.level);
  const base = lin - modPow2(lin, Math.min(52, item + 9));
  const itemSize = pow2(item);
  const end = Math.min(TABLE_ENTRIES, Math.floor((last - base) / itemSize) + 1);
  const w = t.words;
  for (let i = Math.floor((lin - base) / itemSize); i < end; ) {
    const lo = w[2 * i] as number;
    const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
    if (child !== null) {
      forDirty(tree, child, Math.max(lin, base + i * itemSize), last, found);
      i++;
      continue;
    }
    const run = lo === 0 ? 1 : 1 << tree.runLg2(lo, w[2 * i + 1] as number, t.level);
    const start = i - (i % run);
    let dirty = 0;
    for (let k = start; k < start + run; k++) dirty |= (w[2 * k] as number) & tree.format.dirtyLo;
    if (lo !== 0 && dirty !== 0 && found(base + start * itemSize, run * itemSize)) {
      for (let k = start; k < start + run; k++) w[2 * k] = (w[2 * k] as number) & ~tree.format.dirtyLo;
    }
    i = start + run;
  }
}
