/** Opening, binding, attaching, closing: drivers/vfio/device_cdev.c and vfio_main.c. */
import { describe, expect, test } from "vitest";
import { vfioOf } from "../../../src/kernel/vfio/vfio_main.ts";
import { EAGAIN, EBADF, EBADFD, EBUSY, EFAULT, EINVAL, ENOENT, ENOTTY, EPERM, Errno } from "../../../src/lib/errno.ts";
import { WouldBlock } from "../../../src/sched/sched.ts";
import { MAP_SHARED, O_RDWR, PROT_READ } from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, TINY } from "./bench.ts";

const bindStruct = (init: Parameters<typeof V.VfioDeviceBindIommufd.alloc>[0] = {}) =>
  V.VfioDeviceBindIommufd.alloc({ argsz: V.VfioDeviceBindIommufd.size, ...init });

describe("before it is bound", () => {
  test("§2 pre 1: every call but BIND answers EINVAL", () => {
    const b = new Bench();
    const fd = b.openCdev();
    for (const cmd of [V.VFIO_DEVICE_GET_INFO, V.VFIO_DEVICE_FEATURE, V.VFIO_DEVICE_RESET, V.VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0x1234]) {
      expect(b.ioctl(fd, cmd, V.VfioDeviceInfo.alloc())).toBe(EINVAL);
    }
    expect(b.pread(fd, 7, 0, 4)).toBe(EINVAL);
    expect(b.pwrite(fd, 7, 4, [0, 0])).toBe(EINVAL);
    expect(b.run(b.process.sys.mmap(0n, 4096n, PROT_READ, MAP_SHARED, fd))).toBe(EINVAL);
  });

  test("closing an unbound file lets the driver go", () => {
    const b = new Bench();
    b.close(b.openCdev());
    expect(b.core().vdev.registrations).toBe(1);
  });
});

test("fdinfo names the device in sysfs", () => {
  const b = new Bench();
  const info = b.ok(b.process.sys.fdinfo(b.openCdev()));
  const port = b.pdev().upstreamBridge?.name;
  expect(info).toContain(`vfio-device-syspath: /sys/devices/pci0000:00/${port}/${b.bdfs[0]}`);
});

describe("BIND_IOMMUFD", () => {
  test.each([
    ["a short argsz", { argsz: 15, iommufd: -1 }, EINVAL],
    ["a negative iommufd", { iommufd: -1 }, EINVAL],
    ["an unknown flag, even with a bad descriptor", { flags: 2, iommufd: 999 }, EINVAL],
    ["a descriptor that is not open", { iommufd: 999 }, EBADF],
    ["a token where none is used, before the descriptor is looked at", { flags: V.VFIO_DEVICE_BIND_FLAG_TOKEN, iommufd: 999 }, EFAULT],
  ])("%s is refused", (_name, init, errno) => {
    const b = new Bench();
    const fd = b.openCdev();
    expect(b.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, bindStruct(init))).toBe(errno);
    expect(b.core().vdev.openCount).toBe(0);
  });

  test("a descriptor that is no iommufd gives EBADFD", () => {
    const b = new Bench();
    const fd = b.openCdev();
    expect(b.bindIommufd(fd, b.eventfd())).toBe(EBADFD);
  });

  test("a token that can be read but is not used gives EINVAL", () => {
    const b = new Bench();
    const fd = b.openCdev();
    const bytes = new Uint8Array(64);
    const bind = V.VfioDeviceBindIommufd.over(bytes);
    Object.assign(bind, { argsz: 24, flags: V.VFIO_DEVICE_BIND_FLAG_TOKEN, iommufd: b.iommufd, token_uuid_ptr: b.user(bytes) + 32n });
    expect(b.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, bind)).toBe(EINVAL);
  });

  test("a caller that knows no token may end its struct at out_devid", () => {
    const b = new Bench();
    const fd = b.openCdev();
    const bind = bindStruct({ argsz: 16, iommufd: b.iommufd });
    expect(b.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, bind)).toBe(0);
    expect(bind.out_devid).toBeGreaterThan(0);
  });

  test("one file is bound once, and one device through one file", () => {
    const b = new Bench();
    const fd = b.device();
    expect(b.bindIommufd(fd)).toBe(EINVAL);
    const other = b.openCdev();
    expect(b.bindIommufd(other)).toBe(EINVAL);
    expect(b.ioctl(other, V.VFIO_DEVICE_GET_INFO, V.VfioDeviceInfo.alloc({ argsz: 20 }))).toBe(EINVAL);
  });

  test("after the close it can be bound again", () => {
    const b = new Bench();
    b.close(b.device());
    expect(b.core().vdev.openCount).toBe(0);
    b.device();
  });

  test("an unreachable struct gives EFAULT", () => {
    const b = new Bench();
    const fd = b.openCdev();
    expect(b.run(b.process.sys.ioctl(fd, V.VFIO_DEVICE_BIND_IOMMUFD, 0x10n))).toBe(EFAULT);
  });
});

