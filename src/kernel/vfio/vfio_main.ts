/**
 * The VFIO core: a device that a process may drive, and how long it lives.
 *
 * Two counts hold a device. `openCount` (dev_set->lock) counts binds; the first
 * opens the hardware and the last closes it. The registration count holds the
 * driver in place: one for being registered, one per open file, one per dma-buf
 * that its exporter has not cleaned up. `unregister` waits for the latter,
 * without bound, and asks the user through the request eventfd to let go.
 *
 * While a removal waits it repeats its request every ten seconds. In virtual
 * time a timer that re-arms itself for ever would never let the machine come to
 * rest, so after `IDLE_REQUESTS` requests with no timer pending but those of
 * such waits it waits in silence: time alone cannot bring the close.
 *
 * Lock order: dev_set->lock, then what the driver's ops take.
 * Source: drivers/vfio/vfio_main.c.
 */
import { EINVAL, type Errno } from "../../lib/errno.ts";
import { bugOn } from "../../lib/kernel_bug.ts";
import { Refcount } from "../../sched/refcount.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";
import { VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_PROBE, VFIO_DEVICE_FEATURE_SET } from "../../uapi/vfio.ts";
import type { Device } from "../device.ts";
import type { IommuGroup } from "../iommu/group.ts";
import type { IommufdCtx } from "../iommufd/ctx.ts";
import type { IommufdDevice } from "../iommufd/device.ts";
import type { Kernel } from "../kernel.ts";
import { FileMapping } from "../mm/file_mapping.ts";
import type { Vma } from "../mm/vma.ts";
import { PerKernel } from "../per_kernel.ts";
import { VfioDeviceSet } from "./device_set.ts";
import type { VfioGroup } from "./group.ts";
import type { InfoCaps } from "./info_caps.ts";

const REQUEST_INTERVAL_NS = 10_000_000_000;
const IDLE_REQUESTS = 6;

/** What GET_REGION_INFO asks a driver for. */
export interface RegionInfo {
  readonly index: number;
  flags: number;
  size: bigint;
  offset: bigint;
}

/** What a driver gives the core. `arg` and `buf` are addresses in the calling process. */
export interface VfioDeviceOps {
  readonly name: string;
  /** dev_set->lock held. */
  openDevice(): Step<Errno | undefined>;
  /** dev_set->lock held. */
  closeDevice(): Step<void>;
  ioctl(cmd: number, arg: bigint): Step<number | Errno>;
  getRegionInfoCaps(info: RegionInfo, caps: InfoCaps): Errno | undefined;
  /** `argsz` counts the payload only. */
  deviceFeature(flags: number, arg: bigint, argsz: number): Step<number | Errno>;
  read(buf: bigint, count: number, pos: bigint): Step<number | Errno>;
  write(buf: bigint, count: number, pos: bigint): Step<number | Errno>;
  mmap(vma: Vma): Errno | undefined;
  /** The device in sysfs, `/sys/devices/pci0000:00/…`. */
  sysfsPath(): string;
  /** Asks the user to let go; `count` is how many times it was asked before. */
  request(count: number): void;
  /** Is it meant by a name given to the group? The name may carry options, which can be wrong. The group's device lock held. */
  match(name: string): Step<boolean | Errno>;
  /** `uuid`: 16 bytes, or undefined when none was given. dev_set->lock held. */
  matchTokenUuid(uuid: Uint8Array | undefined): Step<Errno | undefined>;
  /** Wakes the device for the length of a call. */
  pmRuntimeResumeAndGet(): Step<number | Errno>;
  pmRuntimePut(): void;
}

export class VfioDevice {
  readonly kernel: Kernel;
  readonly dev: Device;
  readonly ops: VfioDeviceOps;
  /** N of `/dev/vfio/devices/vfioN`. */
  readonly index: number;
  /** Set by `assignDeviceSet`. */
  devSet: VfioDeviceSet;
  /** Binds; dev_set->lock. */
  openCount = 0;
  /** dev_set->lock. */
  cdevOpened = false;
  /** The binding to an iommufd; dev_set->lock. */
  iommufdDevice: IommufdDevice | undefined = undefined;
  /** The whole function is attached to a page table; dev_set->lock. */
  iommufdAttached = false;
  /** From registration to the end of its removal. */
  group: VfioGroup | undefined = undefined;
  /** PASIDs attached one by one; dev_set->lock. */
  readonly pasids: Set<number> = new Set();
  /** Where its regions are mapped, through whichever file. */
  readonly mapping: FileMapping = new FileMapping();
  readonly #refs: Refcount;
  readonly #released: WaitQueue;

  constructor(kernel: Kernel, dev: Device, ops: VfioDeviceOps) {
    const state = vfioOf(kernel);
    this.kernel = kernel;
    this.dev = dev;
    this.ops = ops;
    this.index = state.takeIndex();
    this.devSet = state.joinSet(this, this);
    this.#refs = new Refcount(`vfio${this.index} registration`, 0);
    this.#released = new WaitQueue(kernel.sched, `vfio${this.index} registration released`);
  }

  get name(): string {
    return `vfio${this.index}`;
  }

  get path(): string {
    return `/dev/vfio/devices/${this.name}`;
  }

  /** Registrations held; 0 before it is registered and after the last is gone. */
  get registrations(): number {
    return this.#refs.count;
  }

  /** Moves to the set named `setId`: what resets together must be in one set. Before registration only. */
  assignDeviceSet(setId: unknown): void {
    const state = vfioOf(this.kernel);
    state.leaveSet(this);
    this.devSet = state.joinSet(this, setId);
  }

