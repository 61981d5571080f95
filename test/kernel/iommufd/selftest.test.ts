/** The kernel's test command: drivers/iommu/iommufd/selftest.c. Scenarios of the kernel's selftest keep its test's name. */
import { describe, expect, test } from "vitest";
import {
  E2BIG,
  EADDRINUSE,
  EBADE,
  EBADF,
  EBADFD,
  EBUSY,
  EFAULT,
  EINVAL,
  EIO,
  ENODEV,
  ENOENT,
  ENOMEM,
  ENOTTY,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  type Errno,
} from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { SelftestRig, START, type TestCmd } from "./selftest_support.ts";
import { FIXED, IommufdRig, ok, RW } from "./support.ts";

describe("IOMMU_TEST_CMD", () => {
  test("is not there unless the kernel was built for its tests", () => {
    const r = new IommufdRig();
    expect(r.ioctl(u.IOMMU_TEST_CMD, u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size, op: u.IOMMU_TEST_OP_DMABUF_GET }))).toBe(ENOTTY);
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_TEST_CMD, 0x10n))).toBe(ENOTTY);
  });

  test("knows its least size, and leaves the numbers before it free", () => {
    const r = new SelftestRig();
    const cmd = u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size - 1, op: u.IOMMU_TEST_OP_DMABUF_GET });
    expect(r.ioctl(u.IOMMU_TEST_CMD, cmd)).toBe(EINVAL);
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_TEST_CMD, 0x10n))).toBe(EFAULT);
    expect(r.ioctl(u.IOMMU_TEST_CMD - 1, u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size }))).toBe(ENOTTY);
    expect(r.ioctl(u.IOMMU_TEST_CMD + 1, u.IommuTestCmd.alloc({ size: u.IommuTestCmd.size }))).toBe(ENOTTY);
    const long = new Uint8Array(u.IommuTestCmd.size + 8).fill(1, u.IommuTestCmd.size);
    u.IommuTestCmd.over(long).size = long.length;
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_TEST_CMD, r.put(long)))).toBe(E2BIG);
  });

  test.each([0, 24])("operation %i is not offered", (op) => {
    expect(new SelftestRig().say(op, 1)).toBe(EOPNOTSUPP);
  });

  test("a memory limit that could hold nothing is refused, any other changes nothing", () => {
    const r = new SelftestRig();
    expect(r.say(u.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0, { memory_limit: { limit: 11 } })).toBe(EINVAL);
    expect(r.say(u.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0, { memory_limit: { limit: 16 } })).toBe(0);
  });
});

