/** Event queues of virtual IOMMUs: drivers/iommu/iommufd/eventq.c, driver.c. Names in brackets are the kernel selftest's cases. */
import { describe, expect, test } from "vitest";
import type { IommufdVeventq } from "../../../src/kernel/iommufd/veventq.ts";
import type { IommufdViommu } from "../../../src/kernel/iommufd/viommu.ts";
import { EBUSY, EEXIST, EFAULT, EINVAL, EMFILE, ENOENT, ENOMEM, EOPNOTSUPP, Errno, ESPIPE } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { EventRig, parseEvents, SUCCESS } from "./event_support.ts";
import { ok } from "./support.ts";

const HEADER = u.IommufdVeventHeader.size;
const EVENT = HEADER + u.IommuViommuEventSelftest.size;
const MAX_DEPTH = 1 << 19;

describe("IOMMU_VEVENTQ_ALLOC", () => {
  test("checks flags and type, then the depth, then the virtual IOMMU, then that there is none (vdevice_alloc)", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(1n);
    expect(r.veventq(99, { flags: 1, veventq_depth: 0 })).toBe(EOPNOTSUPP);
    expect(r.veventq(99, { __reserved: 1, veventq_depth: 0 })).toBe(EOPNOTSUPP);
    expect(r.veventq(99, { type: u.IOMMU_VEVENTQ_TYPE_DEFAULT, veventq_depth: 0 })).toBe(EOPNOTSUPP);
    expect(r.veventq(99, { veventq_depth: 0 })).toBe(EINVAL);
    expect(r.veventq(99, { veventq_depth: MAX_DEPTH + 1 })).toBe(EINVAL);
    expect(r.veventq(99)).toBe(ENOENT);
    expect(r.veventq(idev)).toBe(ENOENT);
    const q = ok(r.veventq(viommu, { veventq_depth: MAX_DEPTH }));
    expect(r.veventq(viommu)).toBe(EEXIST);
    // Of another type there may be one; whether anybody reports it is another matter.
    expect(r.veventq(viommu, { type: u.IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 })).toMatchObject({ fd: q.fd + 1 });
    expect(r.run(r.process.sys.fcntl(q.fd, u.F_GETFD))).toBe(u.FD_CLOEXEC);
    r.close(q.fd);
    expect(r.destroy(q.id)).toBe(0);
    expect(r.veventq(viommu)).toMatchObject({ id: q.id });
  });

  test("leaves nothing when it fails half-way", () => {
    const r = new EventRig();
    const { viommu } = r.guest(1n);
    const queues = (): number => (r.ctx.objects.load(viommu) as IommufdViommu).veventqs.length;
    const users = (): number => r.ctx.objects.load(viommu)?.users ?? 0;
    const before = [users(), r.process.files.size];
    r.process.rlimits.nofile = 1;
    expect(r.veventq(viommu)).toBe(EMFILE);
    r.process.rlimits.nofile = 1024;
    for (const what of ["iommufd veventq", "dentry", "file"]) {
      r.kernel.fault.decide((p) => p.what === what);
      expect(r.veventq(viommu)).toBe(ENOMEM);
      r.kernel.fault.decide(undefined);
    }
    const want = { viommu_id: viommu, type: u.IOMMU_VEVENTQ_TYPE_SELFTEST, veventq_depth: 2 };
    const at = r.put(u.IommuVeventqAlloc.alloc({ size: u.IommuVeventqAlloc.size, ...want }).bytes);
    ok(r.run(r.process.sys.mprotect(at, 0x1000n, u.PROT_READ)) ?? 0);
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_VEVENTQ_ALLOC, at))).toBe(EFAULT);
    expect([users(), r.process.files.size]).toEqual(before);
    expect(queues()).toBe(0);
    expect(r.veventq(viommu)).not.toBeInstanceOf(Errno);
  });

  test("the queue keeps its virtual IOMMU, and its descriptor keeps the queue", () => {
    const r = new EventRig();
    const { viommu, vdev, stdev, ioas, nested } = r.guest(1n);
    const q = ok(r.veventq(viommu));
    expect(r.moveTo(stdev, ioas)).toBe(0);
    for (const id of [nested, vdev]) expect(r.destroy(id)).toBe(0);
    expect(r.destroy(viommu)).toBe(EBUSY);
    expect(r.destroy(q.id)).toBe(EBUSY);
    r.close(q.fd);
    expect(r.destroy(q.id)).toBe(0);
    expect(r.destroy(viommu)).toBe(0);
  });

  test("the descriptor keeps the context, and what was queued can be read after /dev/iommu is closed", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(7n);
    const q = ok(r.veventq(viommu));
    r.vevent(idev);
    r.close(r.fd);
    expect(r.readEvents(q.fd)).toEqual([[0, 7]]);
    r.close(q.fd);
    expect(r.leaks()).toEqual({});
  });
});

