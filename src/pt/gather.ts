/**
 * What an unmap leaves to be invalidated, as the kernel's iommu_iotlb_gather.
 *
 * Tables taken out of a tree may still be in an IOMMU's walk cache, so they are
 * kept here until the owner has flushed [start, last], and only then go back to
 * the allocator (`PageTable.releaseGather`).
 */
import { U64_MAX } from "../lib/addr.ts";
import type { PtTable } from "./table_memory.ts";

export class PtGather {
  /** First and last byte unmapped so far; `start > last` when nothing was. */
  start: bigint = U64_MAX;
  last: bigint = 0n;
  /** Tables out of the tree, waiting for the flush. */
  readonly freed: PtTable[] = [];

  get empty(): boolean {
    return this.start > this.last && this.freed.length === 0;
  }

  /** True when [iova, iova + length) neither overlaps nor touches what is gathered, as iommu_iotlb_gather_is_disjoint. */
  isDisjoint(iova: bigint, length: bigint): boolean {
    return this.last !== 0n && (iova + length < this.start || iova > this.last + 1n);
  }

  /** Widens the range; gaps in between are flushed too. */
  add(iova: bigint, length: bigint): void {
    if (length === 0n) return;
    const last = iova + length - 1n;
    if (iova < this.start) this.start = iova;
    if (last > this.last) this.last = last;
  }

  /** Empties the range (the freed tables are the page table's to release). */
  reset(): void {
    this.start = U64_MAX;
    this.last = 0n;
  }
}