describe("a mock device", () => {
  test("comes with an object, a bound device and a page table, in that order of ids, and goes with the object", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const m = r.mock(ioas);
    expect(m).toEqual({ stdev: ioas + 1, idev: ioas + 2, hwpt: ioas + 3 });
    expect(r.destroy(m.idev)).toBe(EBUSY);
    expect(r.destroy(m.hwpt)).toBe(EBUSY);
    expect(r.destroy(ioas)).toBe(EBUSY);
    expect(r.destroy(m.stdev)).toBe(0);
    expect(r.destroy(m.hwpt)).toBe(ENOENT);
    expect(r.destroy(ioas)).toBe(0);
  });

  test("the context does not stay for it", () => {
    const r = new SelftestRig();
    r.mock(r.allocIoas());
    r.close(r.fd);
    expect(r.leaks()).toEqual({});
  });

  test("restricts the IOAS to its aperture and to half pages", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    r.mock(ioas);
    expect(r.ranges(ioas)).toEqual({ alignment: BigInt(u.MOCK_PAGE_SIZE), ranges: [[START, u.MOCK_APERTURE_LAST]] });
  });

  test("on an IOAS that a real device uses it gets a table of its own", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    r.attached(ioas);
    const fd = r.dmabuf();
    ok(r.mapFile({ ioas_id: ioas, fd, length: 0x4000n, flags: RW | FIXED, iova: START }));
    r.check();
    const { stdev } = r.mock(ioas);
    r.check();
    expect(r.destroy(stdev)).toBe(0);
  });

  test("refuses what is no page table, and leaves nothing behind", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { idev } = r.mock(ioas);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN, 99)).toBe(ENOENT);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN, idev)).toBe(EINVAL);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, ioas, { mock_domain_flags: { dev_flags: 2 } })).toBe(EINVAL);
    expect(r.leaks()["iommufd mock device"]).toBe(1);
  });

  test("moves to another page table", () => {
    const r = new SelftestRig();
    const [one, two] = [r.allocIoas(), r.allocIoas()];
    const { stdev, hwpt } = r.mock(one);
    const replaced = ok(r.test(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: two } }));
    expect(replaced.cmd.mock_domain_replace.pt_id).not.toBe(hwpt);
    expect(r.destroy(hwpt)).toBe(ENOENT);
    expect(r.destroy(one)).toBe(0);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: 99 } })).toBe(ENOENT);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, two, { mock_domain_replace: { pt_id: two } })).toBe(ENOENT);
  });

  test("made without PASIDs has the one of requests without any, and no other can be attached", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const attach = (flags: number, pasid: number): Errno | 0 => {
      const { stdev, idev } = r.mock(r.allocIoas(), flags);
      const table = ok(r.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_PASID }));
      ok(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: table } }));
      const e = r.say(u.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach: { pasid, pt_id: table } });
      if (e === 0) ok(r.say(u.IOMMU_TEST_OP_PASID_DETACH, stdev, { pasid_detach: { pasid } }));
      return e;
    };
    expect(attach(0, 1)).toBe(EINVAL);
    expect(attach(u.MOCK_FLAGS_DEVICE_PASID, 1)).toBe(0);
    expect(attach(u.MOCK_FLAGS_DEVICE_PASID, 2 ** u.MOCK_PASID_WIDTH - 1)).toBe(0);
    expect(attach(u.MOCK_FLAGS_DEVICE_PASID, 2 ** u.MOCK_PASID_WIDTH)).toBe(EINVAL);
  });

  test("names itself to user space, and its dirty tracking", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const info = (idev: number): [number, bigint, number] => {
      const at = r.user(4096);
      const cmd = u.IommuHwInfo.alloc({ size: u.IommuHwInfo.size, dev_id: idev, data_len: 8, data_uptr: at });
      expect(r.ioctl(u.IOMMU_GET_HW_INFO, cmd)).toBe(0);
      expect(u.IommuTestHwInfo.over(r.peek(at, 8)).test_reg).toBe(u.IOMMU_HW_INFO_SELFTEST_REGVAL);
      return [cmd.out_data_type, cmd.out_capabilities, cmd.out_max_pasid_log2];
    };
    expect(info(r.mock(ioas).idev)).toEqual([
      u.IOMMU_HW_INFO_TYPE_SELFTEST,
      u.IOMMU_HW_CAP_DIRTY_TRACKING | u.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
      0,
    ]);
    const plain = r.mock(ioas, u.MOCK_FLAGS_DEVICE_NO_DIRTY | u.MOCK_FLAGS_DEVICE_PASID);
    expect(info(plain.idev)).toEqual([u.IOMMU_HW_INFO_TYPE_SELFTEST, u.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED, u.MOCK_PASID_WIDTH]);
    expect(r.hwpt(plain.idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING })).toBe(EOPNOTSUPP);
  });

  test("has a table of three levels: no page is as large as its 2^38 bytes", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    r.mock(ioas);
    r.ioctl(u.IOMMU_VFIO_IOAS, u.IommuVfioIoas.alloc({ size: u.IommuVfioIoas.size, ioas_id: ioas, op: u.IOMMU_VFIO_IOAS_SET }));
    const info = u.VfioIommuType1Info.alloc({ argsz: u.VfioIommuType1Info.size });
    expect(r.ioctl(u.VFIO_IOMMU_GET_INFO, info)).toBe(0);
    expect(info.iova_pgsizes).toBe(0x1f_ffff_f000n);
  });

  test("takes a table of huge pages from the program's own struct, and no other struct", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { idev } = r.mock(ioas);
    const data = (pagetable_type: number): bigint => r.put(u.IommuHwptSelftest.alloc({ pagetable_type }).bytes);
    const type = u.IOMMU_HWPT_DATA_SELFTEST;
    expect(r.hwpt(idev, ioas, { data_type: type, data_len: 8, data_uptr: data(u.MOCK_IOMMUPT_HUGE) })).toBeGreaterThan(0);
    expect(r.hwpt(idev, ioas, { data_type: type, data_len: 8, data_uptr: data(7) })).toBe(EOPNOTSUPP);
    expect(r.hwpt(idev, ioas, { data_type: type, data_len: 3, data_uptr: data(0) })).toBe(EINVAL);
    expect(r.hwpt(idev, ioas, { data_type: type, data_len: 16, data_uptr: data(0) })).toBe(EINVAL);
    expect(r.hwpt(idev, ioas, { data_type: type, data_len: 8, data_uptr: 0x10n })).toBe(EFAULT);
    expect(r.hwpt(idev, ioas, { data_type: 1, data_len: 8, data_uptr: data(0) })).toBe(EOPNOTSUPP);
    expect(r.hwpt(r.bind().id, ioas, { data_type: type, data_len: 8, data_uptr: data(0) })).toBe(EOPNOTSUPP);
  });
});

