/**
 * Device sets: devices that a single reset reaches together.
 *
 * A set is named by what resets as one (a bus, a slot, or a device alone). Its
 * lock is the outermost of VFIO: it serializes bind, attach, detach, close and
 * hot reset of every device in it.
 *
 * Lock order: dev_set->lock → memory_lock (ML) → reservation → pages mutex.
 * Source: vfio_assign_device_set and vfio_release_device_set in vfio_main.c.
 */
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { VfioDevice } from "./vfio_main.ts";

const DEV_SET_LOCK: LockClass = new LockClass("vfio dev_set->lock");

export class VfioDeviceSet {
  readonly setId: unknown;
  readonly lock: Mutex;
  /** In order of arrival; guarded by `lock`. */
  readonly devices: VfioDevice[] = [];

  constructor(kernel: Kernel, setId: unknown) {
    this.setId = setId;
    this.lock = new Mutex(kernel.sched, DEV_SET_LOCK);
  }

  /** How many opens there are over the whole set. `lock` held. */
  get openCount(): number {
    this.lock.assertHeld();
    let n = 0;
    for (const d of this.devices) n += d.openCount;
    return n;
  }

  /** The VFIO device of `dev`, if it is one of this set. `lock` held. */
  find(dev: Device): VfioDevice | undefined {
    this.lock.assertHeld();
    return this.devices.find((d) => d.dev === dev);
  }
}
