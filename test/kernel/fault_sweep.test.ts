/**
 * Every point at which memory can run out, or a copy fail, in one call of
 * iommufd after another. Points expected by name are those of the functions of
 * Linux that the call runs through.
 */
import { describe, expect, test } from "vitest";
import { EFAULT, ENOENT, ENOMEM, Errno } from "../../src/lib/errno.ts";
import * as u from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";
import { type Scenario, sweep } from "./fault_sweep_support.ts";
import { START } from "./iommufd/selftest_support.ts";
import { FIXED, ok, RW } from "./iommufd/support.ts";
import { ViommuRig } from "./iommufd/viommu_support.ts";

const LENGTH = 0x8000n;
const EVERYTHING = 0xffff_ffff_ffff_ffffn;
const PASID = 7;
/** Where the mock unit translates. */
const AT_START = { iova: START, flags: RW | FIXED };

/** A mock device on one IOAS (with two page tables), another IOAS without any, and memory to map. */
class Stage extends ViommuRig {
  readonly plain: number = this.allocIoas();
  readonly buffer: bigint = this.user(Number(LENGTH));
  /** What a scenario keeps: objects, descriptors. */
  ids: number[] = [];
  readonly iommufd: number = this.fd;
  fds: number[] = [];
  second = { stdev: 0, hwpt: 0, idev: 0 };
  iova = 0n;

  constructor() {
    super();
    this.process.mm.memory.write(this.buffer, new Uint8Array(Number(LENGTH)).fill(1));
  }

  mapOn(ioas: number, init: object = {}): bigint | Errno {
    return this.map({ ioas_id: ioas, user_va: this.buffer, length: LENGTH, ...init });
  }

  /** Notes an id, to be destroyed. */
  id(id: number | Errno): number | Errno {
    if (!(id instanceof Errno)) this.ids.push(id);
    return id;
  }

  /** Notes a descriptor, to be closed. */
  keep(fd: number | Errno): number | Errno {
    if (!(fd instanceof Errno)) this.fds.push(fd);
    return fd;
  }

  mockOn(pt: number): number | Errno {
    const r = this.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt, { mock_domain_flags: { dev_flags: u.MOCK_FLAGS_DEVICE_PASID } });
    return this.id(r instanceof Errno ? r : r.cmd.mock_domain_flags.out_stdev_id);
  }

  /** A command with its structure: 0, or why not. */
  command(cmd: number, view: u.StructView, note?: () => void): Errno | 0 {
    const r = this.ioctl(cmd, view);
    if (r === 0) note?.();
    return r;
  }

  /** Takes back whatever a scenario made. */
  clear(): void {
    for (const fd of this.fds.splice(0)) this.close(fd);
    for (const id of this.ids.splice(0).reverse()) ok(this.destroy(id));
    for (const ioas of [this.ioas, this.plain]) this.unmap(ioas, 0n, EVERYTHING);
  }
}

interface Case extends Scenario<Stage> {
  /** Points that Linux has on this way. */
  readonly expects: readonly string[];
}

const clear = (r: Stage): void => r.clear();
const withDevice = (r: Stage): void => {
  r.second = r.mock(r.plain, u.MOCK_FLAGS_DEVICE_PASID);
  r.id(r.second.stdev);
};
const withPasidTable = (r: Stage): void => {
  withDevice(r);
  r.id(ok(r.hwpt(r.second.idev, r.plain, { flags: u.IOMMU_HWPT_ALLOC_PASID })));
  ok(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, r.second.stdev, { mock_domain_replace: { pt_id: r.ids[1] as number } }));
};
const mapped = (r: Stage): void => {
  r.iova = ok(r.mapOn(r.plain, AT_START));
};
const mappedInDomains = (r: Stage): void => {
  r.iova = ok(r.mapOn(r.ioas, AT_START));
};
const withDmabuf = (r: Stage): void => {
  r.keep(r.testDmabuf(Number(LENGTH)));
};
const withAccess = (r: Stage): void => {
  mapped(r);
  r.keep(r.access(r.plain));
};
const withViommu = (r: Stage): void => {
  r.id(ok(r.viommu()));
};
const structOf = (size: number, init: object): object => ({ size, ...init });

