/**
 * Devices of a context, as the driver that owns them (VFIO) sees it: bind,
 * attach, replace, detach, unbind; and GET_HW_INFO.
 *
 * A driver binds a device, which claims the DMA of its whole IOMMU group for
 * this context, then attaches it to an IOAS (a domain is found or made) or to a
 * hardware page table of the user's. Source: drivers/iommu/iommufd/device.c.
 */
import { EFAULT, EINVAL, ENODEV, EOPNOTSUPP, EPERM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_HW_INFO_FLAG_INPUT_TYPE, IOMMU_HW_INFO_TYPE_DEFAULT, type IommuHwInfo } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { Device } from "../device.ts";
import type { IommuGroup } from "../iommu/group.ts";
import { clearUser, copyToUser } from "../mm/user_memory.ts";
import { type IommufdCtx, iommufdCtxGet } from "./ctx.ts";
import { attachHwpt, detachHwpt, IommufdDevice, IommufdGroup, replaceHwpt } from "./group.ts";
import { allocHwptPaging } from "./hw_pagetable.ts";
import { IommufdHwpt } from "./hwpt.ts";
import { IommufdIoas } from "./ioas.ts";
import { iommufdModule } from "./module.ts";
import {
  abortObject,
  allocObject,
  decUsers,
  destroyOwnedObject,
  finalizeObject,
  getAnyObject,
  getObject,
  lockObject,
  putObject,
} from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";

export { iommufdCtxFromFd, iommufdCtxPut } from "./ctx.ts";
export { IommufdDevice, NO_PASID as IOMMU_NO_PASID } from "./group.ts";

/** How a device changes its page table: the first time, or from another. */
type Change = "attach" | "replace";

/**
 * Binds a device to a context: its DMA belongs to the context until unbind.
 * EINVAL: no IOMMU, or one that cannot keep DMA coherent. EPERM: its interrupts
 * are not isolated. EBUSY: the group's DMA belongs to somebody else.
 */
export function* iommufdDeviceBind(ctx: IommufdCtx, dev: Device): Step<{ idev: IommufdDevice; id: number } | Errno> {
  const idev = allocObject(ctx, new IommufdDevice(ctx, dev));
  if (idev instanceof Errno) return idev;
  const e = yield* bindIommu(ctx, idev);
  if (e !== undefined) {
    yield* abortObject(ctx, idev);
    return e;
  }
  // A device of the selftest goes with its context, and so must not keep it.
  if (dev.bus !== "mock") iommufdCtxGet(ctx);
  idev.users++;
  finalizeObject(ctx, idev);
  if (ctx.kernel.trace.on) ctx.kernel.trace.emit({ type: "iommufd.bind", device: dev.name, id: idev.id });
  return { idev, id: idev.id };
}

function* bindIommu(ctx: IommufdCtx, idev: IommufdDevice): Step<Errno | undefined> {
  const { dev } = idev;
  if (dev.iommuUnit?.capable("cache-coherency", dev) !== true) return EINVAL;
  const group = dev.iommuGroup;
  if (group === undefined) return ENODEV;
  const igroup = IommufdGroup.get(ctx, group);
  if (igroup instanceof Errno) return igroup;
  if (dev.bus !== "mock" && !group.hasIsolatedMsi) {
    if (!iommufdModule(ctx.kernel).allowUnsafeInterrupts) {
      igroup.put();
      return EPERM;
    }
    ctx.kernel.printk(`${dev.name}: MSI interrupts are not secure, they cannot be isolated by the platform`);
  }
  const e = yield* group.claimDmaOwner(ctx);
  if (e !== undefined) {
    igroup.put();
    return e;
  }
  idev.igroup = igroup;
  idev.enforceCacheCoherency = dev.iommuUnit.capable("enforce-cache-coherency", dev);
  return undefined;
}

/** Undoes the bind. The device must be detached. */
export function* iommufdDeviceUnbind(idev: IommufdDevice): Step<void> {
  yield* destroyOwnedObject(idev.ctx, idev);
}

/** True when a device of that group is bound to the context, which therefore owns the group's DMA. */
export function iommufdCtxHasGroup(ctx: IommufdCtx | undefined, group: IommuGroup | undefined): boolean {
  if (ctx === undefined || group === undefined) return false;
  for (const o of ctx.objects) if (o instanceof IommufdDevice && o.group.group === group) return true;
  return false;
}

export function iommufdDeviceToCtx(idev: IommufdDevice): IommufdCtx {
  return idev.ctx;
}

export function iommufdDeviceToId(idev: IommufdDevice): number {
  return idev.id;
}

function* change(idev: IommufdDevice, pasid: number, hwpt: IommufdHwpt, how: Change): Step<IommufdHwpt | undefined | Errno> {
  return how === "attach" ? yield* attachHwpt(hwpt, idev, pasid) : yield* replaceHwpt(hwpt, idev, pasid);
}

