/** Section 5 of the interconnect's specification: the other operations on areas of a dma-buf, end to end. */
import { beforeEach, describe, expect, test } from "vitest";
import {
  IOMMUFD_ACCESS_RW_WRITE,
  type IommufdAccess,
  iommufdAccessAttach,
  iommufdAccessCreate,
  iommufdAccessDestroy,
  iommufdAccessPinPages,
  iommufdAccessRw,
  iommufdAccessUnpinPages,
} from "../../src/kernel/iommufd/access.ts";
import type { IommufdIoas } from "../../src/kernel/iommufd/ioas.ts";
import { EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM, Errno } from "../../src/lib/errno.ts";
import type { Step } from "../../src/sched/task.ts";
import {
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_NOIOMMU_GET_PA,
  IOMMU_OPTION,
  IOMMU_VIOMMU_ALLOC,
  IommuHwptAlloc,
  IommuHwptGetDirtyBitmap,
  IommuHwptSetDirtyTracking,
  IommuIoasChangeProcess,
  IommuIoasNoiommuGetPa,
  IommuOption,
  IommuViommuAlloc,
} from "../../src/uapi/index.ts";
import { START } from "../kernel/iommufd/selftest_support.ts";
import { FIXED, IommufdRig, ok, RW } from "../kernel/iommufd/support.ts";
import { ViommuRig } from "../kernel/iommufd/viommu_support.ts";

const AT = 0x10000n;
const READ = 4;
let r: IommufdRig;
let ioas: number;
let dmabuf: number;

beforeEach(() => {
  r = new IommufdRig();
  ioas = r.allocIoas();
  r.attached(ioas);
  dmabuf = r.dmabuf();
  ok(r.mapFile({ ioas_id: ioas, fd: dmabuf, length: 0x4000n, iova: AT, flags: RW | FIXED }));
});