const cases: Record<string, Case> = {
  "open of /dev/iommu": {
    act: (r) => r.keep(r.run(r.process.sys.open("/dev/iommu", u.O_RDWR))),
    undo: clear,
    expects: ["file", "iommufd_ctx"],
  },
  IOAS_ALLOC: {
    act: (r) => {
      const cmd = u.IommuIoasAlloc.alloc({ size: u.IommuIoasAlloc.size });
      return r.command(u.IOMMU_IOAS_ALLOC, cmd, () => r.id(cmd.out_ioas_id));
    },
    undo: clear,
    expects: ["copy", "iommufd ioas", "entry of objects", "copy"],
  },
  IOAS_IOVA_RANGES: {
    act: (r) => {
      const at = r.buffer;
      return r.command(
        u.IOMMU_IOAS_IOVA_RANGES,
        u.IommuIoasIovaRanges.alloc({ size: u.IommuIoasIovaRanges.size, ioas_id: r.ioas, num_iovas: 8, allowed_iovas: at }),
      );
    },
    expects: ["copy"],
  },
  IOAS_ALLOW_IOVAS: {
    before: (r) => {
      const ranges = [START, START + 0x10000n].map((start) => u.IommuIovaRange.alloc({ start, last: start + 0xfffn }).bytes);
      for (const [i, bytes] of ranges.entries()) r.process.mm.memory.write(r.buffer + BigInt(i * bytes.length), bytes);
    },
    act: (r) =>
      r.command(
        u.IOMMU_IOAS_ALLOW_IOVAS,
        u.IommuIoasAllowIovas.alloc({ size: u.IommuIoasAllowIovas.size, ioas_id: r.ioas, num_iovas: 2, allowed_iovas: r.buffer }),
      ),
    expects: ["iopt_allowed", "iopt_allowed"],
  },
  "IOAS_MAP where nothing translates": { act: (r) => r.mapOn(r.plain), undo: clear, expects: ["iopt_pages", "iopt_area"] },
  "IOAS_MAP into two page tables": {
    act: (r) => r.mapOn(r.ioas),
    undo: clear,
    expects: ["iopt_pages", "iopt_area", "batch", "list of pages", "pin", "page table", "charge"],
  },
  "IOAS_MAP_FILE of a memfd into two page tables": {
    before: (r) => r.keep(r.memfd(Number(LENGTH))),
    act: (r) => r.mapFile({ ioas_id: r.ioas, fd: r.fds[0] as number, length: LENGTH }),
    undo: clear,
    expects: ["iopt_pages", "iopt_area", "batch", "list of pages", "pin", "page table"],
  },
  "IOAS_MAP_FILE of a dma-buf into two page tables": {
    before: withDmabuf,
    act: (r) => r.mapFile({ ioas_id: r.ioas, fd: r.fds[0] as number, length: LENGTH }),
    undo: clear,
    expects: ["iopt_pages", "dma_buf_attachment", "iopt_area", "iopt_pages_dmabuf_track", "iopt_pages_dmabuf_track", "batch", "page table"],
  },
  "IOAS_MAP_FILE of a dma-buf after it was revoked and is back": {
    before: (r) => {
      withDmabuf(r);
      ok(r.mapFile({ ioas_id: r.ioas, fd: r.fds[0] as number, length: LENGTH }));
      ok(r.revokeDmabuf(r.fds[0] as number, 1));
      ok(r.revokeDmabuf(r.fds[0] as number, 0));
    },
    act: (r) => r.mapFile({ ioas_id: r.ioas, fd: r.fds[0] as number, length: LENGTH }),
    undo: clear,
    expects: ["dma_buf_attachment", "iopt_pages_dmabuf_track"],
  },
  "IOAS_COPY of memory": {
    before: mapped,
    act: (r) => r.copy({ src_ioas_id: r.plain, dst_ioas_id: r.ioas, src_iova: r.iova, length: LENGTH }),
    undo: clear,
    expects: ["iopt_pages_list", "iopt_area", "batch", "page table"],
  },
  "IOAS_COPY of two areas": {
    before: (r) => {
      mapped(r);
      ok(r.mapOn(r.plain, { iova: START + LENGTH, flags: RW | FIXED }));
    },
    act: (r) => r.copy({ src_ioas_id: r.plain, dst_ioas_id: r.ioas, src_iova: r.iova, length: 2n * LENGTH }),
    undo: clear,
    expects: ["iopt_pages_list", "iopt_pages_list", "iopt_area", "iopt_area", "batch", "batch"],
  },
  "IOAS_COPY of a revoked dma-buf": {
    before: (r) => {
      withDmabuf(r);
      r.iova = ok(r.mapFile({ ioas_id: r.plain, fd: r.fds[0] as number, length: LENGTH }));
      ok(r.revokeDmabuf(r.fds[0] as number, 1));
    },
    act: (r) => r.copy({ src_ioas_id: r.plain, dst_ioas_id: r.ioas, src_iova: r.iova, length: LENGTH }),
    undo: clear,
    expects: ["iopt_pages_list", "iopt_area", "iopt_pages_dmabuf_track"],
  },
  IOAS_UNMAP: {
    before: mappedInDomains,
    // When the answer cannot be copied the mapping is gone all the same.
    act: (r) => {
      const e = r.unmap(r.ioas, r.iova, LENGTH);
      return e === ENOENT && r.kernel.leakChecks.get("iommufd area")?.() === 0 ? 0 : e;
    },
    undo: clear,
    expects: ["copy", "object", "copy"],
  },
  IOMMU_OPTION: {
    act: (r) =>
      r.command(
        u.IOMMU_OPTION,
        u.IommuOption.alloc({
          size: u.IommuOption.size,
          option_id: u.IOMMU_OPTION_HUGE_PAGES,
          op: u.IOMMU_OPTION_OP_GET,
          object_id: r.ioas,
        }),
      ),
    expects: ["copy", "object", "copy"],
  },
  IOAS_CHANGE_PROCESS: {
    before: (r) => {
      r.keep(r.memfd(Number(LENGTH)));
      ok(r.mapFile({ ioas_id: r.ioas, fd: r.fds[0] as number, length: LENGTH }));
    },
    act: (r) => r.command(u.IOMMU_IOAS_CHANGE_PROCESS, u.IommuIoasChangeProcess.alloc({ size: u.IommuIoasChangeProcess.size })),
    undo: clear,
    expects: ["entry of ioas_list", "entry of ioas_list"],
  },
  "a device bound and attached where memory is mapped": {
    before: mapped,
    act: (r) => r.mockOn(r.plain),
    undo: clear,
    expects: [
      "iommufd selftest",
      "mock_dev",
      "software_node",
      "dev_iommu",
      "iommu_group",
      "group_device",
      "iommufd device",
      "iommufd_group",
      "entry of groups",
      "iommufd hwpt_paging",
      "iommu_domain",
      "entry of pasid_attach",
      "iommufd_attach",
      "entry of device_array",
      "reserved regions",
      "iommufd_attach_handle",
      "entry of pasid_array",
      "iopt_reserved",
      "entry of domains",
      "batch",
      "page table",
    ],
  },
  "a device moved to another IOAS": {
    before: withDevice,
    act: (r) => r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, r.second.stdev, { mock_domain_replace: { pt_id: r.ioas } }),
    undo: clear,
    expects: ["reserved regions", "iommufd_attach_handle", "entry of pasid_array"],
  },
  "a device moved to an IOAS that has no page table yet": {
    before: (r) => {
      withDevice(r);
      r.iova = BigInt(r.allocIoas());
      ok(r.mapOn(Number(r.iova), AT_START));
    },
    act: (r) => r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, r.second.stdev, { mock_domain_replace: { pt_id: Number(r.iova) } }),
    undo: clear,
    expects: ["iommufd hwpt_paging", "iommu_domain", "batch", "entry of pasid_array"],
  },
  "HWPT_ALLOC with dirty tracking, where two areas are": {
    before: (r) => {
      mappedInDomains(r);
      ok(r.mapOn(r.ioas, { iova: START + LENGTH, flags: RW | FIXED }));
    },
    act: (r) => r.id(r.hwpt(r.idev, r.ioas, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING })),
    undo: clear,
    expects: ["iommufd hwpt_paging", "iommu_domain", "iopt_reserved", "entry of domains", "batch", "page table"],
  },
  "HWPT_ALLOC as the driver's struct says": {
    act: (r) =>
      r.id(r.hwpt(r.idev, r.ioas, { data_type: u.IOMMU_HWPT_DATA_SELFTEST, data_len: u.IommuHwptSelftest.size, data_uptr: r.hwptData })),
    undo: clear,
    expects: ["copy", "iommufd hwpt_paging", "copy", "iommu_domain"],
  },
  "HWPT_ALLOC nested, with a fault queue": {
    before: (r) => {
      const cmd = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size });
      ok(r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, cmd));
      r.id(cmd.out_fault_id);
      r.keep(cmd.out_fault_fd);
    },
    act: (r) => r.id(r.nested(r.parent, { flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: r.ids[0] })),
    undo: clear,
    expects: ["iommufd hwpt_nested", "copy", "nested domain", "object"],
  },
  HWPT_INVALIDATE: {
    before: (r) => {
      r.id(ok(r.nested(r.parent)));
      r.process.mm.memory.write(r.buffer, u.IommuHwptInvalidateSelftest.alloc({ iotlb_id: 1 }).bytes);
    },
    act: (r) => {
      const { e } = r.invalidate(r.ids[0] as number, {
        data_uptr: r.buffer,
        data_type: u.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
        entry_len: u.IommuHwptInvalidateSelftest.size,
        entry_num: 1,
      });
      return e;
    },
    undo: clear,
    expects: ["copy"],
  },
  HWPT_GET_DIRTY_BITMAP: {
    before: (r) => {
      mappedInDomains(r);
      r.id(ok(r.hwpt(r.idev, r.ioas, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING })));
    },
    act: (r) =>
      r.command(
        u.IOMMU_HWPT_GET_DIRTY_BITMAP,
        u.IommuHwptGetDirtyBitmap.alloc({
          size: u.IommuHwptGetDirtyBitmap.size,
          hwpt_id: r.ids[0] as number,
          iova: r.iova,
          length: LENGTH,
          page_size: 4096n,
          data: r.buffer,
        }),
      ),
    undo: clear,
    expects: ["iova_bitmap", "list of pages"],
  },
  GET_HW_INFO: {
    act: (r) =>
      r.command(u.IOMMU_GET_HW_INFO, u.IommuHwInfo.alloc({ size: u.IommuHwInfo.size, dev_id: r.idev, data_len: 64, data_uptr: r.buffer })),
    expects: ["object", "hw_info", "copy", "copy"],
  },
  "a PASID attached": {
    before: withPasidTable,
    act: (r) => r.say(u.IOMMU_TEST_OP_PASID_ATTACH, r.second.stdev, { pasid_attach: { pasid: PASID, pt_id: r.ids[1] as number } }),
    undo: (r) => {
      ok(r.say(u.IOMMU_TEST_OP_PASID_DETACH, r.second.stdev, { pasid_detach: { pasid: PASID } }));
      ok(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, r.second.stdev, { mock_domain_replace: { pt_id: r.plain } }));
      r.clear();
    },
    expects: ["entry of pasid_attach", "iommufd_attach", "entry of device_array", "iommufd_attach_handle", "entry of pasid_array"],
  },
  "a PASID moved to another page table": {
    before: (r) => {
      withPasidTable(r);
      r.id(ok(r.hwpt(r.second.idev, r.plain, { flags: u.IOMMU_HWPT_ALLOC_PASID })));
      ok(r.say(u.IOMMU_TEST_OP_PASID_ATTACH, r.second.stdev, { pasid_attach: { pasid: PASID, pt_id: r.ids[1] as number } }));
    },
    act: (r) => r.say(u.IOMMU_TEST_OP_PASID_REPLACE, r.second.stdev, { pasid_replace: { pasid: PASID, pt_id: r.ids[2] as number } }),
    undo: (r) => {
      ok(r.say(u.IOMMU_TEST_OP_PASID_DETACH, r.second.stdev, { pasid_detach: { pasid: PASID } }));
      ok(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, r.second.stdev, { mock_domain_replace: { pt_id: r.plain } }));
      r.clear();
    },
    expects: ["iommufd_attach_handle", "entry of pasid_array"],
  },
  "an access made and attached": {
    act: (r) => {
      const flags = u.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES;
      const a = r.test(u.IOMMU_TEST_OP_CREATE_ACCESS, r.plain, { create_access: { flags } });
      return r.keep(a instanceof Errno ? a : a.cmd.create_access.out_access_fd);
    },
    undo: clear,
    expects: ["selftest_access", "dentry", "file", "iommufd access", "entry of objects", "object", "entry of accesses"],
  },
  "an access moved to another IOAS": {
    before: withAccess,
    act: (r) => r.say(u.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, r.fds[0] as number, { access_replace_ioas: { ioas_id: r.ioas } }),
    undo: clear,
    expects: ["object", "entry of accesses"],
  },
  "pages pinned by an access": {
    before: withAccess,
    act: (r) => r.pin(r.fds[0] as number, r.iova, LENGTH, r.buffer),
    undo: clear,
    expects: ["array of pages", "iopt_pages_access", "pin", "pinned_pfns", "entry of pinned_pfns", "charge", "selftest_access_item"],
  },
  "pages pinned by an access that domains map": {
    before: (r) => {
      mappedInDomains(r);
      r.keep(r.access(r.ioas));
    },
    act: (r) => r.pin(r.fds[0] as number, r.iova, LENGTH, r.buffer),
    undo: clear,
    expects: ["iopt_pages_access", "pinned_pfns", "entry of pinned_pfns"],
  },
  "bytes read through an access": {
    before: withAccess,
    act: (r) => r.rw(r.fds[0] as number, r.iova + 5n, 0x3000, r.buffer),
    undo: clear,
    expects: ["buffer", "copy", "copy"],
  },
  "bytes written through an access, page by page": {
    before: withAccess,
    act: (r) => r.rw(r.fds[0] as number, r.iova + 5n, 0x3000, r.buffer, u.MOCK_ACCESS_RW_WRITE | u.MOCK_ACCESS_RW_SLOW_PATH),
    undo: clear,
    expects: ["buffer", "copy", "batch", "list of pages", "pin"],
  },
  "one page read through an access, the slow way": {
    before: withAccess,
    act: (r) => r.rw(r.fds[0] as number, r.iova + 5n, 64, r.buffer, u.MOCK_ACCESS_RW_SLOW_PATH),
    undo: clear,
    expects: ["buffer", "page", "copy"],
  },
  VIOMMU_ALLOC: {
    before: (r) => r.process.mm.memory.write(r.buffer, u.IommuViommuSelftest.alloc({ in_data: 5 }).bytes),
    act: (r) => r.id(r.viommu({ data_len: u.IommuViommuSelftest.size, data_uptr: r.buffer })),
    undo: clear,
    expects: ["iommufd viommu", "copy", "copy"],
  },
  VDEVICE_ALLOC: {
    before: withViommu,
    act: (r) => r.id(r.vdevice(r.ids[0] as number, r.idev, 3n)),
    undo: clear,
    expects: ["iommufd vdevice", "entry of objects", "entry of vdevs"],
  },
  HW_QUEUE_ALLOC: {
    before: (r) => {
      withViommu(r);
      r.memoryAt(START, 4096);
    },
    act: (r) => r.id(r.hwQueue(r.ids[0] as number)),
    undo: clear,
    expects: ["iommufd hw_queue", "iommufd access", "entry of accesses", "iopt_pages_access"],
  },
  FAULT_QUEUE_ALLOC: {
    act: (r) => {
      const cmd = u.IommuFaultAlloc.alloc(structOf(u.IommuFaultAlloc.size, {}));
      return r.command(u.IOMMU_FAULT_QUEUE_ALLOC, cmd, () => {
        r.id(cmd.out_fault_id);
        r.keep(cmd.out_fault_fd);
      });
    },
    undo: clear,
    expects: ["iommufd fault", "dentry", "file", "copy"],
  },
  VEVENTQ_ALLOC: {
    before: withViommu,
    act: (r) => {
      const init = { viommu_id: r.ids[0] as number, type: u.IOMMU_VEVENTQ_TYPE_SELFTEST, veventq_depth: 2 };
      const cmd = u.IommuVeventqAlloc.alloc(structOf(u.IommuVeventqAlloc.size, init));
      return r.command(u.IOMMU_VEVENTQ_ALLOC, cmd, () => {
        r.id(cmd.out_veventq_id);
        r.keep(cmd.out_veventq_fd);
      });
    },
    undo: clear,
    expects: ["iommufd veventq", "dentry", "file", "copy"],
  },
  "VFIO_IOMMU_MAP_DMA on an iommufd": {
    before: (r) =>
      ok(r.ioctl(u.IOMMU_VFIO_IOAS, u.IommuVfioIoas.alloc({ size: u.IommuVfioIoas.size, ioas_id: r.ioas, op: u.IOMMU_VFIO_IOAS_SET }))),
    act: (r) =>
      r.command(
        V.VFIO_IOMMU_MAP_DMA,
        V.VfioIommuType1DmaMap.alloc({
          argsz: V.VfioIommuType1DmaMap.size,
          flags: V.VFIO_DMA_MAP_FLAG_READ,
          vaddr: r.buffer,
          iova: START,
          size: LENGTH,
        }),
      ),
    undo: clear,
    expects: ["copy", "iopt_pages", "iopt_area", "batch"],
  },
  "VFIO_IOMMU_UNMAP_DMA on an iommufd that cuts an area": {
    before: (r) => {
      ok(r.ioctl(u.IOMMU_VFIO_IOAS, u.IommuVfioIoas.alloc({ size: u.IommuVfioIoas.size, ioas_id: r.plain, op: u.IOMMU_VFIO_IOAS_SET })));
      ok(r.run(r.process.sys.ioctl(r.iommufd, V.VFIO_SET_IOMMU, BigInt(V.VFIO_TYPE1_IOMMU))));
      ok(r.mapOn(r.plain, { iova: START, flags: RW | FIXED }));
    },
    // One that was cut and could not be answered is cut no more, and unmaps nothing the second time.
    act: (r) =>
      r.command(
        V.VFIO_IOMMU_UNMAP_DMA,
        V.VfioIommuType1DmaUnmap.alloc({ argsz: V.VfioIommuType1DmaUnmap.size, iova: START + 0x2000n, size: 0x1000n }),
      ),
    undo: clear,
    expects: ["copy", "iopt_area", "iopt_area", "iopt_area", "iopt_area", "copy"],
  },
  DMABUF_GET: {
    act: (r) => {
      const b = r.test(u.IOMMU_TEST_OP_DMABUF_GET, 0, { dmabuf_get: { length: 0x3000, open_flags: u.O_CLOEXEC } });
      return r.keep(b instanceof Errno ? b : b.ret);
    },
    undo: clear,
    expects: ["inode", "dma_buf", "dentry", "file"],
  },
};

describe("with every allocation and every copy failing, one after the other", () => {
  test.each(Object.entries(cases))("%s answers an errno, leaves nothing behind, and works the next time", (_name, scenario) => {
    const { points, errnos } = sweep(() => new Stage(), scenario);
    const names = points.map((p) => p.what);
    for (const what of scenario.expects) {
      expect(names, `${what} is not among the points`).toContain(what);
      names.splice(names.indexOf(what), 1);
    }
    expect(errnos.some((e) => e === ENOMEM || e === EFAULT)).toBe(true);
  });
});
