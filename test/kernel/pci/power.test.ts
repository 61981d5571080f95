import { describe, expect, it } from "vitest";
import type { PciDriver } from "../../../src/kernel/pci/driver.ts";
import { EINVAL, EIO, type Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { PCI_BASE_ADDRESS_0, PCI_COMMAND, PCI_PM_CTRL } from "../../../src/uapi/pci_regs.ts";
import { alone, FULL, PLAIN, read32, type TestMachine, write32 } from "./machine.ts";

const DEV = "0000:01:00.0";
const KEEPS = { ...FULL, capabilities: { ...FULL.capabilities, pm: { noSoftReset: true } } };

describe("D3hot", () => {
  it("takes BARs away and keeps config space", () => {
    const m = alone(KEEPS);
    const d = m.dev(DEV);
    d.enable();
    const command = d.configRead(PCI_COMMAND, 2);
    write32(d, 0, 0, 5);
    expect(m.run(d.setPowerState(3))).toBeUndefined();
    expect(d.currentState).toBe(3);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(command);
    expect(m.kernel.phys.at(d.resources[0]?.start ?? 0n)).toBe("none");
    expect(read32(d, 0, 0)).toBe(0xffff_ffff);
    expect(m.run(d.setPowerState(0))).toBeUndefined();
    expect(read32(d, 0, 0)).toBe(5);
    expect(m.model(DEV).powers).toEqual([3, 0]);
    expect(m.kernel.sched.now).toBe(20e6);
  });

  it("left without No_Soft_Reset resets the function; the kernel writes the BARs again but not COMMAND", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    const bar = d.configRead(PCI_BASE_ADDRESS_0, 4);
    m.run(d.setPowerState(3));
    m.run(d.setPowerState(0));
    expect(m.model(DEV).resets).toEqual(["pm"]);
    expect(d.configRead(PCI_BASE_ADDRESS_0, 4)).toBe(bar);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(0);
  });

  it("is not entered by a function without PM, nor by one that is known not to leave it", () => {
    const plain = alone(PLAIN);
    expect(plain.run(plain.dev(DEV).setPowerState(3))).toBeUndefined();
    expect(plain.dev(DEV).currentState).toBe(0);
    const quirk = alone({ ...FULL, noD3: true });
    expect(quirk.run(quirk.dev(DEV).setPowerState(3))).toBeUndefined();
    expect(quirk.dev(DEV).currentState).toBe(0);
  });

  it("is what D3cold becomes on a machine that cannot cut the power", () => {
    const m = alone(FULL);
    expect(m.run(m.dev(DEV).setPowerState(4))).toBeUndefined();
    expect(m.dev(DEV).currentState).toBe(3);
  });

  it("stops DMA", () => {
    const m = alone(KEEPS);
    const d = m.dev(DEV);
    d.enable();
    d.setMaster(true);
    expect(m.model(DEV).port.dmaWrite(0x1000n, new Uint8Array(8))).toBe(true);
    m.run(d.setPowerState(3));
    expect(m.model(DEV).port.dmaWrite(0x1000n, new Uint8Array(8))).toBe(false);
    expect(m.eventsOf("pci.dma").map((e) => e.route)).toEqual(["root", "dropped"]);
  });

  it("D1 and D2 do not exist: nothing happens, in the register either", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    expect(m.run(d.setPowerState(2))).toBeUndefined();
    d.configWrite(d.pmCap + PCI_PM_CTRL, 2, 1);
    expect(d.configRead(d.pmCap + PCI_PM_CTRL, 2) & 3).toBe(0);
  });
});

describe("a function that cannot be woken", () => {
  it("gives EIO and counts as D3cold", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(d.setPowerState(3));
    d.fn.setMainPower(false);
    expect(m.run(d.setPowerState(0))).toBe(EIO);
    expect(d.currentState).toBe(4);
  });
});

