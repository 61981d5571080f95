import { describe, expect, it } from "vitest";
import type { PciFunctionDescription } from "../../../src/kernel/pci/pci_model.ts";
import { setResetMethods } from "../../../src/kernel/pci/reset.ts";
import { EAGAIN, EINVAL, ENOTTY } from "../../../src/lib/errno.ts";
import { PCI_BASE_ADDRESS_0, PCI_BASE_ADDRESS_2, PCI_COMMAND, PCI_EXP_DEVCTL, PCI_VENDOR_ID } from "../../../src/uapi/pci_regs.ts";
import { alone, endpoint, FULL, machine, PLAIN, rootPort, switchOf, type TestMachine, write32 } from "./machine.ts";

const DEV = "0000:01:00.0";
const MS = 1e6;
const NO_FLR = { ...FULL, capabilities: { ...FULL.capabilities, pcie: {} } };

describe("reset methods", () => {
  const table: [string, PciFunctionDescription, string[]][] = [
    ["PCIe with FLR and a soft-resetting PM", FULL, ["flr", "pm", "bus"]],
    ["nothing at all, alone on its bus", PLAIN, ["bus"]],
    ["AF with FLR", { ...PLAIN, capabilities: { af: {} } }, ["af_flr", "bus"]],
    ["AF without FLR", { ...PLAIN, capabilities: { af: { flr: false } } }, ["bus"]],
    ["PM that keeps its state in D3hot", { ...PLAIN, capabilities: { pm: { noSoftReset: true } } }, ["bus"]],
    ["a device-specific one", { ...PLAIN, deviceSpecificReset: true }, ["device_specific", "bus"]],
    ["quirks against all", { ...FULL, noFlrReset: true, noPmReset: true, noBusReset: true }, []],
  ];
  it.each(table)("of a function with %s", (_what, description, methods) => {
    expect(alone(description).dev(DEV).resetMethods).toEqual(methods);
  });

  it("leave out the bus for a function that shares it, and for one on the root bus", () => {
    const two = machine({
      root: [rootPort([endpoint(PLAIN, { function: 0 }), endpoint(PLAIN, { function: 1 })]), endpoint(PLAIN, { device: 5 })],
    });
    expect(two.dev("0000:01:00.1").resetMethods).toEqual([]);
    expect(two.dev("0000:00:05.0").resetMethods).toEqual([]);
    expect(two.run(two.dev("0000:01:00.1").tryResetFunction())).toBe(ENOTTY);
    // The first on the bus is listed with it, and learns at the reset that it is not alone.
    expect(two.dev("0000:01:00.0").resetMethods).toEqual(["bus"]);
    expect(setResetMethods(two.dev("0000:01:00.0"), ["bus"])).toBe(EINVAL);
    expect(two.run(two.dev("0000:01:00.0").tryResetFunction())).toBe(ENOTTY);
    expect(two.model("0000:01:00.0").resets).toEqual([]);
  });

  it("can be set to a subset in any order, but not to one the device does not support", () => {
    const d = alone(FULL).dev(DEV);
    expect(setResetMethods(d, ["bus", "flr"])).toBeUndefined();
    expect(d.resetMethods).toEqual(["bus", "flr"]);
    expect(setResetMethods(d, ["af_flr"])).toBe(EINVAL);
    expect(setResetMethods(d, [])).toBeUndefined();
    expect(d.resetFunctionSupported).toBe(false);
  });
});

