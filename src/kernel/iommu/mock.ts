/**
 * The IOMMU of the kernel's iommufd selftest: a unit without hardware.
 *
 * Its page table is real (an AMD format with half-size pages, so that tests meet
 * pages smaller than the CPU's), its devices do no DMA. A device may lack dirty
 * tracking, may have PASIDs, and refuses every second attach of one PASID, so
 * that tests can see what a failure leaves behind.
 *
 * Source: mock_ops and around them in drivers/iommu/iommufd/selftest.c.
 */
import { EINVAL, ENOMEM, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import { amdv1Mock, PageTable } from "../../pt/index.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_HW_INFO_TYPE_DEFAULT,
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
} from "../../uapi/iommufd.ts";
import {
  IOMMU_HW_INFO_SELFTEST_REGVAL,
  IOMMU_HW_INFO_TYPE_SELFTEST,
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_TEST_DEV_CACHE_DEFAULT,
  IOMMU_TEST_PASID_RESERVED,
  IommuHwptSelftest,
  IommuTestHwInfo,
  MOCK_APERTURE_LAST,
  MOCK_APERTURE_START,
  MOCK_DEV_CACHE_NUM,
  MOCK_FLAGS_DEVICE_NO_DIRTY,
  MOCK_FLAGS_DEVICE_PASID,
  MOCK_HUGE_PAGE_SIZE,
  MOCK_IOMMUPT_DEFAULT,
  MOCK_IOMMUPT_HUGE,
  MOCK_PASID_WIDTH,
} from "../../uapi/iommufd_test.ts";
import { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { copyStructFromUser } from "../mm/user_memory.ts";
import { type IommuDirtyOps, IommuDomain, type IommuGeometry, type IommuOps, pageTableDirtyOps } from "./domain.ts";
import { type FaultFacts, IommuFault } from "./fault.ts";
import type { ReservedRegion } from "./resv.ts";
import { type IommuCap, IommuUnit } from "./unit.ts";
import type { IommuUserData } from "./user_data.ts";

const mockOps: IommuOps = { name: "mock" };

/** Bits of an IOVA. */
const WIDTH = 56;
const PAGE_SIZE = 0x1000n;
const PAGING_FLAGS = IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID;
/** Above every requester id of a bus. */
const FIRST_RID = 0x1_0000;

export class MockDevice extends Device {
  /** MOCK_FLAGS_DEVICE_*. */
  readonly flags: number;
  /** What a vIOMMU would invalidate. */
  readonly cache: readonly number[] = new Array<number>(MOCK_DEV_CACHE_NUM).fill(IOMMU_TEST_DEV_CACHE_DEFAULT);
  /** The next attach of the reserved PASID fails. */
  pasidError = false;

  constructor(id: number, flags: number) {
    super(`iommufd_mock${id}`, "mock", FIRST_RID + id);
    this.flags = flags;
  }

  get maxPasids(): number {
    return (this.flags & MOCK_FLAGS_DEVICE_PASID) === 0 ? 0 : 2 ** MOCK_PASID_WIDTH;
  }

  get dirtyTracking(): boolean {
    return (this.flags & MOCK_FLAGS_DEVICE_NO_DIRTY) === 0;
  }
}

export class MockDomain extends IommuDomain {
  override readonly dirtyOps: IommuDirtyOps | undefined;

  constructor(kernel: Kernel, huge: boolean, dirty: boolean) {
    const geometry: IommuGeometry = huge
      ? { apertureStart: 0n, apertureEnd: (1n << BigInt(WIDTH)) - 1n }
      : { apertureStart: MOCK_APERTURE_START, apertureEnd: MOCK_APERTURE_LAST };
    super({
      kernel,
      type: "unmanaged",
      owner: mockOps,
      id: kernel.iommu.getDomainId(),
      // Tests of huge pages map nothing else, but a domain must take the CPU's pages to be of use at all.
      pgsizeBitmap: huge ? BigInt(MOCK_HUGE_PAGE_SIZE) | PAGE_SIZE : new PageTable(amdv1Mock, { vasz: WIDTH }).pgsizeBitmap,
      geometry,
      table: (domain) => new PageTable(amdv1Mock, { vasz: WIDTH, iotlbSync: (gather) => domain.flushGather(gather) }),
    });
    this.dirtyOps = dirty ? pageTableDirtyOps(this) : undefined;
  }
}

const mockDevice = (dev: Device): MockDevice => {
  if (!(dev instanceof MockDevice)) throw new TypeError(`${dev.name} is not a mock device`);
  return dev;
};

export class MockIommu extends IommuUnit {
  readonly #ids: Set<number> = new Set();

  constructor(kernel: Kernel) {
    super(kernel, "iommufd_selftest_iommu", mockOps, false);
  }

  /** A device behind this unit, in a group of its own. EINVAL: unknown flags. */
  createDevice(flags: number): MockDevice | Errno {
    if ((flags & ~(MOCK_FLAGS_DEVICE_NO_DIRTY | MOCK_FLAGS_DEVICE_PASID)) !== 0) return EINVAL;
    let id = 0;
    while (this.#ids.has(id)) id++;
    this.#ids.add(id);
    const dev = new MockDevice(id, flags);
    const e = this.kernel.iommu.addDevice(dev, undefined, { unit: this, maxPasids: dev.maxPasids });
    if (e === undefined) return dev;
    this.#ids.delete(id);
    return e;
  }

  destroyDevice(dev: MockDevice): void {
    this.kernel.iommu.removeDevice(dev);
    this.#ids.delete(dev.rid - FIRST_RID);
  }

  /** Devices that exist. */
  get devices(): number {
    return this.#ids.size;
  }

  override get maxPasids(): number {
    return 2 ** MOCK_PASID_WIDTH;
  }

  override get takesUserData(): boolean {
    return true;
  }

  override capable(cap: IommuCap, dev?: Device): boolean {
    if (cap === "cache-coherency") return true;
    return cap === "dirty-tracking" && dev !== undefined && mockDevice(dev).dirtyTracking;
  }

  override *domainAllocPagingFlags(dev: Device, flags: number, data?: IommuUserData): Step<IommuDomain | Errno> {
    const dirty = (flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0;
    if ((flags & ~PAGING_FLAGS) !== 0 || (dirty && !mockDevice(dev).dirtyTracking)) return EOPNOTSUPP;
    let table = MOCK_IOMMUPT_DEFAULT;
    if (data !== undefined) {
      const cfg = this.#config(data);
      if (cfg instanceof Errno) return cfg;
      table = cfg;
    }
    if (table !== MOCK_IOMMUPT_DEFAULT && table !== MOCK_IOMMUPT_HUGE) return EOPNOTSUPP;
    const domain = new MockDomain(this.kernel, table === MOCK_IOMMUPT_HUGE, dirty);
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "iommu.domain_alloc", domain: domain.id, unit: this.name, device: dev.name, flags });
    return domain;
  }

  /** Which kind of table the caller's struct asks for. */
  #config({ type, address, length }: IommuUserData): number | Errno {
    if (type !== IOMMU_HWPT_DATA_SELFTEST) return EOPNOTSUPP;
    if (length < IommuHwptSelftest.endOf("iotlb") || length > IommuHwptSelftest.size) return EINVAL;
    const cfg = copyStructFromUser(this.kernel, IommuHwptSelftest, address, length);
    return cfg instanceof Errno ? cfg : cfg.pagetable_type;
  }

  /** Its devices use no DMA API: without an owner they are blocked. */
  override domainAllocDma(_dev: Device): IommuDomain {
    return this.blockedDomain;
  }

  override attach(dev: Device, domain: IommuDomain): Errno | undefined {
    if (domain.dirtyOps !== undefined && !mockDevice(dev).dirtyTracking) return EINVAL;
    return super.attach(dev, domain);
  }

  override setPasid(dev: Device, pasid: number, domain: IommuDomain): Errno | undefined {
    if (pasid !== IOMMU_TEST_PASID_RESERVED) return super.setPasid(dev, pasid, domain);
    const m = mockDevice(dev);
    const fail = m.pasidError;
    m.pasidError = false;
    if (fail) return ENOMEM;
    const e = super.setPasid(dev, pasid, domain);
    m.pasidError = true;
    return e;
  }

  override removePasid(dev: Device, pasid: number): void {
    if (pasid === IOMMU_TEST_PASID_RESERVED) mockDevice(dev).pasidError = false;
    super.removePasid(dev, pasid);
  }

  override reservedRegions(_dev: Device): ReservedRegion[] {
    return [];
  }

  protected override hwInfoData(type: number): { type: number; data: Uint8Array } | Errno {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_SELFTEST) return EOPNOTSUPP;
    return { type: IOMMU_HW_INFO_TYPE_SELFTEST, data: IommuTestHwInfo.alloc({ test_reg: IOMMU_HW_INFO_SELFTEST_REGVAL }).bytes };
  }

  protected override paging(_domain: IommuDomain): undefined {}

  protected override decode(facts: FaultFacts, _domain: IommuDomain | undefined): IommuFault {
    return new IommuFault({ ...facts, reason: 0, why: facts.cause, text: `${facts.device}: ${facts.cause}` });
  }

  protected override inReach(domain: IommuDomain, iova: bigint): boolean {
    return iova <= domain.geometry.apertureEnd;
  }
}
