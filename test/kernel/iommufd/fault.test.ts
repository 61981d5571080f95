/** Fault queues through their ioctls and descriptors: drivers/iommu/iommufd/eventq.c. Names in brackets are the kernel selftest's cases. */
import { describe, expect, test } from "vitest";
import { EBADF, EBUSY, EFAULT, EINVAL, EMFILE, ENODEV, ENOENT, ENOMEM, ENOTTY, EOPNOTSUPP, Errno, ESPIPE } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { EventRig, FAULT_SIZE, INVALID, LAST, PASID, SUCCESS } from "./event_support.ts";
import { IommufdRig, ok } from "./support.ts";

const READABLE = u.POLLIN | u.POLLRDNORM;

const alloc = (r: IommufdRig, init: object = {}): Errno | 0 =>
  r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size, ...init }));

describe("IOMMU_FAULT_QUEUE_ALLOC", () => {
  test("gives an object and a descriptor that closes on exec, and no flag is known", () => {
    const r = new EventRig();
    expect(alloc(r, { flags: 1 })).toBe(EOPNOTSUPP);
    const { id, fd } = r.faultQueue();
    expect(id).toBe(1);
    expect(r.run(r.process.sys.fcntl(fd, u.F_GETFD))).toBe(u.FD_CLOEXEC);
    expect(r.run(r.process.sys.fcntl(fd, u.F_GETFL))).toBe(u.O_RDWR);
  });

  test("leaves neither when there is no descriptor to be had, or no room for the answer", () => {
    const r = new EventRig();
    const before = r.process.files.size;
    r.process.rlimits.nofile = 1;
    expect(alloc(r)).toBe(EMFILE);
    r.process.rlimits.nofile = 1024;
    // The structure can be read and not be written.
    const at = r.put(u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size }).bytes);
    ok(r.run(r.process.sys.mprotect(at, 0x1000n, u.PROT_READ)) ?? 0);
    expect(r.run(r.process.sys.ioctl(r.fd, u.IOMMU_FAULT_QUEUE_ALLOC, at))).toBe(EFAULT);
    expect(r.process.files.size).toBe(before);
    expect(r.ctx.objects.empty).toBe(true);
    expect(r.faultQueue()).toEqual({ id: 1, fd: 1 });
  });

  test("the object stays while the descriptor is open, and while a table uses it", () => {
    const r = new EventRig();
    const { ioas, hwpt, stdev, fault } = r.faulting();
    expect(r.destroy(fault.id)).toBe(EBUSY);
    r.close(fault.fd);
    expect(r.destroy(fault.id)).toBe(EBUSY);
    expect(r.destroy(hwpt)).toBe(EBUSY);
    expect(r.moveTo(stdev, ioas)).toBe(0);
    expect(r.destroy(hwpt)).toBe(0);
    expect(r.destroy(fault.id)).toBe(0);
    expect(r.destroy(fault.id)).toBe(ENOENT);
  });

  test("the descriptor keeps the context when /dev/iommu is closed", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    r.trigger(idev);
    r.close(r.fd);
    expect(r.leaks()).toMatchObject({ "iommufd context": 1 });
    const [f] = ok(r.readFaults(fault.fd, 1));
    expect(r.answer(fault.fd, [f?.cookie ?? 0, SUCCESS])).toBe(8);
    r.close(fault.fd);
    expect(r.leaks()).toEqual({});
  });
});

