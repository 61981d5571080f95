/** Virtual functions, their token, and functions that vanish. */
import { describe, expect, test } from "vitest";
import { IommuFault } from "../../../src/kernel/iommu/iommu.ts";
import { enableSriov } from "../../../src/kernel/pci/iov.ts";
import { EACCES, EBUSY, EINVAL, ENOENT, Errno } from "../../../src/lib/errno.ts";
import * as R from "../../../src/uapi/pci_regs.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, TINY } from "./bench.ts";
import { PF, TOKEN, VF, VfBench } from "./vf_bench.ts";

describe("the token", () => {
  test("a VF opens with its PF's token only; the PF, while a VF is open, too", () => {
    const b = new VfBench();
    const pf = b.device(b.pf);
    expect(b.feature(pf, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, Uint8Array.from(TOKEN))).toBe(0);
    const vf = b.openCdev(b.vf());
    expect(b.bindIommufd(vf)).toBe(EACCES);
    expect(
      b.bindWithToken(
        vf,
        TOKEN.map((x) => x ^ 1),
      ),
    ).toBe(EACCES);
    expect(b.bindWithToken(vf, TOKEN)).toBe(0);
    b.close(pf);
    const again = b.openCdev(b.pf);
    expect(b.bindIommufd(again)).toBe(EACCES);
    expect(b.bindWithToken(again, TOKEN)).toBe(0);
  });

  test("the PF's opener sets it while no VF is open", () => {
    const b = new VfBench();
    expect(b.bindWithToken(b.openCdev(b.pf), TOKEN)).toBe(0);
    expect([...(b.core(b.pf).vfToken?.uuid ?? [])]).toEqual(TOKEN);
  });

  test("it cannot be read back", () => {
    const b = new VfBench();
    const pf = b.device(b.pf);
    expect(b.feature(pf, V.VFIO_DEVICE_FEATURE_GET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, new Uint8Array(16))).toBe(EINVAL);
    expect(b.feature(pf, V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, new Uint8Array(15))).toBe(EINVAL);
  });
});

describe("a VF", () => {
  const setup = () => {
    const b = new VfBench();
    const bdf = b.vf();
    const fd = b.openCdev(bdf);
    expect(b.bindWithToken(fd, [...(b.core(b.pf).vfToken?.uuid ?? [])])).toBe(0);
    return { b, bdf, fd };
  };

  test("shows its ids, memory enabled, and no interrupt pin", () => {
    const { b, fd } = setup();
    expect(b.configRead(fd, R.PCI_VENDOR_ID, 2)).toBe(PF.vendor);
    expect(b.configRead(fd, R.PCI_DEVICE_ID, 2)).toBe(VF.device);
    expect(b.configRead(fd, R.PCI_COMMAND, 2) & R.PCI_COMMAND_MEMORY).not.toBe(0);
    expect(b.configRead(fd, R.PCI_INTERRUPT_PIN, 1)).toBe(0);
  });

  test("§6 row 1, §2 predicate: turning its memory off revokes and restores in the same write: the mapping is dead, the buffer lives", () => {
    const { b, bdf, fd } = setup();
    const ioas = b.ioas();
    expect(b.attach(fd, ioas)).toBe(0);
    const buf = b.exportBar(fd) as number;
    const iova = b.mapFile(ioas, buf) as bigint;
    b.configWrite(fd, R.PCI_COMMAND, 2, 0);
    expect(b.configRead(fd, R.PCI_COMMAND, 2) & R.PCI_COMMAND_MEMORY).toBe(0);
    expect(b.kernel.iommu.translate(b.pdev(bdf).rid, iova, true)).toBeInstanceOf(IommuFault);
    expect(b.mapFile(ioas, buf)).not.toBeInstanceOf(Errno);
    expect(b.pread(fd, 0, 0, 4)).toHaveLength(4);
  });

  test("keeps its PF out of D3hot", () => {
    const { b } = setup();
    const token = [...(b.core(b.pf).vfToken?.uuid ?? [])];
    const pf = b.openCdev(b.pf);
    expect(b.bindWithToken(pf, token)).toBe(0);
    b.configWrite(pf, b.pdev(b.pf).pmCap + R.PCI_PM_CTRL, 2, 3);
    expect(b.pdev(b.pf).currentState).toBe(0);
  });

  test("that is open holds back its PF's driver", () => {
    const { b, bdf, fd } = setup();
    const thread = b.kernel.sched.thread("sysfs");
    expect(() => b.kernel.sched.execute(thread, b.kernel.pci.unbind(b.pf))).toThrow();
    b.close(fd);
    b.settle();
    expect(thread.finished).toBe(true);
    expect(b.kernel.pci.devices.has(bdf)).toBe(false);
  });
});

describe("SR-IOV through the driver", () => {
  test("a PF with VFs on is not taken, and VFs are not made unless the module was told so", () => {
    const b = new Bench({ functions: [PF], bind: false });
    const pf = b.bdfs[0] as string;
    expect(b.kernelRun(enableSriov(b.pdev(pf), 1))).toBeUndefined();
    expect(b.bindDriver(pf)).toBe(EBUSY);
    const c = new Bench({ functions: [PF] });
    expect(c.kernelRun(c.kernel.pci.setNumVfs(c.bdfs[0] as string, 1))).toBe(ENOENT);
  });
});

test("a function that is pulled out can still be closed and removed", () => {
  const b = new Bench();
  const bdf = b.bdfs[0] as string;
  const fd = b.device();
  const ioas = b.ioas();
  expect(b.attach(fd, ioas)).toBe(0);
  const buf = b.exportBar(fd) as number;
  expect(b.mapFile(ioas, buf)).not.toBeInstanceOf(Errno);
  b.kernel.pci.surpriseRemove(bdf);
  expect(b.configRead(fd, 0x40, 4)).toBeDefined();
  b.close(fd);
  expect(b.mapFile(ioas, buf)).toBeInstanceOf(Errno);
  b.kernelRun(b.kernel.pci.removeDevice(bdf));
  expect(b.kernel.pci.devices.has(bdf)).toBe(false);
});

test("GET_INFO tells regions, interrupts and whether a reset works", () => {
  const b = new Bench();
  const fd = b.device();
  const info = V.VfioDeviceInfo.alloc({ argsz: V.VfioDeviceInfo.size });
  expect(b.ioctl(fd, V.VFIO_DEVICE_GET_INFO, info)).toBe(0);
  expect(info).toMatchObject({ flags: V.VFIO_DEVICE_FLAGS_PCI | V.VFIO_DEVICE_FLAGS_RESET, num_regions: 9, num_irqs: 5, cap_offset: 0 });
  expect(b.ioctl(fd, V.VFIO_DEVICE_GET_INFO, V.VfioDeviceInfo.alloc({ argsz: 15 }))).toBe(EINVAL);
  const c = new Bench({ functions: [{ ...TINY, capabilities: { pcie: {} }, noBusReset: true }] });
  const other = V.VfioDeviceInfo.alloc({ argsz: 16 });
  expect(c.ioctl(c.device(), V.VFIO_DEVICE_GET_INFO, other)).toBe(0);
  expect(other.flags).toBe(V.VFIO_DEVICE_FLAGS_PCI);
});
