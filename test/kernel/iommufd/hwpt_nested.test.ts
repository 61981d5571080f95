/** Nested tables and their invalidation, through the selftest's unit: expected values are those of Linux's selftest and code. */
import { describe, expect, test } from "vitest";
import { E2BIG, EBUSY, EFAULT, EINVAL, ENOENT, EOPNOTSUPP, type Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { ok } from "./support.ts";
import { ViommuRig } from "./viommu_support.ts";

const DEFAULT = u.IOMMU_TEST_IOTLB_DEFAULT;
const TYPE = u.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
const ALL = u.IOMMU_TEST_INVALIDATE_FLAG_ALL;

describe("a nested table", () => {
  test("keeps the table it was made on, and every word of its IOTLB as it was described", () => {
    const r = new ViommuRig();
    const nested = ok(r.nested(r.parent));
    for (let i = 0; i < u.MOCK_NESTED_DOMAIN_IOTLB_NUM; i++) expect(r.checkIotlb(nested, i, DEFAULT)).toBe(0);
    expect(r.checkIotlb(nested, 0, DEFAULT + 1)).toBe(EINVAL);
    expect(r.checkIotlb(nested, u.MOCK_NESTED_DOMAIN_IOTLB_NUM, DEFAULT)).toBe(EINVAL);
    expect(r.checkIotlb(r.parent, 0, DEFAULT)).toBe(ENOENT);
    expect(r.destroy(r.parent)).toBe(EBUSY);
    expect(r.destroy(nested)).toBe(0);
    expect(r.destroy(r.parent)).toBe(0);
  });

  test("is what a device can be moved to, which reserves its regions in the parent's IOAS", () => {
    const r = new ViommuRig();
    const nested = ok(r.nested(r.parent));
    expect(r.replaceMock(r.stdev, nested)).toBe(0);
    expect(r.destroy(nested)).toBe(EBUSY);
    // Nothing is mapped, translated or tracked by it itself.
    const dirty = u.IommuHwptSetDirtyTracking.alloc({ size: u.IommuHwptSetDirtyTracking.size, hwpt_id: nested, flags: 1 });
    expect(r.ioctl(u.IOMMU_HWPT_SET_DIRTY_TRACKING, dirty)).toBe(ENOENT);
    expect(r.say(u.IOMMU_TEST_OP_MD_CHECK_MAP, nested, { check_map: { iova: 0n, length: 4096n, uptr: 0n } })).toBe(ENOENT);
    expect(r.replaceMock(r.stdev, r.parent)).toBe(0);
    expect(r.destroy(nested)).toBe(0);
  });

  const other = (r: ViommuRig): number => ok(r.hwpt(r.idev, r.ioas));
  const short = { data_len: 3 };
  test.each<[string, (r: ViommuRig) => number | Errno, Errno]>([
    ["on a table that was not made for it", (r) => r.nested(other(r)), EINVAL],
    ["on a nested table", (r) => r.nested(ok(r.nested(r.parent))), EINVAL],
    ["on a device", (r) => r.nested(r.idev), EINVAL],
    ["on nothing", (r) => r.nested(0x7fff), EINVAL],
    ["of no device", (r) => r.nested(r.parent, { dev_id: r.parent }), ENOENT],
    ["that could be a parent itself", (r) => r.nested(r.parent, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT }), EOPNOTSUPP],
    ["with dirty tracking", (r) => r.nested(r.parent, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }), EOPNOTSUPP],
    ["with an unknown flag", (r) => r.nested(r.parent, { flags: 0x10 }), EOPNOTSUPP],
    ["with a reserved word set", (r) => r.nested(r.parent, { __reserved: 1 }), EOPNOTSUPP],
    ["without data", (r) => r.hwpt(r.idev, r.parent), EOPNOTSUPP],
    ["with data of no type", (r) => r.nested(r.parent, { data_type: u.IOMMU_HWPT_DATA_NONE }), EINVAL],
    ["of a type without data", (r) => r.nested(r.parent, { data_len: 0 }), EINVAL],
    ["of another unit's type", (r) => r.nested(r.parent, { data_type: u.IOMMU_HWPT_DATA_VTD_S1 }), EOPNOTSUPP],
    ["with too little data", (r) => r.nested(r.parent, short), EINVAL],
    ["with too much data", (r) => r.nested(r.parent, { data_len: 9 }), EINVAL],
    ["with data that cannot be read", (r) => r.nested(r.parent, { data_uptr: 0x10n }), EFAULT],
    ["with a fault queue that is not there", (r) => r.nested(r.parent, { flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: r.ioas }), ENOENT],
  ])("%s is refused, and nothing is left of it", (_, make, errno) => {
    const r = new ViommuRig();
    expect(make(r)).toBe(errno);
  });

  test("takes the shortest description there ever was", () => {
    const r = new ViommuRig();
    expect(r.checkIotlb(ok(r.nested(r.parent, { data_len: 4 })), 3, DEFAULT)).toBe(0);
  });

  test("of an automatic table cannot be", () => {
    const r = new ViommuRig();
    const m = r.mock(r.allocIoas());
    expect(r.nested(m.hwpt)).toBe(EINVAL);
  });
});