describe("HWPT_ALLOC with a fault queue", () => {
  test("wants one that exists, and leaves no table otherwise (mock_domain)", () => {
    const r = new EventRig();
    const ioas = r.allocIoas();
    const { idev } = r.mock(ioas);
    const flags = u.IOMMU_HWPT_FAULT_ID_VALID;
    const free = r.allocIoas();
    expect(r.destroy(free)).toBe(0);
    expect(r.hwpt(idev, ioas, { flags, fault_id: 0xffff_ffff })).toBe(ENOENT);
    expect(r.hwpt(idev, ioas, { flags, fault_id: ioas })).toBe(ENOENT);
    expect(r.hwpt(idev, ioas, { flags: flags | (1 << 30) })).toBe(EOPNOTSUPP);
    expect(r.hwpt(idev, ioas, { flags: flags | u.IOMMU_HWPT_ALLOC_NEST_PARENT, fault_id: 0xffff_ffff })).toBe(EOPNOTSUPP);
    // The id is the lowest free one still.
    expect(r.allocIoas()).toBe(free);
  });

  test("without the flag the queue's id says nothing", () => {
    const r = new EventRig();
    const ioas = r.allocIoas();
    const { idev } = r.mock(ioas);
    expect(r.hwpt(idev, ioas, { fault_id: 0xffff_ffff })).toBeGreaterThan(0);
  });

  test("a unit whose devices make no page requests takes the table, and attaches nothing to it", () => {
    for (const kind of ["intel-legacy", "intel-scalable", "intel-first-stage"] as const) {
      const r = new IommufdRig({ kind, snoopControl: true });
      const ioas = r.allocIoas();
      const idev = r.bind();
      const cmd = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size });
      ok(r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, cmd));
      const init = { dev_id: idev.id, pt_id: ioas, flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: cmd.out_fault_id };
      const hwpt = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, ...init });
      ok(r.ioctl(u.IOMMU_HWPT_ALLOC, hwpt));
      expect(r.attach(idev, hwpt.out_hwpt_id)).toBe(ENODEV);
      expect(ok(r.attach(idev, ioas))).toBeGreaterThan(0);
      expect(r.replace(idev, hwpt.out_hwpt_id)).toBe(ENODEV);
      r.detach(idev);
      r.unbind(idev);
      r.run(r.process.exit());
      expect(r.leaks()).toEqual({});
    }
  });

  test("AMD's driver does not look at the queue when it attaches", () => {
    const r = new IommufdRig({ kind: "amd" });
    const ioas = r.allocIoas();
    const idev = r.bind();
    const cmd = u.IommuFaultAlloc.alloc({ size: u.IommuFaultAlloc.size });
    ok(r.ioctl(u.IOMMU_FAULT_QUEUE_ALLOC, cmd));
    const init = { dev_id: idev.id, pt_id: ioas, flags: u.IOMMU_HWPT_FAULT_ID_VALID, fault_id: cmd.out_fault_id };
    const hwpt = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, ...init });
    ok(r.ioctl(u.IOMMU_HWPT_ALLOC, hwpt));
    expect(r.attach(idev, hwpt.out_hwpt_id)).toBe(hwpt.out_hwpt_id);
    r.detach(idev);
    r.unbind(idev);
  });
});

