/** Interrupts to eventfds: vfio_pci_intrs.c. */
import { describe, expect, test } from "vitest";
import { vfioPciErrorDetected } from "../../../src/kernel/vfio/pci/vfio_pci_intrs.ts";
import { EBADF, EBUSY, EFAULT, EINVAL, EIO, ENOTTY, ERANGE } from "../../../src/lib/errno.ts";
import { PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../../src/uapi/pci_regs.ts";
import * as V from "../../../src/uapi/vfio.ts";
import { Bench, TINY } from "./bench.ts";

const { VFIO_IRQ_SET_DATA_NONE: NONE, VFIO_IRQ_SET_DATA_BOOL: BOOL, VFIO_IRQ_SET_DATA_EVENTFD: EVENTFD } = V;
const { VFIO_IRQ_SET_ACTION_TRIGGER: TRIGGER, VFIO_IRQ_SET_ACTION_MASK: MASK, VFIO_IRQ_SET_ACTION_UNMASK: UNMASK } = V;
const [INTX, MSI, MSIX, ERR, REQ] = [0, 1, 2, 3, 4] as const;

const master = (b: Bench, fd: number): void => {
  b.configWrite(fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
};

test("GET_IRQ_INFO tells counts and what each index can do", () => {
  const b = new Bench();
  const fd = b.device();
  const info = (index: number) => {
    const v = V.VfioIrqInfo.alloc({ argsz: V.VfioIrqInfo.size, index });
    return { result: b.ioctl(fd, V.VFIO_DEVICE_GET_IRQ_INFO, v), flags: v.flags, count: v.count };
  };
  expect(info(INTX)).toEqual({ result: 0, flags: 7, count: 1 });
  expect(info(MSI)).toEqual({ result: 0, flags: 9, count: 4 });
  expect(info(MSIX)).toEqual({ result: 0, flags: 1, count: 8 });
  expect(info(ERR)).toEqual({ result: 0, flags: 9, count: 1 });
  expect(info(REQ)).toEqual({ result: 0, flags: 9, count: 1 });
  expect(info(5).result).toBe(EINVAL);
});

describe("SET_IRQS checks", () => {
  test("its header, then the range, then the length of the data, then the data", () => {
    const b = new Bench();
    const fd = b.device();
    const raw = (init: object): unknown => b.ioctl(fd, V.VFIO_DEVICE_SET_IRQS, V.VfioIrqSet.alloc({ argsz: 20, ...init }));
    expect(raw({ argsz: 19 })).toBe(EINVAL);
    expect(raw({ flags: 1 << 6 })).toBe(EINVAL);
    expect(raw({ flags: NONE | TRIGGER, index: 5 })).toBe(EINVAL);
    expect(raw({ flags: NONE | TRIGGER, index: MSI, start: 4 })).toBe(EINVAL);
    expect(raw({ flags: NONE | TRIGGER, index: MSI, start: 2, count: 3 })).toBe(EINVAL);
    expect(raw({ flags: NONE | TRIGGER, index: MSI, start: 1, count: 0xffff_fffe })).toBe(EINVAL);
    expect(raw({ flags: NONE | BOOL | TRIGGER, index: MSI, count: 1 })).toBe(EINVAL);
    expect(raw({ flags: EVENTFD | TRIGGER, index: MSI, count: 1 })).toBe(EINVAL);
    expect(raw({ flags: NONE, index: MSI, count: 1 })).toBe(ENOTTY);
    expect(raw({ flags: NONE | MASK, index: MSI, count: 1 })).toBe(ENOTTY);
    // No vectors are fewer than the one that must be had.
    expect(raw({ flags: EVENTFD | TRIGGER, index: MSI })).toBe(ERANGE);
    expect(raw({ flags: EVENTFD | TRIGGER, index: MSIX })).toBe(ERANGE);
    expect(b.run(b.process.sys.ioctl(fd, V.VFIO_DEVICE_SET_IRQS, 0x10n))).toBe(EFAULT);
  });

  test("a bad descriptor leaves nothing set up", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 2, [e, 999])).toBe(EBADF);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 2, [e, b.iommufd])).toBe(EINVAL);
    expect(b.core().irqCtx.size).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSI, 0, 1, [e])).toBe(0);
  });

  test("one kind at a time", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSI, 0, 1, [e])).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 1, [e])).toBe(EINVAL);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, INTX, 0, 1, [e])).toBe(EINVAL);
    expect(b.setIrqs(fd, NONE | TRIGGER, MSI, 0, 0)).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, INTX, 0, 1, [e])).toBe(0);
  });
});

