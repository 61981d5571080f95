/** Virtual IOMMUs, their devices and hardware queues, and what is mapped of them: expected values are those of Linux's code and selftest. */
import { describe, expect, test } from "vitest";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { IommufdDevice } from "../../../src/kernel/iommufd/group.ts";
import {
  E2BIG,
  EBUSY,
  EEXIST,
  EFAULT,
  EINVAL,
  EIO,
  ENOENT,
  ENOTTY,
  ENXIO,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  ERANGE,
  type Errno,
} from "../../../src/lib/errno.ts";
import type { Step } from "../../../src/sched/task.ts";
import { WaitQueue } from "../../../src/sched/wait.ts";
import * as u from "../../../src/uapi/index.ts";
import { START } from "./selftest_support.ts";
import { IommufdRig, ok } from "./support.ts";
import { ViommuRig } from "./viommu_support.ts";

const { PROT_READ, PROT_WRITE, PROT_EXEC, MAP_SHARED, MAP_PRIVATE } = u;
const CACHE = u.IOMMU_TEST_DEV_CACHE_DEFAULT;
const TYPE = u.IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST;

describe("a virtual IOMMU", () => {
  test("keeps its parent, and goes before it", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    expect(r.destroy(r.parent)).toBe(EBUSY);
    expect(r.destroy(viommu)).toBe(0);
    expect(r.destroy(viommu)).toBe(ENOENT);
    expect(r.destroy(r.parent)).toBe(0);
  });

  test.each<[string, Parameters<ViommuRig["viommu"]>[0], Errno]>([
    ["with a flag", { flags: 1 }, EOPNOTSUPP],
    ["of no type", { type: u.IOMMU_VIOMMU_TYPE_DEFAULT }, EOPNOTSUPP],
    ["of another unit's type", { type: u.IOMMU_VIOMMU_TYPE_ARM_SMMUV3 }, EOPNOTSUPP],
    ["of no device", { dev_id: 0x7fff }, ENOENT],
    ["on no table", { hwpt_id: 0x7fff }, ENOENT],
    ["with too little data", { data_len: 7, data_uptr: 1n }, EINVAL],
    ["with too much data", { data_len: 25, data_uptr: 1n }, EINVAL],
    ["with data that cannot be read", { data_len: 24, data_uptr: 0x10n }, EFAULT],
  ])("%s is refused, and nothing is left of it", (_, init, errno) => {
    const r = new ViommuRig();
    expect(r.viommu(init)).toBe(errno);
    expect(r.ctx.mmaps.size).toBe(0);
    // Of an unknown type first, then of the device, then of the table.
    expect(r.viommu({ type: 1, dev_id: 0x7fff })).toBe(ENOENT);
    expect(r.viommu({ type: 1, hwpt_id: 0x7fff })).toBe(EOPNOTSUPP);
    expect(r.destroy(r.parent)).toBe(0);
  });

  test("needs a table that can be nested in", () => {
    const r = new ViommuRig();
    expect(r.viommu({ hwpt_id: ok(r.hwpt(r.idev, r.ioas)) })).toBe(EINVAL);
    expect(r.viommu({ hwpt_id: r.ioas })).toBe(ENOENT);
    expect(r.viommu({ hwpt_id: ok(r.nested(r.parent)) })).toBe(ENOENT);
  });

  test("whose answer cannot be given is not made", () => {
    const r = new ViommuRig();
    const at = r.put(u.IommuViommuSelftest.alloc({ in_data: 1 }).bytes);
    // The caller's data are in memory that can only be read.
    ok(r.run(r.process.sys.mprotect(at & ~4095n, 4096n, PROT_READ)) ?? 0);
    expect(r.viommu({ data_len: 24, data_uptr: at })).toBe(EFAULT);
    expect(r.ctx.mmaps.size).toBe(0);
    expect(r.destroy(r.parent)).toBe(0);
  });

  test("has tables nested in it, which keep it; not for another unit's devices", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const nested = ok(r.nested(viommu));
    expect(r.checkIotlb(nested, 0, u.IOMMU_TEST_IOTLB_DEFAULT)).toBe(0);
    expect(r.destroy(viommu)).toBe(EBUSY);
    expect(r.nested(viommu, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT })).toBe(EOPNOTSUPP);
    expect(r.nested(viommu, { data_type: u.IOMMU_HWPT_DATA_NONE, data_len: 0 })).toBe(EOPNOTSUPP);
    expect(r.nested(viommu, { data_type: u.IOMMU_HWPT_DATA_VTD_S1 })).toBe(EOPNOTSUPP);
    expect(r.nested(viommu, { dev_id: r.bind().id })).toBe(EINVAL);
    expect(r.destroy(nested)).toBe(0);
    expect(r.destroy(viommu)).toBe(0);
  });

  test("takes a device onto a nested table only when the guest knows the device", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const nested = ok(r.nested(viommu));
    expect(r.replaceMock(r.stdev, nested)).toBe(ENOENT);
    const vdev = ok(r.vdevice(viommu, r.idev, 0x99n));
    expect(r.replaceMock(r.stdev, nested)).toBe(0);
    expect(r.destroy(vdev)).toBe(0);
    expect(r.replaceMock(r.stdev, r.parent)).toBe(0);
    expect(r.replaceMock(r.stdev, nested)).toBe(ENOENT);
  });
});