const driver = (m: TestMachine, more: Partial<PciDriver> = {}): PciDriver => ({
  name: "sleepy",
  ids: [{}],
  *probe(dev) {
    yield* m.kernel.sched.sleep(1);
    dev.pm.allow();
    return undefined;
  },
  *remove(dev) {
    yield* dev.pm.forbid();
  },
  ...more,
});

describe("runtime PM", () => {
  it("suspends a bound device into D3hot when the last reference goes, and brings its state back", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    const command = d.configRead(PCI_COMMAND, 2);
    const log: string[] = [];
    const logging = (what: string) =>
      function* (): Generator<never, Errno | undefined> {
        log.push(`${what} in D${d.currentState}`);
        yield* [];
        return undefined;
      };
    m.run(m.kernel.pci.bind(driver(m, { runtimeSuspend: logging("suspend"), runtimeResume: logging("resume") }), DEV));
    expect(d.pm.status).toBe("active");
    d.pmRuntimePut();
    expect(d.pm.status).toBe("active");
    m.kernel.sched.settle();
    expect([d.pm.status, d.currentState]).toEqual(["suspended", 3]);
    expect(m.run(d.pmRuntimeResumeAndGet())).toBe(0);
    expect([d.pm.status, d.currentState, d.pm.usageCount]).toEqual(["active", 0, 1]);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(command);
    expect(log).toEqual(["suspend in D0", "resume in D0"]);
    expect(m.eventsOf("pci.runtime_pm").map((e) => e.status)).toEqual(["suspended", "active"]);
  });

  it("leaves a device without PM in D0 though it calls it suspended", () => {
    const m = alone(PLAIN);
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver(m), DEV));
    d.pmRuntimePut();
    m.kernel.sched.settle();
    expect([d.pm.status, d.currentState]).toEqual(["suspended", 0]);
    d.enable();
    expect(read32(d, 0, 0)).toBe(0);
  });

  it("does not suspend a device that was taken again meanwhile", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver(m), DEV));
    d.pmRuntimePut();
    d.pmRuntimeGetNoresume();
    m.kernel.sched.settle();
    expect(d.pm.status).toBe("active");
    d.pmRuntimePut();
    m.kernel.sched.settle();
    expect(d.pm.status).toBe("suspended");
  });

  it("whose resume fails leaves no reference, and every later one answers EINVAL until the status is set anew", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver(m), DEV));
    d.pmRuntimePut();
    m.kernel.sched.settle();
    d.pm.failNextResume = EIO;
    expect(m.run(d.pmRuntimeResumeAndGet())).toBe(EIO);
    expect(d.pm.usageCount).toBe(0);
    expect(m.run(d.pmRuntimeResumeAndGet())).toBe(EINVAL);
    d.pm.setStatus("suspended");
    expect(m.run(d.pmRuntimeResumeAndGet())).toBe(0);
  });

  it("makes a second waker wait for the first, and both find it awake", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver(m), DEV));
    d.pmRuntimePut();
    m.kernel.sched.settle();
    const results: unknown[] = [];
    for (const name of ["a", "b"]) {
      m.kernel.sched.spawn(name, function* () {
        results.push(yield* d.pmRuntimeResumeAndGet());
        results.push(d.currentState);
      });
    }
    m.kernel.sched.settle();
    expect(results).toEqual([0, 0, 0, 0]);
    expect(m.eventsOf("pci.power").filter((e) => e.to === 0)).toHaveLength(1);
  });

  it("keeps a driver that refuses awake", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(
      m.kernel.pci.bind(
        driver(m, {
          *runtimeSuspend() {
            yield* [];
            return EIO;
          },
        }),
        DEV,
      ),
    );
    d.pmRuntimePut();
    m.kernel.sched.settle();
    expect([d.pm.status, d.currentState, d.pm.runtimeError]).toEqual(["active", 0, EIO]);
  });

  it("counts: one put too many is a bug", () => {
    const d = alone(FULL).dev(DEV);
    d.pm.putNoidle();
    expect(() => d.pmRuntimePut()).toThrow(KernelBug);
  });
});