describe("checks", () => {
  test("every IOVA leads to the program's memory, in whole half pages", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { hwpt } = r.mock(ioas);
    const at = r.user(0x3000);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x3000n, iova: START, flags: RW | FIXED }));
    expect(r.checkMap(hwpt, START, 0x3000n, at)).toBe(0);
    expect(r.checkMap(hwpt, START + 0x800n, 0x800n, at + 0x800n)).toBe(0);
    expect(r.checkMap(hwpt, START, 0x1000n, at + 0x1000n)).toBe(EINVAL);
    expect(r.checkMap(hwpt, START, 0x400n, at)).toBe(EINVAL);
    expect(r.checkMap(hwpt, START + 0x3000n, 0x1000n, at)).toBe(EINVAL);
    expect(r.checkMap(hwpt, START, 0x1000n, 0x1000n)).toBe(EFAULT);
    // The end of the last page of all overflows.
    expect(r.checkMap(hwpt, START, 0x800n, 0xffff_ffff_ffff_f000n)).toBe(EOVERFLOW);
    expect(r.map({ ioas_id: ioas, user_va: 0xffff_ffff_ffff_f000n, length: 0x800n, iova: START + 0x8000n, flags: RW | FIXED })).toBe(
      EOVERFLOW,
    );
    expect(r.checkMap(ioas, START, 0x1000n, at)).toBe(ENOENT);
    const real = ok(r.attach(r.bind(), r.allocIoas()));
    expect(r.checkMap(real, START, 0x1000n, at)).toBe(EINVAL);
  });

  test("each page is pinned once per map, whatever shows it", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const at = r.user(0x2000);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x2000n, iova: START, flags: RW | FIXED }));
    expect(r.checkRefs(at, 0x2000n, 0)).toBe(0);
    r.mock(ioas);
    expect(r.checkRefs(at, 0x2000n, 1)).toBe(0);
    expect(r.checkRefs(at, 0x2000n, 0)).toBe(EIO);
    r.mock(ioas);
    expect(r.checkRefs(at, 0x2000n, 1)).toBe(0);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x1000n, iova: START + 0x10000n, flags: RW | FIXED }));
    expect(r.checkRefs(at, 0x1000n, 2)).toBe(0);
    expect(r.checkRefs(at + 0x1000n, 0x1000n, 1)).toBe(0);
    expect(r.checkRefs(at + 1n, 0x1000n, 1)).toBe(EINVAL);
    expect(r.checkRefs(0x1000n, 0x1000n, 0)).toBe(EFAULT);
  });

  test("what is reserved cannot be mapped, and what is mapped cannot be reserved (ioas_area_allowed)", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const reserve = (start: bigint, length: bigint, id = ioas): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_ADD_RESERVED, id, { add_reserved: { start, length } });
    expect(reserve(0x1000n, 0n)).toBe(EINVAL);
    expect(reserve(0xffff_ffff_ffff_f000n, 0x2000n)).toBe(EOVERFLOW);
    expect(reserve(0x1000n, 0x1000n, 99)).toBe(ENOENT);
    expect(reserve(0x10000n, 0x1000n)).toBe(0);
    const at = r.user(0x1000);
    expect(r.map({ ioas_id: ioas, user_va: at, length: 0x1000n, iova: 0x10000n, flags: RW | FIXED })).toBe(EINVAL);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x1000n, iova: 0x20000n, flags: RW | FIXED }));
    expect(reserve(0x20000n, 0x1000n)).toBe(EADDRINUSE);
  });

  test("a device's cache holds what it was made with", () => {
    const r = new SelftestRig();
    const { idev } = r.mock(r.allocIoas());
    const check = (id: number, cache: number): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_DEV_CHECK_CACHE, idev, { check_dev_cache: { id, cache } });
    expect(check(3, u.IOMMU_TEST_DEV_CACHE_DEFAULT)).toBe(0);
    expect(check(4, u.IOMMU_TEST_DEV_CACHE_DEFAULT)).toBe(EINVAL);
    expect(check(0, 1)).toBe(EINVAL);
    expect(r.say(u.IOMMU_TEST_OP_DEV_CHECK_CACHE, 99)).toBe(ENOENT);
  });
});