describe("message interrupts", () => {
  test.each([
    ["MSI", MSI, 4],
    ["MSI-X", MSIX, 8],
  ])("%s vectors signal their own eventfds", (_name, index, n) => {
    const b = new Bench();
    const fd = b.device();
    master(b, fd);
    const fds = Array.from({ length: n }, () => b.eventfd());
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, index, 0, n, fds)).toBe(0);
    b.model().port?.msi(n - 1);
    b.model().port?.msi(n - 1);
    b.model().port?.msi(0);
    expect(fds.map((f) => b.takeEvents(f))).toEqual([1n, ...new Array(n - 2).fill(0n), 2n]);
  });

  test("-1 takes one eventfd away; the vector is silent, the others go on", () => {
    const b = new Bench();
    const fd = b.device();
    master(b, fd);
    const [x, y] = [b.eventfd(), b.eventfd()];
    b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 2, [x, y]);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 1, [-1])).toBe(0);
    b.model().port?.msi(0);
    b.model().port?.msi(1);
    expect([b.takeEvents(x), b.takeEvents(y)]).toEqual([0n, 1n]);
  });

  test("MSI-X vectors can be added beyond those of the first call, MSI vectors cannot", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 1, [e])).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 5, 1, [e])).toBe(0);
    b.setIrqs(fd, NONE | TRIGGER, MSIX, 0, 0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSI, 0, 1, [e])).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSI, 3, 1, [e])).toBe(EINVAL);
  });

  test("DATA_NONE and DATA_BOOL fire as hardware would", () => {
    const b = new Bench();
    const fd = b.device();
    const [x, y] = [b.eventfd(), b.eventfd()];
    expect(b.setIrqs(fd, NONE | TRIGGER, MSIX, 0, 1)).toBe(EINVAL);
    b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 2, [x, y]);
    expect(b.setIrqs(fd, NONE | TRIGGER, MSIX, 0, 2)).toBe(0);
    expect(b.setIrqs(fd, BOOL | TRIGGER, MSIX, 0, 2, [], [0, 1])).toBe(0);
    expect([b.takeEvents(x), b.takeEvents(y)]).toEqual([1n, 2n]);
  });

  test("setting up vectors leaves COMMAND as it was", () => {
    const b = new Bench();
    const fd = b.device();
    b.configWrite(fd, PCI_COMMAND, 2, 0);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 1, [b.eventfd()])).toBe(0);
    expect(b.configRead(fd, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY).toBe(0);
    expect(b.pread(fd, 0, 0, 4)).toBe(EIO);
  });
});

