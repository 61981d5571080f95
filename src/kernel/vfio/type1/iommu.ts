/**
 * The type1 IOMMU of a container: its domains, its groups, its mappings.
 *
 * Every group is in one domain; groups whose devices suit it share one. Every
 * domain holds every mapping. Version 1 lets an unmap begin inside a mapping and
 * do nothing; version 2 refuses to cut one.
 *
 * Invariants: mappings do not overlap; there is a domain as long as there is a
 * group; `dmaAvail` and the mappings together are the limit.
 *
 * Lock: `lock`, inside the container's; outside the mmap lock and the IOMMU
 * group's mutex.
 * Source: drivers/vfio/vfio_iommu_type1.c.
 */
import { PAGE_SIZE_N, U64_MAX } from "../../../lib/addr.ts";
import { EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC, EOVERFLOW, EPERM, Errno } from "../../../lib/errno.ts";
import { IntervalTree } from "../../../lib/interval_tree.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import { LockClass } from "../../../sched/lockdep.ts";
import { Mutex } from "../../../sched/locks.ts";
import type { Step } from "../../../sched/task.ts";
import * as V from "../../../uapi/vfio.ts";
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE, type IommuDomain } from "../../iommu/domain.ts";
import type { IommuGroup } from "../../iommu/group.ts";
import type { ReservedRegion } from "../../iommu/resv.ts";
import { iommufdModule } from "../../iommufd/module.ts";
import type { Kernel } from "../../kernel.ts";
import { vfioOf } from "../vfio_main.ts";
import { Dma, type Run } from "./dma.ts";
import { apertureConflict, clipToAperture, excludeReserved, type IovaRange, isValid } from "./iova_list.ts";

const TYPE1_LOCK: LockClass = new LockClass("vfio_iommu->lock");
/** Whole pages, of any size. */
const PAGE_SIZES = U64_MAX & ~(PAGE_SIZE_N - 1n);
/** Mappings per container, unless the module was told otherwise. */
const DMA_ENTRY_LIMIT = 0xffff;

interface Type1Domain {
  readonly domain: IommuDomain;
  readonly groups: IommuGroup[];
  readonly enforceCacheCoherency: boolean;
}

/** What UNMAP_DMA asks for, checked as far as its own numbers go. */
export interface UnmapRequest {
  readonly iova: bigint;
  readonly size: bigint;
  readonly all: boolean;
  /** Only forget the addresses in the process. */
  readonly vaddr: boolean;
  /** Called for each mapping before it goes, when dirty pages are asked for. */
  readonly dirty?: { readonly pgsize: bigint; report(dma: Dma): Errno | undefined } | undefined;
}

export class Type1Iommu {
  readonly kernel: Kernel;
  readonly v2: boolean;
  readonly lock: Mutex;
  /** Sizes that every domain can map. Under `lock`, as all that follows. */
  pgsizeBitmap: bigint = PAGE_SIZES;
  iovaList: IovaRange[] = [];
  dmaAvail: number = DMA_ENTRY_LIMIT;
  dirtyTracking = false;
  readonly dmas: IntervalTree<Dma> = new IntervalTree();
  /** The newest first. */
  readonly #domains: Type1Domain[] = [];
  #vaddrInvalid = 0;

  private constructor(kernel: Kernel, v2: boolean) {
    this.kernel = kernel;
    this.v2 = v2;
    this.lock = new Mutex(kernel.sched, TYPE1_LOCK);
  }

  /** EINVAL for an extension that is no kind of IOMMU; ENOMEM. */
  static open(kernel: Kernel, kind: bigint): Type1Iommu | Errno {
    if (kernel.fault.slab("vfio_iommu")) return ENOMEM;
    if (kind === BigInt(V.VFIO_TYPE1_IOMMU)) return new Type1Iommu(kernel, false);
    return kind === BigInt(V.VFIO_TYPE1v2_IOMMU) ? new Type1Iommu(kernel, true) : EINVAL;
  }

  get pgsize(): bigint {
    return this.pgsizeBitmap & -this.pgsizeBitmap;
  }

  /** No device can get around the caches. `lock` held. */
  get coherent(): boolean {
    return this.#domains.every((d) => d.enforceCacheCoherency);
  }

  // ----- groups

