/**
 * Hardware page tables: an IOMMU domain as an object, and its dirty tracking.
 *
 * A paging one is filled with every area of its IOAS from the moment it exists.
 * One that was made on the fly for an attach ("auto") goes with the last device;
 * one that the user made stays until it is destroyed.
 *
 * Lock order: ioas.mutex (held from the allocation until the object is published
 * or aborted) → group lock → locks of the I/O page table.
 * Source: drivers/iommu/iommufd/hw_pagetable.c.
 */

import { U64_MAX } from "../../lib/addr.ts";
import { EINVAL, ENOMEM, EOPNOTSUPP, EOVERFLOW, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_FAULT_ID_VALID,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  type IommuHwptGetDirtyBitmap,
  type IommuHwptSetDirtyTracking,
} from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { IommuDirtyOps, IommuDomain } from "../iommu/domain.ts";
import type { IommuUserData } from "../iommu/user_data.ts";
import type { IommufdCtx } from "./ctx.ts";
import { DirtyBitmap } from "./dirty_bitmap.ts";
import { attachHwpt, detachHwpt, type IommufdDevice } from "./group.ts";
import { IommufdHwpt } from "./hwpt.ts";
import type { IommufdIoas } from "./ioas.ts";
import { abortObject, allocObject, decUsers, getObject, putAndTryDestroy, putObject } from "./object.ts";
import type { Ucmd } from "./ucmd.ts";

const VALID_FLAGS = IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

export class HwptPaging extends IommufdHwpt {
  readonly type = "hwpt_paging";
  readonly ctx: IommufdCtx;
  readonly ioas: IommufdIoas;
  readonly nestParent: boolean;
  /** Made for an attach, and gone with the last device. */
  autoDomain = false;
  enforceCacheCoherency = false;

  constructor(ctx: IommufdCtx, ioas: IommufdIoas, flags: number) {
    super((flags & IOMMU_HWPT_ALLOC_PASID) !== 0);
    this.ctx = ctx;
    this.ioas = ioas;
    this.nestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
  }

  override get paging(): HwptPaging {
    return this;
  }

  override *put(): Step<void> {
    if (this.autoDomain) yield* putAndTryDestroy(this.ctx, this);
    else decUsers(this);
  }

  /** Takes it off its IOAS; nothing to do when it never got there. ioas.mutex held. */
  *#leave(): Step<void> {
    const i = this.ioas.hwpts.indexOf(this);
    if (i < 0) return;
    this.ioas.hwpts.splice(i, 1);
    yield* this.ioas.iopt.removeDomain(this.domain);
  }

  #free(): void {
    this.freeDomain();
    decUsers(this.ioas);
  }

  override *destroy(): Step<void> {
    yield* this.ioas.mutex.lock();
    const i = this.ioas.hwpts.indexOf(this);
    if (i >= 0) this.ioas.hwpts.splice(i, 1);
    this.ioas.mutex.unlock();
    if (i >= 0) yield* this.ioas.iopt.removeDomain(this.domain);
    this.#free();
  }

  override *abort(): Step<void> {
    yield* this.#leave();
    this.#free();
  }
}

/**
 * A new domain for `idev`, filled with the areas of `ioas`; attached first if
 * `attach`. Its id is reserved, not published. ioas.mutex held. EOPNOTSUPP: the
 * unit cannot do what the flags ask. EADDRINUSE: an area does not fit the domain.
 */
