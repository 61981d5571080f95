import { describe, expect, it } from "vitest";
import type { PciDriver } from "../../../src/kernel/pci/driver.ts";
import { disableSriov, enableSriov } from "../../../src/kernel/pci/iov.ts";
import type { PciFunctionDescription } from "../../../src/kernel/pci/pci_model.ts";
import { EBUSY, EINVAL, EIO, ENODEV, ENOENT, ERANGE, type Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { PCI_BASE_ADDRESS_0, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_VENDOR_ID } from "../../../src/uapi/pci_regs.ts";
import { alone, endpoint, FULL, machine, PLAIN, read32, rootPort, type TestMachine, write32 } from "./machine.ts";

const DEV = "0000:01:00.0";

function driver(log: string[], more: Partial<PciDriver> & { fails?: Errno } = {}): PciDriver {
  return {
    name: "test",
    ids: [{ vendor: 0x1234 }],
    *probe(dev) {
      yield* [];
      dev.lock.assertHeld();
      log.push(`probe ${dev.name}`);
      return more.fails;
    },
    *remove(dev) {
      yield* [];
      dev.lock.assertHeld();
      log.push(`remove ${dev.name}`);
    },
    ...more,
  };
}

describe("binding", () => {
  it("matches by id, and driver_override overrules the ids", () => {
    const log: string[] = [];
    const m = machine({ root: [endpoint(FULL), endpoint(PLAIN)] });
    const d = driver(log);
    const other = driver(log, { name: "other", ids: [{ vendor: 0x1af4, overrideOnly: true }] });
    m.kernel.pci.registerDriver(d);
    m.kernel.pci.registerDriver(other);
    m.run(m.kernel.pci.probeAll());
    expect(log).toEqual(["probe 0000:00:00.0"]);
    expect(m.run(m.kernel.pci.bind(other, "0000:00:01.0"))).toBe(ENODEV);
    m.dev("0000:00:01.0").driverOverride = "other";
    expect(m.run(m.kernel.pci.bind("other", "0000:00:01.0"))).toBeUndefined();
    expect(m.run(m.kernel.pci.bind("test", "0000:00:01.0"))).toBe(ENODEV);
    expect(m.run(m.kernel.pci.bind("nobody", "0000:00:01.0"))).toBe(ENODEV);
    expect(m.run(m.kernel.pci.bind(d, "0000:00:00.0"))).toBe(EBUSY);
    expect(() => m.kernel.pci.registerDriver(d)).toThrow(TypeError);
  });

  it("that fails leaves the device without a driver and with the references it had", () => {
    const m = alone(FULL, { kind: "intel-legacy" });
    const d = m.dev(DEV);
    const usage = d.pm.usageCount;
    expect(m.run(m.kernel.pci.bind(driver([], { fails: EIO }), DEV))).toBe(EIO);
    expect([d.driver, d.pm.usageCount, d.iommuGroup?.dmaOwnerClaimed]).toEqual([undefined, usage, false]);
  });

  it("uses the group's DMA API unless the driver manages DMA, and is refused while user space owns the group", () => {
    const m = alone(FULL, { kind: "intel-legacy" });
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver([]), DEV));
    expect(d.iommuGroup?.dmaOwnerClaimed).toBe(true);
    expect(m.run(m.kernel.pci.unbind(DEV))).toBeUndefined();
    expect(d.iommuGroup?.dmaOwnerClaimed).toBe(false);
    m.run((d.iommuGroup as NonNullable<typeof d.iommuGroup>).claimDmaOwner("user"));
    expect(m.run(m.kernel.pci.bind(driver([]), DEV))).toBe(EBUSY);
    expect(m.run(m.kernel.pci.bind(driver([], { driverManagedDma: true }), DEV))).toBeUndefined();
    expect(m.run(m.kernel.pci.unbind(DEV))).toBeUndefined();
    expect(m.run(m.kernel.pci.unbind(DEV))).toBe(ENODEV);
  });

  it("and removing wait for each other on the device lock", () => {
    const m = alone(FULL);
    const log: string[] = [];
    let release = false;
    const d = driver(log, {
      *remove() {
        log.push("remove begins");
        while (!release) yield* m.kernel.sched.sleep(1000);
        log.push("remove ends");
      },
    });
    m.run(m.kernel.pci.bind(d, DEV));
    m.kernel.sched.spawn("remove", () => m.kernel.pci.removeDevice(DEV));
    m.kernel.sched.spawn("reset", function* () {
      const dev = m.dev(DEV);
      log.push(`reset: ${(yield* dev.tryResetFunction())?.name}`);
    });
    m.kernel.sched.timer(50_000, () => {
      release = true;
    });
    m.kernel.sched.settle();
    expect(log).toEqual([`probe ${DEV}`, "remove begins", "reset: EAGAIN", "remove ends"]);
    expect(m.kernel.pci.devices.has(DEV)).toBe(false);
  });
});