  /**
   * Puts a group under the container's mappings. EBUSY: an address is not known,
   * so memory could not be pinned; EINVAL: the group is there already, or cannot
   * translate what is mapped; EPERM: its interrupts are not isolated.
   */
  *attachGroup(group: IommuGroup): Step<Errno | undefined> {
    yield* this.lock.lock();
    try {
      if (this.#vaddrInvalid > 0) return EBUSY;
      if (this.#domains.some((d) => d.groups.includes(group))) return EINVAL;
      const { fault } = this.kernel;
      if (fault.slab("vfio_iommu_group") || fault.slab("vfio_domain")) return ENOMEM;
      const dev = group.devices[0];
      if (dev === undefined) throw new KernelBug(`IOMMU group ${group.id} has no device`);
      const domain = yield* group.unit.domainAllocPagingFlags(dev, 0);
      if (domain instanceof Errno) return domain;
      const attached = yield* group.attachGroup(domain);
      if (attached !== undefined) {
        domain.free();
        return attached;
      }
      const e = yield* this.#join(group, domain);
      if (e !== undefined) {
        yield* group.detachGroup();
        domain.free();
      }
      return e;
    } finally {
      this.lock.unlock();
    }
  }

  /** The group is attached to `domain`, which is this function's to keep, or to free, unless it fails. */
  *#join(group: IommuGroup, domain: IommuDomain): Step<Errno | undefined> {
    const isMapped = (start: bigint, last: bigint): boolean => this.dmas.first(start, last) !== undefined;
    const aperture = apertureOf(domain);
    if (apertureConflict(this.iovaList, aperture, isMapped)) return EINVAL;
    const reserved = reservedOf(group);
    for (const r of reserved) if (r.type !== "direct-relaxable" && isMapped(r.start, r.start + r.length - 1n)) return EINVAL;
    // The list is changed in a copy: a node for each range, and more where a reserved region cuts one.
    if ([...this.iovaList, aperture, ...reserved].some(() => this.kernel.fault.slab("vfio_iova"))) return ENOMEM;
    const list = excludeReserved(clipToAperture(this.iovaList, aperture), reserved);
    if (list instanceof Errno) return list;
    if (!group.hasIsolatedMsi && !allowsUnsafeInterrupts(this.kernel)) return EPERM;
    const enforceCacheCoherency = domain.enforceCacheCoherency();
    for (const d of this.#domains) {
      if (d.domain.owner !== domain.owner || d.enforceCacheCoherency !== enforceCacheCoherency) continue;
      yield* group.detachGroup();
      const e = yield* group.attachGroup(d.domain);
      if (e === undefined) {
        d.groups.unshift(group);
        domain.free();
        this.iovaList = list;
        return undefined;
      }
      const back = yield* group.attachGroup(domain);
      if (back !== undefined) return back;
    }
    const e = this.#replay(domain);
    if (e !== undefined) return e;
    this.#domains.unshift({ domain, groups: [group], enforceCacheCoherency });
    this.#updatePgsizeBitmap();
    this.iovaList = list;
    return undefined;
  }

  /** Puts every mapping into a new domain, or none. */
  #replay(domain: IommuDomain): Errno | undefined {
    const done: Dma[] = [];
    for (const dma of this.dmas) {
      done.push(dma);
      for (const run of dma.runs) {
        const e = domain.map(dma.start + run.offset, run.pa, run.length, dma.prot | IOMMU_CACHE);
        if (e === undefined) continue;
        for (const d of done) domain.unmap(d.start, d.size);
        return e;
      }
    }
    return undefined;
  }

