/** Mappings of a type1 container: drivers/vfio/vfio_iommu_type1.c. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { excludeReserved, isValid } from "../../../src/kernel/vfio/type1/iova_list.ts";
import { EACCES, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, ENOSPC, EOVERFLOW, Errno } from "../../../src/lib/errno.ts";
import { MAP_SHARED, O_RDWR, PROT_READ, PROT_WRITE } from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { TINY } from "./bench.ts";
import { GroupBench } from "./group_bench.ts";

const U64 = 0xffff_ffff_ffff_ffffn;
const R = V.VFIO_DMA_MAP_FLAG_READ;
const W = V.VFIO_DMA_MAP_FLAG_WRITE;
const VADDR = V.VFIO_DMA_MAP_FLAG_VADDR;

const ready = (kind?: number): GroupBench => {
  const b = new GroupBench();
  b.ready(kind);
  return b;
};

describe("MAP_DMA", () => {
  test("memory is pinned, charged to the process and reached by the device", () => {
    const b = ready();
    const at = b.memory(0x3000n);
    b.process.space.write(at + 0x2008n, Uint8Array.from([1, 2, 3]));
    expect(b.mapDma(0x100000n, at, 0x3000n)).toBe(0);
    expect(b.kernel.frames.pinned).toBe(3);
    expect(b.process.mm.lockedVm).toBe(3);
    const got = new Uint8Array(3);
    expect(b.kernel.phys.read(b.translate(0x102008n) as never, got)).toBe(true);
    expect([...got]).toEqual([1, 2, 3]);
    expect(b.unmapDma(0x100000n, 0x3000n)).toBe(0x3000n);
    expect(b.kernel.frames.pinned).toBe(0);
    expect(b.process.mm.lockedVm).toBe(0);
    expect(b.translate(0x102008n)).toBeUndefined();
  });

  test.each([
    ["nothing", 0x1000n, 0x1000n, 0n, R, EINVAL],
    ["past the last IOVA", U64 - 0xfffn, 0x1000n, 0x2000n, R, EOVERFLOW],
    ["past the last address", 0x1000n, U64 - 0xfffn, 0x2000n, R, EOVERFLOW],
    ["neither to read nor to write", 0x1000n, 0x1000n, 0x1000n, 0, EINVAL],
    ["a new address that is also to be read", 0x1000n, 0x1000n, 0x1000n, VADDR | R, EINVAL],
    ["an unaligned IOVA", 0x1800n, 0x1000n, 0x1000n, R, EINVAL],
    ["an unaligned address", 0x1000n, 0x1800n, 0x1000n, R, EINVAL],
    ["an unaligned size", 0x1000n, 0x1000n, 0x800n, R, EINVAL],
    ["a new address for nothing", 0x1000n, 0x1000n, 0x1000n, VADDR, ENOENT],
    ["interrupts' own window", 0xfee00000n, 0x1000n, 0x1000n, R, EINVAL],
    ["beyond what the IOMMU translates", 1n << 60n, 0x1000n, 0x1000n, R, EINVAL],
    ["an unknown flag", 0x1000n, 0x1000n, 0n, 8, EINVAL],
    ["no memory there", 0x1000n, 0x1000n, 0x1000n, R, EFAULT],
  ])("%s is refused", (_what, iova, vaddr, size, flags, errno) => {
    const b = ready();
    expect(b.mapDma(iova, vaddr, size, flags)).toBe(errno);
    expect(b.kernel.frames.pinned).toBe(0);
  });

  test("a short argsz is EINVAL, an unreachable struct EFAULT", () => {
    const b = ready();
    expect(b.ioctl(b.container, V.VFIO_IOMMU_MAP_DMA, V.VfioIommuType1DmaMap.alloc({ argsz: 31, flags: R }))).toBe(EINVAL);
    expect(b.run(b.process.sys.ioctl(b.container, V.VFIO_IOMMU_MAP_DMA, 0x10n))).toBe(EFAULT);
  });

  test("what overlaps is EEXIST, whatever else is wrong with it", () => {
    const b = ready();
    const at = b.memory(0x2000n);
    expect(b.mapDma(0x10000n, at, 0x2000n)).toBe(0);
    expect(b.mapDma(0x11000n, at, 0x2000n)).toBe(EEXIST);
    expect(b.mapDma(0xf000n, 0x1000n, 0x2000n)).toBe(EEXIST);
    expect(b.mapDma(0x12000n, at, 0x1000n)).toBe(0);
  });

  test("memory that ends half way is EFAULT, and nothing stays pinned or mapped", () => {
    const b = ready();
    const at = b.memory(0x4000n);
    b.ok(b.process.sys.munmap(at + 0x3000n, 0x1000n));
    expect(b.mapDma(0x10000n, at, 0x4000n)).toBe(EFAULT);
    expect(b.kernel.frames.pinned).toBe(0);
    expect(b.process.mm.lockedVm).toBe(0);
    expect(b.translate(0x10000n)).toBeUndefined();
    expect(b.mapDma(0x10000n, at, 0x3000n)).toBe(0);
  });

  test("RLIMIT_MEMLOCK holds without CAP_IPC_LOCK, and with it pages are counted all the same", () => {
    const b = ready();
    const at = b.memory(0x4000n);
    b.process.rlimits.memlock = 0x2000n;
    expect(b.mapDma(0x10000n, at, 0x3000n)).toBe(0);
    expect(b.process.mm.lockedVm).toBe(3);
    expect(b.unmapDma(0n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(0x3000n);
    b.process.creds.capabilities.delete("CAP_IPC_LOCK");
    expect(b.mapDma(0x10000n, at, 0x3000n)).toBe(ENOMEM);
    expect(b.kernel.frames.pinned).toBe(0);
    expect(b.process.mm.lockedVm).toBe(0);
    expect(b.mapDma(0x10000n, at, 0x2000n)).toBe(0);
    expect(b.mapDma(0x20000n, at, 0x1000n)).toBe(ENOMEM);
  });

  test("device memory that the process has mapped is mapped too, and not pinned (vfio_dma_mapping_mmio_test)", () => {
    const b = new GroupBench();
    const d = b.getDevice(b.ready()) as number;
    expect(b.configWrite(d, 4, 2, 6)).toBe(2);
    const bar = b.ok(b.process.sys.mmap(0n, 0x4000n, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0n));
    expect(b.mapDma(0x10000n, bar, 0x4000n)).toBe(0);
    expect(b.translate(0x13000n)).toBe((b.pdev().resources[0]?.start as bigint) + 0x3000n);
    expect(b.kernel.frames.pinned).toBe(0);
    expect(b.process.mm.lockedVm).toBe(0);
    expect(b.unmapDma(0x10000n, 0x4000n)).toBe(0x4000n);
  });

  test("device memory that is switched off is EFAULT", () => {
    const b = new GroupBench();
    const d = b.getDevice(b.ready()) as number;
    const bar = b.ok(b.process.sys.mmap(0n, 0x4000n, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0n));
    expect(b.configWrite(d, 4, 2, 0)).toBe(2);
    expect(b.mapDma(0x10000n, bar, 0x4000n)).toBe(EFAULT);
  });

  test("there is an end to the number of mappings, and GET_INFO says how many are left", () => {
    const b = ready();
    const left = (): number =>
      caps(b)
        .find((c) => c.id === V.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL)
        ?.body.getUint32(0, true) ?? -1;
    const at = b.memory(0x1000n);
    expect(left()).toBe(65535);
    for (let i = 0n; i < 65535n; i++) if (b.mapDma(i << 12n, at, 0x1000n) !== 0) throw new Error(`mapping ${i} fails`);
    expect(left()).toBe(0);
    expect(b.mapDma(1n << 30n, at, 0x1000n)).toBe(ENOSPC);
  });

  test("what a process that is gone had mapped goes without its charge", () => {
    const b = ready();
    const child = b.process.fork();
    const at = b.memory(0x1000n);
    const addr = b.user(V.VfioIommuType1DmaMap.alloc({ argsz: 32, flags: R | W, vaddr: at, iova: 0x10000n, size: 0x1000n }).bytes);
    const inChild = b.process.fork();
    expect(inChild.run(inChild.sys.ioctl(b.container, V.VFIO_IOMMU_MAP_DMA, addr))).toBe(0);
    expect(inChild.mm.lockedVm).toBe(1);
    inChild.run(inChild.exit());
    child.run(child.exit());
    expect(b.kernel.frames.pinned).toBe(1);
    expect(b.unmapDma(0x10000n, 0x1000n)).toBe(0x1000n);
    expect(b.kernel.frames.pinned).toBe(0);
  });
});

describe("UNMAP_DMA", () => {
  test.each([
    ["an unaligned IOVA", 0x800n, 0x1000n, 0, EINVAL],
    ["nothing", 0x1000n, 0n, 0, EINVAL],
    ["an unaligned size", 0x1000n, 0x800n, 0, EINVAL],
    ["past the last IOVA", U64 - 0xfffn, 0x2000n, 0, EOVERFLOW],
    ["all, with an IOVA", 0x1000n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL, EINVAL],
    ["all, with a size", 0n, 0x1000n, V.VFIO_DMA_UNMAP_FLAG_ALL, EINVAL],
    ["an unknown flag", 0n, 0x1000n, 8, EINVAL],
    ["dirty pages of all", 0n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL | V.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, EINVAL],
    ["dirty pages without a bitmap", 0n, 0x1000n, V.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, EINVAL],
  ])("%s is refused", (_what, iova, size, flags, errno) => {
    expect(ready().unmapDma(iova, size, flags)).toBe(errno);
  });

  test("a range with nothing in it unmaps nothing, and that is no error", () => {
    expect(ready().unmapDma(0x1000n, 0x1000n)).toBe(0n);
    expect(ready().unmapDma(0n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(0n);
  });

  test("version 2 refuses to cut a mapping, at its head or at its tail", () => {
    const b = ready();
    const at = b.memory(0x4000n);
    expect(b.mapDma(0x10000n, at, 0x4000n)).toBe(0);
    expect(b.unmapDma(0x11000n, 0x3000n)).toBe(EINVAL);
    expect(b.unmapDma(0x10000n, 0x3000n)).toBe(EINVAL);
    expect(b.unmapDma(0xf000n, 0x2000n)).toBe(EINVAL);
    expect(b.unmapDma(0xf000n, 0x10000n)).toBe(0x4000n);
  });

  test("version 1 unmaps the whole of a mapping whose first byte is meant, and nothing from within one on", () => {
    const b = ready(V.VFIO_TYPE1_IOMMU);
    const at = b.memory(0x4000n);
    expect(b.mapDma(0x10000n, at, 0x4000n)).toBe(0);
    expect(b.mapDma(0x14000n, at, 0x1000n)).toBe(0);
    expect(b.unmapDma(0x11000n, 0x10000n)).toBe(0n);
    expect(b.unmapDma(0x10000n, 0x1000n)).toBe(0x4000n);
    expect(b.unmapDma(0x14000n, 0x1000n)).toBe(0x1000n);
  });

  test("one call may unmap many mappings", () => {
    const b = ready();
    const at = b.memory(0x1000n);
    for (let i = 0n; i < 8n; i++) expect(b.mapDma(0x10000n + i * 0x2000n, at, 0x1000n)).toBe(0);
    expect(b.unmapDma(0x12000n, 0x4000n)).toBe(0x2000n);
    expect(b.unmapDma(0n, 0n, V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(0x6000n);
  });
});

describe("changing the address in the process", () => {
  const forget = (b: GroupBench, iova: bigint, size: bigint): bigint | Errno => b.unmapDma(iova, size, V.VFIO_DMA_UNMAP_FLAG_VADDR);

  test("a mapping is forgotten, then given its new address; the device never notices", () => {
    const b = ready();
    const at = b.memory(0x2000n);
    expect(b.mapDma(0x10000n, at, 0x2000n)).toBe(0);
    const pa = b.translate(0x10000n);
    expect(b.mapDma(0x10000n, at, 0x2000n, VADDR)).toBe(EINVAL);
    expect(forget(b, 0x10000n, 0x2000n)).toBe(0x2000n);
    expect(b.translate(0x10000n)).toBe(pa);
    expect(forget(b, 0x10000n, 0x2000n)).toBe(EINVAL);
    expect(b.mapDma(0x10000n, at, 0x1000n, VADDR)).toBe(EINVAL);
    expect(b.mapDma(0x10000n, at + 0x100000n, 0x2000n, VADDR)).toBe(0);
    expect(b.mapDma(0x10000n, at, 0x2000n, VADDR)).toBe(EINVAL);
  });

  test("a call that meets a forgotten mapping forgets none of those before it", () => {
    const b = ready();
    const at = b.memory(0x1000n);
    for (const iova of [0x10000n, 0x20000n]) expect(b.mapDma(iova, at, 0x1000n)).toBe(0);
    expect(forget(b, 0x20000n, 0x1000n)).toBe(0x1000n);
    expect(b.unmapDma(0n, 0n, V.VFIO_DMA_UNMAP_FLAG_VADDR | V.VFIO_DMA_UNMAP_FLAG_ALL)).toBe(EINVAL);
    expect(b.mapDma(0x10000n, at, 0x1000n, VADDR)).toBe(EINVAL);
    expect(b.mapDma(0x20000n, at, 0x1000n, VADDR)).toBe(0);
  });

  test("another process takes mapping and charge over", () => {
    const b = ready();
    const at = b.memory(0x1000n);
    expect(b.mapDma(0x10000n, at, 0x1000n)).toBe(0);
    expect(forget(b, 0x10000n, 0x1000n)).toBe(0x1000n);
    const child = b.process.fork();
    const addr = b.user(V.VfioIommuType1DmaMap.alloc({ argsz: 32, flags: VADDR, vaddr: at, iova: 0x10000n, size: 0x1000n }).bytes);
    const next = b.process.fork();
    expect(next.run(next.sys.ioctl(b.container, V.VFIO_IOMMU_MAP_DMA, addr))).toBe(0);
    expect([b.process.mm.lockedVm, next.mm.lockedVm]).toEqual([0, 1]);
    expect(b.unmapDma(0x10000n, 0x1000n)).toBe(0x1000n);
    expect(next.mm.lockedVm).toBe(0);
    for (const p of [child, next]) p.run(p.exit());
  });
});

/** The capabilities of GET_INFO, in order. */
function caps(b: GroupBench): { id: number; body: DataView }[] {
  const bytes = new Uint8Array(512);
  const info = V.VfioIommuType1Info.over(bytes);
  info.argsz = bytes.length;
  expect(b.ioctl(b.container, V.VFIO_IOMMU_GET_INFO, { bytes })).toBe(0);
  const view = new DataView(bytes.buffer);
  const out: { id: number; body: DataView }[] = [];
  for (let at = info.cap_offset; at !== 0; at = view.getUint32(at + 4, true)) {
    out.push({ id: view.getUint16(at, true), body: new DataView(bytes.buffer, at + 8) });
  }
  return out;
}

