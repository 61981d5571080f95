/**
 * Section 8 of the interconnect's specification: the order of its locks, as
 * lockdep has seen it over a run in which everything happens once.
 *
 * The edges among these locks are compared as a whole: a new one is a change of
 * the order, and is written into the table here, or is a mistake.
 */
import { describe, expect, test } from "vitest";
import {
  type IommufdAccess,
  iommufdAccessAttach,
  iommufdAccessCreate,
  iommufdAccessDestroy,
  iommufdAccessPinPages,
  iommufdAccessUnpinPages,
} from "../../src/kernel/iommufd/access.ts";
import type { IommufdCtx } from "../../src/kernel/iommufd/ctx.ts";
import type { Step } from "../../src/sched/task.ts";
import {
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IommuIoasChangeProcess,
  IommuIoasCopy,
  IommuIoasMap,
  MAP_SHARED,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PROT_READ,
  PROT_WRITE,
} from "../../src/uapi/index.ts";
import * as V from "../../src/uapi/vfio.ts";
import { ok } from "../kernel/iommufd/support.ts";
import { Bench, RAM_BYTES } from "../kernel/vfio/bench.ts";

const DEV_SET = "vfio dev_set->lock";
const ML = "vfio vdev->memory_lock";
const RESV = "RESV";
const PM_DMABUF = "iopt_pages.mutex (dma-buf)";
const PM = "iopt_pages.mutex";
const DR = "iopt.domains_rwsem";
const IR = "iopt.iova_rwsem";
const MMAP = "mm.mmap_lock";
const ACCESS = "iommufd_access.ioas_lock";
const CREATION = "iommufd.ioas_creation_lock";
const OURS = [DEV_SET, ML, RESV, PM_DMABUF, PM, DR, IR, MMAP, ACCESS, CREATION];
const RW = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

/** Everything once; the edges among the locks above. */
function everything(): Set<string> {
  const b = new Bench();
  const fd = b.device();
  const command = (value: number) => b.configWrite(fd, PCI_COMMAND, 2, value);
  const on = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
  command(on);
  const [a, c] = [b.ioas(), b.ioas()];
  const buf = ok(b.exportBar(fd));
  // Mapped before and after there is a domain, copied, revoked while mapped.
  ok(b.mapFile(a, buf));
  expect(b.attach(fd, a)).toBe(0);
  ok(b.mapFile(a, buf));
  const iova = ok(b.mapFile(a, buf));
  const copy = IommuIoasCopy.alloc({
    size: IommuIoasCopy.size,
    flags: RW,
    src_ioas_id: a,
    dst_ioas_id: c,
    src_iova: iova,
    length: RAM_BYTES,
  });
  expect(b.ioctl(b.iommufd, IOMMU_IOAS_COPY, copy)).toBe(0);
  expect(b.attach(fd, c)).toBe(0);
  expect(b.attach(fd, a)).toBe(0);
  // The last area of a buffer goes with its descriptor closed already.
  const short = ok(b.exportBar(fd));
  const last = ok(b.mapFile(a, short));
  b.close(short);
  expect(b.unmap(a, last, RAM_BYTES)).toBe(RAM_BYTES);
  // A fault of a BAR, then every revoke there is.
  const bar = ok(b.run(b.process.sys.mmap(0n, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0n)));
  b.run(b.process.space.store(bar, Uint8Array.of(1)));
  command(0);
  command(on);
  expect(b.ioctl(fd, V.VFIO_DEVICE_RESET)).toBe(0);
  expect(b.ioctl(fd, V.VFIO_DEVICE_PCI_HOT_RESET, V.VfioPciHotReset.alloc({ argsz: V.VfioPciHotReset.size }))).toBe(0);
  for (const state of [3, 0]) b.configWrite(fd, b.pdev().pmCap + 4, 2, state);
  expect(b.feature(fd, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY)).toBe(0);
  expect(b.feature(fd, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)).toBe(0);
  // Memory of the process, with an access that pins it.
  const user_va = ok(b.run(b.process.sys.mmap(0n, 0x4000n, PROT_READ | PROT_WRITE, 0x22, -1)));
  const map = IommuIoasMap.alloc({ size: IommuIoasMap.size, ioas_id: a, user_va, length: 0x4000n, flags: RW });
  expect(b.ioctl(b.iommufd, IOMMU_IOAS_MAP, map)).toBe(0);
  const ctx = ok(b.process.files.get(b.iommufd)).privateData as IommufdCtx;
  const script = function* (): Step<void> {
    const access: IommufdAccess = ok(
      iommufdAccessCreate(ctx, {
        needsPinPages: true,
        *unmap(at: bigint, length: bigint): Step<void> {
          if (at === map.iova) yield* iommufdAccessUnpinPages(access, at, length);
        },
      }),
    );
    yield* iommufdAccessAttach(access, a);
    ok(yield* iommufdAccessPinPages(access, map.iova, 0x4000n, 0));
    yield* iommufdAccessUnpinPages(access, map.iova, 0x4000n);
    yield* iommufdAccessDestroy(access);
  };
  b.run(script());
  expect(b.unmap(a, map.iova, 0x4000n)).toBe(0x4000n);
  // Refused for the dma-bufs, but not before every IOAS is locked.
  b.ioctl(b.iommufd, IOMMU_IOAS_CHANGE_PROCESS, IommuIoasChangeProcess.alloc({ size: IommuIoasChangeProcess.size }));
  b.run(b.process.sys.munmap(bar, RAM_BYTES));
  b.close(fd);
  b.close(buf);
  b.finish();
  const edges = b.kernel.sched.lockdep.edges().filter(([x, y]) => OURS.includes(x) && OURS.includes(y));
  return new Set(edges.map(([x, y]) => `${x} → ${y}`));
}