describe.each([false, true])("with the buffer revoked: %s", (revoked) => {
  beforeEach(() => {
    if (revoked) r.revoke(true);
  });

  test("§5 row 1: IOAS_UNMAP counts the whole area and gives the buffer back", () => {
    expect(r.unmap(ioas, AT, 0x1000n)).toBe(ENOENT);
    expect(r.unmap(ioas, AT + 0x1000n, 0x3000n)).toBe(ENOENT);
    expect(r.unmap(ioas, 0n, 0x100000n)).toBe(0x4000n);
    expect(r.unmap(ioas, AT, 0x4000n)).toBe(ENOENT);
    expect(r.leaks()["dma_buf attachment"]).toBeUndefined();
    r.check();
  });

  test("§5 row 2: IOAS_COPY succeeds, and refuses a gap and more rights", () => {
    const dst = r.allocIoas();
    r.attached(dst);
    expect(r.copy({ src_ioas_id: ioas, dst_ioas_id: dst, src_iova: AT + 0x1000n, length: 0x2000n })).toBe(0x1000n);
    expect(r.copy({ src_ioas_id: ioas, dst_ioas_id: dst, src_iova: AT + 0x1000n, length: 0x4000n })).toBe(ENOENT);
    if (!revoked) {
      ok(r.mapFile({ ioas_id: ioas, fd: dmabuf, length: 0x1000n, iova: 0x40000n, flags: READ | FIXED }));
      expect(r.copy({ src_ioas_id: ioas, dst_ioas_id: dst, src_iova: 0x40000n, length: 0x1000n })).toBe(EPERM);
    }
    r.check();
  });

  test("§5 row 3: a new hardware page table and a new device take the area as it is", () => {
    const idev = r.bind();
    const cmd = IommuHwptAlloc.alloc({ size: IommuHwptAlloc.size, dev_id: idev.id, pt_id: ioas });
    expect(r.ioctl(IOMMU_HWPT_ALLOC, cmd)).toBe(0);
    r.check();
    expect(r.attach(idev, cmd.out_hwpt_id)).toBe(cmd.out_hwpt_id);
    expect(r.destroy(cmd.out_hwpt_id)).toBe(EBUSY);
    r.detach(idev);
    expect(r.destroy(cmd.out_hwpt_id)).toBe(0);
    r.check();
  });

  test("§5 row 4: the last domain goes and another comes", () => {
    const dev = r.device();
    const other = r.allocIoas();
    const idev = r.bind(dev);
    ok(r.attach(idev, other));
    ok(r.copy({ src_ioas_id: ioas, dst_ioas_id: other, src_iova: AT, length: 0x4000n }));
    r.detach(idev);
    r.check();
    ok(r.attach(idev, other));
    r.check();
    expect(r.unmap(other, 0n, 0xffff_ffff_ffff_ffffn)).toBe(0x4000n);
  });

  test("§5 row 8: CHANGE_PROCESS is refused for a dma-buf and for user memory, and moves files", () => {
    const change = () => r.ioctl(IOMMU_IOAS_CHANGE_PROCESS, IommuIoasChangeProcess.alloc({ size: IommuIoasChangeProcess.size }));
    expect(change()).toBe(EINVAL);
    r.unmap(ioas, AT, 0x4000n);
    ok(r.mapFile({ ioas_id: ioas, fd: r.memfd(0x1000), length: 0x1000n }));
    expect(change()).toBe(0);
    ok(r.map({ ioas_id: ioas, user_va: r.user(0x1000), length: 0x1000n }));
    expect(change()).toBe(EINVAL);
  });

  test("§5 rows 5 and 6: an access cannot pin, read or write device memory; rights are looked at first", () => {
    const access = ok(r.call(() => iommufdAccessCreate(r.ctx, { needsPinPages: true, *unmap(): Step<void> {} })));
    const pin = (iova: bigint, length: bigint, flags = 0) => r.run(iommufdAccessPinPages(access, iova, length, flags));
    expect(pin(AT, 0n)).toBe(EINVAL);
    expect(pin(0xffff_ffff_ffff_f000n, 0x2000n)).toBe(EOVERFLOW);
    expect(pin(AT, 0x1000n)).toBe(ENOENT);
    expect(r.run(iommufdAccessAttach(access, ioas))).toBeUndefined();
    expect(pin(AT + 0x10n, 0x1000n)).toBe(EINVAL);
    expect(pin(AT, 0x1000n)).toBe(EINVAL);
    expect(pin(0x90000n, 0x1000n)).toBe(ENOENT);
    expect(r.run(iommufdAccessRw(access, AT, new Uint8Array(8), 0))).toBe(EINVAL);
    if (!revoked) {
      ok(r.mapFile({ ioas_id: ioas, fd: dmabuf, length: 0x1000n, iova: 0x40000n, flags: READ | FIXED }));
      expect(pin(0x40000n, 0x1000n, IOMMUFD_ACCESS_RW_WRITE)).toBe(EPERM);
      expect(r.run(iommufdAccessRw(access, 0x40000n, new Uint8Array(8), IOMMUFD_ACCESS_RW_WRITE))).toBe(EPERM);
    }
    r.run(iommufdAccessDestroy(access));
    r.check();
  });

  test("§5 row 11: a cut inside a dma-buf is not supported, at its ends it is nothing to do", () => {
    const { iopt } = r.ctx.objects.load(ioas) as IommufdIoas;
    expect(r.run(iopt.cut([AT + 0xfffn]))).toBe(EOPNOTSUPP);
    expect(r.run(iopt.cut([AT + 0x3fffn, AT, 0x90000n]))).toBeUndefined();
    r.check();
  });

  test("§5 row 12: NOIOMMU_GET_PA: capability, flags, length, range, id, area, revoked, and then the lack of such a domain", () => {
    const get = (init: NonNullable<Parameters<typeof IommuIoasNoiommuGetPa.alloc>[0]>) =>
      r.ioctl(
        IOMMU_IOAS_NOIOMMU_GET_PA,
        IommuIoasNoiommuGetPa.alloc({ size: IommuIoasNoiommuGetPa.size, ioas_id: ioas, iova: AT, length: 1n, ...init }),
      );
    expect(get({})).toBe(revoked ? EINVAL : EOPNOTSUPP);
    expect(get({ iova: 0x90000n })).toBe(ENOENT);
    expect(get({ ioas_id: 99, iova: 0x90000n })).toBe(ENOENT);
    expect(get({ iova: 0xffff_ffff_ffff_ffffn, ioas_id: 99 })).toBe(EOVERFLOW);
    expect(get({ length: 0n, iova: 0xffff_ffff_ffff_ffffn })).toBe(EINVAL);
    expect(get({ flags: 1, length: 0n })).toBe(EOPNOTSUPP);
    r.process.creds.capabilities.delete("CAP_SYS_RAWIO");
    expect(get({ flags: 1, length: 0n })).toBe(EPERM);
  });

  test("§5 row 14: IOMMU_DESTROY of an IOAS takes its areas along", () => {
    const own = r.allocIoas();
    ok(r.copy({ src_ioas_id: ioas, dst_ioas_id: own, src_iova: AT, length: 0x4000n }));
    expect(r.destroy(own)).toBe(0);
    expect(r.destroy(ioas)).toBe(EBUSY);
    r.check();
  });
});