describe("a device of a virtual IOMMU", () => {
  test("holds it and the bound device", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const vdev = ok(r.vdevice(viommu, r.idev, 0x99n));
    expect(r.destroy(viommu)).toBe(EBUSY);
    expect(r.destroy(r.idev)).toBe(EBUSY);
    expect(r.destroy(vdev)).toBe(0);
    expect(r.destroy(viommu)).toBe(0);
    const again = ok(r.viommu());
    expect(ok(r.vdevice(again, r.idev, 0x99n))).toBeGreaterThan(0);
  });

  test("is there once, and its id is taken once", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const second = r.mock(r.ioas).idev;
    ok(r.vdevice(viommu, r.idev, 0x99n));
    expect(r.vdevice(viommu, r.idev, 0x100n)).toBe(EEXIST);
    expect(r.vdevice(viommu, second, 0x99n)).toBe(EEXIST);
    expect(ok(r.vdevice(viommu, second, 0xffff_ffff_ffff_ffffn))).toBeGreaterThan(0);
    // A device that is on one is on no other.
    expect(r.vdevice(ok(r.viommu()), second, 1n)).toBe(EEXIST);
  });

  test.each<[string, (r: ViommuRig, viommu: number) => number | Errno, Errno]>([
    ["of no virtual IOMMU", (r) => r.vdevice(r.parent, r.idev, 1n), ENOENT],
    ["that is no device", (r, viommu) => r.vdevice(viommu, r.ioas, 1n), ENOENT],
    ["behind another unit", (r, viommu) => r.vdevice(viommu, r.bind().id, 1n), EINVAL],
  ])("%s is refused", (_, make, errno) => {
    const r = new ViommuRig();
    expect(make(r, ok(r.viommu()))).toBe(errno);
  });

  test("that is unbound leaves a tombstone: the id is nobody's until the descriptor is closed", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const m = r.mock(r.ioas);
    const vdev = ok(r.vdevice(viommu, m.idev, 0x99n));
    expect(r.destroy(m.stdev)).toBe(0);
    expect(r.destroy(vdev)).toBe(ENOENT);
    // The stdev's and the device's ids are free again, the virtual device's is not.
    const ids = new Set(Array.from({ length: 8 }, () => r.allocIoas()));
    expect(ids.has(m.stdev) && ids.has(m.idev)).toBe(true);
    expect(ids.has(vdev)).toBe(false);
    // What the guest called the device is free at once.
    expect(ok(r.vdevice(viommu, r.idev, 0x99n))).not.toBe(vdev);
    expect(r.destroy(viommu)).toBe(EBUSY);
  });

  test.each([
    ["and the unbind waits for it", ["stdev", "vdev"]],
    ["and the unbind comes after it", ["vdev", "stdev"]],
  ] as const)("that is destroyed while its device is unbound is gone when both return, %s", (_, order) => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const m = r.mock(r.ioas);
    const vdev = ok(r.vdevice(viommu, m.idev, 0x99n));
    const idev = r.ctx.objects.load(m.idev);
    if (!(idev instanceof IommufdDevice)) throw new Error("no device");
    const { lock } = idev.group;
    const released = new WaitQueue(r.kernel.sched, "test");
    let free = false;
    r.start("holder", function* (): Step<void> {
      yield* lock.lock();
      yield* released.waitEvent(() => free);
      lock.unlock();
    });
    const results: unknown[] = [];
    const ids = { stdev: m.stdev, vdev };
    for (const what of order) {
      const at = r.put(u.IommuDestroy.alloc({ size: u.IommuDestroy.size, id: ids[what] }).bytes);
      r.start(what, function* (): Step<void> {
        results.push(yield* r.process.sys.ioctl(r.fd, u.IOMMU_DESTROY, at));
      });
    }
    // Both are out of the table; one waits for the lock that the other needs as well.
    expect([vdev, m.stdev].map((id) => r.ctx.objects.load(id))).toEqual([undefined, undefined]);
    expect(results).toEqual([]);
    free = true;
    released.wakeUp();
    r.kernel.sched.settle();
    expect(results).toEqual([0, 0]);
    expect(r.ctx.objects.load(m.idev)).toBeUndefined();
    expect(r.destroy(viommu)).toBe(0);
    // The program itself destroyed it, so there is no tombstone.
    expect(Array.from({ length: 8 }, () => r.allocIoas())).toContain(vdev);
  });
});

