/**
 * The I/O page table of an IOAS: areas over IOVA, and the domains that hold them.
 *
 * Words: an area shows pages at an IOVA; a reserved range cannot be mapped (a
 * device would not translate it there); an allowed range cannot become reserved.
 * Every domain holds every area. `last` is inclusive.
 *
 * Invariants: areas do not overlap each other nor a reserved range; reserved and
 * allowed do not overlap; every area, its length and its offset in the first
 * page are multiples of `iovaAlignment`; with a domain, every complete area has a
 * storage domain among them, without one none has.
 *
 * Locks: domainsSem, then iovaSem, then the mutex of pages. Whoever makes or
 * removes an area holds domainsSem for reading throughout, so that a domain never
 * sees an area half made; the IOVA is claimed and freed with iovaSem for writing.
 *
 * Source: drivers/iommu/iommufd/io_pagetable.c, spec sections 4, 5 and 8.
 */
import { maxN, PAGE_SIZE_N, U64_MAX } from "../../lib/addr.ts";
import { EADDRINUSE, EBUSY, EDEADLOCK, EEXIST, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM, Errno } from "../../lib/errno.ts";
import { IntervalTree, ItreeNode } from "../../lib/interval_tree.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { IoptArea } from "./area.ts";
import { IOMMU_WRITE, type IoptDomain, smallestPage } from "./domain.ts";
import { type FillTarget, fillDomain, fillDomains, unfillDomain, unfillDomains } from "./fill.ts";
import { allocIova, type IovaSpace, noteFree } from "./iova_alloc.ts";
import { type IommufdModule, iommufdModule } from "./module.ts";
import type { IoptPages } from "./pages.ts";

const DOMAINS_SEM: LockClass = new LockClass("iopt.domains_rwsem");
const IOVA_SEM: LockClass = new LockClass("iopt.iova_rwsem");

class Range extends ItreeNode {
  /** Who reserved it; undefined for an allowed range. */
  readonly owner: unknown;

  constructor(start: bigint, last: bigint, owner: unknown) {
    super(start, last);
    this.owner = owner;
  }
}

/** A slice of pages to be mapped; the holder owns a reference on `pages`. */
export interface PagesSlice {
  readonly pages: IoptPages;
  readonly startByte: bigint;
  readonly length: bigint;
}

/** What an area contributes to a contiguous range. */
export interface AreaPart {
  readonly area: IoptArea;
  readonly pages: IoptPages;
  readonly first: bigint;
  readonly last: bigint;
}

/** An in-kernel user of the table, as the table knows it. */
export interface IoptAccess {
  /** What it needs of IOVAs and offsets, a power of two. */
  readonly iovaAlignment: bigint;
  /** Asks it to give up pages in the range. No lock held. */
  notifyUnmap(iova: bigint, length: bigint): Step<void>;
}

/** A range a device cannot have mapped. */
export interface ReservedByDevice {
  readonly start: bigint;
  readonly length: bigint;
  readonly type: string;
}

/** Its memory is gone for good, as Linux 7.3 never says: another may stand in its place without an unmap before. */
const isDead = (area: IoptArea): boolean =>
  area.pages?.dmabufOrNone?.refusal !== undefined && area.numAccesses === 0 && area.numLocks === 0;

/** How often an unmap asks accesses to let go before it gives up. */
const MAX_TRIES = 100;

