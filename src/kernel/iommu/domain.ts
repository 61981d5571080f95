/**
 * A domain: one I/O address space, and the page table that holds it.
 *
 * What iommu_map() and iommu_unmap() promise is kept here: a map is all or
 * nothing, an unmap says how many bytes it removed, and translations that
 * devices may have cached are gone only after `iotlbSync`. The driver of a unit
 * derives from this class (`intel.ts`, `amd.ts`); identity and blocked domains
 * are plain instances without a table, one of each per unit.
 *
 * Nothing here sleeps. Callers serialise changes of one range; the table itself
 * needs no lock, as a step of a task is atomic.
 *
 * Source: drivers/iommu/iommu.c, drivers/iommu/generic_pt/iommu_pt.h.
 */
import { EINVAL, ENOMEM, type Errno, hex, KernelBug, U64_MAX } from "../../lib/index.ts";
import { type PageTable, PtGather, TableArena, type TableHooks, type TableMemory } from "../../pt/index.ts";
import { IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR } from "../../uapi/iommufd.ts";
import type { Kernel } from "../kernel.ts";
import type { IopfHandler } from "./io_pagefault.ts";
import type { IommuUnit } from "./unit.ts";
import type { IommuUserDataArray } from "./user_data.ts";

/** Protection of a mapping. Source: include/linux/iommu.h. */
export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;
/** The device's accesses snoop the CPU's caches. */
export const IOMMU_CACHE = 4;
/** Device memory: never cacheable, so never together with IOMMU_CACHE. */
export const IOMMU_MMIO = 16;

/**
 * `unmanaged`: its owner decides every mapping. `dma`: the kernel's DMA API does. `nested`: a guest's own table, in the guest's
 * memory, whose addresses go through a parent domain.
 */
export type IommuDomainType = "unmanaged" | "dma" | "identity" | "blocked" | "nested";

/** Which driver a domain belongs to; two drivers' domains never mix. Compared by identity. */
export interface IommuOps {
  readonly name: string;
}

export interface IommuGeometry {
  /** First IOVA that can be mapped. */
  readonly apertureStart: bigint;
  /** Last IOVA that can be mapped, inclusive. */
  readonly apertureEnd: bigint;
}

/** Ranges unmapped whose translations may still be cached, and the tables they stood in: what `iotlbSync` must flush. */
export { PtGather as IotlbGather } from "../../pt/index.ts";

/** Takes the dirty ranges that `readAndClearDirty` finds. */
export interface DirtyRecorder {
  /** [iova, iova + length) was written. */
  record(iova: bigint, length: bigint): void;
}

export interface IommuDirtyOps {
  /** Devices set dirty bits from now on, or no longer do. */
  setDirtyTracking(enable: boolean): Errno | undefined;
  /**
   * Reports what was written in [iova, iova + length) and clears the bits, unless
   * `flags` has IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR; then flushes, so that a later write is seen again.
   */
  readAndClearDirty(iova: bigint, length: bigint, flags: number, recorder: DirtyRecorder): Errno | undefined;
}

/** One attachment of a domain: a requester, or one PASID of it. */
export interface DomainUser {
  readonly unit: IommuUnit;
  readonly device: string;
  readonly pasid: number;
}

export interface IommuDomainOptions {
  readonly kernel: Kernel;
  readonly type: IommuDomainType;
  readonly owner: IommuOps;
  /** Tag of its translations in the IOTLB. */
  readonly id: number;
  /** Makes the page table when the first mapping or walk needs it; absent for identity and blocked. */
  readonly table?: (domain: IommuDomain) => PageTable;
  readonly pgsizeBitmap?: bigint;
  readonly geometry?: IommuGeometry;
}

export class IommuDomain {
  readonly kernel: Kernel;
  readonly type: IommuDomainType;
  readonly owner: IommuOps;
  readonly id: number;
  /** Page sizes it can map, one bit each. */
  readonly pgsizeBitmap: bigint;
  readonly geometry: IommuGeometry;
  /** Defined where the domain was made for dirty tracking. */
  readonly dirtyOps: IommuDirtyOps | undefined = undefined;
  /** Takes the page requests of devices that are attached; set before the first is. */
  iopfHandler: IopfHandler | undefined = undefined;
  /** Set dirty bits on writes. */
  dirtyTracking = false;
  /** Who translates through it now. */
  readonly users: Set<DomainUser> = new Set();
  /** Domains whose addresses go through this one. */
  readonly nested: Set<IommuDomain> = new Set();
  #table: PageTable | undefined = undefined;
  readonly #makeTable: ((domain: IommuDomain) => PageTable) | undefined;
  #freed = false;

  constructor(options: IommuDomainOptions) {
    this.kernel = options.kernel;
    this.type = options.type;
    this.owner = options.owner;
    this.id = options.id;
    this.pgsizeBitmap = options.pgsizeBitmap ?? 0n;
    this.geometry = options.geometry ?? { apertureStart: 0n, apertureEnd: U64_MAX };
    this.#makeTable = options.table;
  }

  /**
   * Carries out a guest's invalidations of a nested domain and leaves in `array.entryNum` how many it did. Absent: they go
   * through the virtual IOMMU, or the driver has none.
   */
  cacheInvalidateUser?(array: IommuUserDataArray): Errno | undefined;

  /** It has a page table of its own. */
  get paging(): boolean {
    return this.#makeTable !== undefined;
  }