describe("an invalidation of a virtual IOMMU", () => {
  const rig = (): { r: ViommuRig; viommu: number } => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    ok(r.vdevice(viommu, r.idev, 0x99n));
    return { r, viommu };
  };
  const entries = (...e: [flags: number, vdev: number, cache: number][]): Uint8Array =>
    Uint8Array.from(
      e.flatMap(([flags, vdev_id, cache_id]) => [...u.IommuViommuInvalidateSelftest.alloc({ flags, vdev_id, cache_id }).bytes]),
    );
  const shape = { data_type: TYPE, entry_len: 12 };
  const caches = (r: ViommuRig): boolean[] => [0, 1, 2, 3].map((i) => r.checkCache(r.idev, i, CACHE) === 0);

  test.each<[string, Parameters<ViommuRig["invalidate"]>[1], Errno | 0]>([
    ["of no requests asks for the type", { data_type: TYPE }, 0],
    ["of no requests of an unknown type", { data_type: u.IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID }, EINVAL],
    ["of an unknown type", { ...shape, data_type: 1, entry_num: 1, data_uptr: 1n }, EINVAL],
    ["that cannot be read", { ...shape, entry_num: 1, data_uptr: 0x10n }, EFAULT],
    ["with a reserved word set", { ...shape, __reserved: 1 }, EOPNOTSUPP],
  ])("%s carries out none", (_, init, e) => {
    const { r, viommu } = rig();
    expect(r.invalidate(viommu, init)).toEqual({ e, done: 0 });
    expect(caches(r)).toEqual([true, true, true, true]);
  });

  test.each<[string, [number, number, number], Errno]>([
    ["an unknown flag", [2, 0x99, 0], EOPNOTSUPP],
    ["a device the guest has not", [0, 0x9, 0], EINVAL],
    ["a cache there is not", [0, 0x99, 4], EINVAL],
  ])("ends at %s", (_, bad, e) => {
    const { r, viommu } = rig();
    const at = r.put(entries([0, 0x99, 1], bad, [0, 0x99, 2]));
    expect(r.invalidate(viommu, { ...shape, entry_num: 3, data_uptr: at })).toEqual({ e, done: 1 });
    expect(caches(r)).toEqual([true, false, true, true]);
  });

  test("is read as a whole first: one that cannot be read ends it before any is carried out", () => {
    const { r, viommu } = rig();
    const edge = r.user(8192) + 4096n - 12n;
    ok(r.run(r.process.sys.munmap(edge + 12n, 4096n)) ?? 0);
    r.process.mm.memory.write(edge, entries([0, 0x99, 3]));
    expect(r.invalidate(viommu, { ...shape, entry_num: 2, data_uptr: edge })).toEqual({ e: EFAULT, done: 0 });
    expect(caches(r)).toEqual([true, true, true, true]);
  });

  test("of everything drops all caches of the device; longer requests may hold zeros only", () => {
    const { r, viommu } = rig();
    const long = new Uint8Array(32);
    long.set(entries([0, 0x99, 2]));
    expect(r.invalidate(viommu, { data_type: TYPE, entry_len: 16, entry_num: 1, data_uptr: r.put(long) })).toEqual({ e: 0, done: 1 });
    expect(caches(r)).toEqual([true, true, false, true]);
    long[13] = 1;
    expect(r.invalidate(viommu, { data_type: TYPE, entry_len: 16, entry_num: 1, data_uptr: r.put(long) })).toEqual({ e: E2BIG, done: 0 });
    const all = r.put(entries([u.IOMMU_TEST_INVALIDATE_FLAG_ALL, 0x99, 0]));
    expect(r.invalidate(viommu, { ...shape, entry_num: 1, data_uptr: all })).toEqual({ e: 0, done: 1 });
    expect(caches(r)).toEqual([false, false, false, false]);
  });
});