describe("dirty bits", () => {
  const PAGE = 0x1000n;

  test("are set while tracking is on, found by the bitmap, and gone once read (get_dirty_bitmap)", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { stdev, idev } = r.mock(ioas);
    const hwpt = ok(r.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }));
    // Bits of single pages: adjacent ones must not share an entry.
    const single = { option_id: u.IOMMU_OPTION_HUGE_PAGES, op: u.IOMMU_OPTION_OP_SET, object_id: ioas, val64: 0n };
    expect(r.ioctl(u.IOMMU_OPTION, u.IommuOption.alloc({ size: u.IommuOption.size, ...single }))).toBe(0);
    const at = r.user(0x10000);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x10000n, iova: START, flags: RW | FIXED }));
    const bits = r.put(Uint8Array.from([0b1010_0001, 0b1000_0000]));
    const dirty = (init: object = {}): { ret: number; cmd: TestCmd } | Errno =>
      r.test(u.IOMMU_TEST_OP_DIRTY, hwpt, { dirty: { iova: START, length: 0x10000n, page_size: PAGE, uptr: bits, ...init } });
    expect(dirty()).toBe(EINVAL);
    const track = u.IommuHwptSetDirtyTracking.alloc({
      size: u.IommuHwptSetDirtyTracking.size,
      flags: u.IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
      hwpt_id: hwpt,
    });
    expect(r.ioctl(u.IOMMU_HWPT_SET_DIRTY_TRACKING, track)).toBe(0);
    expect(ok(dirty()).cmd.dirty.out_nr_dirty).toBe(4n);
    const read = (): number[] => {
      const out = r.user(4096);
      const cmd = u.IommuHwptGetDirtyBitmap.alloc({
        size: u.IommuHwptGetDirtyBitmap.size,
        hwpt_id: hwpt,
        iova: START,
        length: 0x10000n,
        page_size: PAGE,
        data: out,
      });
      expect(r.ioctl(u.IOMMU_HWPT_GET_DIRTY_BITMAP, cmd)).toBe(0);
      return [...r.peek(out, 2)];
    };
    expect(read()).toEqual([0b1010_0001, 0b1000_0000]);
    expect(read()).toEqual([0, 0]);
    expect(dirty({ page_size: 0n })).toBe(EINVAL);
    expect(dirty({ uptr: 0n })).toBe(EINVAL);
    expect(dirty({ uptr: 0x10n })).toBe(EFAULT);
    expect(dirty({ length: 0x10800n })).toBe(EINVAL);
    expect(dirty({ length: PAGE << 40n })).toBe(EOVERFLOW);
    // A device that cannot track is refused by such a table.
    expect(r.destroy(stdev)).toBe(0);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, hwpt, { mock_domain_flags: { dev_flags: u.MOCK_FLAGS_DEVICE_NO_DIRTY } })).toBe(EINVAL);
  });
});