describe("GET_INFO", () => {
  test("it lists what dirty bitmaps can be, how many mappings are left, and where they can be", () => {
    const b = ready();
    const [migration, avail, ranges] = caps(b);
    expect([migration?.id, avail?.id, ranges?.id]).toEqual([
      V.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
      V.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
      V.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    ]);
    expect(migration?.body.getBigUint64(8, true)).toBe(0x1000n);
    expect(migration?.body.getBigUint64(16, true)).toBe(1n << 28n);
    expect(ranges?.body.getUint32(0, true)).toBe(2);
    expect([0, 1, 2, 3].map((i) => ranges?.body.getBigUint64(8 + 8 * i, true))).toEqual([0n, 0xfedfffffn, 0xfef00000n, (1n << 48n) - 1n]);
  });

  test("a caller with room for the least gets that, and is told how much there is", () => {
    const b = ready();
    const info = V.VfioIommuType1Info.alloc({ argsz: 16, cap_offset: 0x77, pad: 0x77 });
    expect(b.ioctl(b.container, V.VFIO_IOMMU_GET_INFO, info)).toBe(0);
    expect(info.argsz).toBe(24 + 32 + 16 + 48);
    expect(info.flags).toBe(V.VFIO_IOMMU_INFO_PGSIZES | V.VFIO_IOMMU_INFO_CAPS);
    expect(info.iova_pgsizes & 0xfffn).toBe(0n);
    expect(info.iova_pgsizes & 0x1000n).toBe(0x1000n);
    expect(info.cap_offset).toBe(0x77);
    expect(b.ioctl(b.container, V.VFIO_IOMMU_GET_INFO, V.VfioIommuType1Info.alloc({ argsz: 15 }))).toBe(EINVAL);
  });
});