describe("a hardware queue", () => {
  test("pins its memory: what it uses cannot be unmapped", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const at = r.memoryAt(START, 0x4000);
    const queue = ok(r.hwQueue(viommu, { length: 0x1000n, nesting_parent_iova: START + 8n }));
    expect(r.checkRefs(at, 0x2000n, 1)).toBe(0);
    expect(r.unmap(r.ioas, START, 0x4000n)).toBe(EBUSY);
    expect(r.destroy(viommu)).toBe(EBUSY);
    expect(r.destroy(queue)).toBe(0);
    expect(r.unmap(r.ioas, START, 0x4000n)).toBe(0x4000n);
    expect(r.destroy(viommu)).toBe(0);
  });

  test("stops type1's unmapping of all at its memory, and what went before is told", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    r.memoryAt(START, 0x5000);
    r.memoryAt(START + 0x10_0000n, 0x1000);
    const queue = ok(r.hwQueue(viommu, { length: 0x1000n, nesting_parent_iova: START + 0x10_0000n }));
    r.ioctl(u.IOMMU_VFIO_IOAS, u.IommuVfioIoas.alloc({ size: u.IommuVfioIoas.size, ioas_id: r.ioas, op: u.IOMMU_VFIO_IOAS_SET }));
    const all = u.VfioIommuType1DmaUnmap.alloc({ argsz: u.VfioIommuType1DmaUnmap.size, flags: u.VFIO_DMA_UNMAP_FLAG_ALL });
    expect(r.ioctl(u.VFIO_IOMMU_UNMAP_DMA, all)).toBe(EBUSY);
    expect(all.size).toBe(0x5000n);
    expect(r.destroy(queue)).toBe(0);
  });

  test("comes after the one before it, which it keeps", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    r.memoryAt(START, 0x4000);
    expect(r.hwQueue(viommu, { index: 1 })).toBe(EIO);
    const first = ok(r.hwQueue(viommu));
    expect(r.hwQueue(viommu)).toBe(EEXIST);
    const second = ok(r.hwQueue(viommu, { index: 1 }));
    expect(r.hwQueue(viommu, { index: u.IOMMU_TEST_HW_QUEUE_MAX })).toBe(EINVAL);
    expect(r.destroy(first)).toBe(EBUSY);
    expect(r.destroy(second)).toBe(0);
    // Linux's test unit takes every queue that goes for the first.
    expect(r.hwQueue(viommu, { index: 1 })).toBe(EEXIST);
    expect(r.destroy(ok(r.hwQueue(viommu)))).toBe(0);
    expect(r.destroy(first)).toBe(0);
  });

  test.each<[string, Parameters<ViommuRig["hwQueue"]>[1], Errno]>([
    ["with a flag", { flags: 1 }, EOPNOTSUPP],
    ["of no type", { type: u.IOMMU_HW_QUEUE_TYPE_DEFAULT }, EOPNOTSUPP],
    ["of another unit's type", { type: u.IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV }, EOPNOTSUPP],
    ["of no bytes", { length: 0n }, EINVAL],
    ["beyond the last address", { nesting_parent_iova: 0xffff_ffff_ffff_ff00n, length: 0x101n }, EOVERFLOW],
    ["whose pages end beyond the last address", { nesting_parent_iova: 0n, length: 0xffff_ffff_ffff_ffffn }, ERANGE],
    ["in memory that is not mapped", { nesting_parent_iova: START + 0x10_0000n }, ENOENT],
    ["that runs out of what is mapped", { length: 0x5000n }, ENOENT],
    ["of a virtual IOMMU that is not there", { viommu_id: 0x7fff }, ENOENT],
  ])("%s is refused, and nothing stays pinned", (_, init, errno) => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const at = r.memoryAt(START, 0x4000);
    expect(r.hwQueue(viommu, init)).toBe(errno);
    expect(r.checkRefs(at, 0x4000n, 1)).toBe(0);
    expect(r.destroy(viommu)).toBe(0);
  });

  test("is not for memory of a device, nor for memory that is not contiguous", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    const fd = r.testDmabuf(0x1000);
    ok(r.mapFile({ ioas_id: r.ioas, fd, length: 0x1000n, iova: START, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA | 6 }));
    expect(r.hwQueue(viommu)).toBe(EINVAL);
    // Two pages the other way round.
    const at = r.memoryAt(START + 0x10_0000n, 0x2000);
    ok(
      r.map({ ioas_id: r.ioas, user_va: at + 0x1000n, length: 0x1000n, iova: START + 0x20_0000n, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA | 6 }),
    );
    ok(r.map({ ioas_id: r.ioas, user_va: at, length: 0x1000n, iova: START + 0x20_1000n, flags: u.IOMMU_IOAS_MAP_FIXED_IOVA | 6 }));
    expect(r.hwQueue(viommu, { nesting_parent_iova: START + 0x20_0000n, length: 0x2000n })).toBe(EFAULT);
    expect(r.unmap(r.ioas, START + 0x20_0000n, 0x2000n)).toBe(0x2000n);
  });

  test("takes its id before that of what pins its memory", () => {
    const r = new ViommuRig();
    const viommu = ok(r.viommu());
    r.memoryAt(START, 0x1000);
    const queue = ok(r.hwQueue(viommu));
    expect(queue).toBe(viommu + 1);
    expect(r.destroy(queue + 1)).toBe(EBUSY);
    expect(r.allocIoas()).toBe(queue + 2);
  });
});

