import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { configTemplate } from "../../../src/kernel/pci/config_template.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_2,
  PCI_BASE_ADDRESS_3,
  PCI_CAP_ID_AF,
  PCI_CAP_ID_EXP,
  PCI_CAP_ID_MSI,
  PCI_CAP_ID_MSIX,
  PCI_CAP_ID_PM,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP_FLR,
  PCI_EXT_CAP_ID_ACS,
  PCI_EXT_CAP_ID_DSN,
  PCI_HEADER_TYPE,
  PCI_PM_CTRL,
  PCI_ROM_ADDRESS,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBSYSTEM_ID,
  PCI_VENDOR_ID,
} from "../../../src/uapi/pci_regs.ts";
import { alone, endpoint, FULL, machine, PLAIN, read32, rootPort, write32 } from "./machine.ts";

const DEV = "0000:01:00.0";
/** As firmware leaves it: I/O, memory, SERR#. */
const FIRMWARE = 0x103;

describe("config space of a function", () => {
  it("answers what its description says", () => {
    const d = alone(FULL).dev(DEV);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0x11e8_1234);
    expect(d.configRead(PCI_CLASS_REVISION, 4)).toBe(0x00ff_0010);
    expect(d.configRead(PCI_SUBSYSTEM_ID, 2)).toBe(0x1100);
    expect(d.configRead(PCI_HEADER_TYPE, 1)).toBe(0);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(FIRMWARE);
  });

  it("has 4096 bytes with a PCIe capability and 256 without, and zeros above", () => {
    expect(alone(FULL).dev(DEV).cfgSize).toBe(4096);
    const plain = alone(PLAIN).dev(DEV);
    expect(plain.cfgSize).toBe(256);
    expect(plain.configRead(0x100, 4)).toBe(0);
  });

  it("links every capability of the description into the list", () => {
    const d = alone({ ...FULL, capabilities: { ...FULL.capabilities, af: {} } }).dev(DEV);
    const seen: number[] = [];
    for (let at = d.configRead(PCI_CAPABILITY_LIST, 1); at !== 0; at = d.configRead(at + 1, 1)) {
      const id = d.configRead(at, 1);
      expect(d.findCap(id)).toBe(at);
      seen.push(id);
    }
    expect(seen).toEqual([PCI_CAP_ID_PM, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_EXP, PCI_CAP_ID_AF]);
    expect(d.configRead(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST).not.toBe(0);
    expect(d.configRead(d.pcieCap + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR).not.toBe(0);
  });

  it("has no capability list when it has no capability", () => {
    const d = alone(PLAIN).dev(DEV);
    expect(d.configRead(PCI_CAPABILITY_LIST, 1)).toBe(0);
    expect(d.configRead(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST).toBe(0);
    expect([d.pmCap, d.msiCap, d.msixCap, d.pcieCap]).toEqual([0, 0, 0, 0]);
  });

  it("puts capabilities where the description wants them", () => {
    const d = alone({ ...PLAIN, capabilities: { pm: { at: 0x60 }, msi: { vectors: 1, at: 0x40 } } }).dev(DEV);
    expect([d.pmCap, d.msiCap]).toEqual([0x60, 0x40]);
  });

  it("chains extended capabilities from 0x100", () => {
    const d = alone({ ...FULL, extended: { acs: ["SV"], dsn: 0x1122_3344_5566_7788n } }).dev(DEV);
    expect(d.findExtCap(PCI_EXT_CAP_ID_ACS)).toBe(0x100);
    const dsn = d.findExtCap(PCI_EXT_CAP_ID_DSN);
    expect(d.configRead(0x100, 4) >>> 20).toBe(dsn);
    expect(d.configRead(dsn + 4, 4)).toBe(0x5566_7788);
    expect(d.configRead(dsn + 8, 4)).toBe(0x1122_3344);
  });

  it("sizes BARs: all ones written, the size mask and the type bits read back", () => {
    const d = alone(FULL).dev(DEV);
    const size = (off: number): number => {
      d.configWrite(off, 4, 0xffff_ffff);
      return d.configRead(off, 4);
    };
    expect(size(PCI_BASE_ADDRESS_0)).toBe(0xffff_c000);
    expect(size(PCI_BASE_ADDRESS_2)).toBe(0xff00_000c);
    expect(size(PCI_BASE_ADDRESS_3)).toBe(0xffff_ffff);
    expect(size(PCI_BASE_ADDRESS_0 + 16)).toBe(0xffff_ffe1);
    expect(size(PCI_BASE_ADDRESS_0 + 4)).toBe(0);
    expect(size(PCI_ROM_ADDRESS)).toBe(0xffff_0001);
  });

  it("sizes a 64-bit BAR of 16 GiB across both its registers", () => {
    const big = { ...PLAIN, bars: [{ index: 0, size: 0x4_0000_0000n, kind: "mem64" as const, prefetch: true }] };
    const d = alone(big).dev(DEV);
    d.configWrite(PCI_BASE_ADDRESS_0, 4, 0xffff_ffff);
    d.configWrite(PCI_BASE_ADDRESS_0 + 4, 4, 0xffff_ffff);
    expect([d.configRead(PCI_BASE_ADDRESS_0, 4), d.configRead(PCI_BASE_ADDRESS_0 + 4, 4)]).toEqual([0x0000_000c, 0xffff_fffc]);
  });

  it("clears status bits by writing ones and keeps the others", () => {
    const d = alone(FULL).dev(DEV);
    d.configWrite(PCI_STATUS, 2, 0xffff);
    expect(d.configRead(PCI_STATUS, 2)).toBe(PCI_STATUS_CAP_LIST);
  });

  it("changes exactly the writable bits, whatever the width of the write", () => {
    const t = configTemplate(FULL);
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 1023 }),
        fc.constantFrom(1, 2, 4),
        fc.integer({ min: 0, max: 3 }),
        fc.integer(),
        (dword, size, sub, raw) => {
          const off = dword * 4 + (sub - (sub % size));
          // PM, FLR and MSI do more than store; they have tests of their own.
          fc.pre(Array.from({ length: size }, (_, i) => t.effect[off + i]).every((e) => e === 0));
          const d = alone(FULL).dev(DEV);
          const before = Array.from({ length: size }, (_, i) => d.configRead(off + i, 1));
          d.configWrite(off, size as 1 | 2 | 4, raw >>> 0);
          before.forEach((old, i) => {
            const v = (raw >>> (8 * i)) & 0xff;
            const m = t.rw[off + i] as number;
            expect(d.configRead(off + i, 1)).toBe(((old & ~m) | (v & m)) & ~((t.w1c[off + i] as number) & v));
          });
        },
      ),
      { numRuns: 200 },
    );
  });

  it("refuses a description whose BARs or capabilities cannot be", () => {
    const bad =
      (more: object): (() => unknown) =>
      () =>
        configTemplate({ ...PLAIN, ...more });
    expect(bad({ bars: [{ index: 5, size: 0x1000n, kind: "mem64" }] })).toThrow("BAR 5 does not exist");
    expect(bad({ bars: [{ index: 0, size: 0x1001n, kind: "mem32" }] })).toThrow("power of two");
    expect(bad({ extended: { acs: ["SV"] } })).toThrow("need a PCIe capability");
    expect(bad({ capabilities: { msi: { vectors: 3 } } })).toThrow("3 MSI vectors");
  });

  it("is not shared between machines, nor is the template ever written", () => {
    const topology = { root: [rootPort([endpoint(FULL)])] };
    const a = machine(topology).dev(DEV);
    const b = machine(topology).dev(DEV);
    a.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    expect(b.configRead(PCI_COMMAND, 2)).toBe(FIRMWARE);
    expect(machine(topology).dev(DEV).configRead(PCI_COMMAND, 2)).toBe(FIRMWARE);
    expect(configTemplate(FULL).bytes[PCI_COMMAND]).toBe(0);
  });
});