describe("hot-unplug", () => {
  it("unbinds, stops decoding and leaves bus and group", () => {
    const m = alone(FULL, { kind: "intel-legacy" });
    const d = m.dev(DEV);
    const log: string[] = [];
    m.run(m.kernel.pci.bind(driver(log), DEV));
    d.enable();
    const group = d.iommuGroup;
    m.run(m.kernel.pci.removeDevice(DEV));
    expect(log).toEqual([`probe ${DEV}`, `remove ${DEV}`]);
    expect(m.kernel.phys.regions).toEqual([]);
    expect(group?.devices).toEqual([]);
    expect(d.configRead(PCI_VENDOR_ID, 2)).toBe(0xffff);
    expect(m.kernel.pci.byRid(d.rid)).toBeUndefined();
    expect(m.dev("0000:00:00.0").subordinate?.devices).toEqual([]);
    expect(m.run(m.kernel.pci.bind(driver(log), DEV))).toBe(ENODEV);
  });

  it("of a port takes what is below first", () => {
    const m = alone(FULL);
    m.run(m.kernel.pci.removeDevice("0000:00:00.0"));
    expect(m.eventsOf("pci.remove").map((e) => e.device)).toEqual([DEV, "0000:00:00.0"]);
    expect(m.kernel.pci.devices.size).toBe(0);
  });

  it("by surprise leaves the driver bound to a device that answers nothing", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    m.run(m.kernel.pci.bind(driver([]), DEV));
    d.enable();
    m.kernel.pci.surpriseRemove(DEV);
    expect(d.driver?.name).toBe("test");
    expect(read32(d, 0, 0)).toBe(0xffff_ffff);
    expect(m.run(m.kernel.pci.unbind(DEV))).toBeUndefined();
  });
});

describe("BAR reservations", () => {
  it("are exclusive and belong to whoever took them", () => {
    const d = alone(FULL).dev(DEV);
    expect([d.requestRegion(0, "vfio"), d.requestRegion(0, "other"), d.requestRegion(1, "x"), d.requestRegion(7, "x")]).toEqual([
      undefined,
      EBUSY,
      undefined,
      EINVAL,
    ]);
    expect(d.regionOwner(0)).toBe("vfio");
    d.releaseRegion(0);
    expect(() => d.releaseRegion(0)).toThrow(KernelBug);
    expect(d.requestRegion(0, "other")).toBeUndefined();
  });

  it("enabling is counted, and the last disable ends bus mastering but not decoding", () => {
    const d = alone(FULL).dev(DEV);
    d.enable();
    d.enable();
    d.setMaster(true);
    d.disable();
    expect(d.fn.busMaster).toBe(true);
    d.disable();
    expect([d.fn.busMaster, d.fn.memoryEnabled, d.enabled]).toEqual([false, true, false]);
    expect(() => d.disable()).toThrow(KernelBug);
  });
});

const VF: PciFunctionDescription = {
  name: "vf",
  vendor: 0x1234,
  device: 0x10ca,
  class: 0x020000,
  bars: [
    { index: 0, size: 0x4000n, kind: "mem64", prefetch: true },
    { index: 2, size: 0x1_0000n, kind: "mem64", prefetch: true },
  ],
  capabilities: { pcie: { flr: true } },
};
const PF: PciFunctionDescription = { ...FULL, extended: { sriov: { totalVfs: 4, vfOffset: 128, vfStride: 2, vf: VF } } };

