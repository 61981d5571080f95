/** Groups and containers: drivers/vfio/group.c and container.c. */
import { describe, expect, test } from "vitest";
import { EBADF, EBADFD, EBUSY, EFAULT, EINVAL, EMFILE, ENODEV, ENOENT, ENOTTY, EPERM, type Errno } from "../../../src/lib/errno.ts";
import { WouldBlock } from "../../../src/sched/sched.ts";
import { O_RDWR } from "../../../src/uapi/index.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { TINY } from "./bench.ts";
import { GroupBench } from "./group_bench.ts";

describe("the group's node", () => {
  test("it is named by the IOMMU group, and goes with the group's last device", () => {
    const b = new GroupBench();
    const path = b.groupPath();
    expect(b.kernel.fs.devices.has(path)).toBe(true);
    b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string));
    b.settle();
    expect(b.kernel.fs.devices.has(path)).toBe(false);
    expect(b.run(b.process.sys.open(path, O_RDWR))).toBe(ENOENT);
  });

  test("it stays while another device of the group is there", () => {
    const b = new GroupBench({ functions: [TINY, TINY], sharedBus: true });
    b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string));
    b.settle();
    b.close(b.openGroup(b.bdfs[1]));
  });

  test("it is open at most once", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.run(b.process.sys.open(b.groupPath(), O_RDWR))).toBe(EBUSY);
    b.close(g);
    b.close(b.openGroup());
  });

  test("a device that is bound to an iommufd keeps it closed, and an open group keeps its devices from being bound", () => {
    const b = new GroupBench();
    const fd = b.device();
    expect(b.run(b.process.sys.open(b.groupPath(), O_RDWR))).toBe(EBUSY);
    b.close(fd);
    const g = b.openGroup();
    const cdev = b.openCdev();
    expect(b.bindIommufd(cdev)).toBe(EBUSY);
    b.close(g);
    expect(b.bindIommufd(cdev)).toBe(0);
  });

  test("a bind that fails does not keep it closed", () => {
    const b = new GroupBench();
    expect(b.bindIommufd(b.openCdev(), 999)).toBe(EBADF);
    b.openGroup();
  });

  test("a group left open when its last device goes has no device and takes no container", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string));
    b.settle();
    expect(b.groupFlags(g)).toBe(ENODEV);
    expect(b.setContainer(g)).toBe(ENODEV);
    expect(b.unsetContainer(g)).toBe(EINVAL);
    expect(b.getDevice(g)).toBe(ENODEV);
  });

  test("another command is ENOTTY", () => {
    const b = new GroupBench();
    expect(b.ioctl(b.openGroup(), V.VFIO_DEVICE_GET_INFO, V.VfioDeviceInfo.alloc())).toBe(ENOTTY);
  });
});

describe("VFIO_GROUP_GET_STATUS", () => {
  test("a group is viable while nobody owns its DMA, and says when it is in a container", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.groupFlags(g)).toBe(V.VFIO_GROUP_FLAGS_VIABLE);
    expect(b.setContainer(g)).toBe(0);
    expect(b.groupFlags(g)).toBe(V.VFIO_GROUP_FLAGS_VIABLE | V.VFIO_GROUP_FLAGS_CONTAINER_SET);
  });

  test("a group with a device that a kernel driver uses is not viable", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.kernelRun(b.pdev().iommuGroup?.useDefaultDomain() as never)).toBeUndefined();
    expect(b.groupFlags(g)).toBe(0);
    expect(b.setContainer(g)).toBe(EPERM);
    b.kernelRun(b.pdev().iommuGroup?.unuseDefaultDomain() as never);
  });

  test("a short argsz is EINVAL, an unreachable struct EFAULT", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.ioctl(g, V.VFIO_GROUP_GET_STATUS, V.VfioGroupStatus.alloc({ argsz: 7 }))).toBe(EINVAL);
    expect(b.run(b.process.sys.ioctl(g, V.VFIO_GROUP_GET_STATUS, 0x10n))).toBe(EFAULT);
  });
});

