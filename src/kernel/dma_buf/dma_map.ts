/**
 * The DMA API as exporters of buffers need it: physical ranges become
 * addresses that a device may put on the bus, until they are unmapped.
 *
 * A device whose group translates through a domain of the kernel's own gets
 * IOVAs from that domain: one allocator per domain, from the top of the space
 * down, each run aligned to its size rounded up to a power of two. A device
 * behind no translation gets the physical address, if its mask can hold it.
 *
 * Source: drivers/iommu/dma-iommu.c, kernel/dma/mapping.c; include/linux/dma-mapping.h.
 */
import { alignDown, alignUp, minN, PAGE_SIZE_N } from "../../lib/addr.ts";
import { EIO, ENOMEM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Device } from "../device.ts";
import { IOMMU_CACHE, IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE, type IommuDomain } from "../iommu/domain.ts";
import type { DmaDirection } from "./attachment.ts";

/** The IOVAs of one domain that are handed out, sorted by address. */
class IovaAllocator {
  readonly #runs: { start: bigint; length: bigint }[] = [];

  /** The highest free run of `length` bytes at or below `limit`. */
  alloc(length: bigint, align: bigint, lowest: bigint, limit: bigint): bigint | undefined {
    let end = limit + 1n;
    for (let i = this.#runs.length; i >= 0; i--) {
      const below = i === 0 ? undefined : this.#runs[i - 1];
      const floor = below === undefined ? lowest : below.start + below.length;
      const start = alignDown(end - length, align);
      if (end >= length && start >= floor && start >= lowest) {
        this.#runs.splice(i, 0, { start, length });
        return start;
      }
      if (below !== undefined && below.start < end) end = below.start;
    }
    return undefined;
  }

  free(start: bigint): void {
    const i = this.#runs.findIndex((r) => r.start === start);
    if (i < 0) throw new KernelBug(`IOVA ${start} is freed and was not handed out`);
    this.#runs.splice(i, 1);
  }
}

const allocators: WeakMap<IommuDomain, IovaAllocator> = new WeakMap();

function allocatorOf(domain: IommuDomain): IovaAllocator {
  let a = allocators.get(domain);
  if (a === undefined) {
    a = new IovaAllocator();
    allocators.set(domain, a);
  }
  return a;
}

/** A run of IOVAs that is filled piece by piece. */
export interface IovaRun {
  readonly domain: IommuDomain;
  readonly address: bigint;
  /** Bytes, whole pages. */
  readonly size: bigint;
  /** Bytes mapped so far, from the start. */
  linked: bigint;
}

/** The domain through which the kernel maps for `dev`; undefined when its addresses are physical. */
const dmaDomain = (dev: Device): IommuDomain | undefined => {
  const domain = dev.iommuGroup?.defaultDomain;
  return domain?.type === "dma" ? domain : undefined;
};

function protOf(dir: DmaDirection, mmio: boolean): number {
  const access = (dir === "from_device" ? 0 : IOMMU_READ) | (dir === "to_device" ? 0 : IOMMU_WRITE);
  return access | (mmio ? IOMMU_MMIO : IOMMU_CACHE);
}

/** The next power of two, for natural alignment; at least a page. */
function naturalAlign(size: bigint): bigint {
  let a = PAGE_SIZE_N;
  while (a < size) a <<= 1n;
  return a;
}

/** Reserves `size` bytes of IOVA for `dev`; undefined when it has no translation, or no room is left. */
export function dmaIovaAlloc(dev: Device, size: bigint): IovaRun | undefined {
  const domain = dmaDomain(dev);
  if (domain === undefined) return undefined;
  const bytes = alignUp(size, PAGE_SIZE_N);
  const { apertureStart, apertureEnd } = domain.geometry;
  const limit = minN(apertureEnd, dev.dmaMask);
  // Page 0 is never handed out: to many drivers address 0 means "none".
  const lowest = apertureStart === 0n ? PAGE_SIZE_N : apertureStart;
  const address = allocatorOf(domain).alloc(bytes, naturalAlign(bytes), lowest, limit);
  return address === undefined ? undefined : { domain, address, size: bytes, linked: 0n };
}

/** Maps `len` bytes at `paddr` to the run's `offset`. The page table's errno. */
export function dmaIovaLink(run: IovaRun, offset: bigint, paddr: bigint, len: bigint, dir: DmaDirection, mmio: boolean): Errno | undefined {
  const err = run.domain.map(run.address + offset, paddr, len, protOf(dir, mmio));
  if (err === undefined) run.linked = offset + len;
  return err;
}

/** Unmaps what was linked and gives the run back. */
export function dmaIovaDestroy(run: IovaRun): void {
  if (run.linked > 0n) run.domain.unmap(run.address, run.linked);
  allocatorOf(run.domain).free(run.address);
}

/** One range by itself. EIO when the device's mask cannot hold the address, ENOMEM when no IOVA is left. */
export function dmaMapPhys(dev: Device, paddr: bigint, len: bigint, dir: DmaDirection, mmio: boolean): bigint | Errno {
  const domain = dmaDomain(dev);
  if (domain === undefined) return paddr + len - 1n > dev.dmaMask ? EIO : paddr;
  const run = dmaIovaAlloc(dev, len);
  if (run === undefined) return ENOMEM;
  const err = dmaIovaLink(run, 0n, paddr, len, dir, mmio);
  if (err === undefined) return run.address;
  dmaIovaDestroy(run);
  return err;
}

/** Undoes `dmaMapPhys`. */
export function dmaUnmapPhys(dev: Device, address: bigint, len: bigint): void {
  const domain = dmaDomain(dev);
  if (domain === undefined) return;
  domain.unmap(address, alignUp(len, PAGE_SIZE_N));
  allocatorOf(domain).free(address);
}