describe("memory under in-kernel access", () => {
  test("§5 row 7: an unmap asks the access to let go, and goes on when it has", () => {
    const asked: [bigint, bigint][] = [];
    const access: IommufdAccess = ok(
      r.call(() =>
        iommufdAccessCreate(r.ctx, {
          needsPinPages: true,
          *unmap(iova: bigint, length: bigint): Step<void> {
            asked.push([iova, length]);
            if (iova === 0x50000n) yield* iommufdAccessUnpinPages(access, 0x50000n, 0x2000n);
          },
        }),
      ),
    );
    const user = r.user(0x4000);
    ok(r.map({ ioas_id: ioas, user_va: user, length: 0x4000n, iova: 0x50000n, flags: RW | FIXED }));
    r.run(iommufdAccessAttach(access, ioas));
    const pfns = r.run(iommufdAccessPinPages(access, 0x50000n, 0x2000n, IOMMUFD_ACCESS_RW_WRITE));
    expect(pfns).toHaveLength(2);
    expect(r.run(iommufdAccessRw(access, 0x50ffen, new Uint8Array([1, 2, 3, 4]), IOMMUFD_ACCESS_RW_WRITE))).toBeUndefined();
    expect([...r.peek(user + 0xffen, 4)]).toEqual([1, 2, 3, 4]);
    r.check();
    expect(r.unmap(ioas, AT, 0x4000n)).toBe(0x4000n);
    expect(asked).toEqual([]);
    expect(r.unmap(ioas, 0x50000n, 0x4000n)).toBe(0x4000n);
    expect(asked).toEqual([[0x50000n, 0x4000n]]);
    r.run(iommufdAccessDestroy(access));
    expect(r.kernel.frames.pinned).toBe(0);
    r.check();
  });

  test("an access that never lets go ends the unmap in an error", () => {
    const access = ok(r.call(() => iommufdAccessCreate(r.ctx, { needsPinPages: true, *unmap(): Step<void> {} })));
    const user = r.user(0x1000);
    ok(r.map({ ioas_id: ioas, user_va: user, length: 0x1000n, iova: 0x50000n, flags: RW | FIXED }));
    r.run(iommufdAccessAttach(access, ioas));
    ok(r.run(iommufdAccessPinPages(access, 0x50000n, 0x1000n, 0)));
    expect(r.unmap(ioas, 0x50000n, 0x1000n)).toMatchObject({ name: "EDEADLK" });
    expect(r.run(iommufdAccessPinPages(access, 0x50000n, 0x1000n, 0))).toBe(EINVAL);
    r.run(iommufdAccessUnpinPages(access, 0x50000n, 0x1000n));
    expect(r.unmap(ioas, 0x50000n, 0x1000n)).toBe(0x1000n);
    r.run(iommufdAccessDestroy(access));
  });

  test("memory can be cut where nothing large is mapped", () => {
    const free = r.allocIoas();
    ok(r.map({ ioas_id: free, user_va: r.user(0x4000), length: 0x4000n, iova: 0x50000n, flags: RW | FIXED }));
    const { iopt } = r.ctx.objects.load(free) as IommufdIoas;
    expect(r.run(iopt.cut([0x51fffn]))).toBeUndefined();
    r.check();
    expect(r.unmap(free, 0x52000n, 0x2000n)).toBe(0x2000n);
    ok(r.map({ ioas_id: ioas, user_va: r.user(0x4000), length: 0x4000n, iova: 0x50000n, flags: RW | FIXED }));
    expect(r.run((r.ctx.objects.load(ioas) as IommufdIoas).iopt.cut([0x51fffn]))).toBe(EINVAL);
    r.check();
  });
});

