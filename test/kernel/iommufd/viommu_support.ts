/** A guest's machine: a mock device on an IOAS, a table that can be nested in, and the commands on virtual IOMMUs as one-liners. */
import { Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { SelftestRig, START } from "./selftest_support.ts";
import { ok } from "./support.ts";

export type IdOrErrno = number | Errno;

const NEST = u.IOMMU_HWPT_ALLOC_NEST_PARENT;
const SELFTEST_DATA = u.IOMMU_HWPT_DATA_SELFTEST;

export class ViommuRig extends SelftestRig {
  readonly ioas: number;
  readonly idev: number;
  readonly stdev: number;
  /** The nesting parent. */
  readonly parent: number;
  /** What `put` of a nested table's description gives. */
  readonly hwptData: bigint;

  constructor() {
    super();
    this.ioas = this.allocIoas();
    const m = this.mock(this.ioas);
    this.idev = m.idev;
    this.stdev = m.stdev;
    this.parent = ok(this.hwpt(m.idev, this.ioas, { flags: NEST }));
    this.hwptData = this.put(u.IommuHwptSelftest.alloc({ iotlb: u.IOMMU_TEST_IOTLB_DEFAULT }).bytes);
  }

  viommu(init: Parameters<typeof u.IommuViommuAlloc.alloc>[0] = {}): IdOrErrno {
    const cmd = u.IommuViommuAlloc.alloc({
      size: u.IommuViommuAlloc.size,
      type: u.IOMMU_VIOMMU_TYPE_SELFTEST,
      dev_id: this.idev,
      hwpt_id: this.parent,
      ...init,
    });
    const r = this.ioctl(u.IOMMU_VIOMMU_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_viommu_id;
  }

  /** A virtual IOMMU with pages to map, and what it says of them. */
  viommuWithPages(inData: number): { id: number; data: ReturnType<typeof u.IommuViommuSelftest.alloc> } {
    const at = this.put(u.IommuViommuSelftest.alloc({ in_data: inData }).bytes);
    const id = ok(this.viommu({ data_len: u.IommuViommuSelftest.size, data_uptr: at }));
    return { id, data: u.IommuViommuSelftest.over(this.peek(at, u.IommuViommuSelftest.size)) };
  }

  vdevice(viommu: number, idev: number, virtId: bigint): IdOrErrno {
    const cmd = u.IommuVdeviceAlloc.alloc({ size: u.IommuVdeviceAlloc.size, viommu_id: viommu, dev_id: idev, virt_id: virtId });
    const r = this.ioctl(u.IOMMU_VDEVICE_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_vdevice_id;
  }

  hwQueue(viommu: number, init: Parameters<typeof u.IommuHwQueueAlloc.alloc>[0] = {}): IdOrErrno {
    const cmd = u.IommuHwQueueAlloc.alloc({
      size: u.IommuHwQueueAlloc.size,
      viommu_id: viommu,
      type: u.IOMMU_HW_QUEUE_TYPE_SELFTEST,
      nesting_parent_iova: START,
      length: 4096n,
      ...init,
    });
    const r = this.ioctl(u.IOMMU_HW_QUEUE_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_hw_queue_id;
  }

  /** A table nested in `pt`, a hardware page table or a virtual IOMMU. */
  nested(pt: number, init: object = {}): IdOrErrno {
    return this.hwpt(this.idev, pt, {
      data_type: SELFTEST_DATA,
      data_len: u.IommuHwptSelftest.size,
      data_uptr: this.hwptData,
      ...init,
    });
  }

  /** How many requests were carried out, and the error if there was one. */
  invalidate(id: number, init: Parameters<typeof u.IommuHwptInvalidate.alloc>[0]): { e: Errno | 0; done: number } {
    const cmd = u.IommuHwptInvalidate.alloc({ size: u.IommuHwptInvalidate.size, hwpt_id: id, ...init });
    const e = this.ioctl(u.IOMMU_HWPT_INVALIDATE, cmd);
    return { e, done: cmd.entry_num };
  }

  checkIotlb(hwpt: number, word: number, iotlb: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_MD_CHECK_IOTLB, hwpt, { check_iotlb: { id: word, iotlb } });
  }

  checkCache(idev: number, word: number, cache: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_DEV_CHECK_CACHE, idev, { check_dev_cache: { id: word, cache } });
  }

  replaceMock(stdev: number, pt: number): Errno | 0 {
    return this.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: pt } });
  }

  /** Maps memory of the program at START of the IOAS; its address. */
  memoryAt(iova: bigint, length: number, flags: number = u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_WRITEABLE): bigint {
    const at = this.user(length);
    this.process.mm.memory.write(at, new Uint8Array(length).fill(1));
    ok(this.map({ ioas_id: this.ioas, user_va: at, length: BigInt(length), iova, flags: flags | u.IOMMU_IOAS_MAP_FIXED_IOVA }));
    return at;
  }
}