const edge = (outer: string, inner: string): string => `${outer} → ${inner}`;

describe("the order of the interconnect's locks", () => {
  const seen = everything();

  test("§8 order: every documented edge is taken, and no other", () => {
    expect([...seen].sort()).toEqual(
      [
        // A close and a hot reset: the device set, each memory lock, each buffer.
        edge(DEV_SET, ML),
        edge(DEV_SET, RESV),
        edge(DEV_SET, PM_DMABUF),
        edge(ML, RESV),
        edge(ML, PM_DMABUF),
        edge(RESV, PM_DMABUF),
        // A BAR fault.
        edge(MMAP, ML),
        // Attaching is done under the device set's lock.
        edge(DEV_SET, DR),
        edge(DEV_SET, IR),
        // An answer is copied to the process with the device set locked; the copy may fault.
        edge(DEV_SET, MMAP),
        // The table's own: domains, IOVAs, pages.
        edge(DR, IR),
        edge(DR, PM),
        edge(DR, PM_DMABUF),
        edge(IR, PM),
        edge(IR, PM_DMABUF),
        // The last area of a buffer is unpinned and detached.
        edge(DR, RESV),
        // Memory is pinned.
        edge(DR, MMAP),
        edge(PM, MMAP),
        edge(ACCESS, DR),
        edge(ACCESS, IR),
        edge(ACCESS, PM),
        edge(CREATION, IR),
      ].sort(),
    );
  });

  test.each([
    ["a revoke takes nothing of the I/O page table", [edge(RESV, DR), edge(RESV, IR), edge(PM_DMABUF, DR), edge(PM_DMABUF, IR)]],
    ["nobody takes the memory lock inside a reservation or the pages", [edge(RESV, ML), edge(PM_DMABUF, ML), edge(PM, ML)]],
    ["the pages of a dma-buf reach for no other lock", [edge(PM_DMABUF, RESV), edge(PM_DMABUF, MMAP)]],
    ["memory is not touched inside a reservation", [edge(RESV, MMAP), edge(RESV, PM)]],
    [
      "the process's memory is never waited for by one who is waited for",
      [edge(MMAP, DEV_SET), edge(MMAP, DR), edge(MMAP, IR), edge(MMAP, PM)],
    ],
    ["the memory lock does not reach up", [edge(ML, DEV_SET), edge(ML, MMAP), edge(ML, DR), edge(ML, IR)]],
  ])("§8 forbidden: %s", (_what, forbidden) => {
    for (const e of forbidden) expect(seen, e).not.toContain(e);
  });
});
