/**
 * A translation unit: the hardware between devices and memory, and its driver.
 *
 * The hardware half is `translate`: requester → domain → IOTLB → page table.
 * The driver half (capabilities, which domains it makes, which it accepts) is
 * each driver's: `intel.ts`, `amd.ts`. A requester always has a domain: the
 * blocked one when nothing else is attached.
 *
 * Invariants: a domain attached to a requester counts it among its `users`; a
 * requester whose domain changes leaves no translation of the old one reachable,
 * since cached translations are tagged with the domain's id.
 *
 * Source: include/linux/iommu.h (struct iommu_ops), drivers/iommu/iommu.c.
 */
import { EINVAL, ENOMEM, EOPNOTSUPP, type Errno } from "../../lib/index.ts";
import type { Step } from "../../sched/index.ts";
import { IOMMU_HW_CAP_DIRTY_TRACKING, IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED, IOMMU_HW_INFO_TYPE_DEFAULT } from "../../uapi/iommufd.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { type DomainUser, IommuDomain, type IommuOps } from "./domain.ts";
import { type FaultCause, type FaultFacts, type IommuFault, NO_PASID } from "./fault.ts";
import type { PageRequest, PageResponse } from "./io_pagefault.ts";
import { Iotlb, type IotlbEntry } from "./iotlb.ts";
import { MSI_WINDOW_LAST, MSI_WINDOW_START, type ReservedRegion } from "./resv.ts";
import type { IommuUserData } from "./user_data.ts";
import type { ViommuCore, ViommuOps } from "./viommu.ts";

/** Source: enum iommu_cap. */
export type IommuCap =
  | "cache-coherency"
  | "noexec"
  | "pre-boot-protection"
  | "enforce-cache-coherency"
  | "deferred-flush"
  | "dirty-tracking"
  | "pci-ats-supported";

/** What IOMMU_GET_HW_INFO tells. */
export interface IommuHwInfo {
  readonly type: number;
  /** The driver's struct, as user space gets it. */
  readonly data: Uint8Array;
  readonly capabilities: bigint;
  /** log2 of the number of PASIDs the device may use; 0: none. */
  readonly maxPasidLog2: number;
}

/** A successful translation. */
export interface Translation {
  readonly pa: bigint;
  /** Last IOVA (inclusive) for which `pa` goes on contiguously. */
  readonly last: bigint;
}

/** A device as the unit knows it: by requester id. */
export class Requester {
  readonly device: Device;
  readonly rid: number;
  readonly unit: IommuUnit;
  /** Where requests without a PASID go. */
  domain: IommuDomain;
  user: DomainUser | undefined = undefined;
  /** Where requests with that PASID go. Made when the first is attached. */
  pasids: Map<number, { readonly domain: IommuDomain; readonly user: DomainUser }> | undefined = undefined;
  /** PASIDs the device can use; 0: no PASID capability. */
  maxPasids = 0;
  /** Its requests may carry translated addresses (ATS works). */
  ats = false;
  /** Firmware demands one-to-one mappings at all times: it can never be blocked. */
  requireDirect = false;

  constructor(device: Device, unit: IommuUnit) {
    this.device = device;
    this.rid = device.rid;
    this.unit = unit;
    this.domain = unit.blockedDomain;
  }
}

export abstract class IommuUnit {
  readonly kernel: Kernel;
  /** As the kernel names it, `dmar0`, `ivhd0`. */
  readonly name: string;
  /** Identity of its driver. */
  readonly ops: IommuOps;
  readonly iotlb: Iotlb = new Iotlb();
  /** Nothing passes. */
  readonly blockedDomain: IommuDomain;
  /** Everything passes, untranslated. */
  readonly identityDomain: IommuDomain;
  /** Interrupts are remapped, so that a device can send only its own. */
  readonly isolatedMsi: boolean;
  readonly requesters: Map<number, Requester> = new Map();

