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
import { KernelBug } from "../../lib/kernel_bug.ts";
import { amdv1Mock, PageTable } from "../../pt/index.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
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
  IOMMU_VIOMMU_TYPE_SELFTEST,
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
import {
  domainTables,
  type IommuDirtyOps,
  IommuDomain,
  type IommuGeometry,
  type IommuOps,
  lacksTable,
  pageTableDirtyOps,
} from "./domain.ts";
import { type FaultFacts, IommuFault } from "./fault.ts";
import { IopfQueue } from "./io_pagefault.ts";
import { MockNestedDomain, MockViommu, mockAllocNested } from "./mock_viommu.ts";
import type { ReservedRegion } from "./resv.ts";
import { type IommuCap, IommuUnit } from "./unit.ts";
import { copyStructFromUserData, type IommuUserData } from "./user_data.ts";
import type { ViommuCore, ViommuOps } from "./viommu.ts";

const mockOps: IommuOps = { name: "mock" };

/** Level of the top table, which is fixed; what three levels of half-size pages span. */
const TOP_LEVEL = 2;
/** Bits of an IOVA. */
const WIDTH = 38;
const PAGE_SIZE = 0x1000n;
const PAGING_FLAGS = IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_PASID;
/** Above every requester id of a bus. */
const FIRST_RID = 0x1_0000;

const IOPF_RWSEM: LockClass = new LockClass("mock_dev.iopf_rwsem");

export class MockDevice extends Device {
  /** MOCK_FLAGS_DEVICE_*. */
  readonly flags: number;
  /** What a vIOMMU would invalidate. */
  readonly cache: number[] = new Array<number>(MOCK_DEV_CACHE_NUM).fill(IOMMU_TEST_DEV_CACHE_DEFAULT);
  /** The next attach of the reserved PASID fails. */
  pasidError = false;
  /** Read: the device makes a page request. Write: what is attached to it changes. */
  readonly iopfRwsem: RwSem;
  /** Attachments, its PASIDs' included, whose domains handle page requests. Under the group's mutex. */
  iopfDomains = 0;
  /** The virtual IOMMU of the nested domain it is on, and what the guest calls it there. */
  viommu: { readonly core: ViommuCore; readonly virtId: bigint } | undefined = undefined;

  constructor(kernel: Kernel, id: number, flags: number) {
    super(`iommufd_mock${id}`, "mock", FIRST_RID + id);
    this.flags = flags;
    this.iopfRwsem = new RwSem(kernel.sched, IOPF_RWSEM);
  }

  get maxPasids(): number {
    // A width of no bits, as its firmware property says without the flag, is one PASID: that of requests without any.
    return (this.flags & MOCK_FLAGS_DEVICE_PASID) === 0 ? 1 : 2 ** MOCK_PASID_WIDTH;
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
    // Tests of huge pages map nothing else, but a domain must take the CPU's pages to be of use at all.
    const shape = { vasz: WIDTH, topLevel: TOP_LEVEL };
    const options = huge ? { ...shape, pgsizes: BigInt(MOCK_HUGE_PAGE_SIZE) | PAGE_SIZE } : shape;
    super({
      kernel,
      type: "unmanaged",
      owner: mockOps,
      id: kernel.iommu.getDomainId(),
      pgsizeBitmap: new PageTable(amdv1Mock, options).pgsizeBitmap,
      geometry,
      table: (domain) =>
        new PageTable(amdv1Mock, { ...options, ...domainTables(kernel), iotlbSync: (gather) => domain.flushGather(gather) }),
    });
    this.dirtyOps = dirty ? pageTableDirtyOps(this) : undefined;
  }
}

/** What the driver core makes for a device: its name, its properties as a software node, its place in sysfs, its bus's entry. */
const PARTS_OF_A_DEVICE: readonly string[] = [
  "mock_dev",
  "entry of mock_dev_ida",
  "name",
  "properties",
  "software_node",
  "entry of swnode ids",
  "name of a software node",
  "sysfs directory of a software node",
  "sysfs link to a software node",
  "sysfs link of a software node",
  "software node of a device",
  "device_private",
  "sysfs directory",
  "sysfs file uevent",
  "sysfs link to the bus",
  "sysfs link of the bus",
  "uevent",
];

const mockDevice = (dev: Device): MockDevice => {
  if (!(dev instanceof MockDevice)) throw new TypeError(`${dev.name} is not a mock device`);
  return dev;
};

export class MockIommu extends IommuUnit {
  readonly #ids: Set<number> = new Set();
  /** Its devices whose page requests are taken. */
  readonly #iopfQueue: IopfQueue;

  constructor(kernel: Kernel) {
    super(kernel, "iommufd_selftest_iommu", mockOps, false);
    this.#iopfQueue = new IopfQueue(kernel, "mock-iopfq");
  }

