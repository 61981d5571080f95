/**
 * AMD-Vi: extended features, the domains it makes and accepts, its events.
 *
 * Domains use the version 1 table, whose tree starts at three levels and grows
 * at the top; the unit honours its force-coherence bit in every leaf, so cache
 * coherency is always enforced. What user space reads with IOMMU_GET_HW_INFO
 * are the two extended feature registers.
 *
 * Source: AMD I/O virtualization technology specification 3.05, 3.4.3 (extended
 * feature register), 2.5.3 (IO_PAGE_FAULT); drivers/iommu/amd/iommu.c, iommufd.c.
 */
import { EINVAL, ENOMEM, EOPNOTSUPP, type Errno, KernelBug } from "../../lib/index.ts";
import { amdv1, PageTable } from "../../pt/index.ts";
import type { Step } from "../../sched/index.ts";
import {
  IOMMU_HW_INFO_TYPE_AMD,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IommuHwInfoAmd,
} from "../../uapi/iommufd.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import type { IommuDescription } from "./description.ts";
import {
  domainTables,
  type IommuDirtyOps,
  IommuDomain,
  type IommuDomainType,
  type IommuOps,
  lacksTable,
  pageTableDirtyOps,
} from "./domain.ts";
import { amdFault, type FaultCause, type FaultFacts, type IommuFault } from "./fault.ts";
import { AMD_HT_RANGE, type ReservedRegion, X86_MSI_WINDOW } from "./resv.ts";
import { type IommuCap, IommuUnit } from "./unit.ts";
import type { ViommuOps } from "./viommu.ts";

const amdOps: IommuOps = { name: "amd" };

/** Bits of the extended feature register. */
const EFR_GIOSUP = 1n << 48n;
const EFR_HASUP = 1n << 49n;
const EFR_HDSUP = 1n << 52n;
/** Prefetch, page requests, guest translation, INVALIDATE_ALL, guest APIC, six-level tables: the recorded unit's. */
const EFR_BASE = 0x29d3n;
/** Of the second register. */
const EFR2_GCR3_TRP_MODE = 1n << 3n;

/** Every power of two from 4 KiB on; the table leaves out those the format lacks. */
const ALL_SIZES = ~0xfffn;

/** Flags of an IO_PAGE_FAULT event. */
const EVENT_I = 0x008;
const EVENT_PR = 0x010;
const EVENT_RW = 0x020;
const EVENT_PE = 0x040;

/** What every domain of a unit has in common. */
interface AmdTableShape {
  /** Bits of an IOVA. */
  readonly width: number;
  /** Leaf sizes the unit allows; the format lacks some of them. */
  readonly pgsizes: bigint;
  /** Leaf sizes in use. */
  readonly pgsizeBitmap: bigint;
}

class AmdDomain extends IommuDomain {
  override readonly dirtyOps: IommuDirtyOps | undefined;

  constructor(kernel: Kernel, type: IommuDomainType, shape: AmdTableShape, dirty: boolean) {
    const { width: vasz, pgsizes, pgsizeBitmap } = shape;
    super({
      kernel,
      type,
      owner: amdOps,
      id: kernel.iommu.getDomainId(),
      pgsizeBitmap,
      geometry: { apertureStart: 0n, apertureEnd: (1n << BigInt(vasz)) - 1n },
      table: (domain) =>
        new PageTable(amdv1, { vasz, pgsizes, ...domainTables(kernel), iotlbSync: (gather) => domain.flushGather(gather) }),
    });
    this.dirtyOps = dirty ? pageTableDirtyOps(this) : undefined;
  }

  override enforceCacheCoherency(): boolean {
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.snoop", domain: this.id, enforced: true });
    return true;
  }
}

export class AmdIommu extends IommuUnit {
  /** The extended feature registers. */
  readonly efr: bigint;
  readonly efr2: bigint;
  readonly #shape: AmdTableShape;
  readonly #preBoot: boolean;

  constructor(kernel: Kernel, name: string, d: IommuDescription) {
    super(kernel, name, amdOps, d.interruptRemapping !== false);
    let efr = EFR_BASE;
    if (d.dirtyTracking === true) efr |= EFR_HASUP | EFR_HDSUP;
    if (d.nesting === true || d.pasid === true) efr |= EFR_GIOSUP;
    this.efr = efr;
    this.efr2 = d.nesting === true ? EFR2_GCR3_TRP_MODE : 0n;
    let pgsizes = ALL_SIZES;
    if (d.pages2m === false) pgsizes = 0x1000n;
    else if (d.pages1g === false) pgsizes &= (1n << 30n) - 1n;
    const width = d.addressWidth ?? 48;
    if (width !== 48 && width !== 64) throw new RangeError(`AMD IOMMU of ${width} bits: 48 or 64`);
    // The table layer knows which sizes the format has.
    const { pgsizeBitmap } = new PageTable(amdv1, { vasz: width, pgsizes });
    this.#shape = { width, pgsizes, pgsizeBitmap };
    this.#preBoot = d.preBootProtection === true;
  }

