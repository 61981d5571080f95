/**
 * An IOMMU group: the devices that can only be isolated together.
 *
 * A group has one domain for all of its requests without PASID, and an array of
 * what is attached per PASID (entry 0 is the domain of those without). It is
 * owned by nobody (drivers use the kernel's DMA API), or by a user-space driver
 * that claimed it: then, while nothing is attached, everything is blocked.
 *
 * Invariants: `owner` is set only while `ownerCount` > 0; `domain` is
 * `defaultDomain` when the group is not owned; a PASID has at most one entry.
 * Lock order: iommufd's locks → `mutex`; nothing is taken inside it.
 *
 * Source: drivers/iommu/iommu.c.
 */
import { EBUSY, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EPERM, type Errno, KernelBug } from "../../lib/index.ts";
import { LockClass, Mutex, type Step } from "../../sched/index.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { IommuDomain } from "./domain.ts";
import { NO_PASID } from "./fault.ts";
import type { ReservedRegion } from "./resv.ts";
import type { IommuUnit, Requester } from "./unit.ts";

const groupMutex = new LockClass("iommu_group.mutex");

/** What an attachment carries back to whoever made it (faults find their queue by it). Never attached twice at once. */
export interface AttachHandle {
  readonly domain: IommuDomain | undefined;
}

interface PasidEntry {
  readonly domain: IommuDomain;
  readonly handle: AttachHandle | undefined;
}

export class IommuGroup {
  readonly kernel: Kernel;
  readonly id: number;
  readonly mutex: Mutex;
  /** In order of discovery. */
  readonly devices: Device[] = [];
  /** Where its requests without PASID go. Under `mutex`. */
  domain: IommuDomain | undefined = undefined;
  /** The DMA API's domain. */
  defaultDomain: IommuDomain | undefined = undefined;
  /** Who claimed it; compared by identity. Under `mutex`. */
  owner: unknown = undefined;
  /** Claims, and drivers that use the DMA API. Under `mutex`. */
  ownerCount = 0;
  /** Under `mutex`. */
  readonly #pasids: Map<number, PasidEntry> = new Map();

  constructor(kernel: Kernel, id: number) {
    this.kernel = kernel;
    this.id = id;
    this.mutex = new Mutex(kernel.sched, groupMutex);
  }

  /** The unit of its devices. Throws `KernelBug` for an empty group. */
  get unit(): IommuUnit {
    const unit = this.devices[0]?.iommuUnit;
    if (unit === undefined) throw new KernelBug(`group ${this.id} has no device behind a unit`);
    return unit;
  }

  /** No device of the group can raise an interrupt that is not its own. */
  get hasIsolatedMsi(): boolean {
    return this.devices.every((d) => d.iommuUnit?.isolatedMsi === true);
  }

  /** Regions that must not be mapped for `dev`, in ascending order. */
  reservedRegions(dev: Device): ReservedRegion[] {
    return dev.iommuUnit?.reservedRegions(dev) ?? [];
  }

  /** Somebody owns its DMA, or a driver uses it. */
  get dmaOwnerClaimed(): boolean {
    return this.ownerCount > 0;
  }

