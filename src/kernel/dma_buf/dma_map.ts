/**
 * The DMA API as exporters of buffers need it: physical ranges become
 * addresses that a device may put on the bus, until they are unmapped.
 *
 * A device whose group translates through a domain of the kernel's own gets
 * IOVAs from that domain: one allocator per domain, each run aligned to its
 * size rounded up to a power of two, the highest free one below 4 GiB if there
 * is one and else below the device's mask. Never handed out: page 0, the
 * group's reserved regions (the interrupt window), and every BAR, for a switch
 * would send an access there to the peer and not up to the IOMMU.
 *
 * A device behind no translation gets the physical address, if its mask can
 * hold it.
 *
 * Source: drivers/iommu/dma-iommu.c, drivers/iommu/iova.c, kernel/dma/mapping.c.
 */
import { alignDown, alignUp, minN, PAGE_SIZE_N } from "../../lib/addr.ts";
import { EIO, ENOMEM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Device } from "../device.ts";
import { IOMMU_CACHE, IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE, type IommuDomain } from "../iommu/domain.ts";
import type { DmaDirection } from "./attachment.ts";

const BELOW_4G = 0xffff_ffffn;

/** What is handed out, or never will be. */
interface Run {
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
}

/** The IOVAs of one domain that are taken: disjoint, sorted by address. */
class IovaAllocator {
  readonly #runs: Run[] = [];

  constructor(never: readonly Run[]) {
    for (const r of [...never].sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))) {
      const before = this.#runs.at(-1);
      if (before === undefined || r.start > before.last) this.#runs.push(r);
      else if (r.last > before.last) this.#runs[this.#runs.length - 1] = { start: before.start, last: r.last };
    }
  }

  /** Takes the highest free `length` bytes in [lowest, limit]; undefined when there are none. */
  alloc(length: bigint, align: bigint, lowest: bigint, limit: bigint): bigint | undefined {
    // Last byte of the gap above run i - 1.
    let top = limit;
    for (let i = this.#runs.length; i >= 0; i--) {
      const below = this.#runs[i - 1];
      const floor = below === undefined || below.last < lowest ? lowest : below.last + 1n;
      if (top + 1n >= length) {
        const start = alignDown(top + 1n - length, align);
        if (start >= floor) {
          this.#runs.splice(i, 0, { start, last: start + length - 1n });
          return start;
        }
      }
      if (below !== undefined) top = minN(top, below.start - 1n);
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

function allocatorOf(dev: Device, domain: IommuDomain): IovaAllocator {
  let a = allocators.get(domain);
  if (a === undefined) {
    a = new IovaAllocator(neverHandedOut(dev, domain));
    allocators.set(domain, a);
  }
  return a;
}

function neverHandedOut(dev: Device, domain: IommuDomain): Run[] {
  const runs: Run[] = (dev.iommuGroup?.reservedRegions(dev) ?? []).map((r) => ({ start: r.start, last: r.start + r.length - 1n }));
  for (const pci of domain.kernel.pci.devices.values()) {
    for (const bar of pci.resources) {
      if (bar.flags.mem && bar.length > 0n) runs.push({ start: bar.start, last: bar.start + bar.length - 1n });
    }
  }
  return runs;
}

/** A run of IOVAs that is filled piece by piece. */
export interface IovaRun {
  readonly dev: Device;
  readonly domain: IommuDomain;
  readonly address: bigint;
  /** Bytes mapped so far, from the start. */
  linked: bigint;
}

/** The domain through which the kernel maps for `dev`; undefined when its addresses are physical. */
const dmaDomain = (dev: Device): IommuDomain | undefined => {
  const domain = dev.iommuGroup?.defaultDomain;
  return domain?.type === "dma" ? domain : undefined;
};

/** Does the kernel translate for `dev`? */
export const dmaTranslated = (dev: Device): boolean => dmaDomain(dev) !== undefined;

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
  if (domain.kernel.fault.slabAtomic("iova")) return undefined;
  const bytes = alignUp(size, PAGE_SIZE_N);
  const { apertureStart, apertureEnd } = domain.geometry;
  const limit = minN(apertureEnd, dev.dmaMask);
  // To many drivers address 0 means "none".
  const lowest = apertureStart === 0n ? PAGE_SIZE_N : apertureStart;
  const allocator = allocatorOf(dev, domain);
  const from = (top: bigint): bigint | undefined => allocator.alloc(bytes, naturalAlign(bytes), lowest, top);
  const address = from(minN(limit, BELOW_4G)) ?? from(limit);
  return address === undefined ? undefined : { dev, domain, address, linked: 0n };
}

/** Maps `len` bytes at `paddr` to the run's `offset`. The page table's errno. */
export function dmaIovaLink(run: IovaRun, offset: bigint, paddr: bigint, len: bigint, dir: DmaDirection, mmio: boolean): Errno | undefined {
  const err = run.domain.map(run.address + offset, paddr, len, protOf(dir, mmio));
  if (err === undefined) run.linked = offset + len;
  return err;
}

/** Unmaps what was linked and keeps the IOVAs: an access through them faults, and they go to nobody else before `dmaIovaDestroy`. */
export function dmaIovaCut(run: IovaRun): void {
  if (run.linked > 0n) run.domain.unmap(run.address, run.linked);
  run.linked = 0n;
}

/** Unmaps what was linked and gives the run back. */
export function dmaIovaDestroy(run: IovaRun): void {
  if (run.linked > 0n) run.domain.unmap(run.address, run.linked);
  allocatorOf(run.dev, run.domain).free(run.address);
}

/**
 * One range by itself. ENOMEM when no IOVA is left, or the device's mask cannot
 * hold the address (EIO for RAM: that is what mapping a scatter list of pages
 * answers).
 */
export function dmaMapPhys(dev: Device, paddr: bigint, len: bigint, dir: DmaDirection, mmio: boolean): bigint | Errno {
  if (dmaDomain(dev) === undefined) {
    if (paddr + len - 1n <= dev.dmaMask) return paddr;
    return mmio ? ENOMEM : EIO;
  }
  const run = dmaIovaAlloc(dev, len);
  if (run === undefined) return ENOMEM;
  if (dmaIovaLink(run, 0n, paddr, len, dir, mmio) === undefined) return run.address;
  dmaIovaDestroy(run);
  return ENOMEM;
}

/** As `dmaIovaCut`, for what `dmaMapPhys` mapped; `dmaUnmapPhys` is still to come. The device is translated. */
export function dmaCutPhys(dev: Device, address: bigint, len: bigint): void {
  dmaDomain(dev)?.unmap(address, alignUp(len, PAGE_SIZE_N));
}

/** Undoes `dmaMapPhys`. */
export function dmaUnmapPhys(dev: Device, address: bigint, len: bigint): void {
  const domain = dmaDomain(dev);
  if (domain === undefined) return;
  domain.unmap(address, alignUp(len, PAGE_SIZE_N));
  allocatorOf(dev, domain).free(address);
}
