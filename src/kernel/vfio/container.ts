/**
 * A container: groups that share one set of DMA mappings.
 *
 * `/dev/vfio/vfio` makes one per open. It can do nothing until a group is put
 * into it, and has no IOMMU until one is chosen; when its last group leaves it
 * is back where it began, and every mapping is gone. A group keeps it alive, so
 * container, group and device may be closed in any order.
 *
 * Lock: `lock`, inside the group's, outside type1's.
 * Source: drivers/vfio/container.c.
 */
import { EINVAL, ENODEV, ENOMEM, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import * as V from "../../uapi/vfio.ts";
import type { File, FileOps } from "../fs/file.ts";
import type { IommuGroup } from "../iommu/group.ts";
import type { Kernel } from "../kernel.ts";
import type { VfioGroup } from "./group.ts";
import { type1Ioctl } from "./type1/ioctl.ts";
import { Type1Iommu, type1CheckExtension } from "./type1/iommu.ts";

const CONTAINER_LOCK: LockClass = new LockClass("vfio container->group_lock");

const iommuGroupOf = (group: VfioGroup): IommuGroup => {
  if (group.iommuGroup === undefined) throw new KernelBug(`${group.path} is in a container without an IOMMU group`);
  return group.iommuGroup;
};

export class VfioContainer {
  readonly kernel: Kernel;
  readonly lock: RwSem;
  /** The last to come first. Under `lock`. */
  readonly #groups: VfioGroup[] = [];
  /** Under `lock`. */
  #iommu: Type1Iommu | undefined = undefined;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.lock = new RwSem(kernel.sched, CONTAINER_LOCK);
  }

  /** An IOMMU was chosen. */
  get hasIommu(): boolean {
    return this.#iommu !== undefined;
  }

  /** Takes the group's DMA. EPERM: somebody owns it, or a kernel driver uses it; what the IOMMU says. The group's lock held. */
  *attachGroup(group: VfioGroup): Step<Errno | undefined> {
    const iommuGroup = iommuGroupOf(group);
    yield* this.lock.downWrite();
    try {
      const e = yield* iommuGroup.claimWholeGroup(group);
      if (e !== undefined) return e;
      const refused = this.#iommu === undefined ? undefined : yield* this.#iommu.attachGroup(iommuGroup);
      if (refused !== undefined) {
        yield* iommuGroup.releaseDmaOwner();
        return refused;
      }
      group.container = this;
      group.containerUsers = 1;
      this.#groups.unshift(group);
      this.#trace(group, "set");
      return undefined;
    } finally {
      this.lock.upWrite();
    }
  }

  /** The group's lock held, and nothing of it open. */
  *detachGroup(group: VfioGroup): Step<void> {
    bugOn(group.containerUsers !== 1, `${group.path} leaves its container while a device is open`);
    const iommuGroup = iommuGroupOf(group);
    yield* this.lock.downWrite();
    try {
      if (this.#iommu !== undefined) yield* this.#iommu.detachGroup(iommuGroup);
      yield* iommuGroup.releaseDmaOwner();
      group.container = undefined;
      group.containerUsers = 0;
      this.#groups.splice(this.#groups.indexOf(group), 1);
      if (this.#groups.length === 0) this.#iommu = undefined;
      this.#trace(group, "unset");
    } finally {
      this.lock.upWrite();
    }
  }

  *ioctl(cmd: number, arg: bigint): Step<number | Errno> {
    switch (cmd) {
      case V.VFIO_GET_API_VERSION:
        return V.VFIO_API_VERSION;
      case V.VFIO_CHECK_EXTENSION:
        yield* this.lock.downRead();
        try {
          return yield* type1CheckExtension(this.#iommu, arg);
        } finally {
          this.lock.upRead();
        }
      case V.VFIO_SET_IOMMU:
        return (yield* this.#setIommu(arg)) ?? 0;
      default:
        return this.#iommu === undefined ? EINVAL : yield* type1Ioctl(this.#iommu, cmd, arg);
    }
  }

  /** EINVAL: no group, or an IOMMU already, or one that only extends another; ENODEV: none of that kind; what an attach says. */
  *#setIommu(kind: bigint): Step<Errno | undefined> {
    yield* this.lock.downWrite();
    try {
      if (this.#groups.length === 0 || this.#iommu !== undefined) return EINVAL;
      if ((yield* type1CheckExtension(undefined, kind)) <= 0) return ENODEV;
      const iommu = Type1Iommu.open(this.kernel, kind);
      if (iommu instanceof Errno) return iommu;
      const done: VfioGroup[] = [];
      for (const g of this.#groups) {
        const e = yield* iommu.attachGroup(iommuGroupOf(g));
        if (e === undefined) {
          done.push(g);
          continue;
        }
        for (const d of done.reverse()) yield* iommu.detachGroup(iommuGroupOf(d));
        return e;
      }
      this.#iommu = iommu;
      return undefined;
    } finally {
      this.lock.upWrite();
    }
  }

  #trace(group: VfioGroup, what: "set" | "unset"): void {
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "vfio.container", group: group.id, what });
  }
}

const containerFops: FileOps = {
  name: "vfio-container",
  *ioctl(f: File, cmd: number, arg: bigint): Step<number | Errno> {
    return yield* (f.privateData as VfioContainer).ioctl(cmd, arg);
  },
};

/** `/dev/vfio/vfio`: anybody may open it. */
export function vfioContainerInit(kernel: Kernel): void {
  kernel.fs.registerDevice("/dev/vfio/vfio", {
    major: 10,
    minor: 196,
    mode: 0o666,
    ops: containerFops,
    *open(file: File): Step<Errno | undefined> {
      if (kernel.fault.slab("vfio_container")) return ENOMEM;
      file.privateData = new VfioContainer(kernel);
      return undefined;
    },
  });
}