  /** Its page table; made on first use. Throws `KernelBug` on a domain that has none. */
  get pageTable(): PageTable {
    const make = this.#makeTable;
    if (make === undefined) throw new KernelBug(`domain ${this.id} (${this.type}) has no page table`);
    if (this.#freed) throw new KernelBug(`domain ${this.id} is used after it was freed`);
    this.#table ??= make(this);
    return this.#table;
  }

  /** The table if anything ever needed it. */
  get pageTableOrNone(): PageTable | undefined {
    return this.#table;
  }

  /**
   * Maps [iova, iova + length) to `pa` with `prot` (IOMMU_READ …): all of it or nothing.
   * Errors are the page table's: EINVAL (no access asked, or one that the table cannot express), ENXIO (no page size fits the
   * alignment), ERANGE (past the aperture or the physical width), EADDRINUSE (something is mapped there), ENOMEM.
   */
  map(iova: bigint, pa: bigint, length: bigint, prot: number): Errno | undefined {
    if ((prot & (IOMMU_MMIO | IOMMU_CACHE)) === (IOMMU_MMIO | IOMMU_CACHE)) {
      throw new KernelBug(`device memory at ${hex(pa)} mapped cacheable`);
    }
    const e = this.paging ? this.pageTable.map(iova, pa, length, prot) : EINVAL;
    const trace = this.kernel.trace;
    if (trace.on) trace.emit({ type: "iommu.map", domain: this.id, iova, pa, length, prot, errno: e?.name });
    return e;
  }

  /** Removes the mappings in the range and flushes them; bytes removed (large pages are never split). */
  unmap(iova: bigint, length: bigint): bigint {
    const gather = new PtGather();
    const n = this.unmapFast(iova, length, gather);
    this.iotlbSync(gather);
    return n;
  }

  /** The same without the flush: devices may go on using what they cached until `iotlbSync(gather)`. */
  unmapFast(iova: bigint, length: bigint, gather: PtGather): bigint {
    const n = this.#table?.unmap(iova, length, gather) ?? 0n;
    const trace = this.kernel.trace;
    if (trace.on) trace.emit({ type: "iommu.unmap", domain: this.id, iova, length, unmapped: n });
    return n;
  }

  /** Flushes what was gathered from every unit that translates through this domain, and empties `gather`. */
  iotlbSync(gather: PtGather): void {
    this.flushGather(gather);
    this.#table?.releaseGather(gather);
  }

  /** The flush alone; the gathered tables stay with whoever gathered them. */
  flushGather(gather: PtGather): void {
    if (gather.start <= gather.last) this.#flush(gather.start, gather.last);
  }

  /** Drops every cached translation of the domain. */
  flushAll(): void {
    this.#flush(0n, U64_MAX);
  }

  /** Drops what is cached of [start, last]. */
  flushRange(start: bigint, last: bigint): void {
    this.#flush(start, last);
  }

  /** Where `iova` leads, or undefined. Never looks at a cache. */
  iovaToPhys(iova: bigint): bigint | undefined {
    if (this.type === "identity") return iova;
    return this.#table?.iovaToPhys(iova);
  }

  /** From now on every mapping snoops the CPU's caches, whatever the device asks; false when a unit cannot. */
  enforceCacheCoherency(): boolean {
    return false;
  }

  /** Releases the table. Throws `KernelBug` while a device is attached. */
  free(): void {
    if (!this.paging && this.type !== "nested") return;
    if (this.users.size > 0) throw new KernelBug(`domain ${this.id} is freed with ${this.users.size} devices attached`);
    if (this.nested.size > 0) throw new KernelBug(`domain ${this.id} is freed with ${this.nested.size} domains nested in it`);
    if (this.#freed) throw new KernelBug(`domain ${this.id} is freed twice`);
    this.#freed = true;
    this.#table?.destroy();
    this.#table = undefined;
    this.kernel.iommu.putDomainId(this.id);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.domain_free", domain: this.id });
  }

  get freed(): boolean {
    return this.#freed;
  }

  #flush(start: bigint, last: bigint): void {
    let dropped = 0;
    const done: IommuUnit[] = [];
    for (const u of this.users) {
      if (done.includes(u.unit)) continue;
      done.push(u.unit);
      dropped += u.unit.iotlb.invalidate(this.id, start, last);
    }
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.flush", domain: this.id, start, last, dropped });
    // Their translations do not tell which addresses of this one they went through.
    for (const n of this.nested) n.flushAll();
  }
}

/**
 * Memory for the tables of a domain, each of which may be the one that is not
 * to be had: but for the first, which was asked for with the domain itself
 * (`lacksTable`) though it is made later.
 */
export function domainTables(kernel: Kernel): TableHooks {
  const arena = new TableArena();
  let top = true;
  return {
    allocTable(level: number): TableMemory | Errno {
      if (!top && kernel.fault.page("page table")) return ENOMEM;
      top = false;
      return arena.allocTable(level);
    },
    freeTable: (memory) => arena.freeTable(memory),
  };
}

/** There is no memory for a domain with a table of its own. */
export const lacksTable = (kernel: Kernel): boolean => kernel.fault.slab("iommu_domain") || kernel.fault.page("page table");

/** Dirty tracking by the bits of the domain's own page table. */
export function pageTableDirtyOps(domain: IommuDomain): IommuDirtyOps {
  return {
    setDirtyTracking(enable: boolean): undefined {
      if (domain.dirtyTracking === enable) return;
      domain.dirtyTracking = enable;
      // A translation cached before says nothing of dirty bits: the next write must look at the table.
      domain.flushAll();
      if (domain.kernel.trace.on) domain.kernel.trace.emit({ type: "iommu.dirty_tracking", domain: domain.id, enable });
    },
    readAndClearDirty(iova: bigint, length: bigint, flags: number, recorder: DirtyRecorder): Errno | undefined {
      const gather = new PtGather();
      const noClear = (flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0;
      const e = domain.pageTable.readAndClearDirty(iova, length, (at, bytes) => recorder.record(at, bytes), { noClear, gather });
      domain.iotlbSync(gather);
      return e;
    },
  };
}