describe("a page request", () => {
  test("is read, answered, and answered once (alloc_hwpt_nested)", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    expect(r.trigger(idev, { grpid: 2, perm: 3, addr: 0xdead_beafn })).toBe(0);
    const [f] = ok(r.readFaults(fault.fd, 1));
    expect(f).toMatchObject({
      flags: LAST,
      dev_id: idev,
      pasid: 0,
      grpid: 2,
      perm: 3,
      __reserved: 0,
      addr: 0xdead_beafn,
      length: 0,
      cookie: 1,
    });
    expect(r.responses).toEqual([]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
    expect(r.responses).toEqual([{ device: "iommufd_mock0", pasid: 0, grpid: 2, code: "success" }]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(EINVAL);
    expect(r.codes).toHaveLength(1);
  });

  test("that user space calls invalid is told so to the device", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    r.trigger(idev, { grpid: 7 });
    const [f] = ok(r.readFaults(fault.fd, 1));
    expect(r.answer(fault.fd, [f?.cookie ?? 0, INVALID])).toBe(8);
    expect(r.responses).toEqual([{ device: "iommufd_mock0", pasid: 0, grpid: 7, code: "invalid" }]);
  });

  test("of a device whose table has no queue is answered at once, and the operation succeeds", () => {
    const r = new EventRig();
    const { idev } = r.mock(r.allocIoas());
    expect(r.trigger(idev)).toBe(0);
    expect(r.codes).toEqual(["invalid"]);
    expect(r.trigger(idev, { pasid: 9 })).toBe(0);
    expect(r.codes).toEqual(["invalid", "invalid"]);
  });

  test("can be made by mock devices alone", () => {
    const r = new EventRig();
    const { stdev } = r.mock(r.allocIoas());
    expect(r.trigger(stdev)).toBe(ENOENT);
    expect(r.trigger(99)).toBe(ENOENT);
    expect(r.trigger(r.bind().id)).toBe(EINVAL);
  });

  test("with a PASID goes where the PASID is attached, and nowhere else (pasid)", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, fault } = r.faulting(u.MOCK_FLAGS_DEVICE_PASID);
    const other = r.faultQueue();
    const plain = ok(r.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_PASID }));
    const hwpt = r.iopfHwpt(idev, ioas, other.id, u.IOMMU_HWPT_ALLOC_PASID);
    expect(r.attachPasid(stdev, 5, hwpt)).toBe(0);
    expect(r.attachPasid(stdev, 6, plain)).toBe(0);
    r.trigger(idev, { pasid: 5, grpid: 1 });
    r.trigger(idev, { grpid: 2 });
    const [five] = ok(r.readFaults(other.fd, 4));
    expect(five).toMatchObject({ flags: LAST | PASID, pasid: 5, grpid: 1, dev_id: idev });
    expect(ok(r.readFaults(fault.fd, 4)).map((f) => [f.pasid, f.grpid])).toEqual([[0, 2]]);
    expect(r.responses).toEqual([]);
    // A table without a queue, a PASID without a table: the whole device's paging table does not answer for them.
    r.trigger(idev, { pasid: 6 });
    r.trigger(idev, { pasid: 7 });
    expect(r.responses.map((x) => [x.pasid, x.code])).toEqual([
      [6, "invalid"],
      [7, "invalid"],
    ]);
    expect(r.detachPasid(stdev, 5)).toBe(0);
    expect(r.responses.at(-1)).toMatchObject({ pasid: 5, grpid: 1, code: "invalid" });
    r.trigger(idev, { pasid: 5 });
    expect(r.responses.at(-1)).toMatchObject({ pasid: 5, code: "invalid" });
    expect(r.detachPasid(stdev, 6)).toBe(0);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });

  test("is aborted when there is no memory for its group", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    expect(r.report(idev, { flags: 0, grpid: 4 })).toBeUndefined();
    r.kernel.fault.decide((p) => p.what === "iopf_fault");
    expect(r.report(idev, { flags: 0, grpid: 4 })).toBe(ENOMEM);
    r.kernel.fault.decide((p) => p.what === "iopf_group");
    expect(r.report(idev, { grpid: 4 })).toBeUndefined();
    r.kernel.fault.decide(undefined);
    expect(r.responses).toEqual([{ device: "iommufd_mock0", pasid: 0, grpid: 4, code: "failure" }]);
    expect(r.readFaults(fault.fd, 4)).toEqual([]);
    // Its partial requests went with it.
    expect(r.report(idev, { grpid: 4 })).toBeUndefined();
    const [f] = ok(r.readFaults(fault.fd, 4));
    expect(r.answer(fault.fd, [f?.cookie ?? 0, SUCCESS])).toBe(8);
  });
});

