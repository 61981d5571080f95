/**
 * What can go wrong inside a MAP_FILE once its arguments are good, and who is
 * left holding what: nobody, nothing.
 */
import { beforeEach, describe, expect, test } from "vitest";
import { dmaBufFd } from "../../src/kernel/dma_buf/dma_buf.ts";
import { systemHeapInit } from "../../src/kernel/dma_buf/system_heap.ts";
import { udmabufInit } from "../../src/kernel/dma_buf/udmabuf.ts";
import type { IoptDomain } from "../../src/kernel/iommufd/domain.ts";
import type { IommufdIoas } from "../../src/kernel/iommufd/ioas.ts";
import { EBUSY, EINVAL, ENOMEM, EOPNOTSUPP, type Errno } from "../../src/lib/errno.ts";
import {
  DMA_HEAP_IOCTL_ALLOC,
  DmaHeapAllocationData,
  F_ADD_SEALS,
  F_SEAL_SHRINK,
  IOMMU_OPTION,
  IommuOption,
  MFD_ALLOW_SEALING,
  O_RDWR,
  UDMABUF_CREATE,
  UdmabufCreate,
} from "../../src/uapi/index.ts";
import { Exporter } from "../kernel/dma_buf/support.ts";
import { FIXED, IommufdRig, ok, RW } from "../kernel/iommufd/support.ts";

const AT = 0x10000n;
const PAGE = 0x1000n;
let r: IommufdRig;
let ioas: number;

beforeEach(() => {
  r = new IommufdRig();
  ioas = r.allocIoas();
  r.attached(ioas);
});

const at = (fd: number, init: object = {}) => r.mapFile({ ioas_id: ioas, fd, length: 0x4000n, iova: AT, flags: RW | FIXED, ...init });
const foreign = (exporter: Exporter, size = 0x4000n): number => {
  const buf = exporter.export(r, size);
  return ok(r.call(() => dmaBufFd(r.process, buf, 0)));
};
const domains = (id = ioas): IoptDomain[] => (r.ctx.objects.load(id) as IommufdIoas).iopt.domains;
const nothingLeft = (): void => {
  expect(r.leaks()["iommufd area"]).toBeUndefined();
  expect(r.leaks()["iommufd pages"]).toBeUndefined();
  expect(r.leaks()["dma_buf attachment"]).toBeUndefined();
  r.check();
};

/** The k-th map of the domain from now on, 0 the first, is refused. */
function refuse(domain: IoptDomain, k: number, errno: Errno): void {
  const map = domain.map.bind(domain);
  let n = 0;
  domain.map = (...args) => (n++ === k ? errno : map(...args));
}

describe("lengths", () => {
  test("§4.1 row 9: a dma-buf of 2^32 - 1 pages is too long, one page less is not", () => {
    const fd = foreign(new Exporter(), 1n << 50n);
    const pages = 0xffff_ffffn;
    expect(at(fd, { length: pages * PAGE, iova: 0n, flags: RW })).toBe(EINVAL);
    expect(at(fd, { length: pages * PAGE - PAGE, iova: 0n, flags: RW })).toBe(EOPNOTSUPP);
    nothingLeft();
  });

  test("§4.1 row 10: a length that no page count holds is refused, of a file as of a dma-buf", () => {
    const fd = r.memfd(0x1000);
    expect(at(fd, { length: 0xffff_ffff_ffff_f000n, iova: 0n, flags: RW })).toBe(EINVAL);
    expect(at(fd, { length: 0xffff_ffff_ffff_fffen, iova: 0n, flags: RW })).toBe(EINVAL);
    expect(at(r.dmabuf(), { length: 0xffff_ffff_ffff_fffen, iova: 0n, flags: RW })).toBe(EINVAL);
    nothingLeft();
  });
});

describe("the exporter refuses", () => {
  test("§4.1 row 11, §9 row 1: what attach answers is the answer, and the buffer is let go", () => {
    const exporter = new Exporter({ pins: true });
    exporter.attachAnswer = ENOMEM;
    const fd = foreign(exporter);
    expect(at(fd)).toBe(ENOMEM);
    r.close(fd);
    expect(exporter.log).toEqual(["attach", "release"]);
    nothingLeft();
  });

  test("§4.1 row 12, §9 row 1: what pin answers is the answer, before anybody asks for an address", () => {
    const exporter = new Exporter({ pins: true });
    exporter.pinAnswer = EBUSY;
    const fd = foreign(exporter);
    expect(at(fd)).toBe(EBUSY);
    // The area is not looked at before: a taken IOVA would be the later fault.
    ok(at(r.dmabuf()));
    expect(at(fd)).toBe(EBUSY);
    r.close(fd);
    expect(exporter.log).toEqual(["attach", "pin", "detach", "attach", "pin", "detach", "release"]);
    r.unmap(ioas, AT, 0x4000n);
    nothingLeft();
  });

  test("§4.2 row 7: a udmabuf is not taken for the memfd it is made of", () => {
    udmabufInit(r.kernel);
    const { sys } = r.process;
    const memfd = ok(r.run(sys.memfdCreate("m", MFD_ALLOW_SEALING)));
    ok(r.run(sys.ftruncate(memfd, 0x4000n)) ?? 0);
    ok(r.run(sys.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)));
    const dev = ok(r.run(sys.open("/dev/udmabuf", O_RDWR)));
    const fd = ok(r.run(sys.ioctl(dev, UDMABUF_CREATE, r.put(UdmabufCreate.alloc({ memfd, size: 0x4000n }).bytes))));
    expect(at(fd)).toBe(EOPNOTSUPP);
    nothingLeft();
    expect(at(memfd)).toBe(AT);
  });

  test("§4.2 row 6: a buffer of the system heap is another exporter's", () => {
    systemHeapInit(r.kernel);
    const dev = ok(r.run(r.process.sys.open("/dev/dma_heap/system", O_RDWR)));
    const alloc = r.put(DmaHeapAllocationData.alloc({ len: 0x4000n, fd_flags: O_RDWR }).bytes);
    ok(r.run(r.process.sys.ioctl(dev, DMA_HEAP_IOCTL_ALLOC, alloc)));
    const { fd } = DmaHeapAllocationData.over(r.peek(alloc, DmaHeapAllocationData.size));
    expect(at(fd)).toBe(EOPNOTSUPP);
    nothingLeft();
  });
});