describe("SR-IOV", () => {
  const names = (m: TestMachine): string[] => [...m.kernel.pci.devices.keys()];

  it("makes virtual functions with memory that needs no COMMAND bit", () => {
    const m = alone(PF, { kind: "intel-legacy" });
    const pf = m.dev(DEV);
    pf.enable();
    expect(m.run(enableSriov(pf, 3))).toBeUndefined();
    expect(names(m).slice(2)).toEqual(["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"]);
    const vf = m.dev("0000:01:10.2");
    expect([vf.isVirtfn, vf.physfn, vf.noCommandMemory, vf.vendor, vf.device]).toEqual([true, pf, true, 0x1234, 0x10ca]);
    expect(vf.configRead(PCI_VENDOR_ID, 4)).toBe(0xffff_ffff);
    expect(vf.configRead(PCI_BASE_ADDRESS_0, 4)).toBe(0);
    expect(vf.resources[0]?.start).toBe((m.dev("0000:01:10.0").resources[0]?.start ?? 0n) + 0x4000n);
    expect(write32(vf, 0, 0, 77)).toBe(true);
    expect(m.kernel.phys.mmioAt(vf.resources[0]?.start ?? 0n)?.name).toBe("0000:01:10.2 BAR 0");
    vf.configWrite(PCI_COMMAND, 2, 0xffff);
    expect(vf.configRead(PCI_COMMAND, 2)).toBe(PCI_COMMAND_MASTER);
    expect(read32(vf, 0, 0)).toBe(77);
    expect(vf.iommuGroup?.devices).toEqual([vf]);
    expect([pf.numVf, vf.resetMethods]).toEqual([3, ["flr"]]);
  });

  it("refuses more than there are, and a second time", () => {
    const m = alone(PF);
    const pf = m.dev(DEV);
    expect(m.run(enableSriov(pf, 5))).toBe(EINVAL);
    expect(m.run(enableSriov(pf, 1))).toBeUndefined();
    expect(m.run(enableSriov(pf, 2))).toBe(EBUSY);
  });

  it("takes all VFs away, drivers first, and nothing of them is left", () => {
    const m = alone(PF, { kind: "intel-legacy" });
    const pf = m.dev(DEV);
    const log: string[] = [];
    m.run(enableSriov(pf, 2));
    const vf = m.dev("0000:01:10.0");
    m.run(m.kernel.pci.bind(driver(log), vf.name));
    m.run(disableSriov(pf));
    expect(log).toEqual(["probe 0000:01:10.0", "remove 0000:01:10.0"]);
    expect(names(m)).toEqual(["0000:00:00.0", DEV]);
    expect(m.kernel.phys.regions.map((r) => r.name)).toEqual([`${DEV} BAR 0`, `${DEV} BAR 2`]);
    expect([pf.numVf, pf.fn.vfs.length]).toEqual([0, 0]);
    expect(m.run(enableSriov(pf, 2))).toBeUndefined();
  });

  it("VFs sleep with the PF, and a reset of the PF brings them back", () => {
    const m = alone(PF);
    const pf = m.dev(DEV);
    pf.enable();
    m.run(enableSriov(pf, 1));
    const vf = m.dev("0000:01:10.0");
    m.run(pf.setPowerState(3));
    expect(read32(vf, 0, 0)).toBe(0xffff_ffff);
    m.run(pf.setPowerState(0));
    expect(m.run(pf.tryResetFunction())).toBeUndefined();
    expect(m.model(DEV).vfs[0]?.resets).toContain("flr");
    expect(read32(vf, 0, 0)).toBe(0);
    expect(vf.configRead(PCI_COMMAND, 2)).toBe(0);
  });

  it("is configured through the PF's driver", () => {
    const m = alone(PF);
    expect(m.run(m.kernel.pci.setNumVfs(DEV, 2))).toBe(ENOENT);
    expect(m.run(m.kernel.pci.setNumVfs(DEV, 9))).toBe(ERANGE);
    expect(m.run(m.kernel.pci.setNumVfs("0000:00:00.0", 1))).toBe(ENODEV);
    m.run(
      m.kernel.pci.bind(
        driver([], {
          *sriovConfigure(dev, n) {
            if (n === 0) yield* disableSriov(dev);
            else return (yield* enableSriov(dev, n)) ?? n;
            return 0;
          },
        }),
        DEV,
      ),
    );
    expect(m.run(m.kernel.pci.setNumVfs(DEV, 2))).toBeUndefined();
    expect(m.run(m.kernel.pci.setNumVfs(DEV, 3))).toBe(EBUSY);
    expect(m.run(m.kernel.pci.setNumVfs(DEV, 0))).toBeUndefined();
    expect(m.dev(DEV).numVf).toBe(0);
  });

  it("of a VF's model must have the description of the capability", () => {
    const m = machine({ root: [rootPort([endpoint(PF)])] });
    (m.model(DEV) as { makeVf: unknown }).makeVf = () => m.model(DEV);
    expect(() => m.run(enableSriov(m.dev(DEV), 1))).toThrow(TypeError);
  });
});
