/**
 * The IOMMU subsystem: units, groups, and the door every DMA goes through.
 *
 * A machine without a unit translates nothing and has no groups. With one,
 * every requester goes through it, known or not: a device nobody registered is
 * refused.
 *
 * Source: drivers/iommu/iommu.c.
 */
import { ENOMEM, Errno, U64_MAX } from "../../lib/index.ts";
import { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { AmdIommu } from "./amd.ts";
import type { IommuDescription } from "./description.ts";
import { bdfOf, IommuFault, NO_PASID } from "./fault.ts";
import { IommuGroup } from "./group.ts";
import { IntelIommu } from "./intel.ts";
import type { IommuUnit, Requester, Translation } from "./unit.ts";

export type { IommuDescription } from "./description.ts";
export { IommuFault } from "./fault.ts";
export type { Translation } from "./unit.ts";

export interface AddDeviceOptions {
  /** The first unit by default. */
  readonly unit?: IommuUnit;
  /** PASIDs the device's capability offers; 0 by default. */
  readonly maxPasids?: number;
  /** Firmware demands one-to-one mappings at all times; default false. */
  readonly requireDirect?: boolean;
}

const PARTS_OF_A_GROUP: readonly string[] = [
  "iommu_group",
  "entry of iommu_group_ida",
  "name of a group",
  "sysfs directory of a group",
  "kobject devices",
  "name devices",
  "sysfs directory devices",
  "sysfs file reserved_regions",
  "sysfs file type",
];
const PARTS_IN_A_GROUP: readonly string[] = ["group_device", "sysfs link iommu_group", "name", "sysfs link of the group"];

export type FaultListener = (fault: IommuFault) => void;

export class IommuSubsystem {
  readonly kernel: Kernel;
  readonly units: IommuUnit[] = [];
  /** By id. */
  readonly groups: Map<number, IommuGroup> = new Map();
  /** Faults since boot, by reason code. */
  readonly faultCount: Map<number, number> = new Map();
  /** Groups start in the identity domain: kernel drivers' DMA is not translated (iommu.passthrough=1). */
  passthrough = false;
  readonly #requesters: Map<number, Requester> = new Map();
  readonly #listeners: Set<FaultListener> = new Set();
  readonly #freeDomainIds: number[] = [];
  #nextGroup = 0;
  #nextDomain = 1;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
  }

  /** Adds a unit. The devices behind it are told by `addDevice`. */
  addUnit(description: IommuDescription): IommuUnit {
    const unit =
      description.kind === "amd"
        ? new AmdIommu(this.kernel, `ivhd${this.units.length}`, description)
        : new IntelIommu(this.kernel, `dmar${this.units.length}`, description);
    this.units.push(unit);
    return unit;
  }

  newGroup(): IommuGroup {
    const g = new IommuGroup(this.kernel, this.#nextGroup++);
    this.groups.set(g.id, g);
    return g;
  }

  /**
   * Boot and hot-plug: puts a device behind a unit and into `group` (a new one by default), and attaches the group's domain.
   * Without a unit nothing happens. ENOMEM, and then it is as before.
   */
  addDevice(dev: Device, group?: IommuGroup, options: AddDeviceOptions = {}): Errno | undefined {
    const unit = options.unit ?? this.units[0];
    if (unit === undefined) return undefined;
    if (this.#lacksMemory(group === undefined)) return ENOMEM;
    dev.iommuUnit = unit;
    const requester = unit.addRequester(dev);
    requester.maxPasids = Math.min(options.maxPasids ?? 0, unit.maxPasids);
    requester.requireDirect = options.requireDirect ?? false;
    this.#requesters.set(dev.rid, requester);
    const g = group ?? this.newGroup();
    g.addDevice(dev);
    if (g.defaultDomain === undefined) {
      const domain = this.passthrough ? unit.identityDomain : unit.domainAllocDma(dev);
      const e = domain instanceof Errno ? domain : g.setDefaultDomain(domain);
      if (e !== undefined) {
        this.removeDevice(dev);
        return e;
      }
    }
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.device", device: dev.name, group: g.id, unit: unit.name });
    return undefined;
  }

  /** There is no memory for what the core keeps of a device and shows of it in sysfs, nor for its group if that is new. */
  #lacksMemory(newGroup: boolean): boolean {
    const { fault } = this.kernel;
    const lacks = (what: string): boolean => fault.slab(what);
    if (lacks("dev_iommu") || lacks("sysfs link to the unit") || lacks("sysfs link of the unit")) return true;
    return (newGroup && PARTS_OF_A_GROUP.some(lacks)) || PARTS_IN_A_GROUP.some(lacks);
  }

  /** The device is gone; its group goes with its last device. */
  removeDevice(dev: Device): void {
    const unit = dev.iommuUnit;
    const group = dev.iommuGroup;
    if (unit === undefined || group === undefined) return;
    unit.removeRequester(dev);
    this.#requesters.delete(dev.rid);
    group.removeDevice(dev);
    dev.iommuUnit = undefined;
    if (group.devices.length > 0) return;
    group.defaultDomain?.free();
    this.groups.delete(group.id);
  }

  /**
   * One access by requester `rid`: where it goes, or a fault that has been counted, logged and traced.
   * `last` of the answer is the last IOVA for which `pa` goes on contiguously.
   */
  translate(rid: number, iova: bigint, write: boolean, pasid: number = NO_PASID): Translation | IommuFault {
    const r = this.#requesters.get(rid) ?? this.#unknown(rid);
    if (r === undefined) return { pa: iova, last: U64_MAX };
    const t = r.unit.translate(r, iova, write, pasid);
    if (t instanceof IommuFault) this.#report(t);
    return t;
  }

  /** Hears every fault from now on; call what it returns to stop. */
  onFault(listener: FaultListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Faults since boot. */
  get faults(): number {
    let n = 0;
    for (const c of this.faultCount.values()) n += c;
    return n;
  }

  /** The unit's view of a device, by requester id. */
  requester(rid: number): Requester | undefined {
    return this.#requesters.get(rid);
  }

  /** Domains that are not freed. */
  get liveDomains(): number {
    return this.#nextDomain - 1 - this.#freeDomainIds.length;
  }

  /** An id no live domain has. */
  getDomainId(): number {
    return this.#freeDomainIds.pop() ?? this.#nextDomain++;
  }

  /** The domain is freed. Its cached translations must be gone: the id is used again. */
  putDomainId(id: number): void {
    for (const u of this.units) u.iotlb.invalidateDomain(id);
    this.#freeDomainIds.push(id);
  }

  #unknown(rid: number): Requester | undefined {
    const unit = this.units[0];
    return unit?.addRequester(new Device(bdfOf(rid), "pci", rid));
  }

  #report(fault: IommuFault): void {
    this.faultCount.set(fault.reason, (this.faultCount.get(fault.reason) ?? 0) + 1);
    const trace = this.kernel.trace;
    if (trace.on) {
      const { device, iova, write, domain, reason, why, text } = fault;
      trace.emit({ type: "iommu.fault", device, iova, write, domain, reason, why, text });
    }
    this.kernel.printk(fault.text);
    for (const l of this.#listeners) l(fault);
  }
}
