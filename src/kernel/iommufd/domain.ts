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

/** Maps one physically contiguous run, all or nothing; no single map is larger than `step` bytes. */
export function mapRun(domain: IoptDomain, iova: bigint, pa: bigint, length: bigint, prot: number, step?: bigint): Errno | undefined {
  if (step === undefined) return domain.map(iova, pa, length, prot);
  for (let done = 0n; done < length; done += step) {
    const e = domain.map(iova + done, pa + done, step, prot);
    if (e === undefined) continue;
    if (done > 0n) unmapNofail(domain, iova, done);
    return e;
  }
  return undefined;
}

/** Unmaps what is known to be mapped. Throws `KernelBug` when the domain did not hold all of it. */
export function unmapNofail(domain: IoptDomain, iova: bigint, length: bigint): void {
  const n = domain.unmap(iova, length);
  if (n !== length) throw new KernelBug(`iommufd: unmap of ${hex(length)} bytes at ${hex(iova)} found ${hex(n)}`);
}
