/**
 * Devices of a virtual IOMMU: which device the guest knows by which id.
 *
 * A device is on one virtual IOMMU at most. The object holds a user of the
 * virtual IOMMU, and a user and a wait count of the device for as long as it
 * lives. A device that is unbound takes its object away and leaves a tombstone:
 * the program made that id and may still destroy it, so nobody else gets it.
 *
 * Lock: `vdev` and `destroying` of a device are under its group's lock.
 * Source: drivers/iommu/iommufd/viommu.c, device.c.
 */
import { EEXIST, EINVAL, ENOENT, ENOMEM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { IommuVdeviceAlloc } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { Device } from "../device.ts";
import type { Undo, VdeviceCore } from "../iommu/viommu.ts";
import { IommufdDevice } from "./group.ts";
import { abortObject, allocObject, decUsers, finalizeObject, getObject, IommufdObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import { IommufdViommu } from "./viommu.ts";

export class IommufdVdevice extends IommufdObject implements VdeviceCore {
  readonly type = "vdevice";
  readonly viommu: IommufdViommu;
  readonly idev: IommufdDevice;
  readonly virtId: bigint;
  /** How the driver undoes its part. */
  undo: Undo | undefined = undefined;

  /** The device's group lock held. */
  constructor(viommu: IommufdViommu, idev: IommufdDevice, virtId: bigint) {
    super();
    this.viommu = viommu;
    this.idev = idev;
    this.virtId = virtId;
  }

  get dev(): Device {
    return this.idev.dev;
  }

  /** The device's group lock held. The device's reference stays with whoever made this. */
  override *abort(): Step<void> {
    this.idev.group.lock.assertHeld();
    if (this.undo !== undefined) yield* this.undo();
    const { vdevs } = this.viommu;
    if (vdevs.get(this.virtId) === this) vdevs.delete(this.virtId);
    decUsers(this.viommu);
    this.idev.vdev = undefined;
  }

  override *destroy(): Step<void> {
    const { idev } = this;
    const { lock } = idev.group;
    yield* lock.lock();
    try {
      yield* this.abort();
    } finally {
      lock.unlock();
    }
    putObject(idev.ctx, idev);
  }
}

/**
 * IOMMU_VDEVICE_ALLOC. ENOENT: no such virtual IOMMU or device, or one that is being unbound. EINVAL: they are not of one unit.
 * EEXIST: the device is on a virtual IOMMU already, or the id is taken.
 */
export function* vdeviceAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuVdeviceAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const viommu = getObject(ctx, cmd.viommu_id, IommufdViommu);
  if (viommu instanceof Errno) return viommu;
  try {
    const idev = getObject(ctx, cmd.dev_id, IommufdDevice);
    if (idev instanceof Errno) return idev;
    const e = viommu.unit === idev.group.group.unit ? yield* createLocked(ucmd, cmd, viommu, idev) : EINVAL;
    // The new object keeps the reference on its device.
    if (e !== undefined) putObject(ctx, idev);
    return e;
  } finally {
    putObject(ctx, viommu);
  }
}

function* createLocked(
  ucmd: Ucmd,
  cmd: ViewOf<typeof IommuVdeviceAlloc>,
  viommu: IommufdViommu,
  idev: IommufdDevice,
): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const { lock } = idev.group;
  yield* lock.lock();
  try {
    if (idev.destroying) return ENOENT;
    if (idev.vdev !== undefined) return EEXIST;
    const vdev = allocObject(ctx, new IommufdVdevice(viommu, idev, cmd.virt_id));
    if (vdev instanceof Errno) return vdev;
    viommu.users++;
    idev.vdev = vdev;
    let e = yield* install(vdev);
    if (e === undefined) {
      cmd.out_vdevice_id = vdev.id;
      e = respond(ucmd, cmd);
    }
    if (e === undefined) finalizeObject(ctx, vdev);
    else yield* abortObject(ctx, vdev);
    return e;
  } finally {
    lock.unlock();
  }
}

/** Gives the guest's id to the device, once the driver agrees. */
function* install(vdev: IommufdVdevice): Step<Errno | undefined> {
  const { viommu, virtId } = vdev;
  const { vdevs, ops } = viommu;
  if (ops === undefined) throw new KernelBug(`virtual IOMMU ${viommu.id} has no driver`);
  if (viommu.ctx.kernel.fault.slab("entry of vdevs")) return ENOMEM;
  if (vdevs.has(virtId)) return EEXIST;
  vdevs.set(virtId, undefined);
  if (ops.vdeviceInit !== undefined) {
    const undo = yield* ops.vdeviceInit(vdev);
    if (undo instanceof Errno) {
      vdevs.delete(virtId);
      return undo;
    }
    vdev.undo = undo;
  }
  vdevs.set(virtId, vdev);
  return undefined;
}