  constructor(kernel: Kernel, name: string, ops: IommuOps, isolatedMsi: boolean) {
    this.kernel = kernel;
    this.name = name;
    this.ops = ops;
    this.isolatedMsi = isolatedMsi;
    this.blockedDomain = new IommuDomain({ kernel, type: "blocked", owner: ops, id: 0 });
    this.identityDomain = new IommuDomain({ kernel, type: "identity", owner: ops, id: 0 });
  }

  /** PASIDs a device may use behind this unit; 0: none. */
  abstract get maxPasids(): number;

  /** A feature of the unit as it serves `dev`. */
  abstract capable(cap: IommuCap, dev?: Device): boolean;

  /**
   * Makes a paging domain for `dev` (type unmanaged). `flags` are IOMMU_HWPT_ALLOC_*.
   * EOPNOTSUPP: a flag this unit does not know or cannot serve; ENOMEM. `data`: only for units with `takesUserData`.
   */
  abstract domainAllocPagingFlags(dev: Device, flags: number, data?: IommuUserData): Step<IommuDomain | Errno>;

  /** A program may say more of a paging domain than flags can. */
  get takesUserData(): boolean {
    return false;
  }

  /**
   * A domain nested in `parent`, which is one of this driver's that was made for it. `flags`: IOMMU_HWPT_ALLOC_PASID at most.
   * Absent: the driver knows no nesting outside of a virtual IOMMU.
   */
  domainAllocNested?(dev: Device, parent: IommuDomain, flags: number, data: IommuUserData): IommuDomain | Errno;

  /** Virtual IOMMUs of a type (IOMMU_VIOMMU_TYPE_*) can be made for `dev`. */
  supportsViommu(_dev: Device, _type: number): boolean {
    return false;
  }

  /** The driver's half of a new virtual IOMMU on `parent`. */
  *viommuInit(_core: ViommuCore, _parent: IommuDomain, _data: IommuUserData | undefined): Step<ViommuOps | Errno> {
    return EOPNOTSUPP;
  }

  /**
   * Answers a group of page requests to the device; `last` is the group's last request. Absent: no device behind this unit
   * makes page requests.
   */
  pageResponse?(dev: Device, last: PageRequest, response: PageResponse): void;

  /** A guest keeps the PASID tables of nested domains: requests of any PASID are those of the whole device's nested domain. */
  get userPasidTable(): boolean {
    return false;
  }

  /** A paging domain for the kernel's own DMA API, made without sleeping. */
  abstract domainAllocDma(dev: Device): IommuDomain | Errno;

  /** The driver's struct for user space; EOPNOTSUPP for a type that is not this driver's. */
  protected abstract hwInfoData(type: number): { type: number; data: Uint8Array } | Errno;

  /** Walks a nested domain's tables. Absent: none of this driver's is ever walked. */
  protected walkNested?(domain: IommuDomain, iova: bigint, write: boolean): IotlbEntry | FaultCause;

  /** EINVAL when this unit cannot walk the domain's table, or those of a nested domain, as they are. */
  protected abstract paging(domain: IommuDomain): Errno | undefined;

  /** The driver's code, words and log line for a fault. */
  protected abstract decode(facts: FaultFacts, domain: IommuDomain | undefined): IommuFault;

  /** Regions a device must not have mapped, in ascending order. */
  abstract reservedRegions(dev: Device): ReservedRegion[];

  /** The address fits the domain's table, whether or not anything is mapped there. */
  protected abstract inReach(domain: IommuDomain, iova: bigint): boolean;

  hwInfo(dev: Device, type: number = IOMMU_HW_INFO_TYPE_DEFAULT): IommuHwInfo | Errno {
    const info = this.hwInfoData(type);
    if (!("data" in info)) return info;
    let capabilities = 0n;
    if (this.capable("dirty-tracking", dev)) capabilities |= IOMMU_HW_CAP_DIRTY_TRACKING;
    if (!this.capable("pci-ats-supported", dev)) capabilities |= IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED;
    const maxPasids = this.requesters.get(dev.rid)?.maxPasids ?? 0;
    return { ...info, capabilities, maxPasidLog2: maxPasids === 0 ? 0 : Math.floor(Math.log2(maxPasids)) };
  }

