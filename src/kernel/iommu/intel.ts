/**
 * Intel VT-d: registers, the domains it makes and accepts, its faults.
 *
 * Everything the driver decides follows from two registers, CAP and ECAP, which
 * are built from the machine's description; user space reads the same two with
 * IOMMU_GET_HW_INFO. First-stage tables are preferred wherever the unit has
 * them and the flags allow; second-stage ones serve the rest.
 *
 * Source: VT-d specification 11.4.2 (CAP_REG), 11.4.3 (ECAP_REG), 7.1.3 (faults);
 * drivers/iommu/intel/iommu.c, iommu.h, dmar.c.
 */
import { EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, Errno, U64_MAX } from "../../lib/index.ts";
import { PageTable, vtdss, x86_64 } from "../../pt/index.ts";
import type { Step } from "../../sched/index.ts";
import {
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HW_INFO_TYPE_INTEL_VTD,
  IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HWPT_DATA_VTD_S1,
  IOMMU_VTD_S1_EAFE,
  IOMMU_VTD_S1_SRE,
  IommuHwInfoVtd,
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
import { type FaultCause, type FaultFacts, type IommuFault, intelFault, NO_PASID } from "./fault.ts";
import { IntelNestedDomain, intelAllocNested } from "./intel_nested.ts";
import type { IotlbEntry } from "./iotlb.ts";
import { type ReservedRegion, X86_MSI_WINDOW } from "./resv.ts";
import { type IommuCap, IommuUnit } from "./unit.ts";
import type { IommuUserData } from "./user_data.ts";

const intelOps: IommuOps = { name: "intel" };

/** Bits of ECAP_REG. */
const ECAP_C = 1n << 0n;
const ECAP_SC = 1n << 7n;
const ECAP_NEST = 1n << 26n;
const ECAP_SRS = 1n << 31n;
const ECAP_EAFS = 1n << 34n;
const ECAP_PASID = 1n << 40n;
const ECAP_SMTS = 1n << 43n;
const ECAP_SSADS = 1n << 45n;
const ECAP_SSTS = 1n << 46n;
const ECAP_FSTS = 1n << 47n;
const ECAP_SMPWC = 1n << 48n;
/** QI, DT absent; IR, EIM, PT, interrupt entry count and register offsets as the recorded unit has them. */
const ECAP_BASE = 0xf0_0f42n;
const ECAP_IR = 1n << 3n;
/** PASIDs of 20 bits (PSS holds one less). */
const ECAP_PSS_20 = 19n << 35n;

/** Bits of CAP_REG. */
const CAP_CM = 1n << 7n;
const CAP_SSLPS_2M = 1n << 34n;
const CAP_SSLPS_1G = 1n << 35n;
const CAP_FS1GP = 1n << 56n;
const CAP_FS5LP = 1n << 60n;
/** 65,536 domains, page-selective invalidation up to 2^18 pages, draining, fault registers, without the widths and page sizes. */
const CAP_BASE = 0xd2_0080_2200_0006n;

const SIZE_2M = 1n << 21n;
const SIZE_1G = 1n << 30n;

/** CAP_REG of a described unit. */
function capRegister(d: IommuDescription): bigint {
  const width = d.addressWidth ?? 48;
  if (width > 57) throw new RangeError(`VT-d of ${width} bits: 39, 48 or 57`);
  // SAGAW: bit 1 is a 3-level table (39 bits), bit 2 a 4-level, bit 3 a 5-level one.
  const sagaw = width >= 57 ? 0b1110n : width >= 48 ? 0b0110n : 0b0010n;
  let cap = CAP_BASE | (sagaw << 8n) | (BigInt(width - 1) << 16n);
  if (d.pages2m !== false) cap |= CAP_SSLPS_2M;
  if (d.pages1g !== false) cap |= CAP_SSLPS_1G;
  if (d.cachingMode === true) cap |= CAP_CM;
  if (d.kind === "intel-first-stage") {
    if (d.pages1g !== false) cap |= CAP_FS1GP;
    if (width >= 57) cap |= CAP_FS5LP;
  }
  return cap;
}

/** ECAP_REG of a described unit. */
function ecapRegister(d: IommuDescription): bigint {
  let ecap = ECAP_BASE;
  if (d.interruptRemapping !== false) ecap |= ECAP_IR;
  if (d.snoopControl === true) ecap |= ECAP_SC;
  const scalable = d.kind !== "intel-legacy";
  if (d.coherentWalk === true) {
    if (d.kind !== "intel-first-stage") ecap |= ECAP_C;
    if (scalable) ecap |= ECAP_SMPWC;
  }
  if (!scalable) return ecap;
  ecap |= ECAP_SMTS;
  if (d.kind === "intel-first-stage") ecap |= ECAP_FSTS;
  else ecap |= ECAP_SSTS | ECAP_SRS;
  if (d.nesting === true) ecap |= ECAP_NEST;
  if (d.dirtyTracking === true) ecap |= ECAP_SSADS;
  if (d.pasid === true) ecap |= ECAP_PASID | ECAP_PSS_20;
  return ecap;
}

interface IntelDomainOptions {
  readonly kernel: Kernel;
  readonly type: IommuDomainType;
  readonly stage: "first" | "second";
  readonly width: number;
  readonly incoherent: boolean;
  readonly pgsizeBitmap: bigint;
  readonly nestParent: boolean;
  readonly dirty: boolean;
}

class IntelDomain extends IommuDomain {
  readonly stage: "first" | "second";
  /** Bits of its input address. */
  readonly width: number;
  /** The table is written for a walker that does not snoop. */
  readonly incoherent: boolean;
  readonly nestParent: boolean;
  override readonly dirtyOps: IommuDirtyOps | undefined;
  /** Accesses snoop: second stage by a bit in every leaf, first stage by one in the PASID entry. */
  forceSnooping = false;

  constructor(o: IntelDomainOptions) {
    const first = o.stage === "first";
    super({
      kernel: o.kernel,
      type: o.type,
      owner: intelOps,
      id: o.kernel.iommu.getDomainId(),
      pgsizeBitmap: o.pgsizeBitmap,
      geometry: { apertureStart: 0n, apertureEnd: (1n << BigInt(first ? o.width - 1 : o.width)) - 1n },
      table: (domain) =>
        new PageTable(first ? x86_64 : vtdss, {
          vasz: o.width,
          // A first stage has four levels at least, however narrow the addresses.
          topLevel: o.width > 48 ? 4 : first || o.width > 39 ? 3 : 2,
          pgsizes: o.pgsizeBitmap,
          signExtend: first,
          incoherent: o.incoherent,
          forceWriteable: o.nestParent,
          ...domainTables(o.kernel),
          iotlbSync: (gather) => domain.flushGather(gather),
        }),
    });
    this.stage = o.stage;
    this.width = o.width;
    this.incoherent = o.incoherent;
    this.nestParent = o.nestParent;
    this.dirtyOps = o.dirty ? pageTableDirtyOps(this) : undefined;
  }

  override enforceCacheCoherency(): boolean {
    if (this.stage === "first" && this.forceSnooping) return true;
    for (const u of this.users) if (!u.unit.capable("enforce-cache-coherency")) return this.#traceSnoop(false);
    this.forceSnooping = true;
    if (this.stage === "second") this.pageTable.forceSnoop();
    return this.#traceSnoop(true);
  }

  #traceSnoop(enforced: boolean): boolean {
    if (this.kernel.trace.on) this.kernel.trace.emit({ type: "iommu.snoop", domain: this.id, enforced });
    return enforced;
  }
}