describe("VFIO_GROUP_SET_CONTAINER", () => {
  test("the pointer is looked at first, then the descriptor, then whether there is a container already, then what the descriptor is", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.run(b.process.sys.ioctl(g, V.VFIO_GROUP_SET_CONTAINER, 0x10n))).toBe(EFAULT);
    expect(b.setContainer(g, 999)).toBe(EBADF);
    expect(b.setContainer(g, -1)).toBe(EBADF);
    expect(b.setContainer(g, b.eventfd())).toBe(EBADFD);
    expect(b.setContainer(g, g)).toBe(EBADFD);
    expect(b.setContainer(g)).toBe(0);
    expect(b.setContainer(g, b.eventfd())).toBe(EINVAL);
    expect(b.setContainer(g, 999)).toBe(EBADF);
  });

  test("it blocks the group's DMA until an IOMMU is chosen, and leaving gives it back", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    const group = b.pdev().iommuGroup;
    expect(b.setContainer(g)).toBe(0);
    expect(group?.domain?.type).toBe("blocked");
    expect(b.setIommu()).toBe(0);
    expect(group?.domain?.type).toBe("unmanaged");
    expect(b.unsetContainer(g)).toBe(0);
    expect(group?.domain).toBe(group?.defaultDomain);
    expect(group?.dmaOwnerClaimed).toBe(false);
    expect(b.unsetContainer(g)).toBe(EINVAL);
  });

  test("a group cannot leave while a device is open", () => {
    const b = new GroupBench();
    const g = b.ready();
    const d = b.getDevice(g);
    expect(b.unsetContainer(g)).toBe(EBUSY);
    b.close(d as number);
    expect(b.unsetContainer(g)).toBe(0);
  });
});

describe("VFIO_GROUP_GET_DEVICE_FD", () => {
  test("without a container it is EINVAL, and without an IOMMU too", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.getDevice(g)).toBe(EINVAL);
    expect(b.setContainer(g)).toBe(0);
    expect(b.getDevice(g)).toBe(EINVAL);
    expect(b.core().vdev.registrations).toBe(1);
    expect(b.setIommu()).toBe(0);
    expect(b.getDevice(g)).toBeGreaterThan(0);
  });

  test("the name is looked up before the container, the descriptor is taken before the device is opened", () => {
    const b = new GroupBench();
    const g = b.openGroup();
    expect(b.getDevice(g, "0000:7f:00.0")).toBe(ENODEV);
    expect(b.run(b.process.sys.ioctl(g, V.VFIO_GROUP_GET_DEVICE_FD, 0x10n))).toBe(EFAULT);
    b.process.rlimits.nofile = 3;
    expect(b.getDevice(g)).toBe(EMFILE);
    expect(b.core().vdev.registrations).toBe(1);
  });

  test.each([
    ["more digits", "7", ENODEV],
    ["an unknown option", " x=1", EINVAL],
    ["a token that is too short", " vf_token=1234", EINVAL],
    ["a token where none is used", " vf_token=00112233-4455-6677-8899-aabbccddeeff", EINVAL],
    ["blanks", "  ", undefined],
  ])("a name followed by %s", (_what, suffix, errno) => {
    const b = new GroupBench();
    const g = b.ready();
    const r = b.getDevice(g, `${b.bdfs[0]}${suffix}`);
    if (errno === undefined) expect(r).toBeGreaterThan(0);
    else expect(r).toBe(errno);
  });

  test("a name without an end within a page is EINVAL", () => {
    const b = new GroupBench();
    expect(b.ioctl(b.openGroup(), V.VFIO_GROUP_GET_DEVICE_FD, { bytes: new Uint8Array(5000).fill(0x30) })).toBe(EINVAL);
  });

  test("the same device can be open more than once, and its hardware is closed with the last", () => {
    const b = new GroupBench();
    const g = b.ready();
    const one = b.getDevice(g) as number;
    const two = b.getDevice(g) as number;
    expect(b.core().vdev.openCount).toBe(2);
    b.close(one);
    expect(b.configRead(two, 0, 2)).toBe(TINY.vendor);
    b.close(two);
    expect(b.core().vdev.openCount).toBe(0);
  });

  test("the device knows no page tables and no BIND", () => {
    const b = new GroupBench();
    const d = b.getDevice(b.ready()) as number;
    expect(b.bindIommufd(d)).toBe(EINVAL);
    expect(b.attach(d, 1)).toBe(ENOTTY);
    expect(b.run(b.process.sys.readlinkFd(d))).toBe("anon_inode:[vfio-device]");
  });

  test("closing container and group first leaves the device working until it is closed", () => {
    const b = new GroupBench();
    const g = b.ready();
    const d = b.getDevice(g) as number;
    const at = b.memory(0x1000n);
    expect(b.mapDma(0x10000n, at, 0x1000n)).toBe(0);
    b.close(b.container);
    b.close(g);
    expect(b.configRead(d, 0, 2)).toBe(TINY.vendor);
    expect(b.translate(0x10000n)).toBeDefined();
    expect(b.run(b.process.sys.open(b.groupPath(), O_RDWR))).toBe(EBUSY);
    b.close(d);
    expect(b.kernel.frames.pinned).toBe(0);
    b.close(b.openGroup());
  });

  test("a removal waits for a device that its group has open", () => {
    const b = new GroupBench();
    const g = b.ready();
    const d = b.getDevice(g) as number;
    expect(() => b.kernelRun(b.kernel.pci.unbind(b.bdfs[0] as string))).toThrow(WouldBlock);
    expect(b.getDevice(g)).toBe(ENODEV);
    b.close(d);
    b.settle();
    expect(b.exists()).toBe(false);
    expect(b.groupFlags(g)).toBe(ENODEV);
  });
});

