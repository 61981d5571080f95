/** Config space as the user sees it: vfio_pci_config.c. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { EFAULT, EINVAL, EIO } from "../../../src/lib/errno.ts";
import * as R from "../../../src/uapi/pci_regs.ts";
import { Bench, RAM_BYTES, TINY } from "./bench.ts";

describe("access", () => {
  test("an access of any width and alignment reads the same bytes", () => {
    const b = new Bench();
    const fd = b.device();
    const all = b.pread(fd, 7, 0, 256) as Uint8Array;
    expect(all.length).toBe(256);
    fc.assert(
      fc.property(fc.nat(255), fc.integer({ min: 1, max: 16 }), (at, n) => {
        const count = Math.min(n, 256 - at);
        expect(b.pread(fd, 7, at, count)).toEqual(all.subarray(at, at + count));
      }),
      { numRuns: 200 },
    );
  });

  test("an access that leaves config space is refused before any of it is done", () => {
    const b = new Bench();
    const fd = b.device();
    const size = b.pdev().cfgSize;
    expect(b.pread(fd, 7, size - 4, 4)).toHaveLength(4);
    expect(b.pread(fd, 7, size - 2, 4)).toBe(EFAULT);
    expect(b.pread(fd, 7, size, 1)).toBe(EFAULT);
    expect(b.pwrite(fd, 7, size - 1, [1, 2])).toBe(EFAULT);
  });

  test("a buffer that cannot be reached gives EFAULT, a write that would be dropped does not look at it", () => {
    const b = new Bench();
    const fd = b.device();
    const at = (off: number) => (7n << 40n) | BigInt(off);
    expect(b.run(b.process.sys.pread(fd, 0x10n, 4, at(0)))).toBe(EFAULT);
    expect(b.run(b.process.sys.pwrite(fd, 0x10n, 2, at(R.PCI_CACHE_LINE_SIZE)))).toBe(EFAULT);
    // MSI-X has no writable bit at all.
    expect(b.run(b.process.sys.pwrite(fd, 0x10n, 2, at(b.pdev().msixCap + 2)))).toBe(2);
  });
});

describe("header", () => {
  test("ids cannot be written, the interrupt line can, and only in the copy", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, R.PCI_VENDOR_ID, 4, 0);
    expect(b.configRead(fd, R.PCI_VENDOR_ID, 4)).toBe((TINY.device << 16) | TINY.vendor);
    b.configWrite(fd, R.PCI_INTERRUPT_LINE, 1, 0x5a);
    expect(b.configRead(fd, R.PCI_INTERRUPT_LINE, 1)).toBe(0x5a);
    expect(b.pdev().configRead(R.PCI_INTERRUPT_LINE, 1)).not.toBe(0x5a);
  });

  test("BARs are sized as on hardware, and the real ones never move", () => {
    const b = new Bench();
    const fd = b.device();
    const real = b.pdev().configRead(R.PCI_BASE_ADDRESS_0, 4);
    b.configWrite(fd, R.PCI_BASE_ADDRESS_0, 4, 0xffff_ffff);
    b.configWrite(fd, R.PCI_BASE_ADDRESS_1, 4, 0xffff_ffff);
    const mask = ~(RAM_BYTES - 1n);
    expect(b.configRead(fd, R.PCI_BASE_ADDRESS_0, 4)).toBe(Number(BigInt.asUintN(32, mask)) + 0xc);
    expect(b.configRead(fd, R.PCI_BASE_ADDRESS_1, 4)).toBe(0xffff_ffff);
    b.configWrite(fd, R.PCI_BASE_ADDRESS_2, 4, 0xffff_ffff);
    expect(b.configRead(fd, R.PCI_BASE_ADDRESS_2, 4)).toBe(0xffff_ff00);
    b.configWrite(fd, R.PCI_BASE_ADDRESS_5, 4, 0xffff_ffff);
    expect(b.configRead(fd, R.PCI_BASE_ADDRESS_5, 4)).toBe(0);
    b.configWrite(fd, R.PCI_ROM_ADDRESS, 4, 0xffff_ffff);
    expect(b.configRead(fd, R.PCI_ROM_ADDRESS, 4)).toBe(0);
    expect(b.pdev().configRead(R.PCI_BASE_ADDRESS_0, 4)).toBe(real);
  });

  test("COMMAND reaches the function, but for INTx disable, which is kept apart", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY | R.PCI_COMMAND_MASTER);
    expect(b.pdev().configRead(R.PCI_COMMAND, 2) & 7).toBe(R.PCI_COMMAND_MEMORY | R.PCI_COMMAND_MASTER);
    b.configWrite(fd, R.PCI_COMMAND + 1, 1, R.PCI_COMMAND_INTX_DISABLE >> 8);
    expect(b.configRead(fd, R.PCI_COMMAND, 2) & R.PCI_COMMAND_INTX_DISABLE).not.toBe(0);
    b.configWrite(fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY);
    expect(b.configRead(fd, R.PCI_COMMAND, 2)).toBe(R.PCI_COMMAND_MEMORY);
  });

  test("a COMMAND write restores BARs that a reset behind the user's back wiped", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY);
    const bar = b.pdev().configRead(R.PCI_BASE_ADDRESS_2, 4);
    b.pdev().configWrite(R.PCI_COMMAND, 2, 0);
    b.pdev().configWrite(R.PCI_BASE_ADDRESS_2, 4, 0);
    b.configWrite(fd, R.PCI_COMMAND, 2, R.PCI_COMMAND_MEMORY);
    expect(b.pdev().configRead(R.PCI_BASE_ADDRESS_2, 4)).toBe(bar);
    expect(b.log().some((l) => l.includes("restoring BARs"))).toBe(true);
  });

  test("an access that the bus refuses gives its errno", () => {
    const b = new Bench();
    const fd = b.device();
    b.core().configFault = (pos) => (pos === R.PCI_CACHE_LINE_SIZE ? EIO : undefined);
    expect(b.pread(fd, 7, R.PCI_CACHE_LINE_SIZE, 1)).toBe(EIO);
    expect(b.pwrite(fd, 7, R.PCI_CACHE_LINE_SIZE, [1])).toBe(EIO);
    expect(b.pread(fd, 7, 0, 4)).toHaveLength(4);
  });
});

describe("capabilities", () => {
  test("the chain is that of the function", () => {
    const b = new Bench();
    const fd = b.device();
    const found: number[] = [];
    for (let at = b.configRead(fd, R.PCI_CAPABILITY_LIST, 1); at !== 0; at = b.configRead(fd, at + 1, 1))
      found.push(b.configRead(fd, at, 1));
    expect(found.sort()).toEqual([R.PCI_CAP_ID_PM, R.PCI_CAP_ID_MSI, R.PCI_CAP_ID_EXP, R.PCI_CAP_ID_MSIX].sort());
  });

  test("wake events are hidden and cannot be enabled", () => {
    const b = new Bench();
    const fd = b.device();
    const pm = b.pdev().pmCap;
    expect(b.configRead(fd, pm + R.PCI_PM_PMC, 2) & R.PCI_PM_CAP_PME_MASK).toBe(0);
    b.configWrite(fd, pm + R.PCI_PM_CTRL, 2, R.PCI_PM_CTRL_PME_ENABLE);
    expect(b.configRead(fd, pm + R.PCI_PM_CTRL, 2) & R.PCI_PM_CTRL_PME_ENABLE).toBe(0);
  });

  test("the power state written is the one entered", () => {
    const b = new Bench();
    const fd = b.device();
    const ctrl = b.pdev().pmCap + R.PCI_PM_CTRL;
    b.configWrite(fd, ctrl, 2, 3);
    expect(b.pdev().currentState).toBe(3);
    expect(b.configRead(fd, ctrl, 2) & 3).toBe(3);
    b.configWrite(fd, ctrl, 1, 0);
    expect(b.pdev().currentState).toBe(0);
  });

  test("MSI is written in the copy, its enable bit stays off until SET_IRQS", () => {
    const b = new Bench();
    const fd = b.device();
    const msi = b.pdev().msiCap;
    b.configWrite(fd, msi + 4, 4, 0xfee0_1000);
    expect(b.configRead(fd, msi + 4, 4)).toBe(0xfee0_1000);
    expect(b.pdev().configRead(msi + 4, 4)).not.toBe(0xfee0_1000);
    b.configWrite(fd, msi + R.PCI_MSI_FLAGS, 2, R.PCI_MSI_FLAGS_ENABLE | (7 << 4));
    expect(b.configRead(fd, msi + R.PCI_MSI_FLAGS, 2) & (R.PCI_MSI_FLAGS_ENABLE | R.PCI_MSI_FLAGS_QSIZE)).toBe(0);
  });

  test("the FLR bit reads as zero and resets the function", () => {
    const b = new Bench();
    const fd = b.device();
    const ctl = b.pdev().pcieCap + R.PCI_EXP_DEVCTL;
    b.model().resets.length = 0;
    const before = b.configRead(fd, ctl, 2);
    b.configWrite(fd, ctl, 2, before | R.PCI_EXP_DEVCTL_BCR_FLR);
    expect(b.model().resets).toEqual(["flr"]);
    expect(b.configRead(fd, ctl, 2)).toBe(before);
  });

  test("the FLR bit of a function without FLR does nothing", () => {
    const b = new Bench({ functions: [{ ...TINY, capabilities: { pm: {}, pcie: { flr: false } } }] });
    const fd = b.device();
    b.model().resets.length = 0;
    const ctl = b.pdev().pcieCap + R.PCI_EXP_DEVCTL;
    b.configWrite(fd, ctl, 2, R.PCI_EXP_DEVCTL_BCR_FLR);
    expect(b.model().resets).toEqual([]);
    expect(b.configRead(fd, ctl, 2) & R.PCI_EXP_DEVCTL_BCR_FLR).toBe(0);
  });

  test("advanced features resets too", () => {
    const b = new Bench({ functions: [{ ...TINY, capabilities: { af: { flr: true } }, extended: {} }] });
    const fd = b.device();
    b.model().resets.length = 0;
    const af = b.pdev().findCap(R.PCI_CAP_ID_AF);
    b.configWrite(fd, af + R.PCI_AF_CTRL, 1, R.PCI_AF_CTRL_FLR);
    expect(b.model().resets).toEqual(["af"]);
    expect(b.configRead(fd, af + R.PCI_AF_CTRL, 1)).toBe(0);
  });

  test("payload size is kept apart; read request size reaches the function", () => {
    const b = new Bench();
    const fd = b.device();
    const ctl = b.pdev().pcieCap + R.PCI_EXP_DEVCTL;
    b.configWrite(fd, ctl, 2, (2 << 5) | (3 << 12));
    expect(b.configRead(fd, ctl, 2) & R.PCI_EXP_DEVCTL_PAYLOAD).toBe(2 << 5);
    expect(b.pdev().configRead(ctl, 2) & R.PCI_EXP_DEVCTL_PAYLOAD).toBe(0);
    expect(b.pdev().configRead(ctl, 2) & R.PCI_EXP_DEVCTL_READRQ).toBe(3 << 12);
  });

  test("a serial number is shown, an unknown first extended capability is an anchor with id 0", () => {
    const b = new Bench();
    const fd = b.device();
    expect(b.configRead(fd, 0x100, 2)).toBe(R.PCI_EXT_CAP_ID_DSN);
    expect(b.configRead(fd, 0x104, 4)).toBe(0x55667788);
    expect(b.configWrite(fd, 0x104, 4, 0)).toBe(4);
    expect(b.configRead(fd, 0x104, 4)).toBe(0x55667788);
  });
});

test("regions that are not there are refused", () => {
  const b = new Bench();
  const fd = b.device();
  expect(b.pread(fd, 8, 0xa0000, 1)).toBe(EINVAL);
  expect(b.pread(fd, 9, 0, 1)).toBe(EINVAL);
  expect(b.pread(fd, 6, 0, 4)).toBe(EINVAL);
  expect(b.pwrite(fd, 6, 0, [0])).toBe(EINVAL);
  expect(b.pread(fd, 1, 0, 4)).toBe(EINVAL);
});