  /** Takes a group out; with its domain's last group the domain goes, with the last domain every mapping. */
  *detachGroup(group: IommuGroup): Step<void> {
    yield* this.lock.lock();
    try {
      const i = this.#domains.findIndex((d) => d.groups.includes(group));
      const d = this.#domains[i];
      if (d === undefined) throw new KernelBug(`IOMMU group ${group.id} is detached from a container it is not in`);
      yield* group.detachGroup();
      d.groups.splice(d.groups.indexOf(group), 1);
      if (d.groups.length === 0) {
        if (this.#domains.length === 1) for (const dma of [...this.dmas]) yield* this.#remove(dma);
        this.#domains.splice(i, 1);
        d.domain.free();
        this.#updatePgsizeBitmap();
      }
      this.#refreshIovaList();
    } finally {
      this.lock.unlock();
    }
  }

  /** What is left when a group's limits are gone; as it was, if that is nothing. */
  #refreshIovaList(): void {
    let start = 0n;
    let last = U64_MAX;
    for (const { domain } of this.#domains) {
      const a = apertureOf(domain);
      if (a.start > start) start = a.start;
      if (a.last < last) last = a.last;
    }
    const list = excludeReserved(
      [{ start, last }],
      this.#domains.flatMap((d) => d.groups.flatMap((g) => reservedOf(g))),
    );
    if (!(list instanceof Errno)) this.iovaList = list;
  }

  #updatePgsizeBitmap(): void {
    let sizes = U64_MAX;
    for (const { domain } of this.#domains) sizes &= domain.pgsizeBitmap;
    // A smaller page than the CPU's serves as one of the CPU's.
    this.pgsizeBitmap = (sizes & (PAGE_SIZE_N - 1n)) === 0n ? sizes : (sizes & PAGE_SIZES) | PAGE_SIZE_N;
  }

  // ----- mappings

  /** VFIO_IOMMU_MAP_DMA behind its flags. The order of the checks is Linux's. */
  *map(iova: bigint, vaddr: bigint, size: bigint, flags: number): Step<Errno | undefined> {
    const setVaddr = (flags & V.VFIO_DMA_MAP_FLAG_VADDR) !== 0;
    if (size === 0n) return EINVAL;
    const last = iova + size - 1n;
    if (last > U64_MAX || vaddr + size - 1n > U64_MAX) return EOVERFLOW;
    let prot = (flags & V.VFIO_DMA_MAP_FLAG_WRITE) !== 0 ? IOMMU_WRITE : 0;
    if ((flags & V.VFIO_DMA_MAP_FLAG_READ) !== 0) prot |= IOMMU_READ;
    if ((prot !== 0) === setVaddr) return EINVAL;
    yield* this.lock.lock();
    try {
      if (((size | iova | vaddr) & (this.pgsize - 1n)) !== 0n) return EINVAL;
      const there = this.dmas.first(iova, last);
      if (setVaddr) return there === undefined ? ENOENT : yield* this.#moveVaddr(there, iova, last, vaddr);
      if (there !== undefined) return EEXIST;
      if (this.dmaAvail === 0) return ENOSPC;
      if (!isValid(this.iovaList, iova, last)) return EINVAL;
      if (this.kernel.fault.slab("vfio_dma")) return ENOMEM;
      return yield* this.#add(new Dma(this.kernel.current, iova, last, vaddr, prot));
    } finally {
      this.lock.unlock();
    }
  }