describe("the container", () => {
  test("anybody may open it, and it answers version and extensions without a group", () => {
    const b = new GroupBench();
    expect(b.kernel.fs.devices.get("/dev/vfio/vfio")?.mode).toBe(0o666);
    expect(b.run(b.process.sys.ioctl(b.container, V.VFIO_GET_API_VERSION, 0n))).toBe(V.VFIO_API_VERSION);
    const answers = [V.VFIO_TYPE1_IOMMU, V.VFIO_TYPE1v2_IOMMU, V.VFIO_UNMAP_ALL, V.VFIO_UPDATE_VADDR, V.VFIO_DMA_CC_IOMMU, 2, 6, 8, 99];
    expect(answers.map((x) => b.extension(x))).toEqual([1, 1, 1, 0, 0, 0, 0, 0, 0]);
  });

  test("every other call is EINVAL until there is an IOMMU, then ENOTTY if unknown", () => {
    const b = new GroupBench();
    const info = (): number | Errno => b.ioctl(b.container, V.VFIO_IOMMU_GET_INFO, V.VfioIommuType1Info.alloc({ argsz: 16 }));
    expect(info()).toBe(EINVAL);
    expect(b.ioctl(b.container, 0x1234)).toBe(EINVAL);
    b.ready();
    expect(info()).toBe(0);
    expect(b.ioctl(b.container, 0x1234)).toBe(ENOTTY);
    expect(b.extension(V.VFIO_UPDATE_VADDR)).toBe(1);
  });

  test("an IOMMU cannot be chosen without a group, nor twice; of an unknown kind it is ENODEV, of an extension's number EINVAL", () => {
    const b = new GroupBench();
    expect(b.setIommu()).toBe(EINVAL);
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    expect(b.setIommu(99)).toBe(ENODEV);
    expect(b.setIommu(V.__VFIO_RESERVED_TYPE1_NESTING_IOMMU)).toBe(ENODEV);
    expect(b.setIommu(V.VFIO_UNMAP_ALL)).toBe(EINVAL);
    expect(b.setIommu(V.VFIO_TYPE1_IOMMU)).toBe(0);
    expect(b.setIommu(V.VFIO_TYPE1_IOMMU)).toBe(EINVAL);
  });

  test("interrupts that nobody isolates are EPERM, and the group is left as it was", () => {
    const b = new GroupBench({ iommu: { interruptRemapping: false } });
    const g = b.openGroup();
    expect(b.setContainer(g)).toBe(0);
    expect(b.setIommu()).toBe(EPERM);
    expect(b.pdev().iommuGroup?.domain?.type).toBe("blocked");
  });

  test("with its last group the IOMMU is gone, and another can be chosen", () => {
    const b = new GroupBench();
    const g = b.ready(V.VFIO_TYPE1_IOMMU);
    expect(b.unsetContainer(g)).toBe(0);
    expect(b.mapDma(0n, 0n, 0x1000n)).toBe(EINVAL);
    expect(b.setContainer(g)).toBe(0);
    expect(b.setIommu(V.VFIO_TYPE1v2_IOMMU)).toBe(0);
  });

  test("groups in one container share its mappings, those made before a group came too", () => {
    const b = new GroupBench({ functions: [TINY, TINY] });
    const [one, two] = b.bdfs as [string, string];
    b.ready(undefined, one);
    const at = b.memory(0x2000n);
    expect(b.mapDma(0x10000n, at, 0x1000n)).toBe(0);
    const g = b.openGroup(two);
    expect(b.setContainer(g)).toBe(0);
    expect(b.mapDma(0x11000n, at + 0x1000n, 0x1000n)).toBe(0);
    for (const iova of [0x10000n, 0x11000n]) {
      expect(b.translate(iova, one)).toBeDefined();
      expect(b.translate(iova, two)).toBe(b.translate(iova, one));
    }
    expect(b.unsetContainer(g)).toBe(0);
    expect(b.translate(0x10000n, one)).toBeDefined();
    expect(b.pdev(two).iommuGroup?.domain).toBe(b.pdev(two).iommuGroup?.defaultDomain);
  });
});

