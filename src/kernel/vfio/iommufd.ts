/**
 * Between a VFIO device and the iommufd it is bound to.
 *
 * All of it runs under dev_set->lock. A first attach attaches, a later one
 * replaces; unbind detaches what is still attached, PASIDs first.
 * Source: the "physical" functions of drivers/vfio/iommufd.c.
 */
import { ENODEV, ENOENT, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommufdCtx } from "../iommufd/ctx.ts";
import {
  IOMMU_NO_PASID,
  type IommufdDevice,
  iommufdCtxHasGroup,
  iommufdDeviceAttach,
  iommufdDeviceBind,
  iommufdDeviceDetach,
  iommufdDeviceReplace,
  iommufdDeviceToCtx,
  iommufdDeviceToId,
  iommufdDeviceUnbind,
} from "../iommufd/device.ts";
import type { VfioDevice } from "./vfio_main.ts";

/** Binds the physical device; its id in the context. */
export function* vfioIommufdPhysicalBind(vdev: VfioDevice, ctx: IommufdCtx): Step<number | Errno> {
  const r = yield* iommufdDeviceBind(ctx, vdev.dev);
  if (r instanceof Errno) return r;
  vdev.iommufdDevice = r.idev;
  vdev.pasids.clear();
  return r.id;
}

export function* vfioIommufdPhysicalUnbind(vdev: VfioDevice): Step<void> {
  const idev = bound(vdev);
  for (const pasid of [...vdev.pasids].sort((a, b) => a - b)) {
    yield* iommufdDeviceDetach(idev, pasid);
    vdev.pasids.delete(pasid);
  }
  if (vdev.iommufdAttached) {
    yield* iommufdDeviceDetach(idev, IOMMU_NO_PASID);
    vdev.iommufdAttached = false;
  }
  yield* iommufdDeviceUnbind(idev);
  vdev.iommufdDevice = undefined;
}

/** The id of the page table chosen. */
export function* vfioIommufdPhysicalAttach(vdev: VfioDevice, ptId: number): Step<number | Errno> {
  const idev = bound(vdev);
  const id = yield* vdev.iommufdAttached
    ? iommufdDeviceReplace(idev, IOMMU_NO_PASID, ptId)
    : iommufdDeviceAttach(idev, IOMMU_NO_PASID, ptId);
  if (!(id instanceof Errno)) vdev.iommufdAttached = true;
  return id;
}

/** No effect when not attached. */
export function* vfioIommufdPhysicalDetach(vdev: VfioDevice): Step<void> {
  const idev = bound(vdev);
  if (!vdev.iommufdAttached) return;
  yield* iommufdDeviceDetach(idev, IOMMU_NO_PASID);
  vdev.iommufdAttached = false;
}

export function* vfioIommufdPhysicalPasidAttach(vdev: VfioDevice, pasid: number, ptId: number): Step<number | Errno> {
  const idev = bound(vdev);
  if (vdev.pasids.has(pasid)) return yield* iommufdDeviceReplace(idev, pasid, ptId);
  const id = yield* iommufdDeviceAttach(idev, pasid, ptId);
  if (!(id instanceof Errno)) vdev.pasids.add(pasid);
  return id;
}

/** No effect for a PASID that was never attached. */
export function* vfioIommufdPhysicalPasidDetach(vdev: VfioDevice, pasid: number): Step<void> {
  const idev = bound(vdev);
  if (!vdev.pasids.has(pasid)) return;
  yield* iommufdDeviceDetach(idev, pasid);
  vdev.pasids.delete(pasid);
}

/** The context the device is bound to. */
export function vfioIommufdDeviceCtx(vdev: VfioDevice): IommufdCtx | undefined {
  return vdev.iommufdDevice === undefined ? undefined : iommufdDeviceToCtx(vdev.iommufdDevice);
}

/**
 * Does `ctx` own this device? Its id when bound there; ENOENT: owned through
 * another device of its group; ENODEV: not owned.
 */
export function vfioIommufdGetDevId(vdev: VfioDevice, ctx: IommufdCtx | undefined): number | Errno {
  if (vdev.iommufdDevice !== undefined && iommufdDeviceToCtx(vdev.iommufdDevice) === ctx) return iommufdDeviceToId(vdev.iommufdDevice);
  const group = vdev.dev.iommuGroup;
  if (group === undefined || ctx === undefined) return ENODEV;
  return iommufdCtxHasGroup(ctx, group) ? ENOENT : ENODEV;
}

function bound(vdev: VfioDevice): IommufdDevice {
  const idev = vdev.iommufdDevice;
  if (idev === undefined) throw new KernelBug(`${vdev.name} is not bound to an iommufd`);
  return idev;
}