export class IntelIommu extends IommuUnit {
  /** CAP_REG and ECAP_REG. */
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly #preBoot: boolean;

  constructor(kernel: Kernel, name: string, d: IommuDescription) {
    super(kernel, name, intelOps, d.interruptRemapping !== false);
    this.cap = capRegister(d);
    this.ecap = ecapRegister(d);
    this.#preBoot = d.preBootProtection === true;
  }

  /** PASID tables instead of bare context entries. */
  get scalable(): boolean {
    return (this.ecap & ECAP_SMTS) !== 0n;
  }

  override get maxPasids(): number {
    return this.scalable && (this.ecap & ECAP_PASID) !== 0n ? 1 << 20 : 0;
  }

  override capable(cap: IommuCap): boolean {
    switch (cap) {
      case "cache-coherency":
        return true;
      case "pre-boot-protection":
        return this.#preBoot;
      case "enforce-cache-coherency":
        return (this.ecap & ECAP_SC) !== 0n;
      case "dirty-tracking":
        return this.#dirtyTracking;
      default:
        return false;
    }
  }

  override *domainAllocPagingFlags(dev: Device, flags: number): Step<IommuDomain | Errno> {
    const domain = this.#allocPaging("unmanaged", flags);
    if (!(domain instanceof Errno) && this.kernel.trace.on) {
      this.kernel.trace.emit({ type: "iommu.domain_alloc", domain: domain.id, unit: this.name, device: dev.name, flags });
    }
    return domain;
  }