describe("whose DMA it is", () => {
  test("a group that another iommufd owns is EPERM, and nothing is left behind", () => {
    const b = new Bench({ functions: [TINY, TINY], sharedBus: true });
    expect(b.pdev(b.bdfs[0]).iommuGroup).toBe(b.pdev(b.bdfs[1]).iommuGroup);
    const fd = b.device(b.bdfs[0]);
    const other = b.ok(b.process.sys.open("/dev/iommu", O_RDWR));
    const second = b.openCdev(b.bdfs[1]);
    expect(b.bindIommufd(second, other)).toBe(EPERM);
    expect(b.bindIommufd(second)).toBe(0);
    b.close(fd);
  });

  test("interrupts that nobody isolates are EPERM", () => {
    const b = new Bench({ iommu: { interruptRemapping: false } });
    expect(b.bindIommufd(b.openCdev())).toBe(EPERM);
    expect(b.core().vdev.openCount).toBe(0);
  });

  test("a function behind no IOMMU is not taken", () => {
    const b = new Bench({ iommu: "none" });
    expect(b.pdev().driver).toBeUndefined();
    expect(b.bindDriver(b.bdfs[0] as string)).toBe(EINVAL);
  });

  test("a function whose lock is taken cannot be opened: EAGAIN, and the iommufd is let go", () => {
    const b = new Bench();
    const fd = b.openCdev();
    b.kernelRun(b.pdev().cfgAccessLock());
    expect(b.bindIommufd(fd)).toBe(EAGAIN);
    b.pdev().cfgAccessUnlock();
    expect(b.core().vdev.iommufdDevice).toBeUndefined();
    expect(b.bindIommufd(fd)).toBe(0);
  });
});

describe("attach and detach", () => {
  test("the first attach attaches, the second replaces, a detach frees the table", () => {
    const b = new Bench();
    const fd = b.device();
    const [a, c] = [b.ioas(), b.ioas()];
    expect(b.attach(fd, a)).toBe(0);
    expect(b.destroy(a)).toBe(EBUSY);
    expect(b.attach(fd, c)).toBe(0);
    expect(b.destroy(a)).toBe(0);
    const detach = V.VfioDeviceDetachIommufdPt.alloc({ argsz: 8 });
    expect(b.ioctl(fd, V.VFIO_DEVICE_DETACH_IOMMUFD_PT, detach)).toBe(0);
    expect(b.destroy(c)).toBe(0);
    expect(b.ioctl(fd, V.VFIO_DEVICE_DETACH_IOMMUFD_PT, detach)).toBe(0);
  });

  test("the checks come in order: size, flags, length for a PASID, then the id", () => {
    const b = new Bench();
    const fd = b.device();
    const attach = (init: object): number | Errno =>
      b.ioctl(fd, V.VFIO_DEVICE_ATTACH_IOMMUFD_PT, V.VfioDeviceAttachIommufdPt.alloc({ argsz: 16, ...init }));
    expect(attach({ argsz: 11, flags: 4 })).toBe(EINVAL);
    expect(attach({ flags: 2, pt_id: 77 })).toBe(EINVAL);
    expect(attach({ argsz: 12, flags: V.VFIO_DEVICE_ATTACH_PASID, pt_id: 77 })).toBe(EINVAL);
    expect(attach({ pt_id: 77 })).toBe(ENOENT);
  });

  test("the close detaches and unbinds", () => {
    const b = new Bench();
    const fd = b.device();
    const id = b.ioas();
    expect(b.attach(fd, id)).toBe(0);
    b.close(fd);
    expect(b.destroy(id)).toBe(0);
  });
});

test("§2 pre 3 to 6: FEATURE checks its header before the feature", () => {
  const b = new Bench();
  const fd = b.device();
  const f = (init: object): number | Errno => b.ioctl(fd, V.VFIO_DEVICE_FEATURE, V.VfioDeviceFeature.alloc({ argsz: 8, ...init }));
  const { VFIO_DEVICE_FEATURE_GET: GET, VFIO_DEVICE_FEATURE_SET: SET, VFIO_DEVICE_FEATURE_PROBE: PROBE } = V;
  expect(f({ argsz: 7, flags: 99 })).toBe(EINVAL);
  expect(f({ flags: 1 << 19 })).toBe(EINVAL);
  expect(f({ flags: GET | SET | 99 })).toBe(EINVAL);
  expect(f({ flags: GET | 99 })).toBe(ENOTTY);
  expect(f({ flags: PROBE | GET | SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY })).toBe(EINVAL);
  expect(f({ flags: PROBE | SET | V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY })).toBe(0);
  expect(f({ flags: V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY })).toBe(EINVAL);
  expect(f({ flags: GET | V.VFIO_DEVICE_FEATURE_MIGRATION })).toBe(ENOTTY);
  expect(f({ flags: SET | V.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 })).toBe(EINVAL);
  expect(f({ flags: SET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN })).toBe(ENOTTY);
});

