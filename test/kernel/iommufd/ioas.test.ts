import { beforeEach, describe, expect, test } from "vitest";
import { EADDRINUSE, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, EPERM } from "../../../src/lib/errno.ts";
import { FIXED, IommufdRig, ok, RW } from "./support.ts";

let r: IommufdRig;
beforeEach(() => {
  r = new IommufdRig();
});

describe("an IOAS", () => {
  test("ids are the lowest free number from 1", () => {
    expect([r.allocIoas(), r.allocIoas(), r.allocIoas()]).toEqual([1, 2, 3]);
    expect(r.destroy(2)).toBe(0);
    expect(r.allocIoas()).toBe(2);
    expect(r.allocIoas()).toBe(4);
    expect(r.destroy(9)).toBe(ENOENT);
  });

  test("closing the context frees everything", () => {
    const ioas = r.allocIoas();
    r.attached(ioas);
    const fd = r.dmabuf();
    ok(r.mapFile({ ioas_id: ioas, fd, length: 0x4000n }));
    ok(r.mapFile({ ioas_id: ioas, fd: r.memfd(0x4000), length: 0x4000n }));
    r.check();
    expect(r.leaks()["iommufd area"]).toBe(2);
    r.run(r.process.exit());
    // A bound device keeps the context, as its driver would.
    expect(r.leaks()["iommufd area"]).toBe(2);
  });

  test("the kernel chooses one page up for one page, and 2 MiB for a BAR of 16 MiB", () => {
    const ioas = r.allocIoas();
    r.attached(ioas);
    r.vfio.length = 0x100_0000n;
    const fd = r.dmabuf(0x100_0000n);
    expect(r.mapFile({ ioas_id: ioas, fd, length: 0x1000n })).toBe(0x1000n);
    expect(r.mapFile({ ioas_id: ioas, fd, length: 0x100_0000n })).toBe(0x20_0000n);
    expect(r.mapFile({ ioas_id: ioas, fd, length: 0x1000n, start: 0x3000n })).toBe(0x2000n);
    r.check();
  });

  test("a domain of 48 bits reserves the interrupt window and what lies above", () => {
    const ioas = r.allocIoas();
    expect(r.ranges(ioas)).toEqual({ alignment: 1n, ranges: [[0n, 0xffff_ffff_ffff_ffffn]] });
    const idev = r.attached(ioas);
    expect(r.ranges(ioas)).toEqual({
      alignment: 4096n,
      ranges: [
        [0n, 0xfedf_ffffn],
        [0xfef0_0000n, 0xffff_ffff_ffffn],
      ],
    });
    r.detach(idev);
    expect(r.ranges(ioas)).toEqual({ alignment: 1n, ranges: [[0n, 0xffff_ffff_ffff_ffffn]] });
    expect(r.destroy(ioas)).toBe(0);
  });

  test("a device cannot attach where an area is unaligned or in its interrupt window", () => {
    const fd = r.dmabuf();
    const a = r.allocIoas();
    expect(r.mapFile({ ioas_id: a, fd, start: 0x10n, length: 0x30n, iova: 0x5001n, flags: RW | FIXED })).toBe(0x5001n);
    expect(r.attach(r.bind(), a)).toBe(EADDRINUSE);
    const b = r.allocIoas();
    ok(r.mapFile({ ioas_id: b, fd, length: 0x1000n, iova: 0xfee0_0000n, flags: RW | FIXED }));
    expect(r.attach(r.bind(), b)).toBe(EADDRINUSE);
    r.check();
  });
});

describe("revoke", () => {
  test("§6 invalidate: kills the area and its copies for good, and a new map lives again", () => {
    const [a, b] = [r.allocIoas(), r.allocIoas()];
    r.attached(a);
    r.attached(b);
    const fd = r.dmabuf();
    const iova = ok(r.mapFile({ ioas_id: a, fd, length: 0x4000n }));
    const copy = ok(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: iova + 0x1000n, length: 0x2000n }));
    r.check();
    r.revoke(true);
    r.check();
    expect(r.mapFile({ ioas_id: a, fd, length: 0x1000n })).toBe(ENODEV);
    const late = r.attached(a);
    expect(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: iova, length: 0x4000n })).toBeTypeOf("bigint");
    r.check();
    r.revoke(false);
    r.check();
    expect(r.unmap(b, copy, 0x2000n)).toBe(0x2000n);
    expect(r.unmap(a, iova, 0x4000n)).toBe(0x4000n);
    expect(r.mapFile({ ioas_id: a, fd, length: 0x4000n, iova, flags: RW | FIXED })).toBe(iova);
    r.detach(late);
    r.check();
  });

  test("§4.3 points 2 and 4: maps device memory with MMIO and never as cacheable, in a second domain too", () => {
    const a = r.allocIoas();
    r.attached(a);
    ok(r.mapFile({ ioas_id: a, fd: r.dmabuf(), length: 0x4000n }));
    r.attached(a);
    ok(r.copy({ src_ioas_id: a, dst_ioas_id: a, src_iova: 0x4000n, length: 0x4000n }));
    const maps = r.events.filter((e) => e.type === "iommu.map");
    expect(maps.length).toBeGreaterThan(0);
    for (const e of maps) expect(e).toMatchObject({ prot: 1 | 2 | 16 });
  });
});