  override domainAllocDma(_dev: Device): IommuDomain | Errno {
    return this.#allocPaging("dma", 0);
  }

  override reservedRegions(_dev: Device): ReservedRegion[] {
    return [X86_MSI_WINDOW];
  }

  protected override hwInfoData(type: number): { type: number; data: Uint8Array } | Errno {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_INTEL_VTD) return EOPNOTSUPP;
    if (this.kernel.fault.slab("hw_info")) return ENOMEM;
    const info = IommuHwInfoVtd.alloc({ flags: IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17, cap_reg: this.cap, ecap_reg: this.ecap });
    return { type: IOMMU_HW_INFO_TYPE_INTEL_VTD, data: info.bytes };
  }

  override domainAllocNested(_dev: Device, parent: IommuDomain, flags: number, data: IommuUserData): IommuDomain | Errno {
    if (!this.#nesting || (flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0 || data.type !== IOMMU_HWPT_DATA_VTD_S1) return EOPNOTSUPP;
    if (!(parent instanceof IntelDomain) || parent.stage !== "second" || !parent.nestParent) return EINVAL;
    return intelAllocNested(this.kernel, parent, data, (this.cap & CAP_FS1GP) !== 0n);
  }

  protected override lacksAttachMemory(pasid: number): boolean {
    const { fault } = this.kernel;
    if (pasid !== NO_PASID && fault.slab("dev_pasid_info")) return true;
    const info = ["iommu_domain_info", "entry of domain_ida", "entry of iommu_array", "cache_tag"].some((what) => fault.slab(what));
    return info || fault.slabAtomic("qi_batch");
  }

  protected override paging(domain: IommuDomain): Errno | undefined {
    const own = domain instanceof IntelNestedDomain ? domain.parent : domain;
    if (!(own instanceof IntelDomain)) return EINVAL;
    const e = own.stage === "first" ? this.#acceptsFirstStage(own) : this.#acceptsSecondStage(own);
    if (e !== undefined) return e;
    // No function of this machine makes page requests, so there is nothing to switch on.
    if (domain.iopfHandler !== undefined) return ENODEV;
    return domain instanceof IntelNestedDomain ? this.#acceptsNested(domain) : undefined;
  }

  protected override walkNested(domain: IommuDomain, iova: bigint, write: boolean): IotlbEntry | FaultCause {
    return domain instanceof IntelNestedDomain ? domain.walk(iova, write) : "not-present";
  }

  protected override inReach(domain: IommuDomain, iova: bigint): boolean {
    if (iova <= domain.geometry.apertureEnd) return true;
    // A first-stage table also takes the upper canonical half.
    if (!(domain instanceof IntelDomain) || domain.stage === "second") return false;
    return iova > U64_MAX - domain.geometry.apertureEnd - 1n;
  }

  protected override decode(facts: FaultFacts, domain: IommuDomain | undefined): IommuFault {
    const first = domain instanceof IntelDomain && domain.stage === "first";
    const [code, why] = this.scalable ? scalableReason(facts.cause, first, facts.write) : legacyReason(facts.cause, facts.write);
    return intelFault(facts, code, why);
  }

  get #dirtyTracking(): boolean {
    return this.scalable && (this.ecap & ECAP_SSADS) !== 0n && (this.ecap & ECAP_SMPWC) !== 0n;
  }

  get #nesting(): boolean {
    return this.scalable && (this.ecap & ECAP_NEST) !== 0n;
  }

  get #hasFirstStage(): boolean {
    return this.scalable && (this.ecap & ECAP_FSTS) !== 0n;
  }

  get #hasSecondStage(): boolean {
    return !this.scalable || (this.ecap & ECAP_SSTS) !== 0n;
  }

  /** The walker of second-stage tables snoops. */
  get #coherent(): boolean {
    return (this.ecap & (this.scalable ? ECAP_SMPWC : ECAP_C)) !== 0n;
  }

  /** Bits of an address, from CAP.MGAW. */
  get #mgaw(): number {
    return Number((this.cap >> 16n) & 0x3fn) + 1;
  }

  #allocPaging(type: IommuDomainType, flags: number): IommuDomain | Errno {
    const first = this.#allocFirstStage(type, flags);
    return first === EOPNOTSUPP ? this.#allocSecondStage(type, flags) : first;
  }

  #allocFirstStage(type: IommuDomainType, flags: number): IommuDomain | Errno {
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0 || !this.#hasFirstStage) return EOPNOTSUPP;
    if (lacksTable(this.kernel)) return ENOMEM;
    const five = this.#mgaw > 48 && (this.cap & CAP_FS5LP) !== 0n;
    return new IntelDomain({
      kernel: this.kernel,
      type,
      stage: "first",
      width: Math.min(this.#mgaw, five ? 57 : 48),
      incoherent: (this.ecap & ECAP_SMPWC) === 0n,
      pgsizeBitmap: 0x1000n | SIZE_2M | ((this.cap & CAP_FS1GP) !== 0n ? SIZE_1G : 0n),
      nestParent: false,
      dirty: false,
    });
  }

  #allocSecondStage(type: IommuDomainType, flags: number): IommuDomain | Errno {
    if ((flags & ~(IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_PASID)) !== 0) return EOPNOTSUPP;
    const nestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
    const dirty = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
    if ((nestParent && !this.#nesting) || (dirty && !this.#dirtyTracking) || !this.#hasSecondStage) return EOPNOTSUPP;
    if (lacksTable(this.kernel)) return ENOMEM;
    return new IntelDomain({
      kernel: this.kernel,
      type,
      stage: "second",
      width: this.#secondStageWidth,
      incoherent: !this.#coherent,
      pgsizeBitmap: this.#secondStageSizes,
      nestParent,
      dirty,
    });
  }

  get #secondStageWidth(): number {
    const sagaw = Number((this.cap >> 8n) & 0x1fn);
    const mgaw = this.#mgaw;
    if (mgaw > 48 && sagaw >= 8) return Math.min(57, mgaw);
    if (mgaw > 39 && sagaw >= 4) return Math.min(48, mgaw);
    return Math.min(39, mgaw);
  }

  get #secondStageSizes(): bigint {
    return 0x1000n | ((this.cap & CAP_SSLPS_2M) !== 0n ? SIZE_2M : 0n) | ((this.cap & CAP_SSLPS_1G) !== 0n ? SIZE_1G : 0n);
  }

  #acceptsFirstStage(d: IntelDomain): Errno | undefined {
    if (!this.#hasFirstStage) return EINVAL;
    if ((this.ecap & ECAP_SMPWC) === 0n && !d.incoherent) return EINVAL;
    if ((this.cap & CAP_FS5LP) === 0n && d.width > 48) return EINVAL;
    if ((this.cap & CAP_FS1GP) === 0n && (d.pgsizeBitmap & SIZE_1G) !== 0n) return EINVAL;
    return undefined;
  }

  /** The guest's first stage has a shape that this unit walks. */
  #acceptsNested({ width, flags }: IntelNestedDomain): Errno | undefined {
    if (width !== 48 && (width !== 57 || (this.cap & CAP_FS5LP) === 0n)) return EINVAL;
    if ((flags & IOMMU_VTD_S1_SRE) !== 0n && (this.ecap & ECAP_SRS) === 0n) return EINVAL;
    return (flags & IOMMU_VTD_S1_EAFE) !== 0n && (this.ecap & ECAP_EAFS) === 0n ? EINVAL : undefined;
  }

  #acceptsSecondStage(d: IntelDomain): Errno | undefined {
    if (d.dirtyOps !== undefined && !this.#dirtyTracking) return EINVAL;
    if (d.nestParent && !this.#nesting) return EINVAL;
    if (!this.#hasSecondStage) return EINVAL;
    if (!this.#coherent && !d.incoherent) return EINVAL;
    if (this.#mgaw < d.width) return EINVAL;
    // SAGAW has a bit per table depth: 39 bits is bit 1, 48 bit 2, 57 bit 3.
    const depth = d.width > 48 ? 3n : d.width > 39 ? 2n : 1n;
    if (((this.cap >> (8n + depth)) & 1n) === 0n) return EINVAL;
    if ((d.pgsizeBitmap & ~this.#secondStageSizes) !== 0n) return EINVAL;
    if (d.forceSnooping && (this.ecap & ECAP_SC) === 0n) return EINVAL;
    return undefined;
  }
}

/** Reasons of legacy mode; 5 and 6 also stand for an entry that is not there. */
function legacyReason(cause: FaultCause, write: boolean): readonly [number, string] {
  switch (cause) {
    case "no-domain":
    case "no-pasid":
      return [0x02, "No context entry is present for the device"];
    case "beyond-width":
      return [0x04, "The address is wider than the unit translates"];
    case "interrupt-window":
      return [0x25, "The interrupt window was used for something else than a remapped interrupt"];
    default:
      return write ? [0x05, "PTE Write access is not set"] : [0x06, "PTE Read access is not set"];
  }
}

/** Reasons of scalable mode. */
function scalableReason(cause: FaultCause, first: boolean, write: boolean): readonly [number, string] {
  switch (cause) {
    case "no-domain":
    case "no-pasid":
      return [0x59, "SM: No PASID table entry is present"];
    case "beyond-width":
      return first ? [0x80, "SM: The first-stage address is not canonical"] : [0x83, "SM: The address is wider than the unit translates"];
    case "interrupt-window":
      return [0x87, "SM: The interrupt window was used for something else than an interrupt"];
    case "first-stage-not-canonical":
      return [0x80, "SM: The first-stage address is not canonical"];
    case "first-stage-not-present":
      return [0x71, "SM: The first-stage entry is not present"];
    case "first-stage-reserved":
      return [0x72, "SM: A reserved bit of the first-stage entry is set"];
    case "first-stage-supervisor":
      return [0x81, "SM: The first-stage entry is the supervisor's"];
    case "first-stage-beyond-width":
      return [0x74, "SM: The first-stage entry is beyond the second stage"];
    case "first-stage-unreadable":
      return [0x76, "SM: The second stage does not let the first-stage entry be read"];
    case "first-stage-unwritable":
      return [0x77, "SM: The second stage does not let the first-stage entry be written"];
    case "first-stage-lost":
      return [0x70, "SM: The first-stage entry cannot be reached"];
    case "second-stage":
      return [0x79, "SM: The second-stage entry grants no access"];
    case "not-present":
      return first ? [0x71, "SM: The first-stage entry is not present"] : [0x79, "SM: The second-stage entry grants no access"];
    default:
      return write ? [0x85, "SM: Write access is not granted"] : [0x86, "SM: Read access is not granted"];
  }
}
