/**
 * A device becomes visible: its group's node and its own.
 * Source: __vfio_register_dev (vfio_main.c).
 */
import type { Step } from "../../sched/task.ts";
import { vfioCdevOpen } from "./device_cdev.ts";
import { vfioDeviceFops } from "./device_fops.ts";
import { VfioGroup } from "./group.ts";
import type { VfioDevice } from "./vfio_main.ts";

/** The first major beyond the few that the groups' was the last of; the minor is the device's number. */
const VFIO_DEV_MAJOR = 511;

/** Puts the nodes in place: the device, which is in an IOMMU group, can be opened from here on. */
export function* vfioRegisterGroupDev(device: VfioDevice): Step<void> {
  const k = device.kernel;
  device.group = VfioGroup.findOrAlloc(device);
  device.startRegistration();
  k.fs.registerDevice(device.path, {
    major: VFIO_DEV_MAJOR,
    minor: device.index,
    open: (file) => vfioCdevOpen(device, file),
    ops: vfioDeviceFops,
  });
  yield* device.group.register(device);
  if (k.trace.on) k.trace.emit({ type: "vfio.register", device: device.dev.name, name: device.name });
}