describe("options", () => {
  const option = (init: NonNullable<Parameters<typeof IommuOption.alloc>[0]>): Errno | bigint => {
    const cmd = IommuOption.alloc({ size: IommuOption.size, ...init });
    const e = r.ioctl(IOMMU_OPTION, cmd);
    return e instanceof Errno ? e : cmd.val64;
  };

  test("§4.3 point 3: HUGE_PAGES: refused with areas in a domain; without it every map is of one page", () => {
    expect(option({ option_id: 1, op: 1, object_id: ioas })).toBe(1n);
    expect(option({ option_id: 1, op: 0, object_id: ioas, val64: 0n })).toBe(EINVAL);
    const other = r.allocIoas();
    r.attached(other);
    expect(option({ option_id: 1, op: 0, object_id: other, val64: 2n })).toBe(EINVAL);
    expect(option({ option_id: 1, op: 0, object_id: other, val64: 0n })).toBe(0n);
    r.events.length = 0;
    ok(r.copy({ src_ioas_id: ioas, dst_ioas_id: other, src_iova: AT, length: 0x4000n }));
    expect(r.events.filter((e) => e.type === "iommu.map")).toHaveLength(4);
    r.check();
    r.revoke(true);
    r.check();
  });

  test("RLIMIT_MODE: only before anything exists, and only with CAP_SYS_RESOURCE", () => {
    expect(option({ option_id: 0, op: 1 })).toBe(0n);
    expect(option({ option_id: 0, op: 0, val64: 1n })).toBe(EBUSY);
    expect(option({ option_id: 0, op: 0, object_id: 1 })).toBe(EOPNOTSUPP);
    expect(option({ option_id: 0, op: 7 })).toBe(EOPNOTSUPP);
    expect(option({ option_id: 9, op: 0 })).toBe(EOPNOTSUPP);
    r.process.creds.capabilities.delete("CAP_SYS_RESOURCE");
    expect(option({ option_id: 0, op: 0, val64: 1n })).toBe(EPERM);
  });
});

test("§5 row 10: a hardware queue over device memory", () => {
  const v = new ViommuRig();
  const viommu = ok(v.viommu());
  const flags = RW | FIXED;
  ok(v.mapFile({ ioas_id: v.ioas, fd: v.dmabuf(0x1000n), length: 0x1000n, iova: START, flags }));
  expect(v.hwQueue(viommu)).toBe(EINVAL);
  expect(v.unmap(v.ioas, START, 0x1000n)).toBe(0x1000n);
  v.memoryAt(START, 0x1000);
  expect(v.hwQueue(viommu)).toBeGreaterThan(0);
});

