/**
 * Devices bound to a context, gathered by IOMMU group, and what they are attached to.
 *
 * The hardware translates a whole group alike: the first device of a group to
 * attach installs the domain, the others join it and may not choose another,
 * the last to detach leaves the group blocked. Each attached device adds its
 * own reserved regions to the IOAS.
 *
 * Lock order: ioas.mutex → group lock → the IOAS's iova lock, a fault queue's mutex.
 * Source: drivers/iommu/iommufd/device.c.
 */
import { EBUSY, EINVAL, ENOMEM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { Device } from "../device.ts";
import type { IommuGroup } from "../iommu/group.ts";
import { type IommufdCtx, iommufdCtxPut } from "./ctx.ts";
import { autoResponseFaults, IommufdAttachHandle } from "./fault.ts";
import type { IommufdHwpt } from "./hwpt.ts";
import type { IoPagetable } from "./io_pagetable.ts";
import { decUsers, IommufdObject, tombstoneOwnedObject, tryIncUsers } from "./object.ts";
import type { IommufdVdevice } from "./vdevice.ts";

const GROUP_LOCK: LockClass = new LockClass("iommufd_group.lock");

/** The whole device rather than one of its PASIDs. */
export const NO_PASID = 0;

/** What one PASID of a group is attached to. */
interface GroupAttach {
  hwpt: IommufdHwpt;
  /** By object id of the device. */
  readonly devices: Map<number, IommufdDevice>;
}

/** The part of an IOMMU group that one context holds. */
export class IommufdGroup {
  readonly ctx: IommufdCtx;
  readonly group: IommuGroup;
  readonly lock: Mutex;
  /** By PASID. Under `lock`. */
  readonly attached: Map<number, GroupAttach> = new Map();
  /** Bound devices. */
  #refs = 0;

  constructor(ctx: IommufdCtx, group: IommuGroup) {
    this.ctx = ctx;
    this.group = group;
    this.lock = new Mutex(ctx.kernel.sched, GROUP_LOCK);
  }

  /** The group of `dev` in this context, with a reference; ENOMEM. */
  static get(ctx: IommufdCtx, group: IommuGroup): IommufdGroup | Errno {
    let g = ctx.groups.get(group.id);
    if (g === undefined) {
      const { fault } = ctx.kernel;
      if (fault.slab("iommufd_group") || fault.slab("entry of groups")) return ENOMEM;
      g = new IommufdGroup(ctx, group);
      ctx.groups.set(group.id, g);
    }
    g.#refs++;
    return g;
  }

  put(): void {
    this.#refs--;
    if (this.#refs > 0) return;
    if (this.attached.size > 0) throw new KernelBug(`iommufd group ${this.group.id} is released while attached`);
    this.ctx.groups.delete(this.group.id);
  }
}

/** A device bound to a context. Its owner (VFIO) holds a user until it unbinds. */
export class IommufdDevice extends IommufdObject {
  readonly type = "device";
  readonly ctx: IommufdCtx;
  readonly dev: Device;
  /** Undefined until the bind is complete. */
  igroup: IommufdGroup | undefined = undefined;
  /** Every domain it uses must force coherent DMA. */
  enforceCacheCoherency = false;
  /** What a guest knows it as. Under the group's lock. */
  vdev: IommufdVdevice | undefined = undefined;
  /** It is being unbound and takes no new `vdev`. Under the group's lock. */
  destroying = false;

  constructor(ctx: IommufdCtx, dev: Device) {
    super();
    this.ctx = ctx;
    this.dev = dev;
  }

  /** The group; only asked of a bound device. */
  get group(): IommufdGroup {
    if (this.igroup === undefined) throw new KernelBug(`${this.dev.name} is not bound`);
    return this.igroup;
  }

  /** The guest's view of it goes first, as that holds a reference. */
  override *preDestroy(): Step<void> {
    const { lock } = this.group;
    let alive: IommufdVdevice | undefined;
    yield* lock.lock();
    this.destroying = true;
    // One that is being destroyed already waits for this very lock, and is waited for by its reference.
    if (this.vdev !== undefined && tryIncUsers(this.ctx, this.vdev)) alive = this.vdev;
    lock.unlock();
    if (alive !== undefined) yield* tombstoneOwnedObject(this.ctx, alive);
  }

  override *destroy(): Step<void> {
    const g = this.igroup;
    if (g === undefined) return;
    yield* g.group.releaseDmaOwner();
    g.put();
    if (this.dev.bus !== "mock") iommufdCtxPut(this.ctx);
  }
}

function checkPasid(hwpt: IommufdHwpt, idev: IommufdDevice, pasid: number): Errno | undefined {
  const attached = idev.group.attached;
  if (pasid === NO_PASID) {
    if (hwpt.pasidCompat) return undefined;
    for (const other of attached.keys()) if (other !== NO_PASID) return EINVAL;
    return undefined;
  }
  if (!hwpt.pasidCompat) return EINVAL;
  const whole = attached.get(NO_PASID);
  return whole !== undefined && !whole.hwpt.pasidCompat ? EINVAL : undefined;
}

function* install(group: IommuGroup, hwpt: IommufdHwpt, idev: IommufdDevice, pasid: number): Step<Errno | undefined> {
  if (group.kernel.fault.slab("iommufd_attach_handle")) return ENOMEM;
  const handle = new IommufdAttachHandle(hwpt.domain, idev);
  if (pasid === NO_PASID) return yield* group.attachHandle(hwpt.domain, handle);
  return yield* group.attachPasid(hwpt.domain, idev.dev, pasid, handle);
}

/** Unlike Linux, which trusts the caller here, this refuses a domain of another IOMMU driver. */
function* exchange(group: IommuGroup, hwpt: IommufdHwpt, idev: IommufdDevice, pasid: number): Step<Errno | undefined> {
  if (!group.unit.compatible(hwpt.domain)) return EINVAL;
  if (group.kernel.fault.slab("iommufd_attach_handle")) return ENOMEM;
  const handle = new IommufdAttachHandle(hwpt.domain, idev);
  if (pasid === NO_PASID) return yield* group.replaceHandle(hwpt.domain, handle);
  return yield* group.replacePasid(hwpt.domain, idev.dev, pasid, handle);
}

/** Takes the devices in as requesters of the table: all, or none and EINVAL. */
function* admit(iopt: IoPagetable | undefined, devices: readonly IommufdDevice[]): Step<Errno | undefined> {
  if (iopt === undefined) return undefined;
  for (const [i, { dev }] of devices.entries()) {
    const e = yield* iopt.admit(dev);
    if (e === undefined) continue;
    yield* dismiss(iopt, devices.slice(0, i));
    return e;
  }
  return undefined;
}

function* dismiss(iopt: IoPagetable | undefined, devices: readonly IommufdDevice[]): Step<void> {
  if (iopt !== undefined) for (const { dev } of devices) yield* iopt.dismiss(dev);
}

/** Attaches a device to a domain. EBUSY: it is attached already. EINVAL: its group is attached elsewhere, or the domain does not suit it. ENOMEM. */
export function* attachHwpt(hwpt: IommufdHwpt, idev: IommufdDevice, pasid: number): Step<Errno | undefined> {
  const igroup = idev.group;
  const paging = pasid === NO_PASID ? hwpt.paging : undefined;
  yield* igroup.lock.lock();
  try {
    const attach = igroup.attached.get(pasid);
    const { fault } = idev.ctx.kernel;
    if (attach === undefined && (fault.slab("entry of pasid_attach") || fault.slab("iommufd_attach"))) return ENOMEM;
    if (attach?.devices.has(idev.id)) return EBUSY;
    if (fault.slab("entry of device_array")) return ENOMEM;
    if (attach !== undefined && attach.hwpt !== hwpt) return EINVAL;
    const peers = hwpt.paging?.ioas.iopt;
    const refused = yield* admit(peers, [idev]);
    if (refused !== undefined) return refused;
    if (paging !== undefined) {
      const e = yield* paging.ioas.iopt.enforceReservedRegions(idev.dev, igroup.group.reservedRegions(idev.dev));
      if (e !== undefined) {
        yield* dismiss(peers, [idev]);
        return e;
      }
    }
    if (attach === undefined) {
      const e = checkPasid(hwpt, idev, pasid) ?? (yield* install(igroup.group, hwpt, idev, pasid));
      if (e !== undefined) {
        if (paging !== undefined) yield* paging.ioas.iopt.removeReserved(idev.dev);
        yield* dismiss(peers, [idev]);
        return e;
      }
      igroup.attached.set(pasid, { hwpt, devices: new Map([[idev.id, idev]]) });
    } else {
      attach.devices.set(idev.id, idev);
    }
    hwpt.users++;
    traceAttach(idev, hwpt, "attach");
    return undefined;
  } finally {
    igroup.lock.unlock();
  }
}

/** Detaches and drops the attachment's user of the hardware page table; false when there was none. */
export function* detachHwpt(idev: IommufdDevice, pasid: number): Step<boolean> {
  const igroup = idev.group;
  let hwpt: IommufdHwpt;
  yield* igroup.lock.lock();
  try {
    const attach = igroup.attached.get(pasid);
    if (attach === undefined) return false;
    hwpt = attach.hwpt;
    attach.devices.delete(idev.id);
    if (attach.devices.size === 0) {
      const handle = igroup.group.handleOf(pasid);
      if (pasid === NO_PASID) yield* igroup.group.detachHandle(hwpt.domain);
      else yield* igroup.group.detachPasid(pasid);
      yield* autoResponseFaults(hwpt, handle);
      igroup.attached.delete(pasid);
    }
    if (pasid === NO_PASID && hwpt.paging !== undefined) yield* hwpt.paging.ioas.iopt.removeReserved(idev.dev);
    yield* dismiss(hwpt.paging?.ioas.iopt, [idev]);
    traceAttach(idev, hwpt, "detach");
  } finally {
    igroup.lock.unlock();
  }
  yield* hwpt.put();
  return true;
}

function* removeGroupReserved(attach: GroupAttach, hwpt: IommufdHwpt): Step<void> {
  const iopt = hwpt.paging?.ioas.iopt;
  if (iopt !== undefined) for (const d of attach.devices.values()) yield* iopt.removeReserved(d.dev);
}

/**
 * Moves a whole group to another domain with no moment in between. Answers the
 * old hardware page table, whose user the caller must drop once it holds no
 * lock; undefined when the group was there already. EINVAL: not attached.
 */
export function* replaceHwpt(hwpt: IommufdHwpt, idev: IommufdDevice, pasid: number): Step<IommufdHwpt | undefined | Errno> {
  const igroup = idev.group;
  const paging = pasid === NO_PASID ? hwpt.paging : undefined;
  yield* igroup.lock.lock();
  try {
    const attach = igroup.attached.get(pasid);
    if (attach === undefined || !attach.devices.has(idev.id)) return EINVAL;
    const old = attach.hwpt;
    if (old === hwpt) return undefined;
    const moves = paging !== undefined && old.paging?.ioas !== paging.ioas;
    const peers = hwpt.paging?.ioas.iopt;
    const devices = [...attach.devices.values()];
    const refused = yield* admit(peers, devices);
    if (refused !== undefined) return refused;
    if (moves) {
      for (const d of attach.devices.values()) {
        const e = yield* paging.ioas.iopt.enforceReservedRegions(d.dev, igroup.group.reservedRegions(d.dev));
        if (e !== undefined) {
          yield* removeGroupReserved(attach, hwpt);
          yield* dismiss(peers, devices);
          return e;
        }
      }
    }
    const handle = igroup.group.handleOf(pasid);
    const e = checkPasid(hwpt, idev, pasid) ?? (yield* exchange(igroup.group, hwpt, idev, pasid));
    if (e !== undefined) {
      if (moves) yield* removeGroupReserved(attach, hwpt);
      yield* dismiss(peers, devices);
      return e;
    }
    yield* autoResponseFaults(old, handle);
    yield* dismiss(old.paging?.ioas.iopt, devices);
    if (pasid === NO_PASID && old.paging !== undefined && old.paging.ioas !== hwpt.paging?.ioas) yield* removeGroupReserved(attach, old);
    attach.hwpt = hwpt;
    const n = attach.devices.size;
    hwpt.users += n;
    // The last of the old users is the caller's to drop: that may destroy it.
    decUsers(old, n - 1);
    traceAttach(idev, hwpt, "replace");
    return old;
  } finally {
    igroup.lock.unlock();
  }
}

function traceAttach(idev: IommufdDevice, hwpt: IommufdHwpt, what: "attach" | "detach" | "replace"): void {
  const { trace } = idev.ctx.kernel;
  if (trace.on) trace.emit({ type: "iommufd.attach", what, device: idev.dev.name, hwpt: hwpt.id });
}