describe("an event", () => {
  test("needs a device on a guest's table, that the guest does not call 0, and a queue", () => {
    const r = new EventRig();
    const { viommu, idev, stdev, ioas } = r.guest(0x1_0000_0099n);
    expect(r.vevent(99)).toBe(ENOENT);
    expect(r.vevent(stdev)).toBe(ENOENT);
    expect(r.vevent(r.bind().id)).toBe(EINVAL);
    expect(r.vevent(idev)).toBe(EOPNOTSUPP);
    const q = ok(r.veventq(viommu));
    expect(r.vevent(idev)).toBe(0);
    expect(r.readEvents(q.fd)).toEqual([[0, 0x99]]);
    expect(r.moveTo(stdev, ioas)).toBe(0);
    expect(r.vevent(idev)).toBe(ENOENT);
    const zero = r.guest(0n);
    ok(r.veventq(zero.viommu));
    expect(r.vevent(zero.idev)).toBe(ENOENT);
  });

  test("is numbered, and a full queue tells that events were lost (vdevice_alloc)", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(0x99n);
    const q = ok(r.veventq(viommu, { veventq_depth: 2 }));
    const trigger = (n: number): void => {
      for (let i = 0; i < n; i++) expect(r.vevent(idev)).toBe(0);
    };
    trigger(1);
    expect(r.readEvents(q.fd)).toEqual([[0, 0x99]]);
    // Numbers 1 and 2 fit, 3 to 5 do not: the header bears the last of them.
    trigger(5);
    expect(r.readEvents(q.fd)).toEqual([
      [1, 0x99],
      [2, 0x99],
      [5, "lost"],
    ]);
    trigger(1);
    expect(r.readEvents(q.fd)).toEqual([[6, 0x99]]);
    expect(r.readEvents(q.fd)).toEqual([]);
  });

  test("that finds room again takes the place of the header; its number tells what is missing", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(5n);
    const q = ok(r.veventq(viommu, { veventq_depth: 2 }));
    for (let i = 0; i < 4; i++) r.vevent(idev);
    expect(r.readEvents(q.fd, EVENT)).toEqual([[0, 5]]);
    r.vevent(idev);
    expect(r.readEvents(q.fd)).toEqual([
      [1, 5],
      [4, 5],
    ]);
  });

  test("stays counted until it is read, not until it is copied out in part", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(5n);
    const q = ok(r.veventq(viommu, { veventq_depth: 1 }));
    r.vevent(idev);
    expect(r.readEvents(q.fd, EVENT - 1)).toBe(EINVAL);
    r.vevent(idev);
    expect(r.readEvents(q.fd)).toEqual([
      [0, 5],
      [1, "lost"],
    ]);
  });

  test("that no memory is found for is lost, and says so", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(5n);
    const q = ok(r.veventq(viommu));
    r.vevent(idev);
    r.kernel.fault.decide((p) => p.what === "iommufd_vevent");
    expect(r.vevent(idev)).toBe(ENOMEM);
    // The header is read from a copy, which wants memory too: the event before it has been read by then.
    expect(r.readEvents(q.fd)).toEqual([[0, 5]]);
    expect(r.readEvents(q.fd)).toBe(ENOMEM);
    r.kernel.fault.decide(undefined);
    expect(r.readEvents(q.fd)).toEqual([[1, "lost"]]);
  });

  test("numbers start again after 2^31 - 1", () => {
    const r = new EventRig();
    const { viommu } = r.guest(1n);
    const q = ok(r.veventq(viommu, { veventq_depth: 1 }));
    const veventq = r.ctx.objects.load(q.id) as IommufdVeventq;
    const data = u.IommuViommuEventSelftest.alloc({ virt_id: 3 }).bytes;
    veventq.sequence = 0x7fff_ffff;
    r.call(() => veventq.report(data));
    r.call(() => veventq.report(data));
    expect(r.readEvents(q.fd)).toEqual([
      [0x7fff_ffff, 3],
      [0, "lost"],
    ]);
  });

  test("that is empty is the driver's bug", () => {
    const r = new EventRig();
    const { viommu } = r.guest(1n);
    const q = ok(r.veventq(viommu));
    const veventq = r.ctx.objects.load(q.id) as IommufdVeventq;
    expect(() => veventq.report(new Uint8Array(0))).toThrow("empty");
  });
});