describe("a function reset", () => {
  it("clears the hardware and restores what the kernel had set", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    d.setMaster(true);
    write32(d, 0, 0x10, 7);
    const command = d.configRead(PCI_COMMAND, 2);
    const bars = [d.configRead(PCI_BASE_ADDRESS_0, 4), d.configRead(PCI_BASE_ADDRESS_2, 4)];
    expect(m.run(d.tryResetFunction())).toBeUndefined();
    expect(m.model(DEV).resets).toEqual(["flr"]);
    expect(m.model(DEV).registers.size).toBe(0);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(command);
    expect([d.configRead(PCI_BASE_ADDRESS_0, 4), d.configRead(PCI_BASE_ADDRESS_2, 4)]).toEqual(bars);
    expect(m.kernel.phys.at(d.resources[0]?.start ?? 0n)).toBe("mmio");
    expect(d.lock.locked).toBe(false);
  });

  it("by the FLR bit alone leaves BARs and COMMAND cleared", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    const devctl = d.pcieCap + PCI_EXP_DEVCTL;
    d.configWrite(devctl, 2, d.configRead(devctl, 2) | 0x8000);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(0);
    expect(d.configRead(PCI_BASE_ADDRESS_0, 4)).toBe(0);
    expect(d.configRead(devctl, 2) & 0x8000).toBe(0);
    expect(m.kernel.phys.at(d.resources[0]?.start ?? 0n)).toBe("none");
    d.restoreState();
    expect(m.model(DEV).resets).toEqual(["flr"]);
  });

  it("is not started by the FLR bit of a function without FLR", () => {
    const m = alone(NO_FLR);
    m.dev(DEV).configWrite(m.dev(DEV).pcieCap + PCI_EXP_DEVCTL, 2, 0x8000);
    expect(m.model(DEV).resets).toEqual([]);
  });

  it.each([
    ["af_flr", { ...PLAIN, capabilities: { af: {} } }, "af"],
    ["pm", { ...FULL, noFlrReset: true }, "pm"],
    ["bus", PLAIN, "bus"],
    ["device_specific", { ...PLAIN, deviceSpecificReset: true }, "device_specific"],
  ] as const)("runs by %s", (method, description, kind) => {
    const m = alone(description);
    m.dev(DEV).enable();
    expect(m.run(m.dev(DEV).tryResetFunction())).toBeUndefined();
    expect(m.model(DEV).resets).toEqual([kind]);
    expect(m.eventsOf("pci.reset")).toMatchObject([{ method, result: "ok" }]);
  });

  it("answers EAGAIN while the device is locked", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    const holder = m.kernel.sched.spawn("holder", function* () {
      yield* d.devLock();
      yield* m.kernel.sched.sleep(5 * MS);
      d.devUnlock();
    });
    while (!d.lock.locked) m.kernel.sched.step(holder);
    expect(m.run(d.tryResetFunction())).toBe(EAGAIN);
    m.kernel.sched.settle();
    expect(m.run(d.tryResetFunction())).toBeUndefined();
  });

  it("holds user space off config space until it is over", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    const { sched } = m.kernel;
    const seen: [string, number][] = [];
    sched.spawn("reset", function* () {
      yield* d.tryResetFunction();
      seen.push(["reset", sched.now]);
    });
    sched.spawn("reader", function* () {
      const id = yield* d.userConfigRead(PCI_VENDOR_ID, 2);
      seen.push([`read ${id.toString(16)}`, sched.now]);
    });
    sched.settle();
    expect(seen.map((s) => s[0])).toEqual(["reset", "read 1234"]);
    expect(seen[1]?.[1]).toBe(100 * MS);
  });

  it("calls the driver before the state is saved and after it was restored", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    const calls: string[] = [];
    d.enable();
    m.run(
      m.kernel.pci.bind(
        {
          name: "test",
          ids: [{}],
          *probe() {
            yield* m.kernel.sched.sleep(1);
            return undefined;
          },
          *remove() {
            yield* m.kernel.sched.sleep(1);
          },
          errHandler: {
            resetPrepare: () => void calls.push(`prepare ${d.fn.memoryEnabled}`),
            resetDone: () => void calls.push(`done ${d.fn.memoryEnabled}`),
          },
        },
        DEV,
      ),
    );
    m.run(d.tryResetFunction());
    expect(calls).toEqual(["prepare true", "done true"]);
  });

  it("that never becomes ready ends in ENOTTY after the kernel's patience, and tries the next method on ENOTTY", () => {
    const m = alone({ ...FULL, reset: { flr: "fails" } });
    const d = m.dev(DEV);
    setResetMethods(d, ["flr"]);
    expect(m.run(d.tryResetFunction())).toBe(ENOTTY);
    expect(m.kernel.sched.now).toBe((100 + 65_535) * MS);
    expect(d.configRead(PCI_VENDOR_ID, 2)).toBe(0xffff);
    expect(d.lock.locked).toBe(false);
    // A bus reset brings it back.
    setResetMethods(d, []);
    d.resetMethods = ["flr", "bus"];
    expect(m.run(d.tryResetFunction())).toBeUndefined();
    expect(d.configRead(PCI_VENDOR_ID, 2)).toBe(0x1234);
  });

  it("of a slow function waits for it", () => {
    const m = alone({ ...FULL, reset: { flr: { readyAfter: 250 * MS } } });
    expect(m.run(m.dev(DEV).tryResetFunction())).toBeUndefined();
    expect(m.kernel.sched.now).toBeGreaterThanOrEqual(250 * MS);
    expect(m.kernel.sched.now).toBeLessThan(500 * MS);
  });

  it("that waits (reset_function) takes the bridge's lock first", () => {
    const m = alone(FULL);
    expect(m.run(m.dev(DEV).resetFunction())).toBeUndefined();
    expect(m.model(DEV).resets).toEqual(["flr"]);
  });

  it("wakes a sleeping function, which comes back awake", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(d.setPowerState(3));
    expect(m.run(d.tryResetFunction())).toBeUndefined();
    expect(d.currentState).toBe(0);
    expect(m.model(DEV).resets).toEqual(["pm", "flr"]);
  });
});

