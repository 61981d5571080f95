/**
 * In-kernel access to an IOAS: a driver that reads, writes or pins memory by IOVA
 * without a device doing DMA.
 *
 * Its owner creates it, attaches it to an IOAS, pins pages and gives them back.
 * An unmap of pinned pages asks the owner, through `unmap`, to unpin them, and
 * goes on only when that is done. An internal access (a hardware queue) is not
 * asked: its pages cannot be unmapped. Device memory is not reachable this way.
 *
 * Lock: `ioasLock`, outside of the locks of the I/O page table; not held while
 * the owner is asked to unpin.
 * Source: drivers/iommu/iommufd/device.c, spec section 5.
 */
import { PAGE_MASK_N, PAGE_SIZE, PAGE_SIZE_N, type Pfn, U64_MAX } from "../../lib/addr.ts";
import { EBUSY, EFAULT, EINVAL, ENOENT, EOVERFLOW, EPERM, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { IoptArea } from "./area.ts";
import { type IommufdCtx, iommufdCtxGet, iommufdCtxPut } from "./ctx.ts";
import { IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import type { AreaPart, IoptAccess } from "./io_pagetable.ts";
import { IommufdIoas } from "./ioas.ts";
import { allocObject, decUsers, destroyOwnedObject, finalizeObject, getObject, IommufdObject, lockObject, putObject } from "./object.ts";
import type { IoptPages } from "./pages.ts";

const IOAS_LOCK: LockClass = new LockClass("iommufd_access.ioas_lock");

/** The bytes are written, not read. */
export const IOMMUFD_ACCESS_RW_WRITE = 1;
/** The caller has no memory of its own: the copy may borrow the owner's. */
export const IOMMUFD_ACCESS_RW_KTHREAD = 2;
/** Never by way of the process's addresses; for tests. */
export const IOMMUFD_ACCESS_RW_SLOW_PATH = 4;

/** What the owner of an access provides. */
export interface IommufdAccessOps {
  /** It pins pages, so everything must be page aligned. */
  readonly needsPinPages: boolean;
  /** Unpin what lies in the range. No lock held. Needed to pin. */
  unmap?(iova: bigint, length: bigint): Step<void>;
}

export class IommufdAccess extends IommufdObject implements IoptAccess {
  readonly type = "access";
  readonly ctx: IommufdCtx;
  /** Undefined for an internal one. */
  readonly ops: IommufdAccessOps | undefined;
  readonly iovaAlignment: bigint;
  readonly ioasLock: Mutex;
  /** Where to pin. Under `ioasLock`. */
  ioas: IommufdIoas | undefined = undefined;
  /** Where to unpin: still the old one while it is being left. Under `ioasLock`. */
  ioasUnpin: IommufdIoas | undefined = undefined;
  #listId = -1;

  constructor(ctx: IommufdCtx, ops: IommufdAccessOps | undefined) {
    super();
    this.ctx = ctx;
    this.ops = ops;
    this.iovaAlignment = ops === undefined || ops.needsPinPages ? PAGE_SIZE_N : 1n;
    this.ioasLock = new Mutex(ctx.kernel.sched, IOAS_LOCK);
  }

  get internal(): boolean {
    return this.ops === undefined;
  }

  *notifyUnmap(iova: bigint, length: bigint): Step<void> {
    if (this.ops === undefined || !lockObject(this)) return;
    if (this.ops.unmap !== undefined) yield* this.ops.unmap(iova, length);
    putObject(this.ctx, this);
  }

  /** Moves to another IOAS, or to none. EBUSY: another move is under way. ioasLock held; dropped while the owner unpins. */
  *changeIoas(to: IommufdIoas | undefined): Step<Errno | undefined> {
    const from = this.ioas;
    if (from !== this.ioasUnpin) return EBUSY;
    if (from === to) return undefined;
    const oldId = this.#listId;
    // No new pins from here on; unpinning goes by ioasUnpin.
    this.ioas = undefined;
    if (to !== undefined) {
      const id = yield* to.iopt.addAccess(this);
      if (id instanceof Errno) {
        this.ioas = from;
        return id;
      }
      this.#listId = id;
      to.users++;
    }
    if (from !== undefined) {
      if (this.ops?.unmap !== undefined) {
        this.ioasLock.unlock();
        yield* this.ops.unmap(0n, U64_MAX);
        yield* this.ioasLock.lock();
      }
      yield* from.iopt.removeAccess(oldId);
      decUsers(from);
    }
    this.ioas = to;
    this.ioasUnpin = to;
    return undefined;
  }

  override *destroy(): Step<void> {
    yield* this.ioasLock.lock();
    try {
      if (this.ioas !== undefined) bugOn((yield* this.changeIoas(undefined)) !== undefined, "an access does not leave its IOAS");
    } finally {
      this.ioasLock.unlock();
    }
    if (!this.internal) iommufdCtxPut(this.ctx);
  }
}

/** An access for a driver; the owner ends it with `iommufdAccessDestroy`. ENOMEM. */
export function iommufdAccessCreate(ctx: IommufdCtx, ops: IommufdAccessOps): IommufdAccess | Errno {
  const a = allocObject(ctx, new IommufdAccess(ctx, ops));
  if (a instanceof Errno) return a;
  a.users++;
  iommufdCtxGet(ctx);
  finalizeObject(ctx, a);
  return a;
}

/** An access of iommufd itself: what it pins cannot be unmapped. It keeps no reference on the context. ENOMEM. */
export function iommufdAccessCreateInternal(ctx: IommufdCtx): IommufdAccess | Errno {
  const a = allocObject(ctx, new IommufdAccess(ctx, undefined));
  if (a instanceof Errno) return a;
  a.users++;
  finalizeObject(ctx, a);
  return a;
}

/** Detaches and ends it. The owner no longer uses it. */
export function* iommufdAccessDestroy(a: IommufdAccess): Step<void> {
  yield* destroyOwnedObject(a.ctx, a);
}

function* changeId(a: IommufdAccess, ioasId: number): Step<Errno | undefined> {
  const ioas = getObject(a.ctx, ioasId, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    return yield* a.changeIoas(ioas);
  } finally {
    putObject(a.ctx, ioas);
  }
}

/** ENOENT: no such IOAS. EADDRINUSE: its areas are not aligned enough. */
export function* iommufdAccessAttach(a: IommufdAccess, ioasId: number): Step<Errno | undefined> {
  yield* a.ioasLock.lock();
  try {
    bugOn(a.ioas !== undefined, "an access is attached twice");
    return yield* changeId(a, ioasId);
  } finally {
    a.ioasLock.unlock();
  }
}

/** The same for an access of iommufd itself, to an IOAS it holds. */
export function* iommufdAccessAttachInternal(a: IommufdAccess, ioas: IommufdIoas): Step<Errno | undefined> {
  yield* a.ioasLock.lock();
  try {
    bugOn(a.ioas !== undefined, "an access is attached twice");
    return yield* a.changeIoas(ioas);
  } finally {
    a.ioasLock.unlock();
  }
}

/** Moves an attached access. ENOENT: it is not attached, or there is no such IOAS. */
export function* iommufdAccessReplace(a: IommufdAccess, ioasId: number): Step<Errno | undefined> {
  yield* a.ioasLock.lock();
  try {
    return a.ioas === undefined ? ENOENT : yield* changeId(a, ioasId);
  } finally {
    a.ioasLock.unlock();
  }
}

export function* iommufdAccessDetach(a: IommufdAccess): Step<void> {
  yield* a.ioasLock.lock();
  try {
    bugOn(a.ioas === undefined, "an access is detached that is not attached");
    bugOn((yield* a.changeIoas(undefined)) !== undefined, "an access does not leave its IOAS");
  } finally {
    a.ioasLock.unlock();
  }
}

const allows = (area: IoptArea, flags: number): boolean =>
  (area.prot & ((flags & IOMMUFD_ACCESS_RW_WRITE) !== 0 ? IOMMU_WRITE : IOMMU_READ)) !== 0;

/** The part begins on a page, and ends on one unless it is the end of the range. */
function pageAligned(p: AreaPart, isLast: boolean): boolean {
  if ((p.area.startByteAt(p.first) & PAGE_MASK_N) !== 0n) return false;
  return isLast || (p.area.startByteAt(p.area.last) & PAGE_MASK_N) === PAGE_MASK_N;
}

function* pinPart(a: IommufdAccess, p: AreaPart, isLast: boolean, flags: number): Step<Pfn[] | Errno> {
  const { area, pages } = p;
  if (area.preventAccess || !pageAligned(p, isLast)) return EINVAL;
  if (!allows(area, flags)) return EPERM;
  if ((flags & IOMMUFD_ACCESS_RW_WRITE) !== 0 && !pages.writable) return EPERM;
  if (pages.type === "dmabuf") return EINVAL;
  yield* pages.mutex.lock();
  try {
    const pfns = yield* pages.addAccess(area.indexAt(p.first), area.indexAt(p.last));
    if (pfns instanceof Errno) return pfns;
    area.numAccesses++;
    if (a.internal) area.numLocks++;
    return pfns;
  } finally {
    pages.mutex.unlock();
  }
}

function* unpinPart(a: IommufdAccess, { area, pages, first, last }: AreaPart): Step<void> {
  yield* pages.mutex.lock();
  try {
    bugOn(area.numAccesses === 0 || (a.internal && area.numLocks === 0), "an area is unpinned more often than it was pinned");
    pages.removeAccess(area.indexAt(first), area.indexAt(last));
    area.numAccesses--;
    if (a.internal) area.numLocks--;
  } finally {
    pages.mutex.unlock();
  }
}

/**
 * The frames behind [iova, iova + length), pinned until `iommufdAccessUnpinPages`
 * of the very same range. EINVAL: no bytes, unaligned, being unmapped, or device
 * memory. EOVERFLOW. ENOENT: not attached, or a hole. EPERM: not readable or writable.
 */
export function* iommufdAccessPinPages(a: IommufdAccess, iova: bigint, length: bigint, flags: number): Step<Pfn[] | Errno> {
  bugOn(a.iovaAlignment !== PAGE_SIZE_N || (a.ops !== undefined && a.ops.unmap === undefined), "this access cannot pin pages");
  if (length === 0n) return EINVAL;
  const last = iova + length - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  yield* a.ioasLock.lock();
  try {
    const iopt = a.ioas?.iopt;
    if (iopt === undefined) return ENOENT;
    yield* iopt.iovaSem.downRead();
    try {
      const { parts, whole } = iopt.contiguous(iova, last);
      const out: Pfn[] = [];
      for (const [i, p] of parts.entries()) {
        const pfns = yield* pinPart(a, p, p.last === last, flags);
        if (!(pfns instanceof Errno)) {
          for (const pfn of pfns) out.push(pfn);
          continue;
        }
        for (const q of parts.slice(0, i)) yield* unpinPart(a, q);
        return pfns;
      }
      if (whole) return out;
      for (const p of parts) yield* unpinPart(a, p);
      return ENOENT;
    } finally {
      iopt.iovaSem.upRead();
    }
  } finally {
    a.ioasLock.unlock();
  }
}

/** Gives back what one call of `iommufdAccessPinPages` pinned. */
export function* iommufdAccessUnpinPages(a: IommufdAccess, iova: bigint, length: bigint): Step<void> {
  yield* a.ioasLock.lock();
  try {
    const iopt = a.ioasUnpin?.iopt;
    if (iopt === undefined) throw new KernelBug("pages are unpinned through an access that is attached nowhere");
    yield* iopt.iovaSem.downRead();
    try {
      const { parts, whole } = iopt.contiguous(iova, iova + length - 1n);
      bugOn(!whole, "pages are unpinned that were not pinned");
      for (const p of parts) yield* unpinPart(a, p);
    } finally {
      iopt.iovaSem.upRead();
    }
  } finally {
    a.ioasLock.unlock();
  }
}

/** Copies between `data` and [iova, …). Errors as for pinning, but nothing needs to be aligned; EFAULT. */
export function* iommufdAccessRw(a: IommufdAccess, iova: bigint, data: Uint8Array, flags: number): Step<Errno | undefined> {
  if (data.length === 0) return EINVAL;
  const last = iova + BigInt(data.length) - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  yield* a.ioasLock.lock();
  try {
    const iopt = a.ioas?.iopt;
    if (iopt === undefined) return ENOENT;
    yield* iopt.iovaSem.downRead();
    try {
      const { parts, whole } = iopt.contiguous(iova, last);
      for (const { area, pages, first, last: end } of parts) {
        if (area.preventAccess) return EINVAL;
        if (!allows(area, flags)) return EPERM;
        const part = data.subarray(Number(first - iova), Number(end - iova) + 1);
        const e = yield* rwPages(pages, area.startByteAt(first), part, flags);
        if (e !== undefined) return e;
      }
      return whole ? undefined : ENOENT;
    } finally {
      iopt.iovaSem.upRead();
    }
  } finally {
    a.ioasLock.unlock();
  }
}

function* rwPages(pages: IoptPages, startByte: bigint, data: Uint8Array, flags: number): Step<Errno | undefined> {
  const write = (flags & IOMMUFD_ACCESS_RW_WRITE) !== 0;
  if (write && !pages.writable) return EPERM;
  if (pages.type === "dmabuf") return EINVAL;
  const { kernel } = pages;
  const { mm } = pages.source;
  const own = (kernel.sched.current.owner as { mm?: unknown } | undefined)?.mm === mm && (flags & IOMMUFD_ACCESS_RW_SLOW_PATH) === 0;
  if (pages.type === "user" && (own || (flags & IOMMUFD_ACCESS_RW_KTHREAD) !== 0) && mm.getNotZero()) {
    // As a copy to or from user memory would: not through the pinned frames.
    const addr = pages.baseByte + startByte;
    const left = kernel.fault.userCopy() ? data.length : write ? mm.memory.write(addr, data) : mm.memory.read(addr, data);
    mm.put();
    return left > 0 ? EFAULT : undefined;
  }
  const first = Number(startByte / PAGE_SIZE_N);
  const last = Number((startByte + BigInt(data.length) - 1n) / PAGE_SIZE_N);
  if (pages.type === "user" && first === last && mm.getNotZero()) {
    try {
      return yield* rwPage(pages, pages.baseByte + startByte, data, write);
    } finally {
      mm.put();
    }
  }
  return yield* rwFrames(pages, startByte, data, write);
}

/** A single page: the one that is at the address now, whatever was pinned there. EINVAL, EFAULT. */
function* rwPage({ kernel, source }: IoptPages, addr: bigint, data: Uint8Array, write: boolean): Step<Errno | undefined> {
  if (kernel.fault.iommufd("page")) return EINVAL;
  const { mm } = source;
  yield* mm.mmapLock.downRead();
  let pfns: Pfn[] | Errno;
  try {
    pfns = mm.memory.pin(addr & ~PAGE_MASK_N, 1, write);
  } finally {
    mm.mmapLock.upRead();
  }
  if (pfns instanceof Errno) return pfns;
  const [pfn] = pfns;
  if (pfn === undefined) return EFAULT;
  const offset = Number(addr & PAGE_MASK_N);
  if (write) kernel.frames.writeFrame(pfn, offset, data);
  else kernel.frames.readFrame(pfn, offset, data);
  mm.memory.unpin(pfns, write);
  return undefined;
}

/** Through frames that are pinned, or pinned for the moment. */
function* rwFrames(pages: IoptPages, startByte: bigint, data: Uint8Array, write: boolean): Step<Errno | undefined> {
  const first = Number(startByte / PAGE_SIZE_N);
  const last = Number((startByte + BigInt(data.length) - 1n) / PAGE_SIZE_N);
  const { frames } = pages.kernel;
  yield* pages.mutex.lock();
  try {
    let e = pages.temporary("batch");
    e ??= yield* pages.pin(first, last);
    if (e === undefined) {
      let offset = Number(startByte & PAGE_MASK_N);
      let at = 0;
      for (let i = first; i <= last; i++) {
        const part = data.subarray(at, at + PAGE_SIZE - offset);
        if (write) frames.writeFrame(pages.pfnAt(i), offset, part);
        else frames.readFrame(pages.pfnAt(i), offset, part);
        at += part.length;
        offset = 0;
      }
    }
    pages.dropUncovered(first, last);
    return e;
  } finally {
    pages.mutex.unlock();
  }
}