describe.each([
  ["masked in COMMAND", {}],
  ["masked at the interrupt controller", { nointxmask: true }],
])("INTx, %s", (_name, params) => {
  const setup = () => {
    const b = new Bench({ params });
    const fd = b.device();
    const e = b.eventfd();
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, INTX, 0, 1, [e])).toBe(0);
    return { b, fd, e, port: b.model().port as NonNullable<ReturnType<typeof b.model>["port"]> };
  };

  test("a raised line signals once and is masked until the user unmasks; still raised, it signals again", () => {
    const { b, fd, e, port } = setup();
    port.raiseIntx();
    b.settle();
    expect(b.takeEvents(e)).toBe(1n);
    expect(b.setIrqs(fd, NONE | UNMASK, INTX, 0, 1)).toBe(0);
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
    expect(b.setIrqs(fd, BOOL | UNMASK, INTX, 0, 1, [], [1])).toBe(0);
    expect(b.takeEvents(e)).toBe(0n);
    port.raiseIntx();
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
  });

  test("a mask holds it back", () => {
    const { b, fd, e, port } = setup();
    expect(b.setIrqs(fd, NONE | MASK, INTX, 0, 1)).toBe(0);
    port.raiseIntx();
    expect(b.takeEvents(e)).toBe(0n);
    b.setIrqs(fd, NONE | UNMASK, INTX, 0, 1);
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
  });

  test("an eventfd unmasks, and is emptied by it", () => {
    const { b, fd, e, port } = setup();
    const u = b.eventfd();
    expect(b.setIrqs(fd, EVENTFD | UNMASK, INTX, 0, 1, [u])).toBe(0);
    expect(b.setIrqs(fd, EVENTFD | UNMASK, INTX, 0, 1, [u])).toBe(EBUSY);
    port.raiseIntx();
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
    b.signalEventfd(u);
    b.settle();
    expect(b.takeEvents(u)).toBe(0n);
    port.raiseIntx();
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
    expect(b.setIrqs(fd, EVENTFD | MASK, INTX, 0, 1, [u])).toBe(ENOTTY);
  });

  test("the user's INTx disable bit holds it back", () => {
    const { b, fd, e, port } = setup();
    b.configWrite(fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE);
    port.raiseIntx();
    expect(b.takeEvents(e)).toBe(0n);
    b.configWrite(fd, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    expect(b.takeEvents(e)).toBe(1n);
    port.lowerIntx();
  });
});

describe("the kernel's own lines", () => {
  test("an error signals the error eventfd", () => {
    const b = new Bench();
    const fd = b.device();
    const e = b.eventfd();
    expect(b.setIrqs(fd, NONE | TRIGGER, ERR, 0, 1)).toBe(EINVAL);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, ERR, 0, 1, [e])).toBe(0);
    vfioPciErrorDetected(b.core());
    expect(b.setIrqs(fd, NONE | TRIGGER, ERR, 0, 1)).toBe(0);
    expect(b.takeEvents(e)).toBe(2n);
    expect(b.setIrqs(fd, NONE | TRIGGER, ERR, 0, 0)).toBe(0);
    vfioPciErrorDetected(b.core());
    expect(b.takeEvents(e)).toBe(0n);
  });

  test("a line takes -1 or an eventfd, nothing else", () => {
    const b = new Bench();
    const fd = b.device();
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, REQ, 0, 1, [-2])).toBe(EINVAL);
    expect(b.setIrqs(fd, EVENTFD | TRIGGER, REQ, 0, 1, [-1])).toBe(0);
    expect(b.setIrqs(fd, BOOL | TRIGGER, REQ, 0, 0)).toBe(EINVAL);
  });
});

test("the close takes every interrupt down, and a function without a pin has no INTx", () => {
  const b = new Bench();
  const fd = b.device();
  b.setIrqs(fd, EVENTFD | TRIGGER, MSIX, 0, 3, [b.eventfd(), b.eventfd(), b.eventfd()]);
  b.setIrqs(fd, EVENTFD | TRIGGER, REQ, 0, 1, [b.eventfd()]);
  b.close(fd);
  expect(b.core().irqCtx.size).toBe(0);
  expect(b.pdev().irqs.count).toBe(0);
  const { interruptPin: _pin, ...noPin } = TINY;
  const c = new Bench({ functions: [noPin] });
  expect(c.setIrqs(c.device(), EVENTFD | TRIGGER, INTX, 0, 1, [c.eventfd()])).toBe(EINVAL);
});