describe("a bus reset", () => {
  const below = (m: TestMachine): string[] => [...m.kernel.pci.devices.values()].filter((d) => !d.isBridge).map((d) => d.name);

  it("resets all that is below the bridge and restores it", () => {
    const m = machine({ root: [rootPort([switchOf([endpoint(FULL), endpoint(PLAIN)])])] });
    for (const d of m.kernel.pci.devices.values()) d.enable();
    const commands = new Map([...m.kernel.pci.devices.values()].map((d) => [d.name, d.configRead(PCI_COMMAND, 2)]));
    const up = m.dev("0000:01:00.0");
    expect(m.run(up.probeResetBus())).toBeUndefined();
    expect(m.run(up.probeResetSlot())).toBe(ENOTTY);
    expect(m.run(up.resetBus())).toBeUndefined();
    for (const bdf of below(m)) expect(m.model(bdf).resets).toEqual(["bus"]);
    for (const [name, command] of commands) expect([name, m.dev(name).configRead(PCI_COMMAND, 2)]).toEqual([name, command]);
    for (const bdf of below(m)) expect(m.kernel.phys.at(m.dev(bdf).resources[2]?.start ?? 0n)).toBe("mmio");
    for (const d of m.kernel.pci.devices.values()) expect([d.lock.locked, d.blockCfgAccess]).toEqual([false, false]);
    expect(m.eventsOf("pci.bus_reset")).toMatchObject([{ bridge: "0000:00:00.0", result: "ok" }]);
  });

  it("of a function without PM is over in 2 ms", () => {
    const m = alone(PLAIN);
    expect(m.run(m.dev(DEV).resetBus())).toBeUndefined();
    expect(m.kernel.sched.now).toBe(2 * MS);
  });

  it("whose link does not come back answers ENOTTY after a second, and the function was reset all the same", () => {
    const m = alone({ ...FULL, reset: { bus: "fails" } });
    const d = m.dev(DEV);
    d.enable();
    const command = d.configRead(PCI_COMMAND, 2);
    expect(m.run(d.resetBus())).toBe(ENOTTY);
    expect(m.kernel.sched.now).toBe(1022 * MS);
    expect(m.model(DEV).resets).toEqual(["bus"]);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(command);
    expect(m.eventsOf("pci.bus_reset")).toMatchObject([{ result: "ENOTTY" }]);
  });

  it("after which a function is dead leaves it so", () => {
    const m = alone({ ...FULL, reset: { bus: "dead" } });
    expect(m.run(m.dev(DEV).resetBus())).toBe(ENOTTY);
    expect(m.dev(DEV).configRead(PCI_VENDOR_ID, 2)).toBe(0xffff);
  });

  it("answers EAGAIN and leaves nothing locked when one device below is", () => {
    const m = machine({ root: [rootPort([switchOf([endpoint(FULL), endpoint(PLAIN)])])] });
    const [first = "", last = ""] = below(m);
    const d = m.dev(last);
    const holder = m.kernel.sched.spawn("holder", function* () {
      yield* d.lock.lock();
      yield* m.kernel.sched.sleep(1);
      d.lock.unlock();
    });
    while (!d.lock.locked) m.kernel.sched.step(holder);
    expect(m.run(m.dev("0000:01:00.0").resetBus())).toBe(EAGAIN);
    expect(m.model(first).resets).toEqual([]);
    const held = [...m.kernel.pci.devices.values()].filter((x) => x.lock.locked).map((x) => x.name);
    expect(held).toEqual([last]);
    m.kernel.sched.settle();
  });

  it("is not offered on the root bus, nor where a device must not be reset so", () => {
    const m = machine({ root: [endpoint(PLAIN), rootPort([endpoint({ ...PLAIN, noBusReset: true })])] });
    expect(m.run(m.dev("0000:00:00.0").resetBus())).toBe(ENOTTY);
    expect(m.run(m.dev(DEV).probeResetBus())).toBe(ENOTTY);
    expect(m.run(m.dev(DEV).resetBus())).toBe(ENOTTY);
  });

  it("goes by the slot where the port has one", () => {
    const m = machine({ root: [rootPort([endpoint(PLAIN)], { hotplug: true })] });
    expect(m.run(m.dev(DEV).probeResetSlot())).toBeUndefined();
    expect(m.run(m.dev(DEV).resetBus())).toBeUndefined();
    expect(m.model(DEV).resets).toEqual(["bus"]);
  });

  it("takes the locks from the bridge down", () => {
    const m = machine({ root: [rootPort([endpoint(PLAIN, { function: 0 }), endpoint(PLAIN, { function: 1 })])] });
    const taken: string[] = [];
    const names = new Map([...m.kernel.pci.devices.values()].map((d) => [d.lock, d.name]));
    m.kernel.sched.observer = { acquired: (_t, lock) => void taken.push(names.get(lock as never) ?? "?") };
    m.run(m.dev(DEV).resetBus());
    expect(taken).toEqual(["0000:00:00.0", "0000:01:00.0", "0000:01:00.1"]);
  });
});