describe("an invalidation of a nested table", () => {
  const rig = (): { r: ViommuRig; nested: number } => {
    const r = new ViommuRig();
    return { r, nested: ok(r.nested(r.parent)) };
  };
  const entries = (...words: [flags: number, id: number][]): Uint8Array =>
    Uint8Array.from(words.flatMap(([flags, iotlb_id]) => [...u.IommuHwptInvalidateSelftest.alloc({ flags, iotlb_id }).bytes]));
  const shape = { data_type: TYPE, entry_len: 8 };

  test.each<[string, Parameters<ViommuRig["invalidate"]>[1], Errno | 0]>([
    ["of no requests asks for the type", { data_type: TYPE }, 0],
    ["of no requests of an unknown type", { data_type: u.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID, entry_len: 8 }, EINVAL],
    ["with a reserved word set", { ...shape, __reserved: 1 }, EOPNOTSUPP],
    ["with requests nowhere", { ...shape, entry_num: 1, data_uptr: 0n }, EINVAL],
    ["with requests of no length", { ...shape, entry_num: 1, entry_len: 0, data_uptr: 1n }, EINVAL],
    ["with requests longer than a page", { ...shape, entry_num: 1, entry_len: 4097, data_uptr: 1n }, EINVAL],
    ["with more requests than anybody has", { ...shape, entry_num: (1 << 19) + 1, data_uptr: 1n }, EINVAL],
    ["with too short a request", { ...shape, entry_num: 1, entry_len: 4, data_uptr: 1n }, EINVAL],
    ["with too long a request", { ...shape, entry_num: 1, entry_len: 12, data_uptr: 1n }, EINVAL],
    ["with a request that cannot be read", { ...shape, entry_num: 1, data_uptr: 0x10n }, EFAULT],
  ])("%s carries out none", (_, init, e) => {
    const { r, nested } = rig();
    expect(r.invalidate(nested, init)).toEqual({ e, done: 0 });
    for (let i = 0; i < 4; i++) expect(r.checkIotlb(nested, i, DEFAULT)).toBe(0);
  });

  test.each<[string, (r: ViommuRig) => number, Errno]>([
    ["nothing", () => 0x7fff, ENOENT],
    ["an IOAS", (r) => r.ioas, EINVAL],
    ["a table that is not nested", (r) => r.parent, EINVAL],
  ])("of %s is refused", (_, target, errno) => {
    const r = new ViommuRig();
    const at = r.put(entries([0, 0]));
    expect(r.invalidate(target(r), { ...shape, entry_num: 1, data_uptr: at })).toEqual({ e: errno, done: 0 });
  });

  test("ends at the first request that is wrong, and says how many came before it", () => {
    const { r, nested } = rig();
    const bad = r.put(entries([0, 1], [2, 2], [0, 3]));
    expect(r.invalidate(nested, { ...shape, entry_num: 3, data_uptr: bad })).toEqual({ e: EOPNOTSUPP, done: 1 });
    expect([0, 1, 2, 3].map((i) => r.checkIotlb(nested, i, i === 1 ? 0 : DEFAULT))).toEqual([0, 0, 0, 0]);
    const far = r.put(entries([0, 2], [0, 4]));
    expect(r.invalidate(nested, { ...shape, entry_num: 2, data_uptr: far })).toEqual({ e: EINVAL, done: 1 });
    expect(r.checkIotlb(nested, 2, 0)).toBe(0);
    // The second lies beyond what the program has.
    const edge = r.user(8192) + 4096n - 8n;
    ok(r.run(r.process.sys.munmap(edge + 8n, 4096n)) ?? 0);
    r.process.mm.memory.write(edge, entries([0, 3]));
    expect(r.invalidate(nested, { ...shape, entry_num: 2, data_uptr: edge })).toEqual({ e: EFAULT, done: 1 });
    expect(r.checkIotlb(nested, 3, 0)).toBe(0);
    expect(r.checkIotlb(nested, 0, DEFAULT)).toBe(0);
  });

  test("of everything ignores which word is named, if there is one of that name", () => {
    const { r, nested } = rig();
    const at = r.put(entries([ALL, 3]));
    expect(r.invalidate(nested, { ...shape, entry_num: 1, data_uptr: at })).toEqual({ e: 0, done: 1 });
    for (let i = 0; i < 4; i++) expect(r.checkIotlb(nested, i, 0)).toBe(0);
  });

  test("whose structure is too long or goes nowhere is refused as any command's is", () => {
    const { r, nested } = rig();
    const long = new Uint8Array(u.IommuHwptInvalidate.size + 8).fill(1);
    u.IommuHwptInvalidate.assign(u.IommuHwptInvalidate.over(long), { size: long.length, hwpt_id: nested });
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_HWPT_INVALIDATE, r.put(long)))).toBe(E2BIG);
    const short = u.IommuHwptInvalidate.alloc({ size: u.IommuHwptInvalidate.size - 4, hwpt_id: nested });
    expect(r.ioctl(u.IOMMU_HWPT_INVALIDATE, short)).toBe(EINVAL);
  });
});
