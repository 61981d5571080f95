/**
 * What an I/O page table asks of an IOMMU domain: the part of `IommuDomain` that
 * has nothing to do with devices. Source: struct iommu_domain, iommu_map, iommu_unmap.
 */
import { hex } from "../../lib/addr.ts";
import type { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";

export interface IoptDomain {
  /** IOVAs it can translate, both ends included. */
  readonly geometry: { readonly apertureStart: bigint; readonly apertureEnd: bigint };
  /** A bit for every page size it can map. */
  readonly pgsizeBitmap: bigint;
  /** All or nothing. */
  map(iova: bigint, pa: bigint, length: bigint, prot: number): Errno | undefined;
  /** Bytes unmapped; the IOTLB is flushed on return. */
  unmap(iova: bigint, length: bigint): bigint;
  iovaToPhys(iova: bigint): bigint | undefined;
}

export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;
export const IOMMU_CACHE = 4;
export const IOMMU_MMIO = 16;

/** Lowest set bit: the smallest page. */
export const smallestPage = (d: IoptDomain): bigint => d.pgsizeBitmap & -d.pgsizeBitmap;

/** Unmaps what is known to be mapped. Throws `KernelBug` when the domain did not hold all of it. */
export function unmapNofail(domain: IoptDomain, iova: bigint, length: bigint): void {
  const n = domain.unmap(iova, length);
  if (n !== length) throw new KernelBug(`iommufd: unmap of ${hex(length)} bytes at ${hex(iova)} found ${hex(n)}`);
}
