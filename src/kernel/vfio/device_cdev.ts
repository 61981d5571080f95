/**
 * The device's own node: open, bind, attach, detach, close.
 *
 * Opening takes a registration and no more. BIND_IOMMUFD, once per open and
 * once per device, gives the device's DMA to an iommufd and opens the
 * hardware; until then every other call answers EINVAL. The last close undoes
 * it in reverse: hardware closed, unbound, the iommufd let go.
 *
 * A bound device keeps its group from being opened, and an open group keeps the
 * device from being bound: one or the other.
 *
 * Lock order: group_lock; dev_set->lock → the iommufd's locks; → the driver's.
 * Source: drivers/vfio/device_cdev.c.
 */
import { EFAULT, EINVAL, ENODEV, ENOMEM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import {
  VFIO_DEVICE_ATTACH_PASID,
  VFIO_DEVICE_BIND_FLAG_TOKEN,
  VFIO_DEVICE_DETACH_PASID,
  VfioDeviceAttachIommufdPt,
  VfioDeviceBindIommufd,
  VfioDeviceDetachIommufdPt,
} from "../../uapi/vfio.ts";
import type { File } from "../fs/file.ts";
import { iommufdCtxFromFd, iommufdCtxPut } from "../iommufd/device.ts";
import { copyFromUser, copyStructFromUser, copyToUser, getUserU32 } from "../mm/user_memory.ts";
import { vfioDfClose, vfioDfOpen } from "./device_open.ts";
import {
  vfioIommufdPhysicalAttach,
  vfioIommufdPhysicalDetach,
  vfioIommufdPhysicalPasidAttach,
  vfioIommufdPhysicalPasidDetach,
} from "./iommufd.ts";
import { type VfioDevice, VfioDeviceFile } from "./vfio_main.ts";

const UUID_BYTES = 16;

/** Opens the node; ENODEV once the device is being unregistered; ENOMEM. */
export function* vfioCdevOpen(device: VfioDevice, file: File): Step<Errno | undefined> {
  if (!device.tryGetRegistration()) return ENODEV;
  if (device.kernel.fault.slab("vfio_device_file")) {
    device.putRegistration();
    return ENOMEM;
  }
  file.privateData = new VfioDeviceFile(device);
  file.mapping = device.mapping;
  return undefined;
}

/** The last reference to a file of the node is gone. */
export function* vfioCdevClose(df: VfioDeviceFile): Step<void> {
  const { device } = df;
  if (!df.accessGranted) return;
  yield* device.devSet.lock.lock();
  try {
    yield* vfioDfClose(df);
    putCtx(df);
    device.cdevOpened = false;
  } finally {
    device.devSet.lock.unlock();
  }
  if (device.group !== undefined) yield* device.group.unblock();
}

export function* vfioIoctlBindIommufd(df: VfioDeviceFile, arg: bigint): Step<number | Errno> {
  const { device } = df;
  const { kernel } = device;
  const userSize = getUserU32(kernel, arg);
  if (userSize instanceof Errno) return userSize;
  // The token came later: a caller without it ends at out_devid.
  if (userSize < VfioDeviceBindIommufd.endOf("out_devid")) return EINVAL;
  const bind = copyStructFromUser(kernel, VfioDeviceBindIommufd, arg, userSize);
  if (bind instanceof Errno) return bind;
  if (bind.iommufd < 0 || (bind.flags & ~VFIO_DEVICE_BIND_FLAG_TOKEN) !== 0) return EINVAL;
  if (df.group !== undefined) return EINVAL;

  const { group } = device;
  const blocked = group === undefined ? undefined : yield* group.block();
  if (blocked !== undefined) return blocked;
  const r = yield* bindTo(df, bind, arg);
  if (r instanceof Errno && group !== undefined) yield* group.unblock();
  return r;
}

function* bindTo(df: VfioDeviceFile, bind: ViewOf<typeof VfioDeviceBindIommufd>, arg: bigint): Step<number | Errno> {
  const { device } = df;
  const { kernel } = device;
  yield* device.devSet.lock.lock();
  try {
    if (df.accessGranted) return EINVAL;
    const refused = yield* checkToken(device, bind.flags, bind.token_uuid_ptr);
    if (refused !== undefined) return refused;
    const ctx = iommufdCtxFromFd(kernel.current, bind.iommufd);
    if (ctx instanceof Errno) return ctx;
    df.iommufd = ctx;
    const error = yield* vfioDfOpen(df);
    if (error !== undefined) {
      putCtx(df);
      return error;
    }
    const out = new Uint8Array(4);
    new DataView(out.buffer).setUint32(0, df.devid, true);
    if (copyToUser(kernel, arg + BigInt(VfioDeviceBindIommufd.offsets.out_devid), out) !== 0) {
      yield* vfioDfClose(df);
      putCtx(df);
      return EFAULT;
    }
    device.cdevOpened = true;
    df.accessGranted = true;
    if (kernel.trace.on) kernel.trace.emit({ type: "vfio.bind", device: device.dev.name, devid: df.devid });
    return 0;
  } finally {
    device.devSet.lock.unlock();
  }
}

function* checkToken(device: VfioDevice, flags: number, uuidPtr: bigint): Step<Errno | undefined> {
  if ((flags & VFIO_DEVICE_BIND_FLAG_TOKEN) === 0) return yield* device.ops.matchTokenUuid(undefined);
  const uuid = new Uint8Array(UUID_BYTES);
  if (copyFromUser(device.kernel, uuid, uuidPtr) !== 0) return EFAULT;
  return yield* device.ops.matchTokenUuid(uuid);
}

function putCtx(df: VfioDeviceFile): void {
  if (df.iommufd !== undefined) iommufdCtxPut(df.iommufd);
  df.iommufd = undefined;
}

export function* vfioIoctlAttachPt(df: VfioDeviceFile, arg: bigint): Step<number | Errno> {
  const { device } = df;
  const { kernel } = device;
  const minsz = VfioDeviceAttachIommufdPt.endOf("pt_id");
  const attach = VfioDeviceAttachIommufdPt.alloc();
  if (copyFromUser(kernel, attach.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  if (attach.argsz < minsz) return EINVAL;
  if ((attach.flags & ~VFIO_DEVICE_ATTACH_PASID) !== 0) return EINVAL;
  const pasid = (attach.flags & VFIO_DEVICE_ATTACH_PASID) !== 0;
  if (pasid) {
    if (attach.argsz < VfioDeviceAttachIommufdPt.size) return EINVAL;
    if (copyFromUser(kernel, attach.bytes.subarray(minsz), arg + BigInt(minsz)) !== 0) return EFAULT;
  }
  yield* device.devSet.lock.lock();
  try {
    const id = yield* pasid
      ? vfioIommufdPhysicalPasidAttach(device, attach.pasid, attach.pt_id)
      : vfioIommufdPhysicalAttach(device, attach.pt_id);
    if (id instanceof Errno) return id;
    attach.pt_id = id;
    const at = VfioDeviceAttachIommufdPt.offsets.pt_id;
    if (copyToUser(kernel, arg + BigInt(at), attach.bytes.subarray(at, at + 4)) !== 0) {
      // The whole device is detached even when it was a PASID that was attached, as Linux does.
      yield* vfioIommufdPhysicalDetach(device);
      return EFAULT;
    }
    if (kernel.trace.on)
      kernel.trace.emit({ type: "vfio.attach", device: device.dev.name, ptId: id, pasid: pasid ? attach.pasid : undefined });
    return 0;
  } finally {
    device.devSet.lock.unlock();
  }
}

export function* vfioIoctlDetachPt(df: VfioDeviceFile, arg: bigint): Step<number | Errno> {
  const { device } = df;
  const { kernel } = device;
  const minsz = VfioDeviceDetachIommufdPt.endOf("flags");
  const detach = VfioDeviceDetachIommufdPt.alloc();
  if (copyFromUser(kernel, detach.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  if (detach.argsz < minsz) return EINVAL;
  if ((detach.flags & ~VFIO_DEVICE_DETACH_PASID) !== 0) return EINVAL;
  const pasid = (detach.flags & VFIO_DEVICE_DETACH_PASID) !== 0;
  if (pasid) {
    if (detach.argsz < VfioDeviceDetachIommufdPt.size) return EINVAL;
    if (copyFromUser(kernel, detach.bytes.subarray(minsz), arg + BigInt(minsz)) !== 0) return EFAULT;
  }
  yield* device.devSet.lock.lock();
  try {
    if (pasid) yield* vfioIommufdPhysicalPasidDetach(device, detach.pasid);
    else yield* vfioIommufdPhysicalDetach(device);
    if (kernel.trace.on) kernel.trace.emit({ type: "vfio.detach", device: device.dev.name, pasid: pasid ? detach.pasid : undefined });
    return 0;
  } finally {
    device.devSet.lock.unlock();
  }
}