describe("a read", () => {
  test("of an empty queue gives nothing, waiting or not", () => {
    const r = new EventRig();
    const { fd } = r.faultQueue();
    expect(r.read(fd, 4 * FAULT_SIZE)).toBe(0);
    expect(r.read(fd, 0)).toBe(0);
    ok(r.run(r.process.sys.fcntl(fd, u.F_SETFL, u.O_NONBLOCK)));
    expect(r.read(fd, FAULT_SIZE)).toBe(0);
    expect(r.read(fd, FAULT_SIZE - 1)).toBe(ESPIPE);
  });

  test("takes whole faults and whole groups", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    for (const grpid of [1, 2]) {
      r.report(idev, { flags: 0, grpid, addr: 0x1000n });
      r.report(idev, { flags: 0, grpid, addr: 0x2000n });
      r.report(idev, { grpid, addr: 0x3000n });
    }
    expect(r.read(fault.fd, FAULT_SIZE + 1)).toBe(ESPIPE);
    expect(r.read(fault.fd, 0)).toBe(EINVAL);
    expect(r.readFaults(fault.fd, 2)).toBe(EINVAL);
    const first = ok(r.readFaults(fault.fd, 5));
    expect(first.map((f) => [f.grpid, f.addr, f.flags, f.cookie])).toEqual([
      [1, 0x1000n, 0, 1],
      [1, 0x2000n, 0, 1],
      [1, 0x3000n, LAST, 1],
    ]);
    expect(ok(r.readFaults(fault.fd, 5)).map((f) => f.cookie)).toEqual([2, 2, 2]);
    expect(r.answer(fault.fd, [2, INVALID], [1, SUCCESS])).toBe(16);
    expect(r.responses.map((x) => [x.grpid, x.code])).toEqual([
      [2, "invalid"],
      [1, "success"],
    ]);
  });

  test("that faults gives what it had, and leaves the rest in order", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    for (const grpid of [1, 2, 3]) r.trigger(idev, { grpid });
    expect(r.read(fault.fd, FAULT_SIZE, 0x10n)).toBe(EFAULT);
    // One fault before the end of what is mapped.
    const at = r.hole - BigInt(FAULT_SIZE);
    expect(r.read(fault.fd, 3 * FAULT_SIZE, at)).toBe(FAULT_SIZE);
    expect(u.IommuHwptPgfault.over(r.peek(at, FAULT_SIZE))).toMatchObject({ grpid: 1, cookie: 1 });
    // A failed copy gives its cookie back.
    expect(ok(r.readFaults(fault.fd, 3)).map((f) => [f.grpid, f.cookie])).toEqual([
      [2, 2],
      [3, 3],
    ]);
    expect(r.answer(fault.fd, [1, SUCCESS], [2, SUCCESS], [3, SUCCESS])).toBe(24);
  });

  test("that faults inside of a group takes nothing of it", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    r.report(idev, { flags: 0, grpid: 1 });
    r.report(idev, { grpid: 1 });
    expect(r.read(fault.fd, 2 * FAULT_SIZE, r.hole - BigInt(FAULT_SIZE))).toBe(EFAULT);
    expect(r.ready(fault.fd)).toBe(READABLE | u.POLLOUT);
    expect(ok(r.readFaults(fault.fd, 2)).map((f) => f.cookie)).toEqual([1, 1]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });

  test("without memory for a cookie leaves the group", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    r.trigger(idev);
    r.kernel.fault.decide((p) => p.what === "entry of responses");
    expect(r.readFaults(fault.fd, 1)).toBe(ENOMEM);
    r.kernel.fault.decide(undefined);
    expect(ok(r.readFaults(fault.fd, 1))).toHaveLength(1);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });
});