describe("driver", () => {
  test("a bridge and a function behind no IOMMU are refused", () => {
    const b = new Bench();
    const port = [...b.kernel.pci.devices.values()].find((d) => d.isBridge)?.name as string;
    expect(b.bindDriver(port)).toBe(EINVAL);
  });

  test("an unbind with nobody there takes the node away", () => {
    const b = new Bench();
    const path = b.cdev();
    expect(b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string))).toBeUndefined();
    expect(b.run(b.process.sys.open(path, O_RDWR))).toBe(ENOENT);
    expect(b.bindDriver(b.bdfs[0] as string)).toBeUndefined();
    expect(b.cdev()).toBe(path);
  });

  test("an unbind waits for the user, and asks for the device through the request eventfd", () => {
    const b = new Bench();
    const fd = b.device();
    const req = b.eventfd();
    expect(b.setIrqs(fd, V.VFIO_IRQ_SET_DATA_EVENTFD | V.VFIO_IRQ_SET_ACTION_TRIGGER, V.VFIO_PCI_REQ_IRQ_INDEX, 0, 1, [req])).toBe(0);
    const thread = b.kernel.sched.thread("sysfs");
    expect(() => b.kernel.sched.execute(thread, b.kernel.pci.unbind(b.bdfs[0] as string))).toThrow(WouldBlock);
    expect(b.takeEvents(req)).toBeGreaterThan(1n);
    expect(thread.finished).toBe(false);
    // Nobody new comes in meanwhile; who is in keeps working.
    expect(b.exists()).toBe(false);
    expect(b.configRead(fd, 0, 2)).toBe(TINY.vendor);
    b.close(fd);
    b.settle();
    expect(thread.finished).toBe(true);
    expect(b.pdev().driver).toBeUndefined();
  });

  test("two removals that wait do not keep each other's time running", () => {
    const b = new Bench({ functions: [TINY, TINY] });
    const fds = b.bdfs.map((bdf) => b.device(bdf));
    const tasks = b.bdfs.map((bdf) => b.kernel.sched.spawn("sysfs", () => b.kernel.pci.unbind(bdf)));
    b.settle();
    expect(b.kernel.sched.now).toBeLessThan(1e12);
    expect(tasks.map((t) => t.finished)).toEqual([false, false]);
    for (const fd of fds) b.close(fd);
    b.settle();
    expect(tasks.map((t) => t.finished)).toEqual([true, true]);
    expect(vfioOf(b.kernel).requestTimers).toBe(0);
  });

  test("a signal ends the interruptible wait with a word in the log, not the removal", () => {
    const b = new Bench();
    const fd = b.device();
    const task = b.kernel.sched.thread("sysfs");
    task.signalled = true;
    expect(() => b.kernel.sched.execute(task, b.kernel.pci.unbind(b.bdfs[0] as string))).toThrow(WouldBlock);
    expect(b.log().filter((l) => l.includes("Device is currently in use"))).toHaveLength(1);
    b.close(fd);
    b.settle();
    expect(task.finished).toBe(true);
  });

  test("an exported buffer alone does not hold an unbind back once the device is closed", () => {
    const b = new Bench();
    const fd = b.device();
    const buf = b.exportBar(fd);
    expect(buf).not.toBeInstanceOf(Errno);
    expect(b.core().vdev.registrations).toBe(3);
    b.close(fd);
    expect(b.core().vdev.registrations).toBe(1);
    expect(b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string))).toBeUndefined();
  });

  test("§6 row 12: hot-unplug waits for the close, then the function is gone", () => {
    const b = new Bench();
    const bdf = b.bdfs[0] as string;
    const fd = b.device();
    const thread = b.kernel.sched.thread("pciehp");
    expect(() => b.kernel.sched.execute(thread, b.kernel.pci.removeDevice(bdf))).toThrow(WouldBlock);
    expect(b.log().some((l) => l.includes("blocked until released by user"))).toBe(true);
    expect(b.bindIommufd(fd)).toBe(EINVAL);
    b.close(fd);
    b.settle();
    expect(b.kernel.pci.devices.has(bdf)).toBe(false);
  });
});
