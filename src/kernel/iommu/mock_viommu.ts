/**
 * Nested domains and virtual IOMMUs of the selftest's unit.
 *
 * A nested domain has four words that stand for its IOTLB, a device four that
 * stand for its caches, and invalidating one sets it to 0. A virtual IOMMU made
 * with data has two pages that a program can map; the first word holds what the
 * data said. Its hardware queues must be made in order, each keeping the one
 * before it.
 *
 * Source: mock_viommu_ops, domain_nested_ops in drivers/iommu/iommufd/selftest.c.
 */
import { EEXIST, EFAULT, EINVAL, EIO, ENOMEM, EOPNOTSUPP, Errno, type Pfn, type PhysAddr, physOfPfn } from "../../lib/index.ts";
import { LockClass, Mutex, type Step } from "../../sched/index.ts";
import { IOMMU_HWPT_ALLOC_PASID } from "../../uapi/iommufd.ts";
import {
  IOMMU_HW_QUEUE_TYPE_SELFTEST,
  IOMMU_HWPT_DATA_SELFTEST,
  IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
  IOMMU_TEST_HW_QUEUE_MAX,
  IOMMU_TEST_INVALIDATE_FLAG_ALL,
  IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
  IOMMU_VIOMMU_TYPE_SELFTEST,
  IommuHwptInvalidateSelftest,
  IommuHwptSelftest,
  IommuViommuInvalidateSelftest,
  IommuViommuSelftest,
  MOCK_DEV_CACHE_ID_MAX,
  MOCK_NESTED_DOMAIN_IOTLB_ID_MAX,
  MOCK_NESTED_DOMAIN_IOTLB_NUM,
} from "../../uapi/iommufd_test.ts";
import type { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { IommuDomain, type IommuOps } from "./domain.ts";
import {
  copyStructFromUserArray,
  copyStructFromUserData,
  copyStructsFromUserArray,
  copyStructToUserData,
  type IommuUserData,
  type IommuUserDataArray,
} from "./user_data.ts";
import type { HwQueueCore, HwQueueOps, Undo, ViommuCore, ViommuOps } from "./viommu.ts";

const QUEUE_MUTEX: LockClass = new LockClass("mock_viommu.queue_mutex");

/** Two pages. */
const PAGE_ORDER = 1;
const MMAP_LENGTH = 2 * 4096;

/** The words that stand for caches, of a device behind the unit. */
export interface MockCaches {
  readonly cache: number[];
}

export class MockNestedDomain extends IommuDomain {
  /** What stands for its cached translations. */
  readonly iotlb: number[];
  /** The virtual IOMMU it is on, if it is on one. */
  readonly viommu: ViommuCore | undefined;

  constructor(kernel: Kernel, owner: IommuOps, iotlb: number, viommu: ViommuCore | undefined) {
    super({ kernel, type: "nested", owner, id: kernel.iommu.getDomainId() });
    this.iotlb = new Array<number>(MOCK_NESTED_DOMAIN_IOTLB_NUM).fill(iotlb);
    this.viommu = viommu;
  }

  override cacheInvalidateUser(array: IommuUserDataArray): Errno | undefined {
    let done = 0;
    let e: Errno | undefined;
    if (array.type !== IOMMU_HWPT_INVALIDATE_DATA_SELFTEST) e = EINVAL;
    for (; e === undefined && done < array.entryNum; done++) {
      e = this.#invalidate(array, done);
      if (e !== undefined) break;
    }
    array.entryNum = done;
    return e;
  }

  #invalidate(array: IommuUserDataArray, i: number): Errno | undefined {
    const type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
    const inv = copyStructFromUserArray(this.kernel, IommuHwptInvalidateSelftest, array, i, { type, minLast: "iotlb_id" });
    if (inv instanceof Errno) return inv;
    if ((inv.flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) return EOPNOTSUPP;
    if (inv.iotlb_id > MOCK_NESTED_DOMAIN_IOTLB_ID_MAX) return EINVAL;
    if ((inv.flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) this.iotlb.fill(0);
    else this.iotlb[inv.iotlb_id] = 0;
    return undefined;
  }
}

/** A nested domain as the program describes it. EOPNOTSUPP: another driver's description; EINVAL, EFAULT: not a whole one. */
export function mockAllocNested(
  kernel: Kernel,
  owner: IommuOps,
  data: IommuUserData,
  viommu: ViommuCore | undefined,
): MockNestedDomain | Errno {
  if (data.type !== IOMMU_HWPT_DATA_SELFTEST) return EOPNOTSUPP;
  const cfg = copyStructFromUserData(kernel, IommuHwptSelftest, data, IOMMU_HWPT_DATA_SELFTEST, "iotlb");
  if (cfg instanceof Errno) return cfg;
  return kernel.fault.slab("nested domain") ? ENOMEM : new MockNestedDomain(kernel, owner, cfg.iotlb, viommu);
}

/** The driver's half of a virtual IOMMU. */
export class MockViommu implements ViommuOps {
  readonly #kernel: Kernel;
  readonly #owner: IommuOps;
  readonly #core: ViommuCore;
  readonly #cachesOf: (dev: Device) => MockCaches;
  readonly hwQueues: HwQueueOps;
  #page: { readonly pfn: Pfn; readonly offset: bigint } | undefined = undefined;

  constructor(kernel: Kernel, owner: IommuOps, core: ViommuCore, parent: IommuDomain, cachesOf: (dev: Device) => MockCaches) {
    this.#kernel = kernel;
    this.#owner = owner;
    this.#core = core;
    this.#cachesOf = cachesOf;
    this.hwQueues = new MockHwQueues(kernel, parent);
  }

  /** Makes the pages that a program can map, and tells it where. */
  init(data: IommuUserData): Errno | undefined {
    const kernel = this.#kernel;
    const minLast = "out_data";
    const type = IOMMU_VIOMMU_TYPE_SELFTEST;
    const given = copyStructFromUserData(kernel, IommuViommuSelftest, data, type, minLast);
    if (given instanceof Errno) return given;
    const pfn = kernel.frames.allocContiguous(PAGE_ORDER);
    if (pfn instanceof Errno) return pfn;
    const offset = this.#core.allocMmap(physOfPfn(pfn), MMAP_LENGTH);
    if (offset instanceof Errno) {
      this.#freePages(pfn);
      return offset;
    }
    this.#page = { pfn, offset };
    kernel.frames.writeFrame(pfn, 0, given.bytes.subarray(0, 4));
    given.out_data = given.in_data;
    given.out_mmap_length = BigInt(MMAP_LENGTH);
    given.out_mmap_offset = offset;
    const e = copyStructToUserData(kernel, data, IommuViommuSelftest, given.bytes, { type, minLast });
    if (e !== undefined) this.#unmap();
    return e;
  }

  *destroy(): Step<void> {
    this.#unmap();
  }

  allocDomainNested(flags: number, data: IommuUserData): IommuDomain | Errno {
    if ((flags & ~IOMMU_HWPT_ALLOC_PASID) !== 0) return EOPNOTSUPP;
    return mockAllocNested(this.#kernel, this.#owner, data, this.#core);
  }

  cacheInvalidate(array: IommuUserDataArray): Errno | undefined {
    // Without requests the call asks whether the type is known.
    if (array.entryNum === 0 && array.type === IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST) return undefined;
    if (this.#kernel.fault.slab("invalidations")) {
      array.entryNum = 0;
      return ENOMEM;
    }
    const cmds = copyStructsFromUserArray(this.#kernel, IommuViommuInvalidateSelftest, array, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST);
    array.entryNum = 0;
    if (cmds instanceof Errno) return cmds;
    for (const { flags, vdev_id: vdevId, cache_id: cacheId } of cmds) {
      if ((flags & ~IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) return EOPNOTSUPP;
      if (cacheId > MOCK_DEV_CACHE_ID_MAX) return EINVAL;
      const dev = this.#core.findDev(BigInt(vdevId));
      if (dev === undefined) return EINVAL;
      const { cache } = this.#cachesOf(dev);
      if ((flags & IOMMU_TEST_INVALIDATE_FLAG_ALL) !== 0) cache.fill(0);
      else cache[cacheId] = 0;
      array.entryNum++;
    }
    return undefined;
  }

  #unmap(): void {
    if (this.#page === undefined) return;
    const { pfn, offset } = this.#page;
    this.#page = undefined;
    this.#core.destroyMmap(offset);
    this.#freePages(pfn);
  }

  #freePages(pfn: Pfn): void {
    for (let i = 0; i < 1 << PAGE_ORDER; i++) this.#kernel.frames.put((pfn + i) as Pfn);
  }
}

/** Two queues; the second depends on the first. */
class MockHwQueues implements HwQueueOps {
  readonly #parent: IommuDomain;
  readonly #mutex: Mutex;
  /** Under the mutex. */
  readonly #queues: (HwQueueCore | undefined)[] = [];

  constructor(kernel: Kernel, parent: IommuDomain) {
    this.#parent = parent;
    this.#mutex = new Mutex(kernel.sched, QUEUE_MUTEX);
  }

  supports(type: number): boolean {
    return type === IOMMU_HW_QUEUE_TYPE_SELFTEST;
  }

  /** EINVAL: no such queue. EEXIST: taken. EIO: the one before it is not there. EFAULT: the memory is not where the parent says. */
  *initPhys(queue: HwQueueCore, index: number, pa: PhysAddr): Step<Undo | Errno> {
    if (index >= IOMMU_TEST_HW_QUEUE_MAX) return EINVAL;
    yield* this.#mutex.lock();
    try {
      if (this.#queues[index] !== undefined) return EEXIST;
      const prev = this.#queues[index - 1];
      if (index > 0 && prev === undefined) return EIO;
      if (this.#parent.iovaToPhys(queue.baseAddr) !== pa) return EFAULT;
      const e = prev === undefined ? undefined : queue.depend(prev);
      if (e !== undefined) return e;
      this.#queues[index] = queue;
      return () => this.#undo(queue, prev);
    } finally {
      this.#mutex.unlock();
    }
  }

  /** Linux's test unit never notes which queue is which: whichever goes, the first's place is free then, and the second's is not. */
  *#undo(queue: HwQueueCore, prev: HwQueueCore | undefined): Step<void> {
    yield* this.#mutex.lock();
    this.#queues[0] = undefined;
    if (prev !== undefined) queue.undepend(prev);
    this.#mutex.unlock();
  }
}