describe("dirty pages", () => {
  const call = (b: GroupBench, flags: number, get: Uint8Array = new Uint8Array(0)): number | Errno => {
    const head = V.VfioIommuType1DirtyBitmap.size;
    const bytes = new Uint8Array(head + get.length);
    Object.assign(V.VfioIommuType1DirtyBitmap.over(bytes), { argsz: bytes.length, flags });
    bytes.set(get, head);
    return b.ioctl(b.container, V.VFIO_IOMMU_DIRTY_PAGES, { bytes });
  };
  const START = V.VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
  const STOP = V.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
  const GET = V.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
  const range = (iova: bigint, size: bigint, data: bigint, pgsize = 0x1000n, length = 64n): Uint8Array => {
    const g = V.VfioIommuType1DirtyBitmapGet.alloc({ iova, size });
    Object.assign(g.bitmap, { pgsize, size: length, data });
    return g.bytes;
  };

  test("version 1 has none", () => {
    expect(call(ready(V.VFIO_TYPE1_IOMMU), START)).toBe(EACCES);
  });

  test("one flag at a time, and a bitmap only while tracking is on", () => {
    const b = ready();
    const data = b.memory(0x1000n);
    expect(call(b, 0)).toBe(EINVAL);
    expect(call(b, START | STOP)).toBe(EINVAL);
    expect(call(b, 8)).toBe(EINVAL);
    expect(call(b, GET)).toBe(EINVAL);
    expect(call(b, GET, range(0n, 0x10000n, data))).toBe(EINVAL);
    expect(call(b, START)).toBe(0);
    expect(call(b, START)).toBe(0);
    expect(call(b, GET, range(0n, 0x10000n, data))).toBe(0);
    expect(call(b, GET, range(0n, 0n, data))).toBe(EINVAL);
    expect(call(b, GET, range(U64 - 0xfffn, 0x2000n, data))).toBe(EOVERFLOW);
    expect(call(b, GET, range(0n, 0x10000n, data, 0x2000n))).toBe(EINVAL);
    expect(call(b, GET, range(0x800n, 0x10000n, data))).toBe(EINVAL);
    expect(call(b, GET, range(0n, 0x10000n, data, 0x1000n, 0n))).toBe(EINVAL);
    expect(call(b, GET, range(0n, 0x40000n, data, 0x1000n, 7n))).toBe(EINVAL);
    expect(call(b, GET, range(0n, 0x10000n, 1n << 63n))).toBe(EINVAL);
    expect(call(b, STOP)).toBe(0);
    expect(call(b, GET, range(0n, 0x10000n, data))).toBe(EINVAL);
  });

  test("every page that is mapped is dirty, since no device says which it wrote", () => {
    const b = ready();
    const at = b.memory(0x8000n);
    const data = b.memory(0x1000n);
    expect(b.mapDma(0x3000n, at, 0x2000n)).toBe(0);
    expect(b.mapDma(0x46000n, at, 0x3000n)).toBe(0);
    expect(call(b, START)).toBe(0);
    expect(call(b, GET, range(0n, 0x80000n, data))).toBe(0);
    const words = new DataView(b.userRead(data, 16).buffer);
    expect(words.getBigUint64(0, true)).toBe(0b11000n);
    expect(words.getBigUint64(8, true)).toBe(0b111000000n);
    expect(call(b, GET, range(0x4000n, 0x80000n, data))).toBe(EINVAL);
  });

  test("an unmap reports what it unmaps", () => {
    const b = ready();
    const at = b.memory(0x8000n);
    const data = b.memory(0x1000n);
    expect(b.mapDma(0x3000n, at, 0x2000n)).toBe(0);
    expect(call(b, START)).toBe(0);
    const head = V.VfioIommuType1DmaUnmap.size;
    const bytes = new Uint8Array(head + V.VfioBitmap.size);
    const flags = V.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    Object.assign(V.VfioIommuType1DmaUnmap.over(bytes), { argsz: bytes.length, flags, iova: 0x1000n, size: 0x8000n });
    Object.assign(V.VfioBitmap.over(bytes, head), { pgsize: 0x1000n, size: 8n, data });
    expect(b.ioctl(b.container, V.VFIO_IOMMU_UNMAP_DMA, { bytes })).toBe(0);
    expect(V.VfioIommuType1DmaUnmap.over(bytes).size).toBe(0x2000n);
    expect(b.userRead(data, 1)[0]).toBe(0b1100);
  });
});

