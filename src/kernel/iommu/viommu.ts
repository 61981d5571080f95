/**
 * What a unit's driver and iommufd ask of each other for a virtual IOMMU: a
 * guest's slice of the unit, on a table that can be nested in.
 *
 * iommufd keeps the objects and their life; the driver keeps what the hardware
 * would. Absent operations answer EOPNOTSUPP.
 *
 * Source: struct iommufd_viommu_ops in include/linux/iommufd.h.
 */
import type { Errno, PhysAddr } from "../../lib/index.ts";
import type { Step } from "../../sched/index.ts";
import type { Device } from "../device.ts";
import type { IommuDomain } from "./domain.ts";
import type { IommuUserData, IommuUserDataArray } from "./user_data.ts";

/** A virtual IOMMU as its driver sees it. */
export interface ViommuCore {
  /** IOMMU_VIOMMU_TYPE_*. */
  readonly viommuType: number;
  /** The device the guest knows by `virtId`. */
  findDev(virtId: bigint): Device | undefined;
  /** What the guest calls a device; ENOENT for one it has not been given. */
  vdevIdOf(dev: Device): bigint | Errno;
  /**
   * Tells user space of an event of a type (IOMMU_VEVENTQ_TYPE_*); `data` is that type's struct. EOPNOTSUPP: nobody wants events
   * of that type. ENOMEM: the event is lost. One that finds the queue full is lost too, which the queue tells.
   */
  reportEvent(eventType: number, data: Uint8Array): Step<Errno | undefined>;
  /**
   * Lets user space map `length` bytes at `pa` through the descriptor; the offset at which. EINVAL: not whole pages. They are
   * the driver's, who takes the offset away before it frees them.
   */
  allocMmap(pa: PhysAddr, length: number): bigint | Errno;
  destroyMmap(offset: bigint): void;
}

/** A device of a virtual IOMMU, as its driver sees it. */
export interface VdeviceCore {
  readonly dev: Device;
  readonly virtId: bigint;
}

/** A hardware queue, as its driver sees it. */
export interface HwQueueCore {
  /** IOMMU_HW_QUEUE_TYPE_*. */
  readonly queueType: number;
  /** Where the queue is for the guest: an IOVA of the nesting parent. */
  readonly baseAddr: bigint;
  readonly length: bigint;
  /** Keeps `other`, of the same virtual IOMMU, until `undepend`. EINVAL: it is this one. */
  depend(other: HwQueueCore): Errno | undefined;
  undepend(other: HwQueueCore): void;
}

/** Undoes what a driver did for an object; runs before the object is gone. */
export type Undo = () => Step<void>;

export interface ViommuOps {
  /** Frees what the driver holds. Nothing uses the virtual IOMMU any more. */
  destroy?(): Step<void>;
  /** A domain nested in the parent's. `flags`: IOMMU_HWPT_ALLOC_PASID at most. */
  allocDomainNested?(flags: number, data: IommuUserData): IommuDomain | Errno;
  /** Carries out requests and leaves in `array.entryNum` how many it did. */
  cacheInvalidate?(array: IommuUserDataArray): Errno | undefined;
  /** A device is added; answers how to undo it, if there is anything to undo. */
  vdeviceInit?(vdev: VdeviceCore): Step<Undo | Errno | undefined>;
  /** Hardware queues that find their memory by physical address. */
  readonly hwQueues?: HwQueueOps;
}

export interface HwQueueOps {
  /** IOMMU_HW_QUEUE_TYPE_*. */
  supports(type: number): boolean;
  /** Hands queue number `index` to the guest; its memory is contiguous from `pa`. Answers how to take it back. */
  initPhys(queue: HwQueueCore, index: number, pa: PhysAddr): Step<Undo | Errno | undefined>;
}