describe("decoding of BARs", () => {
  it("starts with COMMAND.MEMORY and ends with it", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    const start = d.resources[0]?.start ?? 0n;
    d.configWrite(PCI_COMMAND, 2, 0);
    expect(m.kernel.phys.at(start)).toBe("none");
    expect(read32(d, 0, 0)).toBe(0xffff_ffff);
    expect(write32(d, 0, 0, 1)).toBe(false);
    d.enable();
    expect(m.kernel.phys.at(start)).toBe("mmio");
    expect(write32(d, 0, 8, 0xabcd)).toBe(true);
    expect(read32(d, 0, 8)).toBe(0xabcd);
    d.configWrite(PCI_COMMAND, 2, 0);
    expect(m.kernel.phys.at(start)).toBe("none");
    expect(
      m
        .eventsOf("pci.decode")
        .filter((e) => e.bar === 0)
        .map((e) => e.on),
    ).toEqual([false, true, false]);
  });

  it("follows the address in the register", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    const moved = (d.resources[0]?.start ?? 0n) + 0x20_0000n;
    d.configWrite(PCI_BASE_ADDRESS_0, 4, Number(moved));
    expect(m.kernel.phys.mmioAt(moved)?.name).toBe(`${DEV} BAR 0`);
    expect(m.kernel.phys.at(d.resources[0]?.start ?? 0n)).toBe("none");
  });

  it("is withheld from a BAR that was programmed over RAM", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    d.configWrite(PCI_BASE_ADDRESS_0, 4, 0x10_0000);
    expect(m.kernel.phys.at(0x10_0000n)).toBe("ram");
  });

  it("needs the bridge above to forward memory", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    d.enable();
    m.dev("0000:00:00.0").configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    expect(read32(d, 0, 0)).toBe(0xffff_ffff);
    m.dev("0000:00:00.0").configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    expect(read32(d, 0, 0)).toBe(0);
  });

  it("hands registers to the model in aligned pieces no larger than it takes, and memory whole", () => {
    const m = alone({ ...FULL, bars: [{ index: 0, size: 0x4000n, kind: "mem32", accessSize: 4 }, ...FULL.bars.slice(1)] });
    const d = m.dev(DEV);
    d.enable();
    d.barRead(0, 3, new Uint8Array(10));
    expect(m.model(DEV).accesses).toEqual(["r0+3/1", "r0+4/4", "r0+8/4", "r0+12/1"]);
    const data = Uint8Array.from({ length: 70_000 }, (_, i) => i);
    const back = new Uint8Array(70_000);
    d.barWrite(2, 65_530, data);
    d.barRead(2, 65_530, back);
    expect(back).toEqual(data);
  });

  it("of I/O ports is COMMAND.IO's", () => {
    const d = alone(FULL).dev(DEV);
    d.enable();
    expect(d.barRead(4, 0, new Uint8Array(4))).toBe(true);
    d.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    expect(d.barRead(4, 0, new Uint8Array(4))).toBe(false);
  });

  it("refuses an access that leaves the BAR", () => {
    const d = alone(FULL).dev(DEV);
    d.enable();
    expect(() => d.barRead(0, 0x3ffd, new Uint8Array(4))).toThrow(RangeError);
    expect(() => d.barRead(1, 0, new Uint8Array(4))).toThrow("no BAR 1");
  });
});

describe("a function that does not answer", () => {
  it("reads as all ones in D3cold and after it was pulled out, and loses writes", () => {
    const d = alone(FULL).dev(DEV);
    d.enable();
    d.fn.setMainPower(false);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0xffff_ffff);
    d.configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER);
    d.fn.setMainPower(true);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0x11e8_1234);
    expect(d.configRead(PCI_COMMAND, 2)).toBe(0);
    d.fn.unplug();
    expect(d.configRead(PCI_VENDOR_ID, 2)).toBe(0xffff);
  });

  it("reads as all ones while the bridge above sleeps or resets its bus", () => {
    const m = alone(FULL);
    const d = m.dev(DEV);
    const port = m.dev("0000:00:00.0");
    port.configWrite(port.pmCap + PCI_PM_CTRL, 2, 3);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0xffff_ffff);
    port.configWrite(port.pmCap + PCI_PM_CTRL, 2, 0);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0x11e8_1234);
    port.configWrite(0x3e, 2, 0x40);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0xffff_ffff);
    port.configWrite(0x3e, 2, 0);
    expect(d.configRead(PCI_VENDOR_ID, 4)).toBe(0x11e8_1234);
  });
});
