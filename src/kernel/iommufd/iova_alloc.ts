/**
 * Choosing an IOVA.
 *
 * First fit from one page up, over what is allowed, reserved and used; IOVA 0
 * is never chosen. The alignment is guessed from where the bytes come from and
 * how many they are, up to 2 MiB, so that large pages can be used on both sides.
 *
 * A mark below which everything is taken spares most searches the walk over
 * areas that stand side by side: `noHoleBelow` ≥ PAGE_SIZE, and every IOVA from
 * PAGE_SIZE up to it lies in an area or is reserved.
 *
 * Source: iopt_alloc_iova (drivers/iommu/iommufd/io_pagetable.c).
 */
import { maxN, minN, PAGE_MASK_N, PAGE_SIZE_N, U64_MAX } from "../../lib/addr.ts";
import { EINVAL, ENOSPC, EOVERFLOW, type Errno } from "../../lib/errno.ts";
import type { IntervalTree, ItreeNode } from "../../lib/interval_tree.ts";

/** Largest alignment that is aimed at: a huge page. */
const MAX_ALIGNMENT = 0x20_0000n;

export interface IovaSpace {
  readonly areas: IntervalTree<ItreeNode>;
  readonly reserved: IntervalTree<ItreeNode>;
  readonly allowed: IntervalTree<ItreeNode>;
  readonly iovaAlignment: bigint;
  noHoleBelow: bigint;
}

/** Smallest power of two that is `n` or more. */
function roundUpPow2(n: bigint): bigint {
  return n <= 1n ? 1n : 1n << BigInt((n - 1n).toString(2).length);
}

/** Start of `length` bytes in [start, last] at that alignment, or undefined when they do not fit. */
function place(start: bigint, last: bigint, length: bigint, align: bigint, offset: bigint): bigint | undefined {
  const up = start + (align - 1n);
  if (up > U64_MAX) return undefined;
  const at = (up & ~(align - 1n)) | offset;
  return at >= last || last - at < length - 1n ? undefined : at;
}

/** Runs of allowed IOVA between one page and the last page of the space; everything when nothing was said. */
function* allowedSpans(allowed: IntervalTree<ItreeNode>): Generator<[bigint, bigint], void, void> {
  const first = PAGE_SIZE_N;
  const last = U64_MAX - PAGE_SIZE_N;
  if (allowed.size === 0) {
    yield [first, last];
    return;
  }
  let run: [bigint, bigint] | undefined;
  for (const n of allowed.overlaps(first, last)) {
    const a = maxN(n.start, first);
    const b = minN(n.last, last);
    if (run !== undefined && a <= run[1] + 1n) {
      if (b > run[1]) run[1] = b;
    } else {
      if (run !== undefined) yield run;
      run = [a, b];
    }
  }
  if (run !== undefined) yield run;
}

/** Last IOVA of whatever takes `at`, or undefined when it is free. */
function takenUntil(s: IovaSpace, at: bigint): bigint | undefined {
  const a = s.areas.first(at, at);
  const r = s.reserved.first(at, at);
  if (a === undefined) return r?.last;
  return r !== undefined && r.last > a.last ? r.last : a.last;
}

/** Moves the mark up over what is taken. */
function advanceMark(s: IovaSpace): void {
  for (;;) {
    const until = s.noHoleBelow > U64_MAX ? undefined : takenUntil(s, s.noHoleBelow);
    if (until === undefined) return;
    s.noHoleBelow = until + 1n;
  }
}

/**
 * A free IOVA for `length` bytes that come from byte `addr` of their origin.
 * EOVERFLOW for half the address space, EINVAL when the guessed alignment is
 * below what the domains need, ENOSPC.
 */
export function allocIova(s: IovaSpace, addr: bigint, length: bigint): bigint | Errno {
  if (length === 0n || length >= U64_MAX / 2n) return EOVERFLOW;
  const offset = addr & PAGE_MASK_N;
  let align = roundUpPow2(length);
  if (addr !== 0n) {
    const natural = addr & -addr;
    if (natural < align) align = natural;
  }
  if (align > MAX_ALIGNMENT) align = MAX_ALIGNMENT;
  if (align < s.iovaAlignment) return EINVAL;

  advanceMark(s);
  for (const [first, last] of allowedSpans(s.allowed)) {
    const from = place(first, last, length, align, offset);
    if (from === undefined) continue;
    let at = maxN(from, s.noHoleBelow);
    while (at <= last) {
      const until = takenUntil(s, at);
      if (until !== undefined) {
        at = until + 1n;
        continue;
      }
      const a = s.areas.first(at, last);
      const r = s.reserved.first(at, last);
      let end = last;
      if (a !== undefined && a.start <= end) end = a.start - 1n;
      if (r !== undefined && r.start <= end) end = r.start - 1n;
      const found = place(at, end, length, align, offset);
      if (found !== undefined) return found;
      at = end + 1n;
    }
  }
  return ENOSPC;
}

/** Keeps the mark after [start, …] became free. */
export function noteFree(s: IovaSpace, start: bigint): void {
  if (start >= s.noHoleBelow) return;
  s.noHoleBelow = start < PAGE_SIZE_N ? PAGE_SIZE_N : start;
}

/** Parts of the space that no node of the tree covers, in order. */
export function* holes(tree: IntervalTree<ItreeNode>): Generator<[bigint, bigint], void, void> {
  let at = 0n;
  for (const n of tree) {
    if (n.start > at) yield [at, n.start - 1n];
    if (n.last >= at) {
      if (n.last === U64_MAX) return;
      at = n.last + 1n;
    }
  }
  yield [at, U64_MAX];
}
