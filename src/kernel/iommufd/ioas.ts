/**
 * An IOAS, and the commands that work on one: alloc, map, map_file, copy, unmap,
 * ranges, allow. Checks stand in Linux's order.
 *
 * Lock: `mutex` guards `hwpts`; outside of the group locks and of the I/O page
 * table's. Source: drivers/iommu/iommufd/ioas.c, spec sections 4 and 5.
 */
import { U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, EMSGSIZE, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  type IommuIoasAlloc,
  type IommuIoasAllowIovas,
  type IommuIoasCopy,
  type IommuIoasIovaRanges,
  type IommuIoasMap,
  type IommuIoasMapFile,
  type IommuIoasNoiommuGetPa,
  type IommuIoasUnmap,
  IommuIovaRange,
} from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import type { HwptPaging } from "./hw_pagetable.ts";
import { IoPagetable } from "./io_pagetable.ts";
import { holes } from "./iova_alloc.ts";
import { iommufdModule, SELFTEST_RESERVATION } from "./module.ts";
import { abortObject, allocObject, finalizeObject, getObject, IommufdObject, putObject } from "./object.ts";
import { allocFdPages, allocUserPages } from "./pages_alloc.ts";
import { respond, type Ucmd } from "./ucmd.ts";

const MUTEX: LockClass = new LockClass("iommufd_ioas.mutex");
const MAP_FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;

export class IommufdIoas extends IommufdObject {
  readonly type = "ioas";
  readonly ctx: IommufdCtx;
  readonly iopt: IoPagetable;
  readonly mutex: Mutex;
  /** Hardware page tables on it, oldest first. Under `mutex`. */
  readonly hwpts: HwptPaging[] = [];

  constructor(ctx: IommufdCtx) {
    super();
    this.ctx = ctx;
    this.iopt = new IoPagetable(ctx.kernel);
    this.mutex = new Mutex(ctx.kernel.sched, MUTEX);
  }

  override *destroy(): Step<void> {
    const r = yield* this.iopt.unmapAll();
    if (r instanceof Errno && r !== ENOENT) throw new KernelBug(`iommufd: IOAS ${this.id} cannot be emptied: ${r}`);
    if (iommufdModule(this.ctx.kernel).selftest !== undefined) yield* this.iopt.removeReserved(SELFTEST_RESERVATION);
    this.iopt.checkEmpty();
  }
}

/** IOMMU_IOAS_ALLOC. */
export function* ioasAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasAlloc>): Step<Errno | undefined> {
  if (cmd.flags !== 0) return EOPNOTSUPP;
  const { ctx } = ucmd;
  const ioas = allocObject(ctx, new IommufdIoas(ctx));
  if (ioas instanceof Errno) return ioas;
  cmd.out_ioas_id = ioas.id;
  const e = respond(ucmd, cmd);
  if (e !== undefined) {
    yield* abortObject(ctx, ioas);
    return e;
  }
  yield* ctx.ioasCreationLock.downRead();
  finalizeObject(ctx, ioas);
  ctx.ioasCreationLock.upRead();
  return undefined;
}

/** IOMMU_IOAS_IOVA_RANGES. EMSGSIZE, with the number there are, when they do not fit. */
export function* ioasIovaRanges(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasIovaRanges>): Step<Errno | undefined> {
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  const { ctx } = ucmd;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  yield* ioas.iopt.iovaSem.downRead();
  try {
    const room = cmd.num_iovas;
    let n = 0;
    cmd.out_iova_alignment = ioas.iopt.iovaAlignment;
    for (const [start, last] of holes(ioas.iopt.reserved)) {
      if (n < room) {
        const at = cmd.allowed_iovas + BigInt(n * IommuIovaRange.size);
        if (copyToUser(ctx.kernel, at, IommuIovaRange.alloc({ start, last }).bytes) > 0) return EFAULT;
      }
      n++;
    }
    cmd.num_iovas = n;
    return respond(ucmd, cmd) ?? (n > room ? EMSGSIZE : undefined);
  } finally {
    ioas.iopt.iovaSem.upRead();
    putObject(ctx, ioas);
  }
}