test("the valid ranges are what a naive model finds them to be", () => {
  const region = fc.record({
    start: fc.integer({ min: 0, max: 60 }),
    length: fc.integer({ min: 1, max: 8 }),
    relaxable: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(region, { maxLength: 6 }), fc.integer({ min: 0, max: 63 }), fc.integer({ min: 0, max: 20 }), (regions, at, n) => {
      const reserved = regions.map((r) => ({
        start: BigInt(r.start),
        length: BigInt(r.length),
        type: r.relaxable ? ("direct-relaxable" as const) : ("reserved" as const),
      }));
      const list = excludeReserved([{ start: 0n, last: 63n }], reserved);
      const free = (x: number): boolean => x < 64 && !regions.some((r) => !r.relaxable && x >= r.start && x < r.start + r.length);
      const all = Array.from({ length: n + 1 }, (_, i) => free(at + i)).every(Boolean);
      if (list instanceof Errno) expect(Array.from({ length: 64 }, (_, i) => free(i)).some(Boolean)).toBe(false);
      else expect(isValid(list, BigInt(at), BigInt(at + n))).toBe(all);
    }),
  );
});

test("a container whose process forgot an address takes no further group", () => {
  const b = new GroupBench({ functions: [TINY, TINY] });
  const [one, two] = b.bdfs as [string, string];
  b.ready(undefined, one);
  const at = b.memory(0x1000n);
  expect(b.mapDma(0x10000n, at, 0x1000n)).toBe(0);
  expect(b.unmapDma(0x10000n, 0x1000n, V.VFIO_DMA_UNMAP_FLAG_VADDR)).toBe(0x1000n);
  const g = b.ok(b.process.sys.open(b.groupPath(two), O_RDWR));
  expect(b.setContainer(g)).toBe(EBUSY);
  expect(b.mapDma(0x10000n, at, 0x1000n, VADDR)).toBe(0);
  expect(b.setContainer(g)).toBe(0);
});