  /** Makes the unit know a device; it is blocked until a domain is attached. */
  addRequester(dev: Device): Requester {
    const r = new Requester(dev, this);
    this.requesters.set(dev.rid, r);
    return r;
  }

  /** The device is gone: its domains lose it. */
  removeRequester(dev: Device): void {
    const r = this.requesters.get(dev.rid);
    if (r === undefined) return;
    for (const pasid of [...(r.pasids?.keys() ?? [])]) this.removePasid(dev, pasid);
    this.#leave(r);
    this.requesters.delete(dev.rid);
  }

  /** There is no memory for what the driver keeps of an attachment to a table, of a requester or to one of its PASIDs. */
  protected lacksAttachMemory(_pasid: number): boolean {
    return false;
  }

  /** A domain of this unit's driver: two drivers' domains never mix. */
  compatible(domain: IommuDomain): boolean {
    return domain.owner === this.ops;
  }

  /**
   * Routes the device's requests without PASID to `domain`. EINVAL: this unit cannot walk it; ENOMEM, unless `mustSucceed`: the
   * way back that a failure takes. The device is then left blocked.
   */
  attach(dev: Device, domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const r = this.requesters.get(dev.rid);
    if (r === undefined || !this.compatible(domain)) return EINVAL;
    const e = this.#switch(r, domain, mustSucceed);
    const trace = this.kernel.trace;
    if (trace.on) {
      trace.emit({ type: "iommu.attach", device: dev.name, domain: domain.id, kind: domain.type, pasid: NO_PASID, errno: e?.name });
    }
    return e;
  }

  /** Routes requests with `pasid` to `domain`, whatever they were routed to before. EOPNOTSUPP: no PASIDs here; EINVAL and ENOMEM as `attach`, and nothing changes. */
  setPasid(dev: Device, pasid: number, domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const r = this.requesters.get(dev.rid);
    if (r === undefined || r.maxPasids === 0) return EOPNOTSUPP;
    const e = domain.paging || domain.type === "nested" ? this.paging(domain) : undefined;
    if (e !== undefined) return e;
    if ((domain.paging || domain.type === "nested") && !mustSucceed && this.lacksAttachMemory(pasid)) return ENOMEM;
    this.removePasid(dev, pasid);
    if (domain.type === "blocked") return undefined;
    const user: DomainUser = { unit: this, device: dev.name, pasid };
    domain.users.add(user);
    r.pasids ??= new Map();
    r.pasids.set(pasid, { domain, user });
    const trace = this.kernel.trace;
    if (trace.on) trace.emit({ type: "iommu.attach", device: dev.name, domain: domain.id, kind: domain.type, pasid, errno: undefined });
    return undefined;
  }

  /** Requests with `pasid` fault from now on. */
  removePasid(dev: Device, pasid: number): void {
    const r = this.requesters.get(dev.rid);
    const old = r?.pasids?.get(pasid);
    if (r === undefined || old === undefined) return;
    r.pasids?.delete(pasid);
    old.domain.users.delete(old.user);
    this.#forget(old.domain);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.detach", device: dev.name, domain: old.domain.id, pasid });
  }