  /**
   * Takes the group's DMA for `owner`, and blocks it until something is attached. Devices of one group may be claimed one
   * after another by the same owner. EPERM: another owner, or a driver that uses the DMA API; EBUSY: something is attached;
   * EINVAL: it cannot be blocked.
   */
  *claimDmaOwner(owner: unknown): Step<Errno | undefined> {
    if (owner === undefined) throw new KernelBug("DMA ownership claimed by nobody");
    yield* this.mutex.lock();
    try {
      const e = this.#claim(owner);
      this.#traceClaim(e);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  /** Gives one claim back; with the last one the group returns to the DMA API. */
  *releaseDmaOwner(): Step<void> {
    yield* this.mutex.lock();
    try {
      if (this.ownerCount > 1) this.ownerCount--;
      else this.#release();
      if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.release", group: this.id, count: this.ownerCount });
    } finally {
      this.mutex.unlock();
    }
  }

  /** Takes the whole group at once, as the group interface of VFIO does: EPERM as soon as anybody has it. */
  *claimWholeGroup(owner: unknown): Step<Errno | undefined> {
    if (owner === undefined) throw new KernelBug("DMA ownership claimed by nobody");
    yield* this.mutex.lock();
    try {
      const e = this.ownerCount > 0 ? EPERM : this.#takeOwnership(owner);
      this.#traceClaim(e);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  /**
   * Attaches `domain` for requests without PASID and leaves no handle, as a type1 container does. EBUSY: something is
   * attached; EINVAL: the domain is another driver's, or a unit cannot walk it.
   */
  *attachGroup(domain: IommuDomain): Step<Errno | undefined> {
    yield* this.mutex.lock();
    try {
      if (this.domain !== undefined && this.domain !== this.defaultDomain && this.domain.type !== "blocked") return EBUSY;
      if (!this.unit.compatible(domain)) return EINVAL;
      return this.#setDomain(domain);
    } finally {
      this.mutex.unlock();
    }
  }

  /** Undoes `attachGroup`: blocked while owned, else back to the DMA API. */
  *detachGroup(): Step<void> {
    yield* this.mutex.lock();
    this.#setCoreDomain();
    this.mutex.unlock();
  }

  /** A driver that is about to bind does its DMA through the DMA API. EBUSY: a user-space driver owns the group. */
  *useDefaultDomain(): Step<Errno | undefined> {
    yield* this.mutex.lock();
    try {
      if (this.ownerCount > 0 && (this.domain !== this.defaultDomain || this.owner !== undefined || this.#pasids.size > 0)) return EBUSY;
      this.ownerCount++;
      return undefined;
    } finally {
      this.mutex.unlock();
    }
  }

  /** That driver was unbound. */
  *unuseDefaultDomain(): Step<void> {
    yield* this.mutex.lock();
    try {
      if (this.ownerCount === 0 || this.#pasids.size > 0) throw new KernelBug(`group ${this.id}: DMA API given back by nobody`);
      this.ownerCount--;
    } finally {
      this.mutex.unlock();
    }
  }

  /**
   * Attaches `domain` for requests without PASID. EBUSY: something is attached; EINVAL: the domain is another driver's, or a
   * unit cannot walk it.
   */
  *attachHandle(domain: IommuDomain, handle: AttachHandle): Step<Errno | undefined> {
    yield* this.mutex.lock();
    try {
      if (this.#pasids.has(NO_PASID)) return EBUSY;
      if (this.domain !== undefined && this.domain !== this.defaultDomain && this.domain.type !== "blocked") return EBUSY;
      if (!this.unit.compatible(domain)) return EINVAL;
      const e = this.#lacksEntry ? ENOMEM : this.#setDomain(domain);
      if (e === undefined) this.#store(NO_PASID, domain, handle);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  /** Changes the domain without passing through the blocked one. On error (see `attachHandle`) the old one is attached again. */
  *replaceHandle(domain: IommuDomain, handle: AttachHandle): Step<Errno | undefined> {
    yield* this.mutex.lock();
    try {
      const e = this.#lacksEntry ? ENOMEM : this.#setDomain(domain);
      if (e === undefined) this.#store(NO_PASID, domain, handle);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  /** Back to the blocked domain while owned, else to the DMA API's. Throws `KernelBug` when it is not `domain` that is attached. */
  *detachHandle(domain: IommuDomain): Step<void> {
    yield* this.mutex.lock();
    try {
      if (this.#pasids.get(NO_PASID)?.domain !== domain)
        throw new KernelBug(`group ${this.id}: detached from a domain it is not attached to`);
      this.#setCoreDomain();
      this.#pasids.delete(NO_PASID);
    } finally {
      this.mutex.unlock();
    }
  }

  /**
   * Attaches `domain` for requests with `pasid` (> 0). EOPNOTSUPP: the unit or the devices have no PASIDs; EINVAL: the domain is another
   * driver's, or the PASID is too large; EBUSY: taken.
   */
  *attachPasid(domain: IommuDomain, dev: Device, pasid: number, handle: AttachHandle): Step<Errno | undefined> {
    const bad = this.#checkPasid(domain, dev, pasid);
    if (bad !== undefined) return bad;
    yield* this.mutex.lock();
    try {
      if (this.#pasids.has(pasid)) return EBUSY;
      const e = this.#lacksEntry ? ENOMEM : this.#setPasid(domain, pasid, undefined);
      if (e === undefined) this.#store(pasid, domain, handle);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  /** The same for a PASID that has a domain. EINVAL: it has none; else as `attachPasid`, and the old domain stays. */
  *replacePasid(domain: IommuDomain, dev: Device, pasid: number, handle: AttachHandle): Step<Errno | undefined> {
    const bad = this.#checkPasid(domain, dev, pasid);
    if (bad !== undefined) return bad;
    yield* this.mutex.lock();
    try {
      if (this.#lacksEntry) return ENOMEM;
      const old = this.#pasids.get(pasid);
      if (old === undefined) return EINVAL;
      if (old.handle === handle) throw new KernelBug(`group ${this.id}: attach handle of PASID ${pasid} reused`);
      const e = old.domain === domain ? undefined : this.#setPasid(domain, pasid, old.domain);
      if (e === undefined) this.#store(pasid, domain, handle);
      return e;
    } finally {
      this.mutex.unlock();
    }
  }

  *detachPasid(pasid: number): Step<void> {
    yield* this.mutex.lock();
    try {
      for (const d of this.devices) d.iommuUnit?.removePasid(d, pasid);
      this.#pasids.delete(pasid);
    } finally {
      this.mutex.unlock();
    }
  }

  /** The handle given when `pasid` was attached. */
  handleOf(pasid: number = NO_PASID): AttachHandle | undefined {
    return this.#pasids.get(pasid)?.handle;
  }

  /** PASIDs attached now, 0 among them when a domain with a handle is. */
  get attachedPasids(): number[] {
    return [...this.#pasids.keys()];
  }

  /** Boot and hot-plug: a new device joins and gets the group's domain. */
  addDevice(dev: Device): void {
    this.devices.push(dev);
    dev.iommuGroup = this;
    if (this.domain !== undefined) this.unit.attach(dev, this.domain, true);
  }

  removeDevice(dev: Device): void {
    const i = this.devices.indexOf(dev);
    if (i < 0) throw new KernelBug(`${dev.name} is not in group ${this.id}`);
    this.devices.splice(i, 1);
    dev.iommuGroup = undefined;
  }

  /** Boot and hot-plug: sets the DMA API's domain and attaches it; see `attachHandle`. */
  setDefaultDomain(domain: IommuDomain): Errno | undefined {
    this.defaultDomain = domain;
    return this.#setDomain(domain);
  }

  #claim(owner: unknown): Errno | undefined {
    if (this.ownerCount === 0) return this.#takeOwnership(owner);
    if (this.owner !== owner) return EPERM;
    this.ownerCount++;
    return undefined;
  }

  #takeOwnership(owner: unknown): Errno | undefined {
    if ((this.domain !== undefined && this.domain !== this.defaultDomain) || this.#pasids.size > 0) return EBUSY;
    const e = this.#setDomain(this.unit.blockedDomain);
    if (e !== undefined) return e;
    this.owner = owner;
    this.ownerCount++;
    return undefined;
  }

  #release(): void {
    if (this.ownerCount === 0 || this.owner === undefined || this.#pasids.size > 0) {
      throw new KernelBug(`group ${this.id}: DMA ownership released with ${this.ownerCount} claims and ${this.#pasids.size} attachments`);
    }
    this.ownerCount = 0;
    this.owner = undefined;
    this.#setCoreDomain();
  }

  /** No room for one more PASID, or domain, in the list. */
  get #lacksEntry(): boolean {
    return this.kernel.fault.slab("entry of pasid_array");
  }

  #setCoreDomain(): void {
    const domain = this.owner === undefined ? this.defaultDomain : this.unit.blockedDomain;
    if (domain === undefined) throw new KernelBug(`group ${this.id} has no default domain`);
    if (this.#setDomain(domain, true) !== undefined) throw new KernelBug(`group ${this.id} cannot return to its core domain`);
  }

  /** All devices or, when one refuses, none: those already moved go back. The one that refused stays blocked. */
  #setDomain(domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const old = this.domain;
    if (old === domain) return undefined;
    for (let i = 0; i < this.devices.length; i++) {
      const e = this.#attachDevice(this.devices[i] as Device, domain, mustSucceed);
      if (e === undefined) continue;
      for (let j = 0; j < i && old !== undefined; j++) this.#attachDevice(this.devices[j] as Device, old, true);
      return e;
    }
    this.domain = domain;
    return undefined;
  }

  #attachDevice(dev: Device, domain: IommuDomain, mustSucceed: boolean): Errno | undefined {
    const unit = dev.iommuUnit;
    if (unit === undefined) return ENODEV;
    if (domain.type === "blocked" && this.#requester(dev)?.requireDirect === true) {
      this.kernel.printk(`${dev.name}: firmware demands one-to-one mappings for this device: it cannot be blocked`);
      return EINVAL;
    }
    return unit.attach(dev, domain, mustSucceed);
  }

  #checkPasid(domain: IommuDomain, dev: Device, pasid: number): Errno | undefined {
    const unit = dev.iommuUnit;
    if (unit === undefined) return ENODEV;
    if (domain.type === "blocked") return EOPNOTSUPP;
    if (!unit.compatible(domain) || pasid === NO_PASID) return EINVAL;
    for (const d of this.devices) {
      const max = this.#requester(d)?.maxPasids ?? 0;
      if (max > 0 && pasid >= max) return EINVAL;
    }
    return undefined;
  }

  #setPasid(domain: IommuDomain, pasid: number, old: IommuDomain | undefined): Errno | undefined {
    const done: Device[] = [];
    for (const d of this.devices) {
      if ((this.#requester(d)?.maxPasids ?? 0) === 0) continue;
      const e = d.iommuUnit?.setPasid(d, pasid, domain);
      if (e === undefined) {
        done.push(d);
        continue;
      }
      for (const back of done) {
        if (old === undefined) back.iommuUnit?.removePasid(back, pasid);
        else back.iommuUnit?.setPasid(back, pasid, old, true);
      }
      return e;
    }
    return undefined;
  }

  #store(pasid: number, domain: IommuDomain, handle: AttachHandle): void {
    this.#pasids.set(pasid, { domain, handle });
  }

  #requester(dev: Device): Requester | undefined {
    return dev.iommuUnit?.requesters.get(dev.rid);
  }

  #traceClaim(e: Errno | undefined): void {
    const trace = this.kernel.trace;
    if (trace.on) trace.emit({ type: "iommu.claim", group: this.id, count: this.ownerCount, errno: e?.name });
  }
}