describe("a write", () => {
  test("is of whole answers; the first bad one ends it", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    for (const grpid of [1, 2, 3]) r.trigger(idev, { grpid });
    expect(ok(r.readFaults(fault.fd, 3))).toHaveLength(3);
    const write = (at: bigint, n: number): number | Errno => r.run(r.process.sys.write(fault.fd, at, n));
    expect(write(r.buf, 7)).toBe(ESPIPE);
    expect(write(r.buf, 0)).toBe(0);
    expect(write(0x10n, 8)).toBe(EFAULT);
    // A code that is none, before a cookie that is none.
    expect(r.answer(fault.fd, [99, 2])).toBe(EINVAL);
    expect(r.answer(fault.fd, [1, 2])).toBe(EINVAL);
    expect(r.codes).toEqual([]);
    expect(r.answer(fault.fd, [3, SUCCESS], [99, SUCCESS], [1, SUCCESS])).toBe(8);
    expect(r.responses.map((x) => x.grpid)).toEqual([3]);
    // Half of an answer beyond what can be read.
    const at = r.hole - 12n;
    r.process.mm.memory.write(at, u.IommuHwptPageResponse.alloc({ cookie: 1, code: INVALID }).bytes);
    expect(write(at, 16)).toBe(8);
    expect(r.answer(fault.fd, [2, SUCCESS])).toBe(8);
    expect(r.responses.map((x) => [x.grpid, x.code])).toEqual([
      [3, "success"],
      [1, "invalid"],
      [2, "success"],
    ]);
  });

  test("frees the cookie, which is the lowest again", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    const next = (): number => {
      r.trigger(idev);
      return ok(r.readFaults(fault.fd, 1))[0]?.cookie ?? 0;
    };
    expect([next(), next(), next()]).toEqual([1, 2, 3]);
    expect(r.answer(fault.fd, [2, SUCCESS])).toBe(8);
    expect(next()).toBe(2);
    expect(next()).toBe(4);
    expect(r.answer(fault.fd, [3, SUCCESS], [1, SUCCESS])).toBe(16);
    expect([next(), next(), next()]).toEqual([1, 3, 5]);
    expect(r.answer(fault.fd, ...[1, 2, 3, 4, 5].map((c) => [c, SUCCESS] as const))).toBe(40);
  });
});

describe("the cookie 0", () => {
  test("is given to no group, until somebody answers with it while others are out", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    const next = (): number => {
      r.trigger(idev);
      return ok(r.readFaults(fault.fd, 1))[0]?.cookie ?? -1;
    };
    // Nothing is out: the answer changes nothing.
    expect(r.answer(fault.fd, [0, SUCCESS])).toBe(EINVAL);
    expect(next()).toBe(1);
    expect(r.answer(fault.fd, [0, 2])).toBe(EINVAL);
    expect(next()).toBe(2);
    expect(r.answer(fault.fd, [0, SUCCESS])).toBe(EINVAL);
    expect(r.answer(fault.fd, [2, SUCCESS], [1, SUCCESS])).toBe(16);
    expect([next(), next(), next()]).toEqual([0, 1, 2]);
    expect(r.answer(fault.fd, [0, SUCCESS], [2, SUCCESS], [1, SUCCESS])).toBe(24);
    expect(next()).toBe(0);
    expect(r.answer(fault.fd, [0, INVALID])).toBe(8);
  });
});

describe("the descriptor", () => {
  test("is always writable, and readable while a fault waits", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    expect(r.ready(fault.fd)).toBe(u.POLLOUT);
    r.trigger(idev);
    expect(r.ready(fault.fd)).toBe(READABLE | u.POLLOUT);
    ok(r.readFaults(fault.fd, 1));
    expect(r.ready(fault.fd)).toBe(u.POLLOUT);
    r.answer(fault.fd, [1, SUCCESS]);
  });

  test("wakes who polls it", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    const entry = { fd: fault.fd, events: u.POLLIN, revents: 0 };
    let n: number | Errno = -1;
    const { process } = r;
    r.start("poller", function* () {
      n = yield* process.sys.poll([entry], -1);
    });
    expect(n).toBe(-1);
    r.trigger(idev);
    r.kernel.sched.settle();
    expect([n, entry.revents]).toEqual([1, u.POLLIN]);
    r.answer(fault.fd, [ok(r.readFaults(fault.fd, 1))[0]?.cookie ?? 0, SUCCESS]);
  });

  test("has no position, takes no command, and maps nothing", () => {
    const r = new EventRig();
    const { fd } = r.faultQueue();
    const { sys } = r.process;
    expect(r.run(sys.lseek(fd, 0n, u.SEEK_SET))).toBe(ESPIPE);
    expect(r.run(sys.pread(fd, r.buf, FAULT_SIZE, 0n))).toBe(ESPIPE);
    expect(r.run(sys.pwrite(fd, r.buf, 8, 8n))).toBe(ESPIPE);
    expect(r.run(sys.ioctl(fd, u.IOMMU_DESTROY, r.buf))).toBe(ENOTTY);
    expect(r.run(sys.mmap(0n, 0x1000n, u.PROT_READ, u.MAP_SHARED, fd))).toBeInstanceOf(Errno);
    r.close(fd);
    expect(r.read(fd, FAULT_SIZE)).toBe(EBADF);
  });
});