describe("memory of a virtual IOMMU", () => {
  const map = (r: ViommuRig, offset: bigint, length = 0x2000n, prot: number = PROT_READ | PROT_WRITE, flags: number = MAP_SHARED) =>
    r.run(r.process.sys.mmap(0n, length, prot, flags, r.fd, offset));

  test("is told where it is, and what was given comes back there", () => {
    const r = new ViommuRig();
    const { data } = r.viommuWithPages(0xbeef);
    expect(u.IommuViommuSelftest.toObject(data)).toEqual({
      in_data: 0xbeef,
      out_data: 0xbeef,
      out_mmap_offset: 0x1000n,
      out_mmap_length: 0x2000n,
    });
    const at = ok(map(r, data.out_mmap_offset));
    expect([...r.peek(at, 4)]).toEqual([0xef, 0xbe, 0, 0]);
    expect([...r.peek(at + 0x1ffcn, 4)]).toEqual([0, 0, 0, 0]);
    r.process.mm.memory.write(at + 0x1ff0n, Uint8Array.of(7));
    // Another mapping is of the same pages.
    expect([...r.peek(ok(map(r, data.out_mmap_offset)) + 0x1ff0n, 1)]).toEqual([7]);
  });

  test("keeps it while it is mapped, by any mapping and in any process", () => {
    const r = new ViommuRig();
    const { id, data } = r.viommuWithPages(1);
    const at = ok(map(r, data.out_mmap_offset));
    expect(r.destroy(id)).toBe(EBUSY);
    const child = r.process.fork();
    ok(r.run(r.process.sys.munmap(at, 0x1000n)) ?? 0);
    ok(r.run(r.process.sys.munmap(at + 0x1000n, 0x1000n)) ?? 0);
    expect(r.destroy(id)).toBe(EBUSY);
    child.run(child.exit());
    expect(r.destroy(id)).toBe(0);
    expect(map(r, data.out_mmap_offset)).toBe(ENXIO);
    // The offset is given again, and its pages are empty.
    const again = r.viommuWithPages(0).data;
    expect(again.out_mmap_offset).toBe(data.out_mmap_offset);
    expect([...r.peek(ok(map(r, again.out_mmap_offset)), 1)]).toEqual([0]);
  });

  test("goes with its process, mapped or not", () => {
    const r = new ViommuRig();
    const { data } = r.viommuWithPages(1);
    ok(map(r, data.out_mmap_offset));
    r.run(r.process.exit());
  });

  test.each<[string, bigint, bigint, number, number, Errno]>([
    ["privately", 0n, 0x2000n, PROT_READ, MAP_PRIVATE, EINVAL],
    ["for execution", 0n, 0x2000n, PROT_READ | PROT_EXEC, MAP_SHARED, EPERM],
    ["from its second page", 0x1000n, 0x1000n, PROT_READ, MAP_SHARED, ENXIO],
    ["from its second page, as long", 0x1000n, 0x2000n, PROT_READ, MAP_SHARED, ENXIO],
    ["behind it", 0x2000n, 0x2000n, PROT_READ, MAP_SHARED, ENXIO],
    ["before it", -0x1000n, 0x1000n, PROT_READ, MAP_SHARED, ENXIO],
    ["in part", 0n, 0x1000n, PROT_READ, MAP_SHARED, ENXIO],
    ["and more", 0n, 0x4000n, PROT_READ, MAP_SHARED, ENXIO],
  ])("is not mapped %s", (_, at, length, prot, flags, errno) => {
    const r = new ViommuRig();
    const { id, data } = r.viommuWithPages(1);
    expect(map(r, data.out_mmap_offset + at, length, prot, flags)).toBe(errno);
    expect(r.destroy(id)).toBe(0);
  });

  test("fills the lowest room there is", () => {
    const r = new ViommuRig();
    const [a, b, c] = [r.viommuWithPages(1), r.viommuWithPages(2), r.viommuWithPages(3)];
    expect([a, b, c].map((v) => v.data.out_mmap_offset)).toEqual([0x1000n, 0x3000n, 0x5000n]);
    expect(r.destroy(b.id)).toBe(0);
    expect(map(r, 0x3000n)).toBe(ENXIO);
    expect(r.viommuWithPages(4).data.out_mmap_offset).toBe(0x3000n);
  });
});