export function* allocHwptPaging(
  ctx: IommufdCtx,
  ioas: IommufdIoas,
  idev: IommufdDevice,
  { pasid, flags, attach, data }: { pasid: number; flags: number; attach: boolean; data?: IommuUserData },
): Step<HwptPaging | Errno> {
  const { unit } = idev.group.group;
  if ((flags & ~VALID_FLAGS) !== 0) return EOPNOTSUPP;
  if ((flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0 && !unit.capable("dirty-tracking", idev.dev)) return EOPNOTSUPP;
  if ((flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0 && (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0) return EOPNOTSUPP;
  if (data !== undefined && !unit.takesUserData) return EOPNOTSUPP;
  const hwpt = allocObject(ctx, new HwptPaging(ctx, ioas, flags));
  if (hwpt instanceof Errno) return hwpt;
  ioas.users++;
  const domain = yield* unit.domainAllocPagingFlags(idev.dev, flags & ~IOMMU_HWPT_FAULT_ID_VALID, data);
  const e = domain instanceof Errno ? domain : yield* fillHwpt(hwpt, domain, idev, attach ? pasid : undefined);
  if (e === undefined) return hwpt;
  yield* abortObject(ctx, hwpt);
  return e;
}

/** Attaches first, to `pasid` if there is one to attach to. */
function* fillHwpt(hwpt: HwptPaging, domain: IommuDomain, idev: IommufdDevice, pasid: number | undefined): Step<Errno | undefined> {
  hwpt.setDomain(domain);
  // Before anything is mapped: some tables carry it in every entry.
  if (idev.enforceCacheCoherency) {
    if (!domain.enforceCacheCoherency()) throw new KernelBug(`${idev.dev.name}: its unit says it can force coherent DMA, and cannot`);
    hwpt.enforceCacheCoherency = true;
  }
  if (pasid !== undefined) {
    const e = yield* attachHwpt(hwpt, idev, pasid);
    if (e !== undefined) return e;
  }
  const e = yield* hwpt.ioas.iopt.addDomain(domain);
  if (e !== undefined) {
    if (pasid !== undefined) yield* detachHwpt(idev, pasid);
    return e;
  }
  hwpt.ioas.hwpts.push(hwpt);
  return undefined;
}

/** IOMMU_HWPT_SET_DIRTY_TRACKING. Switching on starts from a clean table. */
export function* hwptSetDirtyTracking(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptSetDirtyTracking>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if ((cmd.flags & ~IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0) return EOPNOTSUPP;
  const hwpt = getObject(ctx, cmd.hwpt_id, HwptPaging);
  if (hwpt instanceof Errno) return hwpt;
  const { iopt } = hwpt.ioas;
  const enable = (cmd.flags & IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0;
  try {
    const { dirtyOps } = hwpt.domain;
    if (dirtyOps === undefined) return EOPNOTSUPP;
    yield* iopt.iovaSem.downRead();
    try {
      return (enable ? clearDirty(hwpt, dirtyOps) : undefined) ?? dirtyOps.setDirtyTracking(enable);
    } finally {
      iopt.iovaSem.upRead();
    }
  } finally {
    putObject(ctx, hwpt);
  }
}

function clearDirty(hwpt: HwptPaging, ops: IommuDirtyOps): Errno | undefined {
  for (const area of hwpt.ioas.iopt.areas) {
    if (area.pages === undefined) continue;
    const e = ops.readAndClearDirty(area.start, area.length, 0, { record: () => {} });
    if (e !== undefined) return e;
  }
  return undefined;
}

/** Why the range of a dirty bitmap will not do. */
function checkDirtyRange(cmd: ViewOf<typeof IommuHwptGetDirtyBitmap>, alignment: bigint): Errno | undefined {
  const { iova, length, page_size } = cmd;
  if (length === 0n) return EINVAL;
  const last = iova + length - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  const unaligned = (mask: bigint): boolean => (iova & mask) !== 0n || ((last + 1n) & mask) !== 0n;
  if (unaligned(alignment - 1n) || page_size === 0n || unaligned(page_size - 1n)) return EINVAL;
  return undefined;
}

/**
 * IOMMU_HWPT_GET_DIRTY_BITMAP. Errors inside the walk (a hole between areas, a
 * bitmap that cannot be written) end it and are not reported, as Linux has it.
 */
export function* hwptGetDirtyBitmap(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwptGetDirtyBitmap>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if ((cmd.flags & ~IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0 || cmd.__reserved !== 0) return EOPNOTSUPP;
  const hwpt = getObject(ctx, cmd.hwpt_id, HwptPaging);
  if (hwpt instanceof Errno) return hwpt;
  const { iopt } = hwpt.ioas;
  try {
    const bad = checkDirtyRange(cmd, iopt.iovaAlignment);
    if (bad !== undefined) return bad;
    yield* iopt.iovaSem.downRead();
    try {
      const { dirtyOps } = hwpt.domain;
      if (dirtyOps === undefined) return EOPNOTSUPP;
      if (ctx.kernel.fault.slab("iova_bitmap") || ctx.kernel.fault.page("list of pages")) return ENOMEM;
      const bitmap = new DirtyBitmap(ctx.kernel, cmd.iova, cmd.page_size, cmd.data);
      for (const p of iopt.contiguous(cmd.iova, cmd.iova + cmd.length - 1n).parts) {
        if (dirtyOps.readAndClearDirty(p.first, p.last - p.first + 1n, cmd.flags, bitmap) !== undefined) break;
      }
      bitmap.flush();
      return undefined;
    } finally {
      iopt.iovaSem.upRead();
    }
  } finally {
    putObject(ctx, hwpt);
  }
}