  /** A device behind this unit, in a group of its own. EINVAL: unknown flags. */
  createDevice(flags: number): MockDevice | Errno {
    if ((flags & ~(MOCK_FLAGS_DEVICE_NO_DIRTY | MOCK_FLAGS_DEVICE_PASID)) !== 0) return EINVAL;
    if (PARTS_OF_A_DEVICE.some((part) => this.kernel.fault.slab(part))) return ENOMEM;
    let id = 0;
    while (this.#ids.has(id)) id++;
    this.#ids.add(id);
    const dev = new MockDevice(this.kernel, id, flags);
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
    if (lacksTable(this.kernel)) return ENOMEM;
    const domain = new MockDomain(this.kernel, table === MOCK_IOMMUPT_HUGE, dirty);
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "iommu.domain_alloc", domain: domain.id, unit: this.name, device: dev.name, flags });
    return domain;
  }

  /** Which kind of table the caller's struct asks for. */
  #config(data: IommuUserData): number | Errno {
    if (data.type !== IOMMU_HWPT_DATA_SELFTEST) return EOPNOTSUPP;
    const cfg = copyStructFromUserData(this.kernel, IommuHwptSelftest, data, IOMMU_HWPT_DATA_SELFTEST, "iotlb");
    return cfg instanceof Errno ? cfg : cfg.pagetable_type;
  }

  override domainAllocNested(_dev: Device, _parent: IommuDomain, flags: number, data: IommuUserData): IommuDomain | Errno {
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) return EOPNOTSUPP;
    return mockAllocNested(this.kernel, mockOps, data, undefined);
  }

  override supportsViommu(_dev: Device, type: number): boolean {
    return type === IOMMU_VIOMMU_TYPE_SELFTEST;
  }

  override *viommuInit(core: ViommuCore, parent: IommuDomain, data: IommuUserData | undefined): Step<ViommuOps | Errno> {
    const viommu = new MockViommu(this.kernel, mockOps, core, parent, mockDevice);
    return (data === undefined ? undefined : viommu.init(data)) ?? viommu;
  }

  /** Its devices use no DMA API: without an owner they are blocked. */
  override domainAllocDma(_dev: Device): IommuDomain {
    return this.blockedDomain;
  }

  override attach(dev: Device, domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const m = mockDevice(dev);
    if (domain.dirtyOps !== undefined && !m.dirtyTracking) return EINVAL;
    const core = domain instanceof MockNestedDomain ? domain.viommu : undefined;
    const virtId = core?.vdevIdOf(dev);
    // A guest's table is for a device that the guest knows.
    if (virtId instanceof Errno) return virtId;
    if (core !== m.viommu?.core) m.viommu = core === undefined || virtId === undefined ? undefined : { core, virtId };
    const old = this.requesters.get(dev.rid)?.domain;
    const e = this.#enableIopf(m, domain);
    if (e !== undefined) return e;
    const bad = super.attach(dev, domain, mustSucceed);
    this.#disableIopf(m, bad === undefined ? old : domain);
    return bad;
  }

  override setPasid(dev: Device, pasid: number, domain: IommuDomain, mustSucceed = false): Errno | undefined {
    const m = mockDevice(dev);
    const reserved = pasid === IOMMU_TEST_PASID_RESERVED;
    if (reserved && m.pasidError) {
      m.pasidError = false;
      return ENOMEM;
    }
    let e = this.#enableIopf(m, domain);
    if (e === undefined) {
      e = super.setPasid(dev, pasid, domain, mustSucceed);
      if (e !== undefined) this.#disableIopf(m, domain);
    }
    // Not before: removing what was there forgets it.
    if (reserved) m.pasidError = true;
    return e;
  }

  override removePasid(dev: Device, pasid: number): void {
    const m = mockDevice(dev);
    if (pasid === IOMMU_TEST_PASID_RESERVED) m.pasidError = false;
    const old = this.requesters.get(dev.rid)?.pasids?.get(pasid)?.domain;
    super.removePasid(dev, pasid);
    this.#disableIopf(m, old);
  }

  /** There is no device to tell. */
  override pageResponse(_dev: Device): void {}

  override get userPasidTable(): boolean {
    return true;
  }

  /** One more attachment whose page requests are taken, if `domain` handles them; before the one it replaces is taken away. */
  #enableIopf(m: MockDevice, domain: IommuDomain): Errno | undefined {
    if (domain.iopfHandler === undefined) return undefined;
    if (m.iopfDomains === 0) {
      const e = this.#iopfQueue.addDevice(m);
      if (e !== undefined) return e;
    }
    m.iopfDomains++;
    return undefined;
  }

  #disableIopf(m: MockDevice, domain: IommuDomain | undefined): void {
    if (domain?.iopfHandler === undefined) return;
    if (m.iopfDomains === 0) throw new KernelBug(`${m.name}: more domains that handle page requests are detached than were attached`);
    m.iopfDomains--;
    if (m.iopfDomains === 0) this.#iopfQueue.removeDevice(m);
  }

  override reservedRegions(_dev: Device): ReservedRegion[] {
    return [];
  }

  protected override hwInfoData(type: number): { type: number; data: Uint8Array } | Errno {
    if (type !== IOMMU_HW_INFO_TYPE_DEFAULT && type !== IOMMU_HW_INFO_TYPE_SELFTEST) return EOPNOTSUPP;
    if (this.kernel.fault.slab("hw_info")) return ENOMEM;
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
