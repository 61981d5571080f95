/** What the specification says beside its tables: facts of sections 2, 6 and 9, on a machine with a real vfio-pci. */
import { describe, expect, test } from "vitest";
import type { DmaBuf } from "../../src/kernel/dma_buf/dma_buf.ts";
import { IommuFault } from "../../src/kernel/iommu/iommu.ts";
import { vfioPciDmaBufMove } from "../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { EFAULT, EINVAL, ENODEV, Errno } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import { O_RDONLY, O_RDWR, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../src/uapi/index.ts";
import { IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP_FILE, IommuIoasAlloc, IommuIoasMapFile } from "../../src/uapi/iommufd.ts";
import * as V from "../../src/uapi/vfio.ts";
import { ok } from "../kernel/iommufd/support.ts";
import { Bench, RAM_BYTES } from "../kernel/vfio/bench.ts";

const PAGE = 0x1000n;
const RW = 6;

class Scene extends Bench {
  readonly fd: number;
  readonly ioasId: number;

  constructor() {
    super();
    this.fd = this.device();
    this.ioasId = this.ioas();
    expect(this.attach(this.fd, this.ioasId)).toBe(0);
    this.configWrite(this.fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  }

  buffer(fd: number): DmaBuf {
    return ok(this.process.files.get(fd)).privateData as DmaBuf;
  }

  writable(iova: bigint): boolean {
    return !(this.kernel.iommu.translate(this.pdev().rid, iova, true) instanceof IommuFault);
  }
}

describe("an export", () => {
  test("§2 fact 3: the access mode is not enforced: a read-only descriptor maps writable (N12)", () => {
    const s = new Scene();
    const buf = ok(s.exportBar(s.fd, 0n, RAM_BYTES, 0, O_RDONLY));
    expect(ok(s.run(s.process.sys.fcntl(buf, 3))) & 3).toBe(0);
    expect(s.writable(ok(s.mapFile(s.ioasId, buf)))).toBe(true);
  });

  test("§2 fact 4: the page of the MSI-X table can be had, a BAR below a page cannot", () => {
    const s = new Scene();
    const table = ok(s.exportBar(s.fd, 0n, PAGE, 4));
    expect(s.writable(ok(s.mapFile(s.ioasId, table, PAGE)))).toBe(true);
    expect(s.exportBar(s.fd, 0n, 0x100n, 2)).toBe(EINVAL);
    expect(s.exportBar(s.fd, 0n, PAGE, 2)).toBe(EINVAL);
  });

  test("§2 pre 3: a header that cannot be read is EFAULT, whatever would follow", () => {
    const s = new Scene();
    expect(s.run(s.process.sys.ioctl(s.fd, V.VFIO_DEVICE_FEATURE, 0xdead_0000n))).toBe(EFAULT);
  });

  test("§2 predicate: power state and decode both count", () => {
    const s = new Scene();
    const enabled = (): boolean => s.core().memoryEnabled();
    const power = (state: number) => s.configWrite(s.fd, s.pdev().pmCap + 4, 2, state);
    expect(enabled()).toBe(true);
    power(3);
    expect(enabled()).toBe(false);
    s.configWrite(s.fd, PCI_COMMAND, 2, 0);
    power(0);
    expect(enabled()).toBe(false);
    s.configWrite(s.fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    expect(enabled()).toBe(true);
  });
});

test("§6 move 6: a last put under the memory lock is deferred: the release takes that lock itself", () => {
  const s = new Scene();
  const buf = ok(s.exportBar(s.fd));
  const { file } = s.buffer(buf);
  file.get();
  s.close(buf);
  const v = s.core();
  const body = function* (): Step<number> {
    yield* v.memoryLock.downWrite();
    yield* vfioPciDmaBufMove(v, true);
    s.kernel.fs.fput(file);
    // A move that comes now skips it, as it would a file that died under its hands.
    yield* vfioPciDmaBufMove(v, false);
    const listed = v.dmabufs.length;
    v.memoryLock.upWrite();
    return listed;
  };
  expect(s.run(body())).toBe(1);
  s.settle();
  expect(v.dmabufs).toEqual([]);
  expect(s.events.filter((e) => e.type === "dma_buf.revoke").map((e) => e.step)).toContain("skipped");
});

describe("release", () => {
  test("§9 row 3: the close of the iommufd lets go of the buffer, and the buffer lives on", () => {
    const s = new Scene();
    const buf = ok(s.exportBar(s.fd));
    const iommufd = ok(s.run(s.process.sys.open("/dev/iommu", O_RDWR)));
    const alloc = IommuIoasAlloc.alloc({ size: IommuIoasAlloc.size });
    expect(s.ioctl(iommufd, IOMMU_IOAS_ALLOC, alloc)).toBe(0);
    const map = { size: IommuIoasMapFile.size, flags: RW, ioas_id: alloc.out_ioas_id, fd: buf, length: RAM_BYTES };
    for (let i = 0; i < 3; i++) expect(s.ioctl(iommufd, IOMMU_IOAS_MAP_FILE, IommuIoasMapFile.alloc(map))).toBe(0);
    expect(s.buffer(buf).attachments).toHaveLength(3);
    s.close(iommufd);
    s.settle();
    expect(s.buffer(buf).attachments).toHaveLength(0);
    expect(s.mapFile(s.ioasId, buf)).not.toBeInstanceOf(Errno);
  });

  test("§9 row 4: with its descriptor closed a mapped buffer stays mapped, and is still revoked", () => {
    const s = new Scene();
    const buf = ok(s.exportBar(s.fd));
    const iova = ok(s.mapFile(s.ioasId, buf));
    s.close(buf);
    s.settle();
    expect([s.writable(iova), s.core().dmabufs.length]).toEqual([true, 1]);
    s.configWrite(s.fd, PCI_COMMAND, 2, 0);
    expect(s.writable(iova)).toBe(false);
    expect(s.unmap(s.ioasId, iova, RAM_BYTES)).toBe(RAM_BYTES);
    s.settle();
    expect(s.core().dmabufs).toEqual([]);
  });

  test("§9 row 5: with the device closed the dead area keeps its IOVA until it is unmapped", () => {
    const s = new Scene();
    const buf = ok(s.exportBar(s.fd));
    const iova = ok(s.mapFile(s.ioasId, buf));
    s.close(s.fd);
    s.settle();
    expect(s.mapFile(s.ioasId, buf)).toBe(ENODEV);
    const again = s.device();
    const other = ok(s.exportBar(again));
    const next = ok(s.mapFile(s.ioasId, other));
    expect(next).not.toBe(iova);
    expect(s.unmap(s.ioasId, iova, RAM_BYTES)).toBe(RAM_BYTES);
    expect(s.mapFile(s.ioasId, other)).toBe(iova);
  });
});