describe("PASIDs", () => {
  test("are attached, replaced, checked and detached (pasid)", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { stdev, idev } = r.mock(ioas, u.MOCK_FLAGS_DEVICE_PASID);
    const flags = u.IOMMU_HWPT_ALLOC_PASID;
    const [base, one, two] = [ok(r.hwpt(idev, ioas, { flags })), ok(r.hwpt(idev, ioas, { flags })), ok(r.hwpt(idev, ioas, { flags }))];
    const attach = (pasid: number, pt: number): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_PASID_ATTACH, stdev, { pasid_attach: { pasid, pt_id: pt } });
    const replace = (pasid: number, pt: number): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_PASID_REPLACE, stdev, { pasid_replace: { pasid, pt_id: pt } });
    const detach = (pasid: number): Errno | 0 => r.say(u.IOMMU_TEST_OP_PASID_DETACH, stdev, { pasid_detach: { pasid } });
    const check = (pasid: number, hwpt: number): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_PASID_CHECK_HWPT, stdev, { pasid_check: { pasid, hwpt_id: hwpt } });
    // The whole device is on a table that PASIDs cannot stand beside.
    expect(attach(100, one)).toBe(EINVAL);
    expect(r.say(u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, stdev, { mock_domain_replace: { pt_id: base } })).toBe(0);
    expect(attach(100, one)).toBe(0);
    expect(check(100, one)).toBe(0);
    expect(check(100, two)).toBe(EINVAL);
    expect(check(100, 99)).toBe(ENOENT);
    expect(check(101, 0)).toBe(0);
    expect(replace(100, two)).toBe(0);
    expect(check(100, two)).toBe(0);
    expect(replace(101, two)).toBe(EINVAL);
    // The reserved PASID takes the first attach and refuses the second: what was there stays.
    expect(attach(u.IOMMU_TEST_PASID_RESERVED, one)).toBe(0);
    expect(replace(u.IOMMU_TEST_PASID_RESERVED, two)).toBe(ENOMEM);
    expect(check(u.IOMMU_TEST_PASID_RESERVED, one)).toBe(0);
    expect(replace(u.IOMMU_TEST_PASID_RESERVED, two)).toBe(0);
    for (const p of [100, u.IOMMU_TEST_PASID_RESERVED]) expect(detach(p)).toBe(0);
    expect(check(100, 0)).toBe(0);
    expect(attach(1 << u.MOCK_PASID_WIDTH, one)).toBe(EINVAL);
  });
});