  override get maxPasids(): number {
    return 0;
  }

  override capable(cap: IommuCap): boolean {
    switch (cap) {
      case "cache-coherency":
      case "enforce-cache-coherency":
        return true;
      case "pre-boot-protection":
        return this.#preBoot;
      case "dirty-tracking":
        return (this.efr & EFR_HDSUP) !== 0n;
      default:
        return false;
    }
  }

  override *domainAllocPagingFlags(dev: Device, flags: number): Step<IommuDomain | Errno> {
    // Version 2 tables, which PASIDs would need, are not offered: a flag for them is as unknown as any other.
    if ((flags & ~(IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_NEST_PARENT)) !== 0) return EOPNOTSUPP;
    const dirty = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
    if (dirty && !this.capable("dirty-tracking")) return EOPNOTSUPP;
    if ((flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0 && !this.#nesting) return EOPNOTSUPP;
    if (this.#lacksDomain()) return ENOMEM;
    const domain = new AmdDomain(this.kernel, "unmanaged", this.#shape, dirty);
    if (this.kernel.trace.on) {
      this.kernel.trace.emit({ type: "iommu.domain_alloc", domain: domain.id, unit: this.name, device: dev.name, flags });
    }
    return domain;
  }

  /** Of any type, as the driver of 7.3 does not look at it. */
  override supportsViommu(_dev: Device, _type: number): boolean {
    return true;
  }

  /** Nothing can be done with one yet but to give it devices: the driver of 7.3 nests no domain in it, and invalidates nothing. */
  override *viommuInit(): Step<ViommuOps> {
    return {};
  }

  override domainAllocDma(_dev: Device): IommuDomain | Errno {
    return this.#lacksDomain() ? ENOMEM : new AmdDomain(this.kernel, "dma", this.#shape, false);
  }

  override reservedRegions(_dev: Device): ReservedRegion[] {
    return [X86_MSI_WINDOW, AMD_HT_RANGE];
  }

  protected override hwInfoData(type: number): { type: number; data: Uint8Array } | Errno {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_AMD) return EOPNOTSUPP;
    if (this.kernel.fault.slab("hw_info")) return ENOMEM;
    return { type: IOMMU_HW_INFO_TYPE_AMD, data: IommuHwInfoAmd.alloc({ efr: this.efr, efr2: this.efr2 }).bytes };
  }

  /** Unlike Intel's, this driver looks at the domain before it leaves the old one: a device that is refused stays where it was. */
  override attach(dev: Device, domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const e = domain.paging && this.compatible(domain) ? this.paging(domain) : undefined;
    return e ?? super.attach(dev, domain, mustSucceed);
  }

  #lacksDomain(): boolean {
    return lacksTable(this.kernel) || this.kernel.fault.slabAtomic("entry of pdom_ids");
  }

  protected override lacksAttachMemory(): boolean {
    const { fault } = this.kernel;
    return fault.slabAtomic("pdom_iommu_info") || fault.slabAtomic("entry of iommu_array");
  }

  protected override paging(domain: IommuDomain): Errno | undefined {
    return domain.dirtyOps !== undefined && !this.capable("dirty-tracking") ? EINVAL : undefined;
  }

  protected override inReach(domain: IommuDomain, iova: bigint): boolean {
    return iova <= domain.geometry.apertureEnd;
  }

  protected override decode(facts: FaultFacts, _domain: IommuDomain | undefined): IommuFault {
    const [flags, why] = eventOf(facts.cause);
    return amdFault(facts, flags | (facts.write ? EVENT_RW : 0), why);
  }

  get #nesting(): boolean {
    return (this.efr & EFR_GIOSUP) !== 0n && (this.efr2 & EFR2_GCR3_TRP_MODE) !== 0n;
  }
}

/** Event flags of a cause (without the write flag). */
function eventOf(cause: FaultCause): readonly [number, string] {
  switch (cause) {
    case "no-domain":
    case "no-pasid":
      return [EVENT_PR | EVENT_PE, "the device table entry grants no access"];
    case "read-denied":
      return [EVENT_PR | EVENT_PE, "the page may not be read"];
    case "write-denied":
      return [EVENT_PR | EVENT_PE, "the page may not be written"];
    case "not-present":
      return [0, "nothing is mapped"];
    case "beyond-width":
      return [0, "the address is wider than the table"];
    case "interrupt-window":
      return [EVENT_I | EVENT_PE, "the interrupt window was used for something else than an interrupt"];
    default:
      throw new KernelBug(`AMD-Vi: ${cause}, and nothing is nested`);
  }
}