describe("a read", () => {
  test("wants room for a header, whatever is queued, and for the first event (vdevice_alloc)", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(0x99n);
    const q = ok(r.veventq(viommu));
    for (const empty of [true, false]) {
      expect(r.read(q.fd, 0)).toBe(EINVAL);
      expect(r.read(q.fd, HEADER - 1)).toBe(EINVAL);
      expect(r.read(q.fd, HEADER)).toBe(empty ? 0 : EINVAL);
      r.vevent(idev);
    }
    // Room for one and a half: one.
    expect(r.read(q.fd, EVENT + HEADER)).toBe(EVENT);
    expect(r.readEvents(q.fd)).toEqual([[1, 0x99]]);
    // The header of lost events wants no more than itself.
    for (let i = 0; i < 3; i++) r.vevent(idev);
    expect(r.read(q.fd, 2 * EVENT)).toBe(2 * EVENT);
    expect(r.read(q.fd, HEADER)).toBe(HEADER);
    expect(r.readEvents(q.fd)).toEqual([]);
  });

  test("that faults leaves the event, and gives those before it", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(0x99n);
    const q = ok(r.veventq(viommu));
    for (let i = 0; i < 3; i++) r.vevent(idev);
    expect(r.read(q.fd, 0x100, 0x10n)).toBe(EFAULT);
    const end = r.hole;
    // In the second event's header, then in its data, then in the header of those lost.
    const at = end - BigInt(EVENT) - 4n;
    expect(r.read(q.fd, 0x100, at)).toBe(EVENT);
    expect(parseEvents(r.peek(at, EVENT))).toEqual([[0, 0x99]]);
    expect(r.read(q.fd, 0x100, end - BigInt(HEADER))).toBe(EFAULT);
    expect(r.read(q.fd, 0x100, end - BigInt(EVENT))).toBe(EVENT);
    expect(r.read(q.fd, 0x100, end - 4n)).toBe(EFAULT);
    expect(r.readEvents(q.fd)).toEqual([[2, "lost"]]);
  });

  test("gives all of a long queue, in order, in as many reads as it takes", () => {
    const r = new EventRig();
    const { viommu } = r.guest(1n);
    const q = ok(r.veventq(viommu, { veventq_depth: MAX_DEPTH }));
    const veventq = r.ctx.objects.load(q.id) as IommufdVeventq;
    const data = u.IommuViommuEventSelftest.alloc({ virt_id: 3 }).bytes;
    for (let i = 0; i < 10_000; i++) veventq.report(data);
    const got: number[] = [];
    for (let some = ok(r.readEvents(q.fd)); some.length > 0; some = ok(r.readEvents(q.fd))) got.push(...some.map(([n]) => n));
    expect(got).toEqual(Array.from({ length: 10_000 }, (_, i) => i));
  });
});