describe("what a unit lacks", () => {
  test("dirty tracking, nesting and vIOMMUs", () => {
    const idev = r.bind();
    const alloc = (flags: number) =>
      r.ioctl(IOMMU_HWPT_ALLOC, IommuHwptAlloc.alloc({ size: IommuHwptAlloc.size, dev_id: idev.id, pt_id: ioas, flags }));
    expect(alloc(1)).toBe(EOPNOTSUPP);
    expect(alloc(2)).toBe(EOPNOTSUPP);
    expect(alloc(0x100)).toBe(EOPNOTSUPP);
    expect(r.ioctl(IOMMU_VIOMMU_ALLOC, IommuViommuAlloc.alloc({ size: IommuViommuAlloc.size }))).toBe(EOPNOTSUPP);
    r.check();
  });

  test("§5 row 9: dirty bits of device memory, where the unit tracks them", () => {
    const d = new IommufdRig({ kind: "amd", dirtyTracking: true });
    const id = d.allocIoas();
    const idev = d.bind();
    const hwpt = IommuHwptAlloc.alloc({ size: IommuHwptAlloc.size, dev_id: idev.id, pt_id: id, flags: 2 });
    expect(d.ioctl(IOMMU_HWPT_ALLOC, hwpt)).toBe(0);
    ok(d.attach(idev, hwpt.out_hwpt_id));
    ok(d.mapFile({ ioas_id: id, fd: d.dmabuf(), length: 0x4000n, iova: AT, flags: RW | FIXED }));
    const set = IommuHwptSetDirtyTracking.alloc({ size: IommuHwptSetDirtyTracking.size, hwpt_id: hwpt.out_hwpt_id, flags: 1 });
    expect(d.ioctl(IOMMU_HWPT_SET_DIRTY_TRACKING, set)).toBe(0);
    const at = d.user(4096);
    const get = (init: object): Errno | 0 =>
      d.ioctl(
        IOMMU_HWPT_GET_DIRTY_BITMAP,
        IommuHwptGetDirtyBitmap.alloc({
          size: IommuHwptGetDirtyBitmap.size,
          hwpt_id: hwpt.out_hwpt_id,
          iova: AT,
          length: 0x4000n,
          page_size: 4096n,
          data: at,
          ...init,
        }),
      );
    expect(get({ length: 0n })).toBe(EINVAL);
    expect(get({ iova: AT + 1n })).toBe(EINVAL);
    expect(get({ page_size: 0n })).toBe(EINVAL);
    expect(get({ iova: 0xffff_ffff_ffff_f000n, length: 0x2000n })).toBe(EOVERFLOW);
    expect(get({})).toBe(0);
    expect([...d.peek(at, 1)]).toEqual([0]);
    d.kernel.iommu.translate(idev.dev.rid, AT + 0x2000n, true);
    expect(get({ length: 0x8000n })).toBe(0);
    expect([...d.peek(at, 1)].map((b) => b & 0xf)).not.toEqual([0]);
    d.revoke(true);
    expect(get({})).toBe(0);
  });

  test("the limit of a process is its own in RLIMIT mode 1", () => {
    const p = new IommufdRig();
    p.ioctl(IOMMU_OPTION, IommuOption.alloc({ size: IommuOption.size, op: 0, val64: 1n }));
    const id = p.allocIoas();
    p.attached(id);
    p.process.creds.capabilities.clear();
    p.process.rlimits.memlock = 0x2000n;
    const user = p.user(0x4000);
    expect(p.map({ ioas_id: id, user_va: user, length: 0x3000n })).toBe(ENOMEM);
    ok(p.map({ ioas_id: id, user_va: user, length: 0x2000n }));
    expect([p.process.mm.lockedVm, p.process.creds.user.lockedVm]).toEqual([2, 0]);
    p.unmap(id, 0n, 0xffff_ffff_ffff_ffffn);
    expect(p.process.mm.lockedVm).toBe(0);
  });
});
