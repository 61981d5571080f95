/**
 * `IoptPages`: an array of pages that areas show, wherever the pages come from.
 *
 * Three kinds: user memory and files are made of RAM that is pinned, lazily,
 * once a domain or an in-kernel access needs it; a dma-buf is one run of device
 * memory, which is never pinned and may be revoked (`pages_dmabuf.ts`).
 *
 * Pages have a reference per area and none of an IOVA. Pins are charged to the
 * process that made the mapping, after they were made: when the limit does not
 * allow them, they are undone.
 *
 * Invariants (outside of an operation): a page is pinned exactly if an area in
 * a domain or an access covers it; what is pinned is charged; a dma-buf pins
 * and charges nothing.
 *
 * Lock: `mutex`, inside the domains and iova locks. Its class differs for
 * dma-bufs: those take it inside a reservation and never touch user memory
 * under it, the others take the mmap lock inside it.
 *
 * Source: drivers/iommu/iommufd/pages.c, spec sections 4.3 and 7.2.
 */
import { PAGE_SHIFT, PAGE_SIZE_N, type Pfn, U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, ENOMEM, EOVERFLOW, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { File } from "../fs/file.ts";
import { pinFilePages, unpinFilePages } from "../fs/memfd.ts";
import type { Kernel } from "../kernel.ts";
import { type AccountMode, charge, uncharge } from "../mm/account.ts";
import type { IoptArea } from "./area.ts";
import { AreaSet } from "./area_set.ts";
import { iommufdModule } from "./module.ts";
import { PagesDmabuf } from "./pages_dmabuf.ts";
import { type PagesAccess, Pins } from "./pins.ts";
import type { PagesSource } from "./source.ts";

const MUTEX: LockClass = new LockClass("iopt_pages.mutex");
const DMABUF_MUTEX: LockClass = new LockClass("iopt_pages.mutex (dma-buf)");

export type PagesType = "user" | "file" | "dmabuf";

export class IoptPages {
  readonly kernel: Kernel;
  /** Whole pages. */
  readonly npages: number;
  /** First page: of the address space, of the file, of the dma-buf. */
  readonly basePage: number;
  /** May areas be writable? */
  readonly writable: boolean;
  /** Who made the mapping. Changed only with every iova lock of the context held for writing. */
  source: PagesSource;
  /** Likewise. */
  accountMode: AccountMode;
  /** A file, a dma-buf, or undefined for user memory. */
  readonly #backing: File | PagesDmabuf | undefined;
  #refs = 1;
  #mutex: Mutex | undefined = undefined;
  #inDomains: IoptArea | AreaSet | undefined = undefined;
  #pins: Pins | undefined = undefined;

  /** Takes over `backing`'s reference and the source's. */
  constructor(
    kernel: Kernel,
    args: {
      npages: number;
      basePage: number;
      writable: boolean;
      source: PagesSource;
      accountMode: AccountMode;
      backing: File | PagesDmabuf | undefined;
    },
  ) {
    this.kernel = kernel;
    this.npages = args.npages;
    this.basePage = args.basePage;
    this.writable = args.writable;
    this.source = args.source;
    this.accountMode = args.accountMode;
    this.#backing = args.backing;
    iommufdModule(kernel).livePages++;
  }

  get type(): PagesType {
    return this.#backing === undefined ? "user" : this.#backing instanceof PagesDmabuf ? "dmabuf" : "file";
  }

  /** The dma-buf's part; undefined for another kind. */
  get dmabufOrNone(): PagesDmabuf | undefined {
    return this.#backing instanceof PagesDmabuf ? this.#backing : undefined;
  }

  /** The same where it is known to be one. */
  get dmabuf(): PagesDmabuf {
    const d = this.dmabufOrNone;
    if (d === undefined) throw new KernelBug("iopt_pages that are no dma-buf are taken for one");
    return d;
  }

  /** Memory of a dma-buf that is taken away: nothing is mapped. Under `mutex`. */
  get revoked(): boolean {
    return this.dmabufOrNone?.revoked ?? false;
  }

  get file(): File | undefined {
    const b = this.#backing;
    return b instanceof PagesDmabuf ? undefined : b;
  }

  /** Made on first use: pages of an address space without a domain never need it. */
  get mutex(): Mutex {
    this.#mutex ??= new Mutex(this.kernel.sched, this.dmabufOrNone === undefined ? MUTEX : DMABUF_MUTEX);
    return this.#mutex;
  }

  /** The first byte of the pages, in what they come from: what decides how an automatic IOVA is aligned. */
  get baseByte(): bigint {
    return BigInt(this.basePage) << BigInt(PAGE_SHIFT);
  }

  /** References: one per area, and one per copy under way. */
  get refs(): number {
    return this.#refs;
  }

  get(): void {
    bugOn(this.#refs === 0, "iopt_pages are used after they were freed");
    this.#refs++;
  }

  *put(): Step<void> {
    bugOn(this.#refs === 0, "iopt_pages are put too often");
    this.#refs--;
    if (this.#refs === 0) yield* this.#release();
  }

  *#release(): Step<void> {
    bugOn(this.#inDomains !== undefined, "iopt_pages are freed while in a domain");
    bugOn(this.npinned > 0 || this.#pins?.accesses !== undefined, "iopt_pages are freed while pinned");
    const dmabuf = this.dmabufOrNone;
    if (dmabuf !== undefined) {
      yield* dmabuf.release();
      bugOn(dmabuf.tracked > 0, "iopt_pages of a dma-buf are freed while tracked");
    }
    if (this.file !== undefined) this.kernel.fs.fput(this.file);
    this.source.put();
    iommufdModule(this.kernel).livePages--;
    this.kernel.sched.freed(this);
  }

  // ----- what covers a page

  addToDomains(area: IoptArea): void {
    const d = this.#inDomains;
    if (d === undefined) {
      this.#inDomains = area;
    } else if (d instanceof AreaSet) {
      d.add(area);
    } else {
      const set = new AreaSet();
      set.add(d);
      set.add(area);
      this.#inDomains = set;
    }
  }

  removeFromDomains(area: IoptArea): void {
    const d = this.#inDomains;
    if (d instanceof AreaSet) {
      d.delete(area);
      if (d.size === 0) this.#inDomains = undefined;
    } else {
      if (d !== area) throw new KernelBug("iommufd: the area is in no domain");
      this.#inDomains = undefined;
    }
  }

  /** Areas of these pages that are in a domain, for the checker. */
  *areasInDomains(): Generator<IoptArea, void, void> {
    const d = this.#inDomains;
    if (d instanceof AreaSet) yield* d;
    else if (d !== undefined) yield d;
  }

  /** Parts of [first, last] that neither an area in a domain nor an access covers, in order. */
  #uncovered(first: number, last: number): [number, number][] {
    const used: [number, number][] = [];
    const d = this.#inDomains;
    if (d instanceof AreaSet) d.overlaps(first, last, (a, b) => used.push([a, b]));
    else if (d !== undefined) used.push([d.index, d.lastIndex]);
    for (const n of this.#pins?.accesses?.overlaps(BigInt(first), BigInt(last)) ?? []) used.push([Number(n.start), Number(n.last)]);
    if (used.length === 0) return [[first, last]];
    used.sort((a, b) => a[0] - b[0]);
    const holes: [number, number][] = [];
    let at = first;
    for (const [a, b] of used) {
      if (a > last) break;
      if (a > at) holes.push([at, a - 1]);
      if (b >= at) at = b + 1;
    }
    if (at <= last) holes.push([at, last]);
    return holes;
  }

  // ----- pins

  get npinned(): number {
    return this.#pins?.npinned ?? 0;
  }

  /** Pages whose charge is settled; equals `npinned` outside of an operation. */
  get lastNpinned(): number {
    return this.#pins?.lastNpinned ?? 0;
  }

  set lastNpinned(n: number) {
    if (this.#pins !== undefined) this.#pins.lastNpinned = n;
  }

  /** The frame of a page that is pinned. */
  pfnAt(index: number): Pfn {
    const pfn = this.#pins?.at(index);
    if (pfn === undefined) throw new KernelBug(`iommufd: page ${index} is not pinned`);
    return pfn;
  }

  isPinned(index: number): boolean {
    return this.#pins?.at(index) !== undefined;
  }

  /**
   * Memory that a walk over pages cannot do without; ENOMEM. Less of it will do,
   * so a smaller piece is tried before it gives up. Source: temp_kmalloc.
   */
  temporary(what: string): Errno | undefined {
    const { fault } = this.kernel;
    return fault.iommufd(what) || (fault.slab(what) && fault.slab(what)) ? ENOMEM : undefined;
  }

  /**
   * Pins what is not pinned yet in [first, last]; EFAULT, EINVAL, ENOMEM, and then some may be pinned: see `dropUncovered`.
   * `listed`: the caller has room for the list of pages; what is pinned of a file still needs some.
   */
  *pin(first: number, last: number, listed = false): Step<Errno | undefined> {
    this.#pins ??= new Pins(this.npages);
    const pins = this.#pins;
    let ready = listed && this.file === undefined;
    for (let i = first; i <= last; ) {
      const n = pins.unpinnedFrom(i, last);
      if (n === 0) {
        i++;
        continue;
      }
      if (!ready) {
        const e = this.temporary("list of pages");
        if (e !== undefined) return e;
        ready = true;
      }
      if (this.kernel.fault.iommufd("pin")) return EFAULT;
      const pfns = yield* this.#pinOrigin(i, n);
      if (pfns instanceof Errno) return pfns;
      for (const pfn of pfns) pins.set(i++, pfn);
    }
    return undefined;
  }

  *#pinOrigin(index: number, npages: number): Step<Pfn[] | Errno> {
    const page = this.basePage + index;
    const { file } = this;
    if (file !== undefined) return yield* pinFilePages(file, page, npages, this.writable);
    const { mm } = this.source;
    // The last page of all has no end; only a pin of the caller's own memory looks at that first.
    if (mm === this.kernel.current.mm && BigInt(page + npages) << BigInt(PAGE_SHIFT) > U64_MAX) return EOVERFLOW;
    if (!mm.getNotZero()) return EFAULT;
    try {
      yield* mm.mmapLock.downRead();
      try {
        return mm.memory.pin(BigInt(page) << BigInt(PAGE_SHIFT), npages, this.writable);
      } finally {
        mm.mmapLock.upRead();
      }
    } finally {
      mm.put();
    }
  }

  /** Charges or gives back what was pinned or unpinned since the last time; ENOMEM over the limit. */
  settle(): Errno | undefined {
    const pins = this.#pins;
    if (pins === undefined || pins.npinned === pins.lastNpinned) return undefined;
    const n = pins.npinned - pins.lastNpinned;
    if (n > 0) {
      const e = this.kernel.fault.iommufd("charge") ? ENOMEM : charge(this.source, this.accountMode, n);
      if (e !== undefined) return e;
    } else {
      uncharge(this.source, this.accountMode, -n);
    }
    pins.lastNpinned = pins.npinned;
    return undefined;
  }

  /** Unpins what in [first, last] nothing covers any more, and settles the charge. Cannot fail. */
  dropUncovered(first: number, last: number): void {
    const pins = this.#pins;
    if (pins === undefined) return;
    for (const [a, b] of this.#uncovered(first, last)) {
      const pfns = pins.take(a, b);
      if (pfns.length === 0) continue;
      if (this.file !== undefined) unpinFilePages(this.kernel, pfns);
      else this.source.mm.memory.unpin(pfns, this.writable);
    }
    if (pins.npinned < pins.lastNpinned) bugOn(this.settle() !== undefined, "giving back a charge fails");
    if (pins.npinned === 0 && pins.lastNpinned === 0 && pins.accesses === undefined) this.#pins = undefined;
  }

  /** Ranges of pages that in-kernel users hold, for the checker. */
  accesses(): Iterable<PagesAccess> {
    return this.#pins?.accesses ?? [];
  }

  // ----- in-kernel accesses; the mutex is held

  /** Holds [first, last] for an in-kernel user and answers its frames. On failure nothing changes. */
  *addAccess(first: number, last: number): Step<Pfn[] | Errno> {
    const same = this.#pins?.exactAccess(first, last);
    if (same !== undefined) {
      same.users++;
      return this.pfns(first, last);
    }
    const { fault } = this.kernel;
    if (fault.slab("iopt_pages_access")) return ENOMEM;
    let e = yield* this.pin(first, last, true);
    if (e === undefined && fault.iommufd("pinned_pfns")) e = EINVAL;
    if (e === undefined && fault.slab("entry of pinned_pfns")) e = ENOMEM;
    e ??= this.settle();
    if (e !== undefined) {
      this.dropUncovered(first, last);
      return e;
    }
    this.#pins?.addAccess(first, last);
    return this.pfns(first, last);
  }

  removeAccess(first: number, last: number): void {
    const pins = this.#pins;
    const a = pins?.exactAccess(first, last);
    if (pins === undefined || a === undefined)
      throw new KernelBug(`iommufd: pages ${first} to ${last} are unpinned but were not pinned so`);
    a.users--;
    if (a.users > 0) return;
    pins.removeAccess(a);
    this.dropUncovered(first, last);
  }

  pfns(first: number, last: number): Pfn[] {
    const out: Pfn[] = [];
    for (let i = first; i <= last; i++) out.push(this.pfnAt(i));
    return out;
  }
}

/** Pages that hold `length` bytes from `startByte` (below a page) on; EINVAL for lengths nothing can have. */
export function pagesFor(startByte: bigint, length: bigint): number | Errno {
  if (length === 0n || length > 0xffff_ffff_ffff_ffffn - PAGE_SIZE_N) return EINVAL;
  return Number((length + startByte + PAGE_SIZE_N - 1n) / PAGE_SIZE_N);
}
