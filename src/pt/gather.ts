/**
 * What an unmap leaves to be invalidated, as the kernel's iommu_iotlb_gather.
 *
 * Tables taken out of a tree may still be in an IOMMU's walk cache, so they are
 * kept here until the owner has flushed [start, last], and only then go back to
 * the allocator (`PageTable.releaseGather`).
 *
 * The range is held in units of 2 KiB, the smallest granule there is: numbers,
 * because unmapping page after page must not pay for bigint arithmetic.
 */
import { U64_MAX } from "../lib/addr.ts";
import type { PtTable } from "./table_memory.ts";

const UNIT_LG2 = 11n;
const NONE = 2 ** 53;

export class PtGather {
  /** Tables out of the tree, waiting for the flush. */
  readonly freed: PtTable[] = [];
  private first = NONE;
  private end = 0;

  /** First byte unmapped so far; 2^64 - 1 when nothing was. */
  get start(): bigint {
    return this.first === NONE ? U64_MAX : BigInt(this.first) << UNIT_LG2;
  }

  /** Last byte unmapped so far; 0 when nothing was. */
  get last(): bigint {
    return this.first === NONE ? 0n : (BigInt(this.end) << UNIT_LG2) - 1n;
  }

  get empty(): boolean {
    return this.first === NONE && this.freed.length === 0;
  }

  /** True when [iova, iova + length) neither overlaps nor touches what is gathered, as iommu_iotlb_gather_is_disjoint. */
  isDisjoint(iova: bigint, length: bigint): boolean {
    return this.first !== NONE && (iova + length < this.start || iova > this.last + 1n);
  }

  /** Widens the range by whole granules; gaps in between are flushed too. */
  add(iova: bigint, length: bigint): void {
    if (length !== 0n) this.addUnits(Number(BigInt.asUintN(64, iova) >> UNIT_LG2), Number(length >> UNIT_LG2));
  }

  /** The same in units of 2 KiB. */
  addUnits(first: number, count: number): void {
    if (first < this.first) this.first = first;
    if (first + count > this.end) this.end = first + count;
  }

  /** Empties the range (the freed tables are the page table's to release). */
  reset(): void {
    this.first = NONE;
    this.end = 0;
  }
}