  /** Counting starts: the device can be opened from now on. */
  startRegistration(): void {
    this.#refs.reinit(1);
    vfioOf(this.kernel).devices.add(this);
  }

  /** Holds the driver in place; false when the device is being unregistered. */
  tryGetRegistration(): boolean {
    return this.#refs.getNotZero();
  }

  putRegistration(): void {
    if (this.#refs.put()) this.#released.wakeUp();
  }

  /**
   * Takes the device away: no new opens, then waits, without bound, until
   * every open file and every live dma-buf has let go.
   */
  *unregister(): Step<void> {
    const k = this.kernel;
    const state = vfioOf(k);
    if (this.group !== undefined) yield* this.group.unregister(this);
    k.fs.unregisterDevice(this.path);
    if (k.trace.on)
      k.trace.emit({ type: "vfio.unregister", device: this.dev.name, name: this.name, registrations: this.registrations - 1 });
    this.putRegistration();
    let warned = false;
    let idle = 0;
    for (let i = 0; this.registrations > 0; i++) {
      this.ops.request(i);
      if (idle >= IDLE_REQUESTS) {
        yield* this.#released.waitEvent(() => this.registrations === 0);
        break;
      }
      let expired = false;
      state.requestTimers++;
      const timer = k.sched.timer(REQUEST_INTERVAL_NS, () => {
        expired = true;
        state.requestTimers--;
        idle = k.sched.pendingTimers <= state.requestTimers ? idle + 1 : 0;
        this.#released.wakeUp();
      });
      const over = (): boolean => expired || this.registrations === 0;
      if (warned) {
        yield* this.#released.waitEvent(over);
      } else if ((yield* this.#released.waitEventInterruptible(over)) !== undefined) {
        warned = true;
        k.printk(`vfio-pci ${this.dev.name}: Device is currently in use, task "${k.sched.current.name}" blocked until device is released`);
      }
      if (!expired) {
        timer.cancel();
        state.requestTimers--;
      }
    }
    if (this.group !== undefined) yield* this.group.remove();
    this.group = undefined;
    state.devices.delete(this);
    if (k.trace.on) k.trace.emit({ type: "vfio.unregistered", device: this.dev.name, name: this.name });
  }

  /** The last of it, after `unregister` or a failed probe: leaves its set and frees its number. */
  release(): void {
    bugOn(this.openCount !== 0, `${this.name} is released while open`);
    const state = vfioOf(this.kernel);
    state.leaveSet(this);
    state.freeIndex(this.index);
    this.kernel.sched.freed(this);
  }
}

/** What an open file of a device knows. */
export class VfioDeviceFile {
  readonly device: VfioDevice;
  /** The group that opened it; undefined for the device's own node. */
  readonly group: VfioGroup | undefined;
  /** Set once bound; every call but BIND_IOMMUFD answers EINVAL before. */
  accessGranted = false;
  iommufd: IommufdCtx | undefined = undefined;
  /** Id of the bound device object in that iommufd. */
  devid = 0;

  constructor(device: VfioDevice, group?: VfioGroup) {
    this.device = device;
    this.group = group;
  }
}

/** VFIO's state in one kernel. */
export class VfioSubsystem {
  /** Registered devices, in order of registration. */
  readonly devices: Set<VfioDevice> = new Set();
  /** Groups with a device that is registered or being removed. */
  readonly groups: Map<IommuGroup, VfioGroup> = new Map();
  /** DMA mappings in every type1 container. */
  liveDmas = 0;
  /** Pending timers of removals that will repeat their request. */
  requestTimers = 0;
  readonly #kernel: Kernel;
  readonly #sets: Map<unknown, VfioDeviceSet> = new Map();
  readonly #indices: Set<number> = new Set();

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /** `/dev/vfio/devices/vfioN` of a function, as its `vfio-dev` folder in sysfs tells; undefined when not bound to vfio-pci, or about to be unbound. */
  cdevPathOf(bdf: string): string | undefined {
    for (const d of this.devices) if (d.dev.name === bdf && this.#kernel.fs.devices.has(d.path)) return d.path;
    return undefined;
  }

  takeIndex(): number {
    let i = 0;
    while (this.#indices.has(i)) i++;
    this.#indices.add(i);
    return i;
  }

  freeIndex(i: number): void {
    this.#indices.delete(i);
  }

  joinSet(device: VfioDevice, setId: unknown): VfioDeviceSet {
    let set = this.#sets.get(setId);
    if (set === undefined) {
      set = new VfioDeviceSet(this.#kernel, setId);
      this.#sets.set(setId, set);
    }
    set.devices.push(device);
    return set;
  }

  leaveSet(device: VfioDevice): void {
    const set = device.devSet;
    const i = set.devices.indexOf(device);
    if (i >= 0) set.devices.splice(i, 1);
    if (set.devices.length === 0) this.#sets.delete(set.setId);
  }
}

const subsystems: PerKernel<VfioSubsystem> = new PerKernel();

/** The VFIO state of `kernel`. */
export function vfioOf(kernel: Kernel): VfioSubsystem {
  return subsystems.getOr(kernel, (k) => new VfioSubsystem(k));
}

/**
 * The checks every feature makes first. `supported` is the set of GET and SET
 * that the feature has, `minsz` the payload it needs. "go" means: carry it out;
 * 0 is the answer to a probe.
 */
export function vfioCheckFeature(flags: number, argsz: number, supported: number, minsz: number): "go" | 0 | Errno {
  if ((flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET) & ~supported) !== 0) return EINVAL;
  if ((flags & VFIO_DEVICE_FEATURE_PROBE) !== 0) return 0;
  if ((flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET)) === 0) return EINVAL;
  if (argsz < minsz) return EINVAL;
  return "go";
}