  *#moveVaddr(dma: Dma, iova: bigint, last: bigint, vaddr: bigint): Step<Errno | undefined> {
    if (!dma.vaddrInvalid || dma.start !== iova || dma.last !== last) return EINVAL;
    const e = yield* dma.changeOwner();
    if (e !== undefined) return e;
    dma.vaddr = vaddr;
    dma.vaddrInvalid = false;
    this.#vaddrInvalid--;
    return undefined;
  }

  *#add(dma: Dma): Step<Errno | undefined> {
    this.dmaAvail--;
    this.dmas.insert(dma);
    vfioOf(this.kernel).liveDmas++;
    const e = yield* dma.pin((run) => this.#mapRun(dma, run));
    if (e !== undefined) yield* this.#remove(dma);
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "vfio.map_dma", iova: dma.start, length: dma.size, vaddr: dma.vaddr, prot: dma.prot, errno: e?.name });
    return e;
  }

  #mapRun(dma: Dma, { offset, pa, length }: Run): Errno | undefined {
    for (const [i, { domain }] of this.#domains.entries()) {
      const e = domain.map(dma.start + offset, pa, length, dma.prot | IOMMU_CACHE);
      if (e === undefined) continue;
      for (const d of this.#domains.slice(0, i)) d.domain.unmap(dma.start + offset, length);
      return e;
    }
    return undefined;
  }

  /** Unmaps everywhere, then unpins: no device reaches a page that was given back. */
  *#remove(dma: Dma): Step<void> {
    for (const { domain } of this.#domains) domain.unmap(dma.start, dma.size);
    yield* dma.release();
    this.dmas.remove(dma);
    vfioOf(this.kernel).liveDmas--;
    if (dma.vaddrInvalid) this.#vaddrInvalid--;
    this.dmaAvail++;
  }

  /** VFIO_IOMMU_UNMAP_DMA behind its flags. Bytes unmapped; with an error, nothing is said of them. */
  *unmap(req: UnmapRequest): Step<bigint | Errno> {
    yield* this.lock.lock();
    try {
      const { iova, size } = req;
      const mask = this.pgsize - 1n;
      if ((iova & mask) !== 0n) return EINVAL;
      if (req.all ? iova !== 0n || size !== 0n : size === 0n || (size & mask) !== 0n) return EINVAL;
      const last = req.all ? U64_MAX : iova + size - 1n;
      if (last > U64_MAX) return EOVERFLOW;
      if (req.dirty !== undefined && (!this.dirtyTracking || req.dirty.pgsize !== this.pgsize)) return EINVAL;
      if (this.v2 && !req.all && this.#cuts(iova, last)) return EINVAL;
      const r = yield* this.#unmapRange(req, iova, last);
      const { trace } = this.kernel;
      if (trace.on && !(r instanceof Errno)) trace.emit({ type: "vfio.unmap_dma", iova, length: last - iova + 1n, unmapped: r });
      return r;
    } finally {
      this.lock.unlock();
    }
  }

  /** Does the range begin or end inside a mapping? `lock` held. */
  #cuts(iova: bigint, last: bigint): boolean {
    const first = this.dmas.first(iova, iova);
    const end = this.dmas.first(last, last);
    return (first !== undefined && first.start !== iova) || (end !== undefined && end.last !== last);
  }

  /** The same for DIRTY_PAGES. */
  cuts(iova: bigint, last: bigint): boolean {
    return this.#cuts(iova, last);
  }

  *#unmapRange(req: UnmapRequest, iova: bigint, last: bigint): Step<bigint | Errno> {
    let unmapped = 0n;
    const hit: Dma[] = [];
    for (const dma of this.dmas.overlaps(iova, last)) hit.push(dma);
    for (const dma of hit) {
      // Version 1: from within a mapping on, nothing is unmapped, and that is no error.
      if (!this.v2 && iova > dma.start) break;
      if (req.vaddr) {
        if (dma.vaddrInvalid) {
          for (const d of hit.slice(0, hit.indexOf(dma))) d.vaddrInvalid = false;
          this.#vaddrInvalid -= hit.indexOf(dma);
          return EINVAL;
        }
        dma.vaddrInvalid = true;
        this.#vaddrInvalid++;
      } else {
        const e = req.dirty?.report(dma);
        if (e !== undefined) return e;
      }
      unmapped += dma.size;
      if (!req.vaddr) yield* this.#remove(dma);
    }
    return unmapped;
  }
}

const apertureOf = ({ geometry }: IommuDomain): IovaRange => ({ start: geometry.apertureStart, last: geometry.apertureEnd });

const reservedOf = (group: IommuGroup): ReservedRegion[] => group.devices.flatMap((d) => group.reservedRegions(d));

/** One setting serves type1 and iommufd. */
const allowsUnsafeInterrupts = (kernel: Kernel): boolean => kernel.modules.has("iommufd") && iommufdModule(kernel).allowUnsafeInterrupts;

/** VFIO_CHECK_EXTENSION: 1 or 0. Without an IOMMU, what this driver could do. */
export function* type1CheckExtension(iommu: Type1Iommu | undefined, extension: bigint): Step<number> {
  switch (Number(extension)) {
    case V.VFIO_TYPE1_IOMMU:
    case V.VFIO_TYPE1v2_IOMMU:
    case V.VFIO_UNMAP_ALL:
      return 1;
    case V.VFIO_UPDATE_VADDR:
      return iommu === undefined ? 0 : 1;
    case V.VFIO_DMA_CC_IOMMU: {
      if (iommu === undefined) return 0;
      yield* iommu.lock.lock();
      const { coherent } = iommu;
      iommu.lock.unlock();
      return coherent ? 1 : 0;
    }
    default:
      return 0;
  }
}