/** Finds a domain of the IOAS that takes the device, or makes one. Answers the id chosen and the page table left behind. */
function* autoDomain(
  idev: IommufdDevice,
  pasid: number,
  ioas: IommufdIoas,
  how: Change,
): Step<{ id: number; old: IommufdHwpt | undefined } | Errno> {
  const { ctx } = idev;
  yield* ioas.mutex.lock();
  try {
    for (const hwpt of [...ioas.hwpts]) {
      if (!hwpt.autoDomain || !lockObject(hwpt)) continue;
      const old = yield* change(idev, pasid, hwpt, how);
      const { id } = hwpt;
      putObject(ctx, hwpt);
      if (!(old instanceof Errno)) return { id, old };
      // EINVAL says that this domain does not suit the device; another may.
      if (old !== EINVAL) return old;
    }
    const hwpt = yield* allocHwptPaging(ctx, ioas, idev, { pasid, flags: 0, attach: how === "attach" });
    if (hwpt instanceof Errno) return hwpt;
    let old: IommufdHwpt | undefined;
    if (how === "replace") {
      const r = yield* replaceHwpt(hwpt, idev, pasid);
      if (r instanceof Errno) {
        yield* abortObject(ctx, hwpt);
        return r;
      }
      old = r;
    }
    hwpt.autoDomain = true;
    finalizeObject(ctx, hwpt);
    return { id: hwpt.id, old };
  } finally {
    ioas.mutex.unlock();
  }
}

function* changePt(idev: IommufdDevice, pasid: number, ptId: number, how: Change): Step<number | Errno> {
  const { ctx } = idev;
  const pt = getAnyObject(ctx, ptId);
  if (pt instanceof Errno) return pt;
  let id = ptId;
  let old: IommufdHwpt | undefined;
  try {
    if (pt instanceof IommufdHwpt) {
      const r = yield* change(idev, pasid, pt, how);
      if (r instanceof Errno) return r;
      old = r;
    } else if (pt instanceof IommufdIoas) {
      const r = yield* autoDomain(idev, pasid, pt, how);
      if (r instanceof Errno) return r;
      ({ id, old } = r);
    } else {
      return EINVAL;
    }
  } finally {
    putObject(ctx, pt);
  }
  // Only now that nothing is locked: this may destroy it.
  if (old !== undefined) yield* old.put();
  return id;
}

/**
 * Attaches to an IOAS or a hardware page table; the id of the hardware page
 * table the device is on. ENOENT: no such object. EINVAL: not a page table, not
 * one for this device, or the group is elsewhere. EBUSY: attached already.
 * EADDRINUSE: an area lies where the device cannot translate.
 */
export function* iommufdDeviceAttach(idev: IommufdDevice, pasid: number, ptId: number): Step<number | Errno> {
  const id = yield* changePt(idev, pasid, ptId, "attach");
  if (!(id instanceof Errno)) idev.users++;
  return id;
}

/** Moves an attached device, and its group, to another page table. Nothing changes when it fails. */
export function* iommufdDeviceReplace(idev: IommufdDevice, pasid: number, ptId: number): Step<number | Errno> {
  return yield* changePt(idev, pasid, ptId, "replace");
}

/** Detaches; the device is blocked afterwards. No effect on one that is not attached. */
export function* iommufdDeviceDetach(idev: IommufdDevice, pasid: number): Step<void> {
  if (yield* detachHwpt(idev, pasid)) decUsers(idev);
}

/** IOMMU_GET_HW_INFO: what the unit tells user space of itself; what does not fit is cut off, what is left over is zeroed. */
export function* getHwInfo(ucmd: Ucmd, cmd: ViewOf<typeof IommuHwInfo>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if ((cmd.flags & ~IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0 || cmd.__reserved.some((b) => b !== 0)) return EOPNOTSUPP;
  const type = (cmd.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) === 0 ? IOMMU_HW_INFO_TYPE_DEFAULT : cmd.in_data_type;
  const idev = getObject(ctx, cmd.dev_id, IommufdDevice);
  if (idev instanceof Errno) return idev;
  try {
    const info = idev.group.group.unit.hwInfo(idev.dev, type);
    if (info instanceof Errno) return info;
    const room = cmd.data_len;
    const data = info.data.subarray(0, Math.min(room, info.data.length));
    if (copyToUser(ctx.kernel, cmd.data_uptr, data) > 0) return EFAULT;
    if (room > data.length && clearUser(ctx.kernel, cmd.data_uptr + BigInt(data.length), room - data.length) > 0) return EFAULT;
    cmd.data_len = info.data.length;
    cmd.out_data_type = info.type;
    cmd.out_capabilities = info.capabilities;
    cmd.out_max_pasid_log2 = info.maxPasidLog2;
    return respond(ucmd, cmd);
  } finally {
    putObject(ctx, idev);
  }
}