describe("the descriptor", () => {
  test("is readable while events wait, or their loss; and never writable", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(1n);
    const q = ok(r.veventq(viommu, { veventq_depth: 1 }));
    expect(r.ready(q.fd)).toBe(0);
    r.vevent(idev);
    r.vevent(idev);
    expect(r.ready(q.fd)).toBe(u.POLLIN | u.POLLRDNORM);
    expect(r.readEvents(q.fd, EVENT)).toHaveLength(1);
    expect(r.ready(q.fd)).toBe(u.POLLIN | u.POLLRDNORM);
    expect(r.readEvents(q.fd)).toHaveLength(1);
    expect(r.ready(q.fd)).toBe(0);
    const { sys } = r.process;
    expect(r.run(sys.write(q.fd, r.buf, 8))).toBe(EINVAL);
    expect(r.run(sys.pread(q.fd, r.buf, EVENT, 0n))).toBe(ESPIPE);
    expect(r.run(sys.lseek(q.fd, 0n, u.SEEK_CUR))).toBe(ESPIPE);
  });

  test("wakes who polls it, for an event and for the loss of one", () => {
    const r = new EventRig();
    const { viommu, idev } = r.guest(1n);
    const q = ok(r.veventq(viommu, { veventq_depth: 1 }));
    const { process } = r;
    for (const expected of ["event", "lost"]) {
      let n: number | Errno = -1;
      const entry = { fd: q.fd, events: u.POLLIN, revents: 0 };
      r.start(expected, function* () {
        n = yield* process.sys.poll([entry], -1);
      });
      expect(n).toBe(-1);
      if (expected === "lost") r.kernel.fault.decide((p) => p.what === "iommufd_vevent");
      r.vevent(idev);
      r.kernel.fault.decide(undefined);
      r.kernel.sched.settle();
      expect(n).toBe(1);
      ok(r.readEvents(q.fd));
    }
  });
});

describe("page requests of a guest's device", () => {
  test("go to the queue of its nested table (viommu_alloc_nested_iopf)", () => {
    const r = new EventRig();
    const fault = r.faultQueue();
    const { idev, stdev, ioas, nested } = r.guest(0x99n, fault);
    expect(r.destroy(nested)).toBe(EBUSY);
    r.trigger(idev, { grpid: 2 });
    // Of any PASID: the guest keeps the table of those.
    r.trigger(idev, { pasid: 1, grpid: 3 });
    const faults = ok(r.readFaults(fault.fd, 2));
    expect(faults.map((f) => [f.pasid, f.grpid, f.flags])).toEqual([
      [0, 2, u.IOMMU_PGFAULT_FLAGS_LAST_PAGE],
      [1, 3, u.IOMMU_PGFAULT_FLAGS_LAST_PAGE | u.IOMMU_PGFAULT_FLAGS_PASID_VALID],
    ]);
    expect(r.answer(fault.fd, [2, SUCCESS])).toBe(8);
    expect(r.moveTo(stdev, ioas)).toBe(0);
    expect(r.responses.map((x) => [x.pasid, x.grpid, x.code])).toEqual([
      [1, 3, "success"],
      [0, 2, "invalid"],
    ]);
    expect(r.destroy(nested)).toBe(0);
    r.close(fault.fd);
    expect(r.destroy(fault.id)).toBe(0);
  });

  test("a nested table wants a queue that exists, and is not left when there is none (alloc_hwpt_nested)", () => {
    const r = new EventRig();
    const { idev, viommu } = r.guest(1n);
    expect(() => r.nested(idev, viommu, { id: 0xffff_ffff })).toThrow("ENOENT");
    const free = r.allocIoas();
    expect(r.destroy(free)).toBe(0);
    expect(() => r.nested(idev, viommu, { id: idev })).toThrow("ENOENT");
    expect(r.allocIoas()).toBe(free);
  });
});