/** IOMMU_IOAS_ALLOW_IOVAS. EINVAL for an empty range or two that overlap, EADDRINUSE for one that is reserved. */
export function* ioasAllowIovas(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasAllowIovas>): Step<Errno | undefined> {
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  const { ctx } = ucmd;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    const ranges: { start: bigint; last: bigint }[] = [];
    const range = IommuIovaRange.alloc();
    for (let i = 0; i < cmd.num_iovas; i++) {
      if (copyFromUser(ctx.kernel, range.bytes, cmd.allowed_iovas + BigInt(i * IommuIovaRange.size)) > 0) return EFAULT;
      const { start, last } = range;
      if (start >= last || ranges.some((r) => r.start <= last && start <= r.last)) return EINVAL;
      if (ctx.kernel.fault.slab("iopt_allowed")) return ENOMEM;
      ranges.push({ start, last });
    }
    return yield* ioas.iopt.setAllowed(ranges);
  } finally {
    putObject(ctx, ioas);
  }
}

/** Protection of a mapping. DMA is always coherent: bind makes sure that it can be. */
function protOf(flags: number): number {
  let prot = IOMMU_CACHE;
  if ((flags & IOMMU_IOAS_MAP_WRITEABLE) !== 0) prot |= IOMMU_WRITE;
  if ((flags & IOMMU_IOAS_MAP_READABLE) !== 0) prot |= IOMMU_READ;
  return prot;
}

/** What map, map_file and copy refuse before they look at any object. */
function checkMap(flags: number, reserved: number, ...numbers: readonly bigint[]): Errno | undefined {
  if ((flags & ~MAP_FLAGS) !== 0 || reserved !== 0) return EOPNOTSUPP;
  for (const n of numbers) if (n >= U64_MAX) return EOVERFLOW;
  return (flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE)) === 0 ? EINVAL : undefined;
}

/** IOMMU_IOAS_MAP_FILE: spec section 4.1. */
export function* ioasMapFile(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasMapFile>): Step<Errno | undefined> {
  const { flags, length } = cmd;
  const bad = checkMap(flags, 0, cmd.iova, length);
  if (bad !== undefined) return bad;
  const { ctx } = ucmd;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    const slice = yield* allocFdPages(ctx, ioas.iopt, cmd.fd, cmd.start, length, (flags & IOMMU_IOAS_MAP_WRITEABLE) !== 0);
    if (slice instanceof Errno) return slice;
    const kind = slice.pages.type;
    const at = (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0 ? cmd.iova : undefined;
    const iova = yield* ioas.iopt.mapPages([slice], length, at, protOf(flags));
    if (iova instanceof Errno) return iova;
    const { trace } = ctx.kernel;
    if (trace.on) trace.emit({ type: "iommufd.map_file", ioas: ioas.id, iova, length, start: cmd.start, kind });
    cmd.iova = iova;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, ioas);
  }
}

/** IOMMU_IOAS_MAP. */
export function* ioasMap(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasMap>): Step<Errno | undefined> {
  const { flags, length } = cmd;
  const bad = checkMap(flags, cmd.__reserved, cmd.iova, length);
  if (bad !== undefined) return bad;
  const { ctx } = ucmd;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    const slice = allocUserPages(ctx, cmd.user_va, length, (flags & IOMMU_IOAS_MAP_WRITEABLE) !== 0);
    if (slice instanceof Errno) return slice;
    const at = (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0 ? cmd.iova : undefined;
    const iova = yield* ioas.iopt.mapPages([slice], length, at, protOf(flags));
    if (iova instanceof Errno) return iova;
    const { trace } = ctx.kernel;
    if (trace.on) trace.emit({ type: "iommufd.map", ioas: ioas.id, iova, length, addr: cmd.user_va });
    cmd.iova = iova;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, ioas);
  }
}

