/**
 * Opening and closing a device, whichever file it is opened through.
 *
 * The first open gives the device's DMA to somebody (an iommufd, or the
 * container of its group) and then wakes the hardware; the last close undoes it
 * in reverse. Through its own node a device is open at most once; through its
 * group as often as asked.
 *
 * Lock order: group_lock → dev_set->lock → the iommufd's, the container's and the driver's locks.
 * Source: vfio_df_open, vfio_df_close (vfio_main.c), vfio_df_group_open (group.c).
 */
import { EINVAL, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { IommufdCtx } from "../iommufd/ctx.ts";
import { iommufdVfioCompatIoasGetId } from "../iommufd/vfio_compat.ts";
import { vfioIommufdPhysicalAttach, vfioIommufdPhysicalBind, vfioIommufdPhysicalUnbind } from "./iommufd.ts";
import type { VfioDeviceFile } from "./vfio_main.ts";

/** EINVAL: open already through its node; else what the owner of its DMA or the driver says. dev_set->lock held. */
export function* vfioDfOpen(df: VfioDeviceFile): Step<Errno | undefined> {
  const { device } = df;
  if (device.openCount !== 0 && df.group === undefined) return EINVAL;
  device.openCount++;
  if (device.openCount > 1) return undefined;
  const error = yield* firstOpen(df);
  if (error !== undefined) device.openCount--;
  return error;
}

function* firstOpen(df: VfioDeviceFile): Step<Errno | undefined> {
  const { device } = df;
  const owned = yield* takeDma(df);
  if (owned !== undefined) return owned;
  const error = yield* device.ops.openDevice();
  if (error !== undefined) yield* giveDmaBack(df);
  else if (device.kernel.trace.on) device.kernel.trace.emit({ type: "vfio.open", device: device.dev.name, name: device.name });
  return error;
}

function* takeDma(df: VfioDeviceFile): Step<Errno | undefined> {
  const { device, iommufd } = df;
  if (iommufd === undefined) return device.group === undefined ? EINVAL : device.group.useContainer();
  const id = yield* vfioIommufdPhysicalBind(device, iommufd);
  if (id instanceof Errno) return id;
  df.devid = id;
  return undefined;
}

function* giveDmaBack(df: VfioDeviceFile): Step<void> {
  if (df.iommufd !== undefined) yield* vfioIommufdPhysicalUnbind(df.device);
  else df.device.group?.unuseContainer();
}

/** dev_set->lock held. */
export function* vfioDfClose(df: VfioDeviceFile): Step<void> {
  const { device } = df;
  if (device.openCount === 1) {
    yield* device.ops.closeDevice();
    yield* giveDmaBack(df);
    if (device.kernel.trace.on) device.kernel.trace.emit({ type: "vfio.close", device: device.dev.name, name: device.name });
  }
  device.openCount--;
}

/**
 * For a file of the group: by its container, or by an iommufd in the place of
 * one, and then on the IOAS that stands for the container. group_lock and
 * dev_set->lock held.
 */
export function* vfioDfGroupOpen(df: VfioDeviceFile, iommufd: IommufdCtx | undefined): Step<Errno | undefined> {
  const { device } = df;
  df.iommufd = iommufd;
  let error = yield* vfioDfOpen(df);
  if (error === undefined && iommufd !== undefined && device.openCount === 1) {
    const id = iommufdVfioCompatIoasGetId(iommufd);
    const pt = id instanceof Errno ? id : yield* vfioIommufdPhysicalAttach(device, id);
    if (pt instanceof Errno) {
      error = pt;
      yield* vfioDfClose(df);
    }
  }
  if (error !== undefined) df.iommufd = undefined;
  return error;
}

/** The last reference to a file that the group opened is gone. */
export function* vfioDfGroupClose(df: VfioDeviceFile): Step<void> {
  const { device, group } = df;
  if (group === undefined) return;
  yield* group.lock.lock();
  yield* device.devSet.lock.lock();
  try {
    yield* vfioDfClose(df);
    df.iommufd = undefined;
  } finally {
    device.devSet.lock.unlock();
    group.lock.unlock();
  }
}