describe("hot reset by groups", () => {
  const reset = (b: GroupBench, fd: number, groups: readonly number[]): number | Errno => {
    const head = V.VfioPciHotReset.size;
    const bytes = new Uint8Array(head + 4 * groups.length);
    Object.assign(V.VfioPciHotReset.over(bytes), { argsz: bytes.length, count: groups.length });
    groups.forEach((g, i) => {
      new DataView(bytes.buffer).setInt32(head + 4 * i, g, true);
    });
    return b.ioctl(fd, V.VFIO_DEVICE_PCI_HOT_RESET, { bytes });
  };

  test("the group's descriptor proves ownership", () => {
    const b = new GroupBench();
    const g = b.ready();
    const d = b.getDevice(g) as number;
    expect(reset(b, d, [g])).toBe(0);
    expect(b.model().resets).toContain("bus");
  });

  test("none, too many, a wrong one and a closed one are refused", () => {
    const b = new GroupBench({ functions: [TINY, TINY] });
    const [one, two] = b.bdfs as [string, string];
    const g = b.ready(undefined, one);
    const d = b.getDevice(g, one) as number;
    expect(reset(b, d, [])).toBe(EINVAL);
    expect(reset(b, d, [g, g])).toBe(EINVAL);
    expect(reset(b, d, [999])).toBe(EBADF);
    expect(reset(b, d, [b.container])).toBe(EINVAL);
    expect(reset(b, d, [b.openGroup(two)])).toBe(EINVAL);
  });

  test("a device opened by its node may give none", () => {
    const b = new GroupBench({ functions: [TINY, TINY] });
    const g = b.openGroup(b.bdfs[1]);
    const d = b.device(b.bdfs[0]);
    expect(reset(b, d, [g])).toBe(EINVAL);
    expect(reset(b, d, [])).toBe(0);
  });

  test("the information names groups, and no flags", () => {
    const b = new GroupBench();
    const d = b.getDevice(b.ready()) as number;
    const head = V.VfioPciHotResetInfo.size;
    const bytes = new Uint8Array(head + V.VfioPciDependentDevice.size);
    V.VfioPciHotResetInfo.over(bytes).argsz = bytes.length;
    expect(b.ioctl(d, V.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, { bytes })).toBe(0);
    expect(V.VfioPciHotResetInfo.over(bytes)).toMatchObject({ count: 1, flags: 0 });
    expect(V.VfioPciDependentDevice.over(bytes, head).group_id).toBe(b.pdev().iommuGroup?.id);
  });
});
