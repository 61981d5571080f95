import { describe, expect, it } from "vitest";
import { EBUSY, EINVAL, ENOSPC } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_MASKALL, PCI_STATUS, PCI_STATUS_INTERRUPT } from "../../../src/uapi/pci_regs.ts";
import { alone, FULL, PLAIN, read32, type TestMachine, write32 } from "./machine.ts";

const DEV = "0000:01:00.0";
const TABLE = 0x2000;
const PBA = 0x3000;

function awake(description = FULL): TestMachine {
  const m = alone(description);
  m.dev(DEV).enable();
  m.dev(DEV).setMaster(true);
  return m;
}

describe("MSI-X", () => {
  it("delivers to the handler of the vector, in the order of raising", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    expect(d.allocIrqVectors("msix", 8)).toBe(3);
    for (let v = 0; v < 3; v++) expect(d.requestIrq(v, (n) => void got.push(n))).toBeUndefined();
    for (const v of [2, 0, 1, 7]) m.model(DEV).port.msi(v);
    expect(got).toEqual([2, 0, 1]);
  });

  it("keeps a masked vector pending, shows it in the pending bits, and delivers it when unmasked", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    d.allocIrqVectors("msix", 2);
    d.requestIrq(1, (n) => void got.push(n));
    write32(d, 0, TABLE + 16 + 12, 1);
    m.model(DEV).port.msi(1);
    m.model(DEV).port.msi(1);
    expect(got).toEqual([]);
    expect(read32(d, 0, PBA)).toBe(2);
    write32(d, 0, TABLE + 16 + 12, 0);
    expect(got).toEqual([1]);
    expect(read32(d, 0, PBA)).toBe(0);
  });

  it("keeps all pending while the function mask is set", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    d.allocIrqVectors("msix", 2);
    d.requestIrq(0, (n) => void got.push(n));
    const flags = d.configRead(d.msixCap + PCI_MSIX_FLAGS, 2);
    d.configWrite(d.msixCap + PCI_MSIX_FLAGS, 2, flags | PCI_MSIX_FLAGS_MASKALL);
    m.model(DEV).port.msi(0);
    expect(got).toEqual([]);
    d.configWrite(d.msixCap + PCI_MSIX_FLAGS, 2, flags);
    expect(got).toEqual([0]);
  });

  it("needs bus mastering", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    d.allocIrqVectors("msix", 1);
    d.requestIrq(0, (n) => void got.push(n));
    d.setMaster(false);
    m.model(DEV).port.msi(0);
    expect(got).toEqual([]);
  });

  it("survives a function reset", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    d.allocIrqVectors("msix", 1);
    d.requestIrq(0, (n) => void got.push(n));
    m.run(d.tryResetFunction());
    m.model(DEV).port.msi(0);
    expect(got).toEqual([0]);
  });

  it("table is readable and writable, the pending bits are not, and neither reaches the model", () => {
    const m = awake();
    const d = m.dev(DEV);
    expect(read32(d, 0, TABLE + 12)).toBe(1);
    write32(d, 0, TABLE, 0x1234_5678);
    expect(read32(d, 0, TABLE)).toBe(0x1234_5678);
    write32(d, 0, PBA, 0xffff_ffff);
    expect(read32(d, 0, PBA)).toBe(0);
    expect(m.model(DEV).accesses).toEqual([]);
    read32(d, 0, TABLE + 48);
    expect(m.model(DEV).accesses).toEqual([`r0+${TABLE + 48}/4`]);
  });
});

describe("MSI", () => {
  it("folds surplus vectors onto those enabled", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    expect(d.allocIrqVectors("msi", 2)).toBe(2);
    d.requestIrq(0, (n) => void got.push(n));
    d.requestIrq(1, (n) => void got.push(n));
    for (const v of [0, 1, 2, 3]) m.model(DEV).port.msi(v);
    expect(got).toEqual([0, 1, 0, 1]);
  });

  it("waits for a handler where vectors can be masked", () => {
    const m = awake();
    const d = m.dev(DEV);
    const got: number[] = [];
    d.allocIrqVectors("msi", 1);
    m.model(DEV).port.msi(0);
    d.requestIrq(0, (n) => void got.push(n));
    expect(got).toEqual([0]);
  });
});

describe("INTx", () => {
  it("is delivered when it rises and again when it is unmasked while up", () => {
    const m = awake();
    const d = m.dev(DEV);
    let got = 0;
    expect(d.allocIrqVectors("intx", 1)).toBe(1);
    d.requestIrq(0, () => void got++);
    m.model(DEV).port.raiseIntx();
    m.model(DEV).port.raiseIntx();
    expect(got).toBe(1);
    expect(d.configRead(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT).not.toBe(0);
    expect(d.checkAndMaskIntx()).toBe(true);
    expect(d.checkAndUnmaskIntx()).toBe(false);
    d.intx(true);
    expect(got).toBe(2);
    m.model(DEV).port.lowerIntx();
    expect(d.checkAndMaskIntx()).toBe(false);
    expect(d.configRead(PCI_STATUS, 2) & PCI_STATUS_INTERRUPT).toBe(0);
  });

  it("is held back by a disabled line and replayed", () => {
    const m = awake();
    const d = m.dev(DEV);
    let got = 0;
    d.allocIrqVectors("intx", 1);
    d.requestIrq(0, () => void got++);
    d.irqs.disableLine();
    m.model(DEV).port.raiseIntx();
    expect(got).toBe(0);
    d.irqs.enableLine();
    expect(got).toBe(1);
    expect(() => d.irqs.enableLine()).toThrow(KernelBug);
  });

  it("can be masked on any function", () => {
    expect(awake().dev(DEV).intxMaskSupported).toBe(true);
  });
});

describe("vectors", () => {
  it("are refused where the function has none of the kind, is in use, or sleeps", () => {
    const plain = awake(PLAIN).dev(DEV);
    expect([plain.allocIrqVectors("intx", 1), plain.allocIrqVectors("msi", 1), plain.allocIrqVectors("msix", 1)]).toEqual([
      ENOSPC,
      EINVAL,
      EINVAL,
    ]);
    const m = awake();
    const d = m.dev(DEV);
    expect(d.allocIrqVectors("msix", 9, 4)).toBe(ENOSPC);
    d.allocIrqVectors("msix", 1);
    expect(d.allocIrqVectors("msi", 1)).toBe(EINVAL);
    expect([d.requestIrq(1, () => {}), d.requestIrq(0, () => {}), d.requestIrq(0, () => {})]).toEqual([EINVAL, undefined, EBUSY]);
    expect(() => d.freeIrqVectors()).toThrow(KernelBug);
    d.freeIrq(0);
    d.freeIrqVectors();
    m.run(d.setPowerState(3));
    expect(d.allocIrqVectors("msi", 1)).toBe(EINVAL);
  });
});
