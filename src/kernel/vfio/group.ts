/**
 * A VFIO group: the devices of one IOMMU group, opened through one node.
 *
 * `/dev/vfio/GROUP` is open at most once, and not while one of its devices is
 * bound to an iommufd. Its opener puts the group into a container, which takes
 * the DMA of the whole IOMMU group, chooses an IOMMU there, and then gets
 * descriptors of the devices by name. An iommufd may stand in for the container.
 * Each device that is open through the group
 * keeps the group's file open, so the group leaves its container last.
 *
 * Invariants: `containerUsers` is 0 exactly without a container, else one more
 * than the devices open through the group.
 *
 * Lock order: group_lock → dev_set->lock → the driver's; group_lock →
 * container->group_lock → type1's; device_lock → the driver's token lock.
 * Source: drivers/vfio/group.c.
 */
import { EBADF, EBADFD, EBUSY, EFAULT, EINVAL, ENODEV, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { O_CLOEXEC, O_RDWR } from "../../uapi/index.ts";
import * as V from "../../uapi/vfio.ts";
import type { File, FileOps } from "../fs/file.ts";
import type { IommuGroup } from "../iommu/group.ts";
import { type IommufdCtx, iommufdCtxFromFile, iommufdCtxPut } from "../iommufd/ctx.ts";
import { iommufdVfioCompatIoasCreate } from "../iommufd/vfio_compat.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser, getUserU32 } from "../mm/user_memory.ts";
import { VfioContainer } from "./container.ts";
import { vfioDeviceFops } from "./device_fops.ts";
import { vfioDfGroupClose, vfioDfGroupOpen } from "./device_open.ts";
import { type VfioDevice, VfioDeviceFile, vfioOf } from "./vfio_main.ts";

const GROUP_LOCK: LockClass = new LockClass("vfio group->group_lock");
const DEVICE_LOCK: LockClass = new LockClass("vfio group->device_lock");

/** The last of the majors that Linux gives away first. */
const VFIO_GROUP_MAJOR = 234;
const PAGE_SIZE = 4096;

export class VfioGroup {
  readonly kernel: Kernel;
  /** N of `/dev/vfio/N`: the IOMMU group's number. */
  readonly id: number;
  readonly lock: Mutex;
  /** Undefined once its last device is gone. Under `lock`. */
  iommuGroup: IommuGroup | undefined;
  /** Under `lock`. */
  container: VfioContainer | undefined = undefined;
  /** An iommufd in the place of a container, with a reference. Under `lock`. */
  iommufd: IommufdCtx | undefined = undefined;
  /** Under `lock`. */
  containerUsers = 0;
  readonly #deviceLock: Mutex;
  /** The last registered first. Under `#deviceLock`. */
  readonly #devices: VfioDevice[] = [];
  /** The one open of the node. Under `lock`. */
  #openedFile: File | undefined = undefined;
  /** Devices bound to an iommufd. Under `lock`. */
  #cdevOpens = 0;
  /** Devices registered or being removed. */
  #drivers = 1;

  private constructor(kernel: Kernel, iommuGroup: IommuGroup) {
    this.kernel = kernel;
    this.id = iommuGroup.id;
    this.iommuGroup = iommuGroup;
    this.lock = new Mutex(kernel.sched, GROUP_LOCK);
    this.#deviceLock = new Mutex(kernel.sched, DEVICE_LOCK);
  }

  /** The group of `device`, with a reference for it; its node appears with the first. */
  static findOrAlloc(device: VfioDevice): VfioGroup {
    const { kernel } = device;
    const { iommuGroup } = device.dev;
    if (iommuGroup === undefined) throw new KernelBug(`${device.name} is in no IOMMU group`);
    const { groups } = vfioOf(kernel);
    const found = groups.get(iommuGroup);
    if (found !== undefined) {
      found.#drivers++;
      return found;
    }
    const g = new VfioGroup(kernel, iommuGroup);
    groups.set(iommuGroup, g);
    kernel.fs.registerDevice(g.path, { major: VFIO_GROUP_MAJOR, minor: g.id, open: (f) => g.#open(f), ops: groupFops });
    return g;
  }

  get path(): string {
    return `/dev/vfio/${this.id}`;
  }

  /** The device can be opened by name. */
  *register(device: VfioDevice): Step<void> {
    yield* this.#deviceLock.lock();
    this.#devices.unshift(device);
    this.#deviceLock.unlock();
  }

  /** It no longer can. */
  *unregister(device: VfioDevice): Step<void> {
    yield* this.#deviceLock.lock();
    const i = this.#devices.indexOf(device);
    if (i >= 0) this.#devices.splice(i, 1);
    this.#deviceLock.unlock();
  }

  /** A device is gone; with the last one the node goes, and a group that is still open has nothing to offer. */
  *remove(): Step<void> {
    this.#drivers--;
    if (this.#drivers > 0) return;
    const { iommuGroup } = this;
    if (iommuGroup !== undefined) vfioOf(this.kernel).groups.delete(iommuGroup);
    this.kernel.fs.unregisterDevice(this.path);
    yield* this.lock.lock();
    try {
      bugOn(this.#devices.length > 0, `${this.path} goes with devices registered`);
      if (this.container !== undefined) yield* this.container.detachGroup(this);
      this.iommuGroup = undefined;
    } finally {
      this.lock.unlock();
    }
  }

  /** A device is about to be bound to an iommufd. EBUSY while the group is open. */
  *block(): Step<Errno | undefined> {
    yield* this.lock.lock();
    try {
      if (this.#openedFile !== undefined) return EBUSY;
      this.#cdevOpens++;
      return undefined;
    } finally {
      this.lock.unlock();
    }
  }

  /** It was not, or is no longer. */
  *unblock(): Step<void> {
    yield* this.lock.lock();
    bugOn(this.#cdevOpens === 0, `${this.path} is unblocked too often`);
    this.#cdevOpens--;
    this.lock.unlock();
  }

  /** Something was set to own the DMA of its devices. `lock` held. */
  get #hasIommu(): boolean {
    return this.container !== undefined || this.iommufd !== undefined;
  }

  #putIommufd(): void {
    if (this.iommufd !== undefined) iommufdCtxPut(this.iommufd);
    this.iommufd = undefined;
  }

  /** A device's DMA goes by the container from now on. EINVAL: it has no IOMMU yet. `lock` held. */
  useContainer(): Errno | undefined {
    this.lock.assertHeld();
    if (this.container?.hasIommu !== true) return EINVAL;
    this.#openedFile?.get();
    this.containerUsers++;
    return undefined;
  }

  /** Undoes `useContainer`. `lock` held. */
  unuseContainer(): void {
    this.lock.assertHeld();
    bugOn(this.containerUsers <= 1, `${this.path}: its container is given back too often`);
    this.containerUsers--;
    if (this.#openedFile !== undefined) this.kernel.fs.fput(this.#openedFile);
  }

  *#open(file: File): Step<Errno | undefined> {
    yield* this.lock.lock();
    try {
      if (this.#drivers === 0) return ENODEV;
      if (this.#cdevOpens > 0 || this.#openedFile !== undefined) return EBUSY;
      this.#openedFile = file;
      file.privateData = this;
      return undefined;
    } finally {
      this.lock.unlock();
    }
  }

  *release(): Step<void> {
    yield* this.lock.lock();
    try {
      if (this.container !== undefined) yield* this.container.detachGroup(this);
      this.#putIommufd();
      this.#openedFile = undefined;
    } finally {
      this.lock.unlock();
    }
  }

  /** VFIO_GROUP_SET_CONTAINER. EBADF; EINVAL: it has one; ENODEV: no device is left; EPERM: somebody owns its DMA; EBADFD: no container and no iommufd. */
  *setContainer(arg: bigint): Step<number | Errno> {
    const fd = getUserU32(this.kernel, arg);
    if (fd instanceof Errno) return EFAULT;
    const file = this.kernel.current.files.fget(fd | 0);
    if (file instanceof Errno) return EBADF;
    yield* this.lock.lock();
    try {
      if (this.#hasIommu) return EINVAL;
      if (this.iommuGroup === undefined) return ENODEV;
      const container = file.privateData;
      if (container instanceof VfioContainer) return (yield* container.attachGroup(this)) ?? 0;
      const ctx = iommufdCtxFromFile(file);
      if (ctx instanceof Errno) return EBADFD;
      const e = iommufdVfioCompatIoasCreate(ctx);
      if (e !== undefined) {
        iommufdCtxPut(ctx);
        return e;
      }
      this.iommufd = ctx;
      return 0;
    } finally {
      this.lock.unlock();
      this.kernel.fs.fput(file);
    }
  }

  /** VFIO_GROUP_UNSET_CONTAINER. EINVAL: there is none; EBUSY: a device is open through it. */
  *unsetContainer(): Step<number | Errno> {
    yield* this.lock.lock();
    try {
      if (!this.#hasIommu) return EINVAL;
      if (this.container !== undefined) {
        if (this.containerUsers !== 1) return EBUSY;
        yield* this.container.detachGroup(this);
      }
      this.#putIommufd();
      return 0;
    } finally {
      this.lock.unlock();
    }
  }

  /** VFIO_GROUP_GET_STATUS. */
  *getStatus(arg: bigint): Step<number | Errno> {
    const status = V.VfioGroupStatus.alloc();
    if (copyFromUser(this.kernel, status.bytes, arg) !== 0) return EFAULT;
    if (status.argsz < V.VfioGroupStatus.size) return EINVAL;
    yield* this.lock.lock();
    try {
      if (this.iommuGroup === undefined) return ENODEV;
      if (this.#hasIommu) status.flags = V.VFIO_GROUP_FLAGS_CONTAINER_SET | V.VFIO_GROUP_FLAGS_VIABLE;
      else status.flags = this.iommuGroup.dmaOwnerClaimed ? 0 : V.VFIO_GROUP_FLAGS_VIABLE;
    } finally {
      this.lock.unlock();
    }
    return copyToUser(this.kernel, arg, status.bytes) !== 0 ? EFAULT : 0;
  }

  /** VFIO_GROUP_GET_DEVICE_FD. ENODEV: no such device; EMFILE; EINVAL: no container, or one without an IOMMU; the driver's answer. */
  *getDeviceFd(arg: bigint): Step<number | Errno> {
    const name = readName(this.kernel, arg);
    if (name instanceof Errno) return name;
    const device = yield* this.#deviceByName(name);
    if (device instanceof Errno) return device;
    const { files } = this.kernel.current;
    const fd = files.getUnused(O_CLOEXEC);
    if (fd instanceof Errno) {
      device.putRegistration();
      return fd;
    }
    const file = yield* this.#openFile(device);
    if (file instanceof Errno) {
      files.putUnused(fd);
      device.putRegistration();
      return file;
    }
    file.mapping = device.mapping;
    files.install(fd, file);
    return fd;
  }

  /** The device opened, and a file for it; on failure it is as it was. */
  *#openFile(device: VfioDevice): Step<File | Errno> {
    const { fault, fs } = this.kernel;
    if (fault.slab("vfio_device_file")) return ENOMEM;
    const df = new VfioDeviceFile(device, this);
    const error = yield* this.#openDevice(df);
    if (error !== undefined) return error;
    const file = fs.allocAnonFile(vfioDeviceFops, { flags: O_RDWR, privateData: df, path: "anon_inode:[vfio-device]" });
    if (file instanceof Errno) yield* vfioDfGroupClose(df);
    return file;
  }

  /** The device with a registration held. */
  *#deviceByName(name: string): Step<VfioDevice | Errno> {
    yield* this.#deviceLock.lock();
    try {
      for (const d of this.#devices) {
        const match = yield* d.ops.match(name);
        if (match instanceof Errno) return match;
        if (match && d.tryGetRegistration()) return d;
      }
      return ENODEV;
    } finally {
      this.#deviceLock.unlock();
    }
  }

  *#openDevice(df: VfioDeviceFile): Step<Errno | undefined> {
    const { device } = df;
    yield* this.lock.lock();
    try {
      if (!this.#hasIommu) return EINVAL;
      yield* device.devSet.lock.lock();
      try {
        const error = yield* vfioDfGroupOpen(df, this.iommufd);
        if (error === undefined) df.accessGranted = true;
        return error;
      } finally {
        device.devSet.lock.unlock();
      }
    } finally {
      this.lock.unlock();
    }
  }
}

/** A string of at most a page, its zero included: EFAULT, EINVAL when it is longer, ENOMEM. */
function readName(kernel: Kernel, addr: bigint): string | Errno {
  if (kernel.fault.slab("name", PAGE_SIZE)) return ENOMEM;
  const bytes = new Uint8Array(PAGE_SIZE);
  const left = copyFromUser(kernel, bytes, addr);
  const end = bytes.subarray(0, PAGE_SIZE - left).indexOf(0);
  if (end < 0) return left > 0 ? EFAULT : EINVAL;
  return String.fromCharCode(...bytes.subarray(0, end));
}

const groupOf = (f: File): VfioGroup => {
  if (!(f.privateData instanceof VfioGroup)) throw new TypeError("not a VFIO group file");
  return f.privateData;
};

const groupFops: FileOps = {
  name: "vfio-group",
  *ioctl(f: File, cmd: number, arg: bigint): Step<number | Errno> {
    const group = groupOf(f);
    switch (cmd) {
      case V.VFIO_GROUP_GET_DEVICE_FD:
        return yield* group.getDeviceFd(arg);
      case V.VFIO_GROUP_GET_STATUS:
        return yield* group.getStatus(arg);
      case V.VFIO_GROUP_SET_CONTAINER:
        return yield* group.setContainer(arg);
      case V.VFIO_GROUP_UNSET_CONTAINER:
        return yield* group.unsetContainer();
      default:
        return ENOTTY;
    }
  },
  *release(f: File): Step<void> {
    yield* groupOf(f).release();
  },
};

/** The group behind a file, if it is a group's. */
export function vfioGroupFromFile(file: File): VfioGroup | undefined {
  return file.ops === groupFops ? groupOf(file) : undefined;
}
