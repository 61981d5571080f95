/**
 * An area: a range of IOVA that shows a slice of some pages.
 *
 * It is its own node in the IOVA tree of its I/O page table. A million of them
 * must stay small, so it holds no object it can do without: numbers that
 * belong together share a field, and the lengths follow from the interval.
 *
 * `pages` is undefined while the area is being made or torn down: its IOVA is
 * taken, and nobody but the maker may touch it. That state lasts only while the
 * domains lock is held for reading.
 *
 * Source: struct iopt_area (drivers/iommu/iommufd/io_pagetable.h).
 */
import { PAGE_SHIFT, PAGE_SIZE } from "../../lib/addr.ts";
import { ItreeNode } from "../../lib/interval_tree.ts";
import type { IoptDomain } from "./domain.ts";
import type { IoptPages } from "./pages.ts";

const OFFSET_MASK = PAGE_SIZE - 1;
const PROT_SHIFT = 12;
const PROT_MASK = 0xff;
const PREVENT_ACCESS = 1 << 20;

export class IoptArea extends ItreeNode {
  /** Undefined: under construction. Written with the iova lock held for writing. */
  pages: IoptPages | undefined = undefined;
  /** The domain that stands for all when it is asked what is mapped; undefined: in no domain. Under the pages' mutex. */
  storageDomain: IoptDomain | undefined = undefined;
  /** First page of `pages` that it shows. */
  readonly index: number;
  /** In-kernel users of its pages. Under the pages' mutex; written with the iova lock held too. */
  numAccesses = 0;
  /** Users that forbid an unmap. Likewise. */
  numLocks = 0;
  /** pageOffset, then the protection, then "no new access". */
  #bits: number;

  /** `startByte` counts from the first byte of the pages. `prot` are IOMMU_READ … bits. */
  constructor(iova: bigint, last: bigint, startByte: bigint, prot: number) {
    super(iova, last);
    this.index = Number(startByte >> BigInt(PAGE_SHIFT));
    this.#bits = Number(startByte & BigInt(OFFSET_MASK)) | (prot << PROT_SHIFT);
  }

  /** Bytes. Not for an area of the whole 64-bit space, which no pages can fill. */
  get length(): bigint {
    return this.last - this.start + 1n;
  }

  /** Bytes into its first page at which it starts. */
  get pageOffset(): number {
    return this.#bits & OFFSET_MASK;
  }

  get prot(): number {
    return (this.#bits >> PROT_SHIFT) & PROT_MASK;
  }

  /** An unmap is waiting for accesses to go. Written with the iova lock held for writing. */
  get preventAccess(): boolean {
    return (this.#bits & PREVENT_ACCESS) !== 0;
  }

  forbidAccess(): void {
    this.#bits |= PREVENT_ACCESS;
  }

  /** Last page of `pages` that it shows. */
  get lastIndex(): number {
    return this.index + Number((this.last - this.start + BigInt(this.pageOffset)) >> BigInt(PAGE_SHIFT));
  }

  /** Byte of the pages that `iova` shows. */
  startByteAt(iova: bigint): bigint {
    return iova - this.start + BigInt(this.pageOffset) + (BigInt(this.index) << BigInt(PAGE_SHIFT));
  }

  indexAt(iova: bigint): number {
    return Number(this.startByteAt(iova) >> BigInt(PAGE_SHIFT));
  }
}