export class IoPagetable implements FillTarget, IovaSpace {
  readonly kernel: Kernel;
  /** Read: areas change. Write: domains and accesses change. */
  readonly domainsSem: RwSem;
  /** Guards the trees, and `pages` of the areas. */
  readonly iovaSem: RwSem;
  /** Written with both locks held for writing; the first is the storage of the areas. */
  readonly domains: IoptDomain[] = [];
  readonly areas: IntervalTree<IoptArea> = new IntervalTree();
  readonly reserved: IntervalTree<Range> = new IntervalTree();
  allowed: IntervalTree<Range> = new IntervalTree();
  /** By access id, lowest free first. */
  readonly accesses: (IoptAccess | undefined)[] = [];
  disableLargePages = false;
  /** Mappings of negotiated buffers made here come back after a temporary revoke; set before they are made. */
  revalidate = false;
  /**
   * Devices attached through a domain of this table, with the number of their
   * attachments; kept only where mappings are negotiated. Under `iovaSem`.
   */
  readonly requesters: Map<Device, number> = new Map();
  /** A power of two; 1 while nothing needs more. */
  iovaAlignment = 1n;
  noHoleBelow: bigint = PAGE_SIZE_N;
  readonly #module: IommufdModule;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.#module = iommufdModule(kernel);
    this.domainsSem = new RwSem(kernel.sched, DOMAINS_SEM);
    this.iovaSem = new RwSem(kernel.sched, IOVA_SEM);
  }

  /** Runs `body` with domains and IOVAs locked for writing: nobody else is in the table. */
  *#exclusively<T>(body: Step<T>): Step<T> {
    yield* this.domainsSem.downWrite();
    yield* this.iovaSem.downWrite();
    try {
      return yield* body;
    } finally {
      this.iovaSem.upWrite();
      this.domainsSem.upWrite();
    }
  }

  // ----- map

  /**
   * Maps the slices one after the other at `at`, or where there is room.
   * Takes over the references on their pages, also when it fails. Answers the IOVA.
   */
  *mapPages(slices: readonly PagesSlice[], length: bigint, at: bigint | undefined, prot: number): Step<bigint | Errno> {
    const areas: IoptArea[] = [];
    const replaced: IoptArea[] = [];
    let e: Errno | undefined;
    let iova = 0n;
    const claimed = yield* this.#claim(slices, length, at, prot, areas, replaced);
    for (const dead of replaced) yield* this.#bury(dead);
    if (claimed instanceof Errno) {
      e = claimed;
    } else {
      iova = claimed;
      e = yield* this.#fill(slices, areas);
    }
    if (e === undefined) return iova;
    for (const a of areas) yield* this.#abortArea(a);
    for (const s of slices) yield* s.pages.put();
    return e;
  }

  /** Reserves the IOVA with areas that have no pages yet. Dead areas in whose place they stand go to `replaced`. */
  *#claim(
    slices: readonly PagesSlice[],
    length: bigint,
    at: bigint | undefined,
    prot: number,
    areas: IoptArea[],
    replaced: IoptArea[],
  ): Step<bigint | Errno> {
    yield* this.iovaSem.downWrite();
    try {
      const [first] = slices;
      for (let i = 0; i < slices.length; i++) if (this.kernel.fault.slab("iopt_area")) return ENOMEM;
      if (first === undefined || length === 0n || (length & (this.iovaAlignment - 1n)) !== 0n) return EINVAL;
      const found =
        at === undefined ? allocIova(this, first.startByte + first.pages.baseByte, length) : (this.#checkIova(at, length) ?? at);
      if (found instanceof Errno) return found;
      let iova = found;
      for (const s of slices) {
        const area = this.#newArea(s, iova, prot);
        if (area instanceof Errno) return area;
        const dead = this.areas.first(area.start, area.last);
        if (dead !== undefined) {
          this.areas.remove(dead);
          replaced.push(dead);
        }
        this.areas.insert(area);
        this.#module.liveAreas++;
        areas.push(area);
        iova += s.length;
      }
      return found;
    } finally {
      this.iovaSem.upWrite();
    }
  }

  #newArea(s: PagesSlice, iova: bigint, prot: number): IoptArea | Errno {
    if ((prot & IOMMU_WRITE) !== 0 && !s.pages.writable) return EPERM;
    if ((s.startByte & 0xfffn & (this.iovaAlignment - 1n)) !== 0n) return EINVAL;
    const last = iova + s.length - 1n;
    if (last > U64_MAX || s.startByte + s.length - 1n > U64_MAX) return EOVERFLOW;
    const area = new IoptArea(iova, last, s.startByte, prot);
    if (area.lastIndex >= s.pages.npages) throw new KernelBug("iommufd: an area reaches past its pages");
    return area;
  }

  /** Why `length` bytes cannot be at `iova`. */
  #checkIova(iova: bigint, length: bigint): Errno | undefined {
    if ((iova & (this.iovaAlignment - 1n)) !== 0n) return EINVAL;
    const last = iova + length - 1n;
    if (last > U64_MAX) return EOVERFLOW;
    if (this.reserved.first(iova, last) !== undefined) return EINVAL;
    const there = this.areas.first(iova, last);
    return there === undefined || (there.start === iova && there.last === last && isDead(there)) ? undefined : EEXIST;
  }

  /** Takes an area apart whose place in the tree another has. Nothing of it is mapped in any domain. */
  *#bury(area: IoptArea): Step<void> {
    const { pages } = area;
    if (pages === undefined) throw new KernelBug("iommufd: an area under construction is taken for dead");
    yield* this.domainsSem.downRead();
    yield* unfillDomains(this, area, pages);
    yield* pages.put();
    this.domainsSem.upRead();
    this.#module.liveAreas--;
  }

  /** Fills every domain with the new areas, then completes them. */
  *#fill(slices: readonly PagesSlice[], areas: readonly IoptArea[]): Step<Errno | undefined> {
    yield* this.domainsSem.downRead();
    try {
      for (const [i, area] of areas.entries()) {
        const e = yield* fillDomains(this, area, (slices[i] as PagesSlice).pages);
        if (e === undefined) continue;
        for (let k = 0; k < i; k++) yield* unfillDomains(this, areas[k] as IoptArea, (slices[k] as PagesSlice).pages);
        return e;
      }
      yield* this.iovaSem.downWrite();
      // Inside the domains lock: a domain that is added next finds them complete.
      const e = this.#checkPeers(slices);
      if (e === undefined) for (const [i, area] of areas.entries()) area.pages = (slices[i] as PagesSlice).pages;
      this.iovaSem.upWrite();
      if (e !== undefined) for (const [i, area] of areas.entries()) yield* unfillDomains(this, area, (slices[i] as PagesSlice).pages);
      return e;
    } finally {
      this.domainsSem.upRead();
    }
  }

  *#abortArea(area: IoptArea): Step<void> {
    yield* this.iovaSem.downWrite();
    this.areas.remove(area);
    noteFree(this, area.start);
    this.iovaSem.upWrite();
    this.#module.liveAreas--;
  }

  // ----- unmap

  /** Removes whole areas in [iova, iova + length); bytes removed. EINVAL, EOVERFLOW, and as `unmapRange`. */
  *unmapIova(iova: bigint, length: bigint, told?: { bytes: bigint }): Step<bigint | Errno> {
    if (length === 0n) return EINVAL;
    const last = iova + length - 1n;
    if (last > U64_MAX) return EOVERFLOW;
    return yield* this.unmapRange(iova, last, told);
  }

  /**
   * Removes the areas in [from, last]; bytes removed, 0 for none. EBUSY: one is
   * under construction or locked. ENOENT: one reaches out of the range. EDEADLK:
   * an access does not let go. Areas before the one that fails stay removed, and `told` has their bytes.
   */
  *unmapRange(from: bigint, last: bigint, told: { bytes: bigint } = { bytes: 0n }): Step<bigint | Errno> {
    let start = from;
    let tries = 0;
    for (;;) {
      const held = yield* this.#unmapUntilAccess(start, last, told);
      if (held instanceof Errno) return held;
      if (held === undefined) return told.bytes;
      tries = held.start === start ? tries + 1 : 1;
      start = held.start;
      yield* this.#notifyUnmap(held.start, held.length);
      if (tries > MAX_TRIES) {
        this.kernel.printk("iommufd: an access does not give up pages that are to be unmapped");
        return EDEADLOCK;
      }
    }
  }

  /** Unmaps until the range is empty, or an area is met that an access holds: that one. */
  *#unmapUntilAccess(from: bigint, last: bigint, told: { bytes: bigint }): Step<IoptArea | undefined | Errno> {
    let start = from;
    yield* this.domainsSem.downRead();
    yield* this.iovaSem.downWrite();
    let locked = true;
    try {
      for (;;) {
        const area = this.areas.first(start, last);
        if (area === undefined) break;
        const { pages } = area;
        if (pages === undefined || area.numLocks > 0) return EBUSY;
        if (area.start < start || area.last > last) return ENOENT;
        if (area.numAccesses > 0) {
          area.forbidAccess();
          return area;
        }
        area.pages = undefined;
        this.iovaSem.upWrite();
        locked = false;
        yield* unfillDomains(this, area, pages);
        yield* this.#abortArea(area);
        yield* pages.put();
        told.bytes += area.length;
        yield* this.iovaSem.downWrite();
        locked = true;
        // The IOVA that is free now may be taken again: only what lies behind is left to do.
        if (area.last >= last) break;
        start = area.last + 1n;
      }
      return undefined;
    } finally {
      if (locked) this.iovaSem.upWrite();
      this.domainsSem.upRead();
    }
  }

  *#notifyUnmap(iova: bigint, length: bigint): Step<void> {
    for (const a of [...this.accesses]) if (a !== undefined) yield* a.notifyUnmap(iova, length);
  }

  /** Removes everything; `told` as for `unmapRange`. */
  *unmapAll(told?: { bytes: bigint }): Step<bigint | Errno> {
    return yield* this.unmapRange(0n, U64_MAX, told);
  }

  // ----- copy

  /**
   * The slices behind [iova, iova + length), each with a reference on its pages.
   * ENOENT when the areas do not cover it without a gap; ENOMEM.
   */
  *getPages(iova: bigint, length: bigint): Step<PagesSlice[] | Errno> {
    if (length === 0n) return EINVAL;
    const last = iova + length - 1n;
    if (last > U64_MAX) return EOVERFLOW;
    yield* this.iovaSem.downRead();
    const { parts, whole } = this.contiguous(iova, last);
    const full = parts.some(() => this.kernel.fault.slab("iopt_pages_list"));
    if (whole && !full) for (const p of parts) p.pages.get();
    this.iovaSem.upRead();
    if (full) return ENOMEM;
    if (!whole) return ENOENT;
    return parts.map((p) => ({ pages: p.pages, startByte: p.area.startByteAt(p.first), length: p.last - p.first + 1n }));
  }

  /** The complete areas from `iova` to `last`, with the part of each; `whole` when they cover it without a gap. iovaSem held. */
  contiguous(iova: bigint, last: bigint): { parts: AreaPart[]; whole: boolean } {
    this.iovaSem.assertHeld();
    const parts: AreaPart[] = [];
    for (let at = iova; ; ) {
      const area = this.areas.first(at, at);
      const pages = area?.pages;
      if (area === undefined || pages === undefined) return { parts, whole: false };
      const end = area.last < last ? area.last : last;
      parts.push({ area, pages, first: at, last: end });
      if (end === last) return { parts, whole: true };
      at = end + 1n;
    }
  }

  // ----- reserved and allowed

  /** The IOVA cannot be mapped from now on. EADDRINUSE when it is mapped or promised; ENOMEM. iovaSem held for writing. */
  reserve(start: bigint, last: bigint, owner: unknown): Errno | undefined {
    this.iovaSem.assertHeldWrite();
    if (this.areas.first(start, last) !== undefined || this.allowed.first(start, last) !== undefined) return EADDRINUSE;
    if (this.kernel.fault.slab("iopt_reserved")) return ENOMEM;
    this.reserved.insert(new Range(start, last, owner));
    return undefined;
  }

  #unreserve(owner: unknown): void {
    for (const r of this.reserved) {
      if (r.owner !== owner) continue;
      this.reserved.remove(r);
      noteFree(this, r.start);
    }
  }

  /** Gives up everything that `owner` reserved. */
  *removeReserved(owner: unknown): Step<void> {
    yield* this.iovaSem.downWrite();
    this.#unreserve(owner);
    this.iovaSem.upWrite();
  }

  /** Reserves what a device cannot have mapped, in its name: all of it, or nothing and EADDRINUSE or ENOMEM. */
  *enforceReservedRegions(owner: object, regions: readonly ReservedByDevice[]): Step<Errno | undefined> {
    if (this.kernel.fault.iommufd("reserved regions")) return EINVAL;
    yield* this.iovaSem.downWrite();
    try {
      for (const r of regions) {
        if (r.type === "direct-relaxable") continue;
        const e = this.reserve(r.start, r.start + r.length - 1n, owner);
        if (e === undefined) continue;
        this.#unreserve(owner);
        return e;
      }
      return undefined;
    } finally {
      this.iovaSem.upWrite();
    }
  }

  /** Replaces the allowed ranges. EADDRINUSE when one of them is reserved; the old ones then stay. */
  *setAllowed(ranges: readonly { start: bigint; last: bigint }[]): Step<Errno | undefined> {
    yield* this.iovaSem.downWrite();
    try {
      for (const r of ranges) if (this.reserved.first(r.start, r.last) !== undefined) return EADDRINUSE;
      const tree = new IntervalTree<Range>();
      for (const r of ranges) tree.insert(new Range(r.start, r.last, undefined));
      this.allowed = tree;
      return undefined;
    } finally {
      this.iovaSem.upWrite();
    }
  }

  // ----- peers

  /**
   * `dev` is about to translate through a domain of this table. EINVAL when it
   * would not reach the memory of a buffer that is mapped here. Only where
   * mappings are negotiated: Linux 7.3 does not look.
   */
  *admit(dev: Device): Step<Errno | undefined> {
    if (this.kernel.interconnect !== "negotiated") return undefined;
    yield* this.iovaSem.downWrite();
    try {
      for (const a of this.areas) if (a.pages?.dmabufOrNone?.reaches(dev) === false) return EINVAL;
      this.requesters.set(dev, (this.requesters.get(dev) ?? 0) + 1);
      return undefined;
    } finally {
      this.iovaSem.upWrite();
    }
  }

  /** Undoes one `admit`. */
  *dismiss(dev: Device): Step<void> {
    if (this.kernel.interconnect !== "negotiated") return;
    yield* this.iovaSem.downWrite();
    const n = (this.requesters.get(dev) ?? 0) - 1;
    if (n < 0) throw new KernelBug(`${dev.name} leaves an I/O page table twice`);
    if (n > 0) this.requesters.set(dev, n);
    else this.requesters.delete(dev);
    this.iovaSem.upWrite();
  }

  /** Devices may have come since the buffers were negotiated. iovaSem held for writing. */
  #checkPeers(slices: readonly PagesSlice[]): Errno | undefined {
    for (const { pages } of slices) {
      const dmabuf = pages.dmabufOrNone;
      if (dmabuf === undefined) continue;
      for (const dev of this.requesters.keys()) if (!dmabuf.reaches(dev)) return EOPNOTSUPP;
    }
    return undefined;
  }

  // ----- domains

  /** Why the areas would not bear a larger alignment. */
  #checkAlignment(alignment: bigint): Errno | undefined {
    const mask = alignment - 1n;
    for (const a of this.areas) {
      if ((a.start & mask) !== 0n || (a.length & mask) !== 0n || (BigInt(a.pageOffset) & mask) !== 0n) return EADDRINUSE;
    }
    return undefined;
  }

  /**
   * Fills a domain with every area and keeps it so. EINVAL: it cannot map single
   * pages. EADDRINUSE: an area is unaligned or outside of what it translates. ENOMEM.
   */
  addDomain(domain: IoptDomain): Step<Errno | undefined> {
    return this.#exclusively(this.#addDomain(domain));
  }

  *#addDomain(domain: IoptDomain): Step<Errno | undefined> {
    if (this.domains.includes(domain)) throw new KernelBug("iommufd: a domain is added twice");
    const page = smallestPage(domain);
    const alignment = maxN(page, this.iovaAlignment);
    if (alignment > PAGE_SIZE_N) return EINVAL;
    if (alignment !== this.iovaAlignment) {
      const e = this.#checkAlignment(alignment);
      if (e !== undefined) return e;
    }
    const { apertureStart, apertureEnd } = domain.geometry;
    let e = apertureStart === 0n ? undefined : this.reserve(0n, apertureStart - 1n, domain);
    if (e === undefined && apertureEnd !== U64_MAX) e = this.reserve(apertureEnd + 1n, U64_MAX, domain);
    if (e === undefined && this.kernel.fault.slab("entry of domains")) e = ENOMEM;
    e ??= yield* this.fillNewDomain(domain);
    if (e !== undefined) {
      this.#unreserve(domain);
      return e;
    }
    this.iovaAlignment = alignment;
    this.domains.push(domain);
    return undefined;
  }

  /** Puts every area into a domain that is being added; none of them when one cannot be. Both locks held for writing. */
  protected *fillNewDomain(domain: IoptDomain): Step<Errno | undefined> {
    const done: IoptArea[] = [];
    for (const area of this.areas) {
      if (area.pages === undefined) continue;
      const e = yield* fillDomain(this.disableLargePages, area, area.pages, domain);
      if (e === undefined) {
        done.push(area);
        continue;
      }
      for (const a of done) yield* unfillDomain(a, a.pages as IoptPages, domain, this.domains[0]);
      return e;
    }
    return undefined;
  }

  /** Empties a domain and lets go of it. Cannot fail. */
  removeDomain(domain: IoptDomain): Step<void> {
    return this.#exclusively(this.#removeDomain(domain));
  }

  *#removeDomain(domain: IoptDomain): Step<void> {
    const i = this.domains.indexOf(domain);
    if (i < 0) throw new KernelBug("iommufd: a domain is removed that was not added");
    // The tail takes the place of the one that goes, as the kernel's table stays dense.
    const tail = this.domains.pop() as IoptDomain;
    if (i < this.domains.length) this.domains[i] = tail;
    for (const area of this.areas) if (area.pages !== undefined) yield* unfillDomain(area, area.pages, domain, this.domains[0]);
    this.#unreserve(domain);
    this.#recalculate();
  }

  /** What domains, accesses and the large page option need; EADDRINUSE when the areas do not bear it. */
  calculateAlignment(): Errno | undefined {
    let alignment = this.disableLargePages ? PAGE_SIZE_N : 1n;
    for (const d of this.domains) if (smallestPage(d) > alignment) alignment = smallestPage(d);
    for (const a of this.accesses) if (a !== undefined && a.iovaAlignment > alignment) alignment = a.iovaAlignment;
    if (alignment > this.iovaAlignment) {
      const e = this.#checkAlignment(alignment);
      if (e !== undefined) return e;
    }
    this.iovaAlignment = alignment;
    return undefined;
  }

  #recalculate(): void {
    if (this.calculateAlignment() !== undefined) throw new KernelBug("iommufd: a smaller alignment does not suit the areas");
  }

  // ----- accesses

  /** Takes an in-kernel user in; its id, or EADDRINUSE when the areas are not aligned enough for it; ENOMEM. */
  addAccess(access: IoptAccess): Step<number | Errno> {
    return this.#exclusively(this.#addAccess(access));
  }

  *#addAccess(access: IoptAccess): Step<number | Errno> {
    if (this.kernel.fault.slab("entry of accesses")) return ENOMEM;
    let id = this.accesses.indexOf(undefined);
    if (id < 0) id = this.accesses.length;
    this.accesses[id] = access;
    const e = this.calculateAlignment();
    if (e === undefined) return id;
    this.accesses[id] = undefined;
    return e;
  }

  removeAccess(id: number): Step<void> {
    return this.#exclusively(this.#removeAccess(id));
  }

  *#removeAccess(id: number): Step<void> {
    if (this.accesses[id] === undefined) throw new KernelBug(`iommufd: access ${id} is removed twice`);
    this.accesses[id] = undefined;
    this.#recalculate();
  }

  // ----- large pages, splitting

  /** Page by page from now on. EINVAL once something is mapped in a domain; EADDRINUSE for unaligned areas. */
  setLargePages(enable: boolean): Step<Errno | undefined> {
    return this.#exclusively(this.#setLargePages(enable));
  }

  *#setLargePages(enable: boolean): Step<Errno | undefined> {
    if (enable) {
      this.disableLargePages = false;
      this.#recalculate();
      return undefined;
    }
    if (this.disableLargePages) return undefined;
    if (this.domains.length > 0 && this.areas.size > 0) return EINVAL;
    this.disableLargePages = true;
    const e = this.calculateAlignment();
    if (e !== undefined) this.disableLargePages = false;
    return e;
  }

  /** Splits areas so that each of `lasts` is the last IOVA of one; type1 containers unmap inside of a mapping. */
  *cut(lasts: readonly bigint[]): Step<Errno | undefined> {
    yield* this.iovaSem.downWrite();
    try {
      for (const last of lasts) {
        const area = this.areas.stab(last);
        const e = area === undefined ? undefined : yield* this.#split(area, last);
        if (e !== undefined) return e;
      }
      return undefined;
    } finally {
      this.iovaSem.upWrite();
    }
  }

  *#split(area: IoptArea, last: bigint): Step<Errno | undefined> {
    if (last === area.start || last === area.last) return undefined;
    const { pages } = area;
    if (pages === undefined || area.preventAccess) return EBUSY;
    if (pages.type === "dmabuf") return EOPNOTSUPP;
    const next = last + 1n;
    const mask = this.iovaAlignment - 1n;
    if ((next & mask) !== 0n || (area.startByteAt(next) & mask) !== 0n) return EINVAL;
    const { fault } = this.kernel;
    if (fault.slab("iopt_area") || fault.slab("iopt_area")) return ENOMEM;
    yield* pages.mutex.lock();
    try {
      if (area.numAccesses > 0) return EINVAL;
      // Large pages may span the cut, and an unmap cannot split them.
      if (area.storageDomain !== undefined && !this.disableLargePages) return EINVAL;
      const left = new IoptArea(area.start, last, area.startByteAt(area.start), area.prot);
      const right = new IoptArea(next, area.last, area.startByteAt(next), area.prot);
      this.areas.remove(area);
      if (area.storageDomain !== undefined) pages.removeFromDomains(area);
      for (const a of [left, right]) {
        a.pages = pages;
        a.storageDomain = area.storageDomain;
        this.areas.insert(a);
        if (a.storageDomain !== undefined) pages.addToDomains(a);
      }
      pages.get();
      this.#module.liveAreas++;
      return undefined;
    } finally {
      pages.mutex.unlock();
    }
  }

  /** The table is empty and goes. */
  checkEmpty(): void {
    const left = this.areas.size + this.reserved.size + this.domains.length + this.accesses.filter((a) => a !== undefined).length;
    if (left > 0) throw new KernelBug("iommufd: an IOAS is freed with areas, reserved ranges, domains or accesses left");
  }
}