describe("what nobody will answer is answered invalid", () => {
  test("when the device moves to another table, read or not", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, hwpt, fault } = r.faulting();
    for (const grpid of [1, 2, 3]) r.trigger(idev, { grpid });
    expect(ok(r.readFaults(fault.fd, 1))[0]?.cookie).toBe(1);
    r.report(idev, { flags: 0, grpid: 9 });
    expect(r.moveTo(stdev, ioas)).toBe(0);
    // What waits to be read comes first, then what has been read.
    expect(r.responses.map((x) => [x.grpid, x.code])).toEqual([
      [2, "invalid"],
      [3, "invalid"],
      [1, "invalid"],
    ]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(EINVAL);
    expect(r.ready(fault.fd)).toBe(u.POLLOUT);
    // And what was only half a group is forgotten.
    expect(r.moveTo(stdev, hwpt)).toBe(0);
    r.report(idev, { grpid: 9 });
    expect(ok(r.readFaults(fault.fd, 4)).map((f) => f.cookie)).toEqual([1]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });

  test("even if the other table has the same queue; a move that fails leaves all as it was", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, hwpt, fault } = r.faulting();
    const second = r.iopfHwpt(idev, ioas, fault.id);
    r.trigger(idev, { grpid: 1 });
    expect(r.moveTo(stdev, 999)).toBe(ENOENT);
    expect(r.moveTo(stdev, hwpt)).toBe(0);
    r.kernel.fault.decide((p) => p.what === "iommufd_attach_handle");
    expect(r.moveTo(stdev, second)).toBe(ENOMEM);
    r.kernel.fault.decide(undefined);
    expect(r.codes).toEqual([]);
    expect(r.moveTo(stdev, second)).toBe(0);
    expect(r.codes).toEqual(["invalid"]);
    r.trigger(idev, { grpid: 2 });
    expect(ok(r.readFaults(fault.fd, 2)).map((f) => f.grpid)).toEqual([2]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });

  test("when the device goes", () => {
    const r = new EventRig();
    const { idev, stdev, fault } = r.faulting();
    r.trigger(idev);
    r.trigger(idev);
    ok(r.readFaults(fault.fd, 1));
    expect(r.destroy(stdev)).toBe(0);
    expect(r.codes).toEqual(["invalid", "invalid"]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(EINVAL);
  });

  test("when the device goes with a PASID attached, which Linux forgets", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, fault } = r.faulting(u.MOCK_FLAGS_DEVICE_PASID);
    const hwpt = r.iopfHwpt(idev, ioas, fault.id, u.IOMMU_HWPT_ALLOC_PASID);
    expect(r.attachPasid(stdev, 3, hwpt)).toBe(0);
    r.trigger(idev, { pasid: 3 });
    r.trigger(idev);
    expect(r.destroy(stdev)).toBe(0);
    expect(r.responses.map((x) => [x.pasid, x.code])).toEqual([
      [3, "invalid"],
      [0, "invalid"],
    ]);
    expect(r.destroy(hwpt)).toBe(0);
  });

  test("of one device alone, though others share the queue", () => {
    const r = new EventRig();
    const { idev, stdev, hwpt, fault } = r.faulting();
    const b = r.mock(hwpt);
    r.trigger(idev, { grpid: 1 });
    r.trigger(b.idev, { grpid: 2 });
    r.trigger(b.idev, { grpid: 3 });
    expect(ok(r.readFaults(fault.fd, 2)).map((f) => f.dev_id)).toEqual([idev, b.idev]);
    expect(r.destroy(stdev)).toBe(0);
    expect(r.responses).toEqual([{ device: "iommufd_mock0", pasid: 0, grpid: 1, code: "invalid" }]);
    expect(ok(r.readFaults(fault.fd, 2)).map((f) => [f.grpid, f.cookie])).toEqual([[3, 1]]);
    expect(r.answer(fault.fd, [1, SUCCESS], [2, SUCCESS])).toBe(16);
    expect(r.responses.slice(1).map((x) => [x.device, x.grpid])).toEqual([
      ["iommufd_mock1", 3],
      ["iommufd_mock1", 2],
    ]);
  });

  test("of one PASID alone, and a PASID that moves keeps its device's others", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, fault } = r.faulting(u.MOCK_FLAGS_DEVICE_PASID);
    const flags = u.IOMMU_HWPT_ALLOC_PASID;
    const [one, two] = [r.iopfHwpt(idev, ioas, fault.id, flags), r.iopfHwpt(idev, ioas, fault.id, flags)];
    expect(r.attachPasid(stdev, 1, one)).toBe(0);
    expect(r.attachPasid(stdev, 2, one)).toBe(0);
    for (const pasid of [0, 1, 2]) r.trigger(idev, { pasid });
    expect(r.replacePasid(stdev, 1, two)).toBe(0);
    expect(r.responses.map((x) => x.pasid)).toEqual([1]);
    expect(r.detachPasid(stdev, 2)).toBe(0);
    expect(r.responses.map((x) => x.pasid)).toEqual([1, 2]);
    expect(r.detachPasid(stdev, 1)).toBe(0);
    expect(ok(r.readFaults(fault.fd, 3)).map((f) => f.pasid)).toEqual([0]);
    expect(r.answer(fault.fd, [1, SUCCESS])).toBe(8);
  });

  test("the reserved PASID's refusal leaves the old table's faults alone (pasid)", () => {
    const r = new EventRig();
    const { ioas, idev, stdev, fault } = r.faulting(u.MOCK_FLAGS_DEVICE_PASID);
    const flags = u.IOMMU_HWPT_ALLOC_PASID;
    const [one, two] = [r.iopfHwpt(idev, ioas, fault.id, flags), r.iopfHwpt(idev, ioas, fault.id, flags)];
    const pasid = u.IOMMU_TEST_PASID_RESERVED;
    expect(r.attachPasid(stdev, pasid, one)).toBe(0);
    r.trigger(idev, { pasid });
    expect(r.replacePasid(stdev, pasid, two)).toBe(ENOMEM);
    expect(r.codes).toEqual([]);
    expect(r.answer(fault.fd, [ok(r.readFaults(fault.fd, 1))[0]?.cookie ?? 0, SUCCESS])).toBe(8);
    expect(r.detachPasid(stdev, pasid)).toBe(0);
  });

  test("when everything is closed with faults pending", () => {
    const r = new EventRig();
    const { idev, fault } = r.faulting();
    const second = r.mock(r.allocIoas());
    for (const grpid of [1, 2]) r.trigger(idev, { grpid });
    r.trigger(second.idev, { grpid: 3 });
    ok(r.readFaults(fault.fd, 1));
    r.run(r.process.exit());
    r.kernel.sched.settle();
    expect(r.responses.map((x) => [x.grpid, x.code])).toEqual([
      [3, "invalid"],
      [2, "invalid"],
      [1, "invalid"],
    ]);
    expect(r.leaks()).toEqual({});
  });
});