describe("pins and charges", () => {
  test("a page is pinned once, however many domains and areas show it, and given back with the last", () => {
    const [a, b] = [r.allocIoas(), r.allocIoas()];
    const user = r.user(0x4000);
    const before = r.kernel.frames.pinned;
    const iova = ok(r.map({ ioas_id: a, user_va: user, length: 0x4000n }));
    expect(r.kernel.frames.pinned).toBe(before);
    const d = r.attached(a);
    expect(r.kernel.frames.pinned).toBe(before + 4);
    r.attached(b);
    const copy = ok(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: iova + 0x1000n, length: 0x2000n }));
    expect(r.kernel.frames.pinned).toBe(before + 4);
    r.check();
    r.unmap(a, iova, 0x4000n);
    expect(r.kernel.frames.pinned).toBe(before + 2);
    r.check();
    r.unmap(b, copy, 0x2000n);
    expect(r.kernel.frames.pinned).toBe(before);
    r.detach(d);
    r.check();
  });

  test("RLIMIT_MEMLOCK refuses memory and not device memory", () => {
    const a = r.allocIoas();
    r.attached(a);
    r.process.creds.capabilities.clear();
    r.process.rlimits.memlock = 0n;
    expect(r.map({ ioas_id: a, user_va: r.user(0x1000), length: 0x1000n })).toBe(ENOMEM);
    expect(r.mapFile({ ioas_id: a, fd: r.memfd(0x1000), length: 0x1000n })).toBe(ENOMEM);
    expect(r.mapFile({ ioas_id: a, fd: r.dmabuf(), length: 0x1000n })).toBeTypeOf("bigint");
    expect(r.kernel.frames.pinned).toBe(0);
    r.check();
  });
});

describe("unmap and copy", () => {
  test("an area is unmapped whole, or not at all", () => {
    const a = r.allocIoas();
    const fd = r.dmabuf();
    ok(r.mapFile({ ioas_id: a, fd, length: 0x4000n, iova: 0x10000n, flags: RW | FIXED }));
    expect(r.unmap(a, 0x10000n, 0x1000n)).toBe(ENOENT);
    expect(r.unmap(a, 0x11000n, 0x1000n)).toBe(ENOENT);
    expect(r.unmap(a, 0x20000n, 0x1000n)).toBe(ENOENT);
    expect(r.unmap(a, 0n, 0x100000n)).toBe(0x4000n);
    expect(r.unmap(a, 0n, 0xffff_ffff_ffff_ffffn)).toBe(0n);
    expect(r.unmap(a, 0n, 0n)).toBe(EINVAL);
  });

  test("copies join neighbours, refuse gaps, overlaps and more rights", () => {
    const a = r.allocIoas();
    const fd = r.dmabuf();
    ok(r.mapFile({ ioas_id: a, fd, length: 0x2000n, iova: 0x10000n, flags: RW | FIXED }));
    ok(r.mapFile({ ioas_id: a, fd, length: 0x2000n, iova: 0x12000n, flags: 4 | FIXED }));
    const b = r.allocIoas();
    expect(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: 0x11000n, length: 0x2000n, flags: 4 })).toBe(0x1000n);
    expect(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: 0x11000n, length: 0x2000n })).toBe(EPERM);
    expect(r.copy({ src_ioas_id: a, dst_ioas_id: b, src_iova: 0x11000n, length: 0x4000n, flags: 4 })).toBe(ENOENT);
    expect(r.copy({ src_ioas_id: a, dst_ioas_id: a, src_iova: 0x11000n, length: 0x1000n, dst_iova: 0x10000n, flags: 4 | FIXED })).toBe(
      EEXIST,
    );
    r.check();
  });

  test("objects in use are busy, and foreign ones missing", () => {
    const a = r.allocIoas();
    const idev = r.bind();
    const hwpt = ok(r.attach(idev, a));
    expect(r.destroy(a)).toBe(EBUSY);
    expect(r.destroy(hwpt)).toBe(EBUSY);
    expect(r.destroy(idev.id)).toBe(EBUSY);
    expect(r.attach(idev, a)).toBe(EBUSY);
    expect(r.mapFile({ ioas_id: hwpt, fd: r.dmabuf(), length: 0x1000n })).toBe(ENOENT);
    r.detach(idev);
    expect(r.destroy(hwpt)).toBe(ENOENT);
    expect(r.destroy(a)).toBe(0);
    r.unbind(idev);
    expect(r.destroy(idev.id)).toBe(ENOENT);
  });

  test("buffers of several ranges and of other exporters are not supported", () => {
    const a = r.allocIoas();
    const two = r.vfio.export([
      { offset: 0n, length: 0x1000n },
      { offset: 0x1000n, length: 0x1000n },
    ]);
    expect(r.mapFile({ ioas_id: a, fd: two, length: 0x1000n })).toBe(EOPNOTSUPP);
    r.check();
  });
});