describe("accesses", () => {
  const setUp = (): { r: SelftestRig; ioas: number; at: bigint } => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const at = r.user(0x4000);
    ok(r.map({ ioas_id: ioas, user_va: at, length: 0x4000n, iova: START, flags: RW | FIXED }));
    return { r, ioas, at };
  };

  test("an access pins what it is told to, and an unmap takes it back (access_pin_unmap)", () => {
    const { r, ioas, at } = setUp();
    const a = r.access(ioas);
    const id = ok(r.pin(a, START, 0x2000n, at));
    expect(r.checkRefs(at, 0x2000n, 1)).toBe(0);
    expect(r.unmap(ioas, START, 0x4000n)).toBe(0x4000n);
    expect(r.checkRefs(at, 0x2000n, 0)).toBe(0);
    expect(r.unpin(a, id)).toBe(ENOENT);
  });

  test("ids count up, and each is given back once (access_pin)", () => {
    const { r, ioas, at } = setUp();
    r.mock(ioas);
    const a = r.access(ioas);
    expect([r.pin(a, START, 0x1000n, at), r.pin(a, START, 0x1000n, at), r.pin(a, START + 0x1000n, 0x1000n, at + 0x1000n)]).toEqual([
      0, 1, 2,
    ]);
    expect(r.checkRefs(at, 0x4000n, 1)).toBe(0);
    expect(r.unpin(a, 1)).toBe(0);
    expect(r.unpin(a, 1)).toBe(ENOENT);
    r.close(a);
    expect(r.checkRefs(at, 0x4000n, 1)).toBe(0);
  });

  test("checks stand in order: length, flags, descriptor, kind of access, range, the program's memory", () => {
    const { r, ioas, at } = setUp();
    const a = r.access(ioas);
    const plain = r.access(ioas, false);
    expect(r.pin(99, START, (16n << 20n) + 1n, at, 2)).toBe(ENOMEM);
    expect(r.pin(99, START, 0x1000n, at, 2)).toBe(EOPNOTSUPP);
    expect(r.pin(99, START, 0x1000n, at)).toBe(EBADFD);
    expect(r.pin(r.fd, START, 0x1000n, at)).toBe(EBADFD);
    expect(r.pin(plain, START, 0x1000n, at)).toBe(EOPNOTSUPP);
    expect(r.pin(a, START, 0n, at)).toBe(EINVAL);
    expect(r.pin(a, START + 0x4000n, 0x1000n, at)).toBe(ENOENT);
    expect(r.pin(a, START, 0x1000n, at + 0x1000n)).toBe(EBADE);
    expect(r.pin(a, START, 0x1000n, 0x1000n)).toBe(EFAULT);
    expect(r.pin(a, START, 0x1000n, 0n)).toBe(0);
    expect(r.unpin(99, 0)).toBe(EBADFD);
  });

  test("it cannot be made with unknown flags, on nothing, or without a descriptor", () => {
    const { r, ioas } = setUp();
    const make = (id: number, flags: number): Errno | 0 => r.say(u.IOMMU_TEST_OP_CREATE_ACCESS, id, { create_access: { flags } });
    expect(make(ioas, 2)).toBe(EOPNOTSUPP);
    expect(make(99, 1)).toBe(ENOENT);
    r.process.rlimits.nofile = 4;
    expect(make(ioas, 1)).toBe(0);
    r.process.rlimits.nofile = 1;
    expect(make(ioas, 1)).toBe(ENOMEM);
    r.process.rlimits.nofile = 1024;
  });

  test("it copies either way, by the program's addresses or by its frames (access_rw)", () => {
    const { r, ioas, at } = setUp();
    const a = r.access(ioas, false);
    const buf = r.put(Uint8Array.from([1, 2, 3, 4]));
    for (const [i, slow] of [0, u.MOCK_ACCESS_RW_SLOW_PATH].entries()) {
      const off = BigInt(0xffe + i * 0x1000);
      expect(r.rw(a, START + off, 4, buf, u.MOCK_ACCESS_RW_WRITE | slow)).toBe(0);
      expect([...r.peek(at + off, 4)]).toEqual([1, 2, 3, 4]);
      const back = r.user(4096);
      expect(r.rw(a, START + off, 4, back, slow)).toBe(0);
      expect([...r.peek(back, 4)]).toEqual([1, 2, 3, 4]);
    }
    expect(r.rw(a, START, 0, buf)).toBe(EINVAL);
    expect(r.rw(a, START + 0x3ffen, 4, buf)).toBe(ENOENT);
    expect(r.rw(a, START, 4, 0x10n)).toBe(EFAULT);
    expect(r.rw(a, START, 4, 0x10n, u.MOCK_ACCESS_RW_WRITE)).toBe(EFAULT);
    expect(r.rw(a, START, 4, buf, 2)).toBe(EOPNOTSUPP);
    expect(r.rw(a, START, (16 << 20) + 1, buf, 2)).toBe(ENOMEM);
    expect(r.rw(r.fd, START, 4, buf)).toBe(EBADFD);
  });

  test("on the slow way one page is what lies at the address now, two are what was pinned", () => {
    const { r, ioas, at } = setUp();
    r.mock(ioas);
    const a = r.access(ioas, false);
    r.process.mm.memory.write(at, new Uint8Array(0x2000).fill(7));
    r.run(r.process.sys.munmap(at, 0x2000n));
    r.run(r.process.sys.mmap(at, 0x2000n, u.PROT_READ | u.PROT_WRITE, u.MAP_PRIVATE | u.MAP_ANONYMOUS | u.MAP_FIXED, -1));
    const back = r.user(4096);
    const read = (iova: bigint, length: number, flags: number): number[] => {
      expect(r.rw(a, iova, length, back, flags)).toBe(0);
      return [...r.peek(back, length)];
    };
    expect(read(START, 2, u.MOCK_ACCESS_RW_SLOW_PATH)).toEqual([0, 0]);
    expect(read(START + 0xfffn, 2, u.MOCK_ACCESS_RW_SLOW_PATH)).toEqual([7, 7]);
    expect(read(START + 0xfffn, 2, 0)).toEqual([0, 0]);
  });

  test("a fuzzer names an area by its number", () => {
    const { r, ioas, at } = setUp();
    const a = r.access(ioas, false);
    r.process.mm.memory.write(at + 0x123n, Uint8Array.from([7]));
    const back = r.user(4096);
    expect(r.rw(a, 0x123n << 32n, 1, back, u.MOCK_FLAGS_ACCESS_SYZ)).toBe(0);
    expect(r.peek(back, 1)[0]).toBe(7);
    expect(r.rw(a, 5n, 1, back, u.MOCK_FLAGS_ACCESS_SYZ)).toBe(ENOENT);
  });

  test("it moves to another IOAS, and gives back what it had pinned (access_replace)", () => {
    const { r, ioas, at } = setUp();
    const other = r.allocIoas();
    const a = r.access(ioas);
    ok(r.pin(a, START, 0x1000n, at));
    const replace = (fd: number, id: number): Errno | 0 =>
      r.say(u.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, fd, { access_replace_ioas: { ioas_id: id } });
    expect(replace(a, 99)).toBe(ENOENT);
    expect(replace(99, other)).toBe(EBADFD);
    expect(replace(a, other)).toBe(0);
    expect(r.checkRefs(at, 0x1000n, 0)).toBe(0);
    expect(r.destroy(ioas)).toBe(0);
    expect(r.destroy(other)).toBe(EBUSY);
  });

  test("an access keeps its context when the program closes it", () => {
    const { r, ioas, at } = setUp();
    const a = r.access(ioas);
    ok(r.pin(a, START, 0x1000n, at));
    r.close(r.fd);
    expect(r.leaks()["iommufd context"]).toBe(1);
    r.close(a);
    expect(r.leaks()).toEqual({});
  });

  test("device memory cannot be pinned nor copied, and what is read-only not written", () => {
    const { r, ioas } = setUp();
    const fd = r.dmabuf();
    ok(r.mapFile({ ioas_id: ioas, fd, length: 0x1000n, iova: START + 0x10000n, flags: RW | FIXED }));
    const ro = u.IOMMU_IOAS_MAP_READABLE | FIXED;
    ok(r.mapFile({ ioas_id: ioas, fd, length: 0x1000n, iova: START + 0x20000n, flags: ro }));
    const a = r.access(ioas);
    const buf = r.user(4096);
    expect(r.pin(a, START + 0x10000n, 0x1000n, 0n, 0)).toBe(EINVAL);
    expect(r.rw(a, START + 0x10000n, 64, buf)).toBe(EINVAL);
    expect(r.pin(a, START + 0x20000n, 0x1000n, 0n)).toBe(EPERM);
    expect(r.rw(a, START + 0x20000n, 64, buf, u.MOCK_ACCESS_RW_WRITE)).toBe(EPERM);
  });
});