describe("a virtual IOMMU of a unit that a machine has", () => {
  const rig = (unit: IommuDescription) => {
    const r = new IommufdRig(unit);
    const ioas = r.allocIoas();
    const idev = r.bind();
    const hwpt = (flags: number): number => {
      const cmd = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, dev_id: idev.id, pt_id: ioas, flags });
      expect(r.ioctl(u.IOMMU_HWPT_ALLOC, cmd)).toBe(0);
      return cmd.out_hwpt_id;
    };
    const viommu = (hwpt_id: number, type: number) => {
      const cmd = u.IommuViommuAlloc.alloc({ size: u.IommuViommuAlloc.size, type, dev_id: idev.id, hwpt_id });
      return { e: r.ioctl(u.IOMMU_VIOMMU_ALLOC, cmd), id: cmd.out_viommu_id };
    };
    const finish = (): void => {
      r.unbind(idev);
      r.run(r.process.exit());
      r.kernel.sched.settle();
      expect(r.leaks()).toEqual({});
    };
    return { r, idev, hwpt, viommu, finish };
  };

  test("is none of VT-d's, whatever it is asked for", () => {
    const { hwpt, viommu, finish } = rig({ kind: "intel-scalable", nesting: true, coherentWalk: true });
    const parent = hwpt(u.IOMMU_HWPT_ALLOC_NEST_PARENT);
    for (const type of [1, 2, 3, u.IOMMU_VIOMMU_TYPE_SELFTEST]) expect(viommu(parent, type).e).toBe(EOPNOTSUPP);
    finish();
  });

  test("is of any type of AMD's, on a parent; it takes devices, and nothing else is done with it", () => {
    const { r, idev, hwpt, viommu, finish } = rig({ kind: "amd", nesting: true });
    const parent = hwpt(u.IOMMU_HWPT_ALLOC_NEST_PARENT);
    expect(viommu(parent, 0).e).toBe(EOPNOTSUPP);
    expect(viommu(hwpt(0), 3).e).toBe(EINVAL);
    const { e, id } = viommu(parent, 3);
    expect(e).toBe(0);
    const vdev = u.IommuVdeviceAlloc.alloc({ size: u.IommuVdeviceAlloc.size, viommu_id: id, dev_id: idev.id, virt_id: 8n });
    expect(r.ioctl(u.IOMMU_VDEVICE_ALLOC, vdev)).toBe(0);
    const data = { data_type: u.IOMMU_HWPT_DATA_AMD_GUEST, data_len: 32, data_uptr: r.put(new Uint8Array(32)) };
    for (const pt_id of [id, parent]) {
      const nested = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, dev_id: idev.id, pt_id, ...data });
      expect(r.ioctl(u.IOMMU_HWPT_ALLOC, nested)).toBe(EOPNOTSUPP);
    }
    const queue = u.IommuHwQueueAlloc.alloc({ size: u.IommuHwQueueAlloc.size, viommu_id: id, type: 1, length: 1n });
    expect(r.ioctl(u.IOMMU_HW_QUEUE_ALLOC, queue)).toBe(EOPNOTSUPP);
    const invalidate = u.IommuHwptInvalidate.alloc({ size: u.IommuHwptInvalidate.size, hwpt_id: id });
    expect(r.ioctl(u.IOMMU_HWPT_INVALIDATE, invalidate)).toBe(EOPNOTSUPP);
    finish();
  });
});