describe("§4.1 row 19: the IOMMU refuses", () => {
  const second = (): void => {
    const idev = r.bind();
    ok(r.attach(idev, ioas));
  };

  test("§4.1 row 19: in the first domain, and nothing is mapped, tracked or attached", () => {
    refuse(domains()[0] as IoptDomain, 0, ENOMEM);
    expect(at(r.dmabuf())).toBe(ENOMEM);
    nothingLeft();
    expect(at(r.dmabuf())).toBe(AT);
    r.check();
  });

  test.each([0, 1, 2, 3])("§4.1 row 19: at page %i, mapping page by page", (k) => {
    const id = r.allocIoas();
    r.attached(id);
    ok(r.ioctl(IOMMU_OPTION, IommuOption.alloc({ size: IommuOption.size, option_id: 1, object_id: id, val64: 0n })));
    refuse(domains(id)[0] as IoptDomain, k, ENOMEM);
    expect(at(r.dmabuf(), { ioas_id: id })).toBe(ENOMEM);
    for (let p = 0n; p < 4n; p++) expect(domains(id)[0]?.iovaToPhys(AT + p * PAGE)).toBeUndefined();
    nothingLeft();
    expect(at(r.dmabuf(), { ioas_id: id })).toBe(AT);
    r.check();
  });

  test("§4.1 row 19: in a second domain, and the first is emptied again; memory is unpinned", () => {
    // Two automatic domains of one IOAS: the second unit has another kind of table.
    r.kernel.iommu.addUnit({ kind: "amd" });
    const dev = r.device({ unit: 1 });
    ok(r.attach(r.bind(dev), ioas));
    second();
    expect(domains()).toHaveLength(2);
    for (const fd of [r.dmabuf(), r.memfd(0x4000)]) {
      refuse(domains()[1] as IoptDomain, 0, ENOMEM);
      expect(at(fd)).toBe(ENOMEM);
      expect(domains().map((d) => d.iovaToPhys(AT))).toEqual([undefined, undefined]);
      expect(r.kernel.frames.pinned).toBe(0);
      nothingLeft();
    }
    ok(at(r.dmabuf()));
    r.check();
  });

  test("§4.1 row 19, §5 row 3: when a domain is added, and the earlier areas are taken out of it again", () => {
    const id = r.allocIoas();
    const fd = r.dmabuf();
    for (const iova of [0x10000n, 0x20000n, 0x30000n]) ok(at(fd, { ioas_id: id, iova }));
    const idev = r.bind();
    const { unit } = idev.group.group;
    const alloc = unit.domainAllocPagingFlags.bind(unit);
    unit.domainAllocPagingFlags = function* (...args) {
      const d = yield* alloc(...args);
      if ("map" in d) refuse(d, 2, ENOMEM);
      return d;
    };
    expect(r.attach(idev, id)).toBe(ENOMEM);
    expect(domains(id)).toEqual([]);
    r.check();
    unit.domainAllocPagingFlags = alloc;
    ok(r.attach(idev, id));
    r.check();
    r.revoke(true);
    r.check();
  });
});

describe("memory runs out", () => {
  test.each([
    ["§4.1 row 10: for the pages", "iopt_pages"],
    ["§4.1 row 11: for the attachment", "dma_buf_attachment"],
    ["§4.1 row 15: for the area", "iopt_area"],
    ["§4.1 row 19: for the tracker", "iopt_pages_dmabuf_track"],
    ["§4.1 row 19: for the batch", "batch"],
    ["§4.1 row 19: for a page table", "page table"],
  ])("%s: ENOMEM, and nothing stays", (_row, what) => {
    const fd = r.dmabuf();
    r.kernel.fault.decide((p) => p.what === what);
    expect(at(fd)).toBe(ENOMEM);
    r.kernel.fault.decide(undefined);
    nothingLeft();
    expect(at(fd)).toBe(AT);
    r.check();
  });
});