  /** One access of a device: where it goes, or why it does not. */
  translate(r: Requester, iova: bigint, write: boolean, pasid: number): Translation | IommuFault {
    if (iova <= MSI_WINDOW_LAST && iova >= MSI_WINDOW_START) {
      // Without remapping the window leads to the interrupt controllers untranslated; with it, what is no message is refused.
      if (!this.isolatedMsi) return { pa: iova, last: MSI_WINDOW_LAST };
      return this.#fault(r, iova, write, pasid, undefined, "interrupt-window");
    }
    const domain = pasid === NO_PASID ? r.domain : r.pasids?.get(pasid)?.domain;
    if (domain === undefined) return this.#fault(r, iova, write, pasid, undefined, "no-pasid");
    if (domain.type === "identity") return { pa: iova, last: 0xffff_ffff_ffff_ffffn };
    if (domain.type === "blocked") return this.#fault(r, iova, write, pasid, undefined, "no-domain");
    const cached = this.iotlb.lookup(domain.id, iova);
    if (cached !== undefined && (write ? cached.writable && (cached.dirty || !domain.dirtyTracking) : cached.readable)) {
      return { pa: cached.pa + (iova - cached.start), last: cached.last };
    }
    return this.#walk(r, domain, iova, write, pasid);
  }

  #walk(r: Requester, domain: IommuDomain, iova: bigint, write: boolean, pasid: number): Translation | IommuFault {
    if (domain.type === "nested") {
      const entry = this.walkNested?.(domain, iova, write) ?? "not-present";
      if (typeof entry === "string") return this.#fault(r, iova, write, pasid, domain, entry);
      this.iotlb.insert(domain.id, iova, entry);
      return { pa: entry.pa + (iova - entry.start), last: entry.last };
    }
    if (!this.inReach(domain, iova)) return this.#fault(r, iova, write, pasid, domain, "beyond-width");
    const leaf = domain.pageTableOrNone?.translate(iova);
    if (leaf === undefined) return this.#fault(r, iova, write, pasid, domain, "not-present");
    if (write && !leaf.writable) return this.#fault(r, iova, write, pasid, domain, "write-denied");
    if (!write && !leaf.readable) return this.#fault(r, iova, write, pasid, domain, "read-denied");
    const offset = iova & (leaf.pageSize - 1n);
    const dirty = write && domain.dirtyTracking;
    if (dirty) domain.pageTable.setDirty(iova);
    const start = iova - offset;
    const entry: IotlbEntry = {
      start,
      last: start + leaf.pageSize - 1n,
      pa: leaf.pa - offset,
      readable: leaf.readable,
      writable: leaf.writable,
      dirty,
    };
    this.iotlb.insert(domain.id, iova, entry);
    return { pa: leaf.pa, last: entry.last };
  }

  #fault(r: Requester, iova: bigint, write: boolean, pasid: number, domain: IommuDomain | undefined, cause: FaultCause): IommuFault {
    const facts: FaultFacts = { requester: r.rid, device: r.device.name, iova, write, pasid, domain: domain?.id ?? 0, cause };
    return this.decode(facts, domain);
  }

  #switch(r: Requester, domain: IommuDomain, mustSucceed: boolean): Errno | undefined {
    // The old domain goes first: a device that a new domain refuses ends up blocked, as in Linux.
    this.#leave(r);
    const e = domain.paging || domain.type === "nested" ? this.paging(domain) : undefined;
    if (e !== undefined) return e;
    if ((domain.paging || domain.type === "nested") && !mustSucceed && this.lacksAttachMemory(NO_PASID)) return ENOMEM;
    r.domain = domain;
    if (domain.type === "blocked") return undefined;
    r.user = { unit: this, device: r.device.name, pasid: NO_PASID };
    domain.users.add(r.user);
    return undefined;
  }

  #leave(r: Requester): void {
    const old = r.domain;
    if (r.user !== undefined) old.users.delete(r.user);
    r.user = undefined;
    r.domain = this.blockedDomain;
    if (old.type === "blocked") return;
    this.#forget(old);
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.detach", device: r.device.name, domain: old.id, pasid: NO_PASID });
  }

  /** Invalidates a domain's cached translations once nobody here uses it: flushes no longer reach this unit for it. */
  #forget(domain: IommuDomain): void {
    for (const u of domain.users) if (u.unit === this) return;
    this.iotlb.invalidateDomain(domain.id);
  }
}