describe("the test exporter", () => {
  test("its lengths are whole pages up to 2 MiB", () => {
    const r = new SelftestRig();
    const get = (length: number): Errno | 0 => r.say(u.IOMMU_TEST_OP_DMABUF_GET, 0, { dmabuf_get: { length, open_flags: 0 } });
    expect(get(0)).toBe(EINVAL);
    expect(get(0x20_0001)).toBe(EINVAL);
    expect(get(0x20_0000)).toBe(0);
    const fd = r.testDmabuf(0x2001);
    expect(r.run(r.process.sys.lseek(fd, 0n, u.SEEK_END))).toBe(0x3000n);
  });

  test("dmabuf_simple", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    r.mock(ioas);
    const fd = r.testDmabuf();
    const map = (start: bigint, length: bigint): bigint | Errno => r.mapFile({ ioas_id: ioas, fd, start, length });
    expect(map(0n, 0n)).toBe(EINVAL);
    expect(map(0x4000n, 0x1000n)).toBe(EINVAL);
    expect(map(0n, 0x4001n)).toBe(EINVAL);
    expect(map(0n, 0x4000n)).toBe(START);
    r.close(fd);
    r.check();
  });

  test("dmabuf_revoke", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    const { idev } = r.mock(ioas);
    const fd = r.testDmabuf();
    const map = (): bigint | Errno => r.mapFile({ ioas_id: ioas, fd, length: 0x4000n });
    const iova = ok(map());
    expect(r.revokeDmabuf(fd, 1)).toBe(0);
    r.check();
    // Another table over the dead area, and the device through it.
    expect(r.hwpt(idev, ioas)).toBeGreaterThan(0);
    expect(map()).toBe(ENODEV);
    expect(r.revokeDmabuf(fd, 0)).toBe(0);
    const again = ok(map());
    expect(again).not.toBe(iova);
    expect(r.unmap(ioas, iova, 0x4000n)).toBe(0x4000n);
    expect(r.mapFile({ ioas_id: ioas, fd, length: 0x4000n, iova, flags: RW | FIXED })).toBe(iova);
    r.check();
  });

  test("only its own buffers are revoked", () => {
    const r = new SelftestRig();
    expect(r.revokeDmabuf(r.dmabuf(), 1)).toBe(EOPNOTSUPP);
    expect(r.revokeDmabuf(r.fd, 1)).toBe(EINVAL);
    expect(r.revokeDmabuf(99, 1)).toBe(EBADF);
  });

  test("its buffers and VFIO's are mapped side by side", () => {
    const r = new SelftestRig();
    const ioas = r.allocIoas();
    ok(r.mapFile({ ioas_id: ioas, fd: r.dmabuf(), length: 0x4000n }));
    ok(r.mapFile({ ioas_id: ioas, fd: r.testDmabuf(), length: 0x4000n }));
    r.check();
  });
});