test.each([
  ["VIOMMU_ALLOC", u.IOMMU_VIOMMU_ALLOC, u.IommuViommuAlloc, 24],
  ["VDEVICE_ALLOC", u.IOMMU_VDEVICE_ALLOC, u.IommuVdeviceAlloc, 24],
  ["HW_QUEUE_ALLOC", u.IOMMU_HW_QUEUE_ALLOC, u.IommuHwQueueAlloc, 40],
  ["HWPT_INVALIDATE", u.IOMMU_HWPT_INVALIDATE, u.IommuHwptInvalidate, 32],
] as const)("%s looks at its size first", (_, cmd, struct, least) => {
  const r = new ViommuRig();
  const of = (size: number, last: number): Errno | number => {
    const bytes = new Uint8Array(64);
    new DataView(bytes.buffer).setUint32(0, size, true);
    bytes[63] = last;
    return r.run(r.process.sys.ioctl(r.fd, cmd, r.put(bytes)));
  };
  expect(of(least - 1, 0)).toBe(EINVAL);
  expect(of(least, 0)).not.toBe(EINVAL);
  expect(of(64, 1)).toBe(E2BIG);
  expect(of(64, 0)).toBe(of(struct.size, 0));
  expect(r.run(r.process.sys.ioctl(r.fd, cmd, 0x10n))).toBe(EFAULT);
  expect(r.run(r.process.sys.ioctl(r.fd, cmd + 0x100, r.put(new Uint8Array(64))))).toBe(ENOTTY);
});