/** IOMMU_IOAS_COPY: the same pages once more. ENOENT when the source has a gap. A revoked area copies as a dead one. */
export function* ioasCopy(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasCopy>): Step<Errno | undefined> {
  const { selftest } = iommufdModule(ucmd.ctx.kernel);
  if (selftest !== undefined) yield* selftest.convertCopy(ucmd.ctx, cmd);
  const { flags, length } = cmd;
  const bad = checkMap(flags, 0, length, cmd.src_iova, cmd.dst_iova);
  if (bad !== undefined) return bad;
  const { ctx } = ucmd;
  const src = getObject(ctx, cmd.src_ioas_id, IommufdIoas);
  if (src instanceof Errno) return src;
  const slices = yield* src.iopt.getPages(cmd.src_iova, length);
  putObject(ctx, src);
  if (slices instanceof Errno) return slices;
  const dst = getObject(ctx, cmd.dst_ioas_id, IommufdIoas);
  if (dst instanceof Errno) {
    for (const s of slices) yield* s.pages.put();
    return dst;
  }
  try {
    const at = (flags & IOMMU_IOAS_MAP_FIXED_IOVA) !== 0 ? cmd.dst_iova : undefined;
    const iova = yield* dst.iopt.mapPages(slices, length, at, protOf(flags));
    if (iova instanceof Errno) return iova;
    const { trace } = ctx.kernel;
    if (trace.on) trace.emit({ type: "iommufd.copy", src: src.id, dst: dst.id, from: cmd.src_iova, iova, length, areas: slices.length });
    cmd.dst_iova = iova;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, dst);
  }
}

/** IOMMU_IOAS_UNMAP. ENOENT when nothing was there or an area would be split; everything with iova 0 and length ~0. */
export function* ioasUnmap(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasUnmap>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  try {
    const { iova, length } = cmd;
    let unmapped: bigint | Errno;
    if (iova === 0n && length === U64_MAX) {
      unmapped = yield* ioas.iopt.unmapAll();
    } else {
      if (iova >= U64_MAX || length >= U64_MAX) return EOVERFLOW;
      unmapped = yield* ioas.iopt.unmapIova(iova, length);
      if (unmapped === 0n) return ENOENT;
    }
    if (unmapped instanceof Errno) return unmapped;
    const { trace } = ctx.kernel;
    if (trace.on) trace.emit({ type: "iommufd.unmap", ioas: ioas.id, iova, length, unmapped });
    cmd.length = unmapped;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, ioas);
  }
}

/**
 * IOMMU_IOAS_NOIOMMU_GET_PA. No device of this kernel works without an IOMMU, so
 * no domain is of the kind that this looks into: what is left are its refusals.
 */
export function* ioasNoiommuGetPa(ucmd: Ucmd, cmd: ViewOf<typeof IommuIoasNoiommuGetPa>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (!ctx.kernel.current.capable("CAP_SYS_RAWIO")) return EPERM;
  if (cmd.flags !== 0 || cmd.__reserved !== 0) return EOPNOTSUPP;
  if (cmd.length === 0n) return EINVAL;
  if (cmd.iova >= U64_MAX) return EOVERFLOW;
  const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
  if (ioas instanceof Errno) return ioas;
  yield* ioas.iopt.iovaSem.downRead();
  try {
    const pages = ioas.iopt.areas.stab(cmd.iova)?.pages;
    if (pages === undefined) return ENOENT;
    yield* pages.mutex.lock();
    const { revoked } = pages;
    pages.mutex.unlock();
    return revoked ? EINVAL : EOPNOTSUPP;
  } finally {
    ioas.iopt.iovaSem.upRead();
    putObject(ctx, ioas);
  }
}
