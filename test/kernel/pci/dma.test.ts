import { describe, expect, it } from "vitest";
import type { AcsFlag } from "../../../src/kernel/pci/pci_model.ts";
import type { PciTopology } from "../../../src/kernel/pci/topology.ts";
import { physOfPfn } from "../../../src/lib/addr.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../../src/uapi/pci_regs.ts";
import { alone, endpoint, FULL, machine, PLAIN, rootPort, switchOf, type TestMachine } from "./machine.ts";

const E = endpoint(FULL);
const NO_ACS = { acs: [] as AcsFlag[] };
const A = "0000:03:00.0";
const B = "0000:04:00.0";
const bytes = (n: number, v = 0x5a): Uint8Array => new Uint8Array(n).fill(v);

function up(m: TestMachine): TestMachine {
  for (const d of m.kernel.pci.devices.values()) {
    d.enable();
    d.setMaster(true);
  }
  return m;
}

const behindSwitch = (downstream: object = {}, more: Partial<PciTopology> = {}, iommu = false): TestMachine =>
  up(machine({ root: [rootPort([switchOf([E, E], downstream)])], ...more }, iommu ? { kind: "intel-legacy" } : undefined));

describe("DMA to memory", () => {
  it("reaches RAM when nothing translates", () => {
    const m = up(alone(FULL));
    const { port } = m.model("0000:01:00.0");
    // A frame is memory from the moment it is allocated.
    const at = physOfPfn(m.kernel.frames.alloc()) + 0xff8n;
    expect(port.dmaWrite(at, Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]))).toBe(true);
    const back = new Uint8Array(8);
    expect(port.dmaRead(at, back)).toBe(true);
    expect([...back]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it("is dropped without bus mastering, of the function or of a port above, and a read leaves zeros", () => {
    const m = up(alone(FULL));
    const d = m.dev("0000:01:00.0");
    const { port } = m.model("0000:01:00.0");
    d.setMaster(false);
    const dst = bytes(4);
    expect(port.dmaRead(0x1000n, dst)).toBe(false);
    expect([...dst]).toEqual([0, 0, 0, 0]);
    d.setMaster(true);
    m.dev("0000:00:00.0").setMaster(false);
    expect(port.dmaWrite(0x1000n, bytes(4))).toBe(false);
    expect(m.eventsOf("pci.dma").map((e) => e.route)).toEqual(["dropped", "dropped"]);
  });

  it("where nobody answers reads as ones", () => {
    const m = up(alone(FULL));
    const dst = bytes(4);
    expect(m.model("0000:01:00.0").port.dmaRead(0x9000_0000n, dst)).toBe(false);
    expect([...dst]).toEqual([255, 255, 255, 255]);
  });

  it("that the IOMMU refuses is a fault: zeros are read, writes vanish", () => {
    const m = up(alone(FULL, { kind: "intel-legacy" }));
    const d = m.dev("0000:01:00.0");
    const { port } = m.model("0000:01:00.0");
    expect(m.run((d.iommuGroup as NonNullable<typeof d.iommuGroup>).claimDmaOwner("test"))).toBeUndefined();
    const dst = bytes(4);
    expect(port.dmaRead(0x1000n, dst)).toBe(false);
    expect([...dst]).toEqual([0, 0, 0, 0]);
    expect(port.dmaWrite(0x1000n, bytes(4))).toBe(false);
    expect(m.eventsOf("iommu.fault").map((e) => e.write)).toEqual([false, true]);
    expect(m.eventsOf("pci.dma").map((e) => e.route)).toEqual(["fault", "fault"]);
  });
});

describe("DMA to a peer's BAR", () => {
  const target = (m: TestMachine, bdf: string): bigint => m.dev(bdf).resources[2]?.start ?? 0n;

  it("goes over the root when the switch redirects", () => {
    const m = behindSwitch();
    expect(m.model(A).port.dmaWrite(target(m, B) + 16n, bytes(8))).toBe(true);
    const got = new Uint8Array(8);
    m.model(B).memory.read(16, got);
    expect(got).toEqual(bytes(8));
    expect(m.eventsOf("pci.dma")).toMatchObject([{ route: "root", ok: true }]);
  });

  it("goes across a switch that does not redirect, and no IOMMU sees it", () => {
    const m = behindSwitch(NO_ACS, {}, true);
    m.run((m.dev(A).iommuGroup as NonNullable<ReturnType<typeof m.dev>["iommuGroup"]>).claimDmaOwner("test"));
    expect(m.model(A).port.dmaWrite(target(m, B), bytes(8))).toBe(true);
    expect(m.eventsOf("pci.dma")).toMatchObject([{ route: "peer", peer: B, ok: true }]);
    expect(m.eventsOf("iommu.fault")).toEqual([]);
    const back = new Uint8Array(8);
    expect(m.model(A).port.dmaRead(target(m, B), back)).toBe(true);
    expect(back).toEqual(bytes(8));
  });

  it("is refused by the IOMMU on the way over the root when it is not mapped", () => {
    const m = behindSwitch({}, {}, true);
    m.run((m.dev(A).iommuGroup as NonNullable<ReturnType<typeof m.dev>["iommuGroup"]>).claimDmaOwner("test"));
    expect(m.model(A).port.dmaWrite(target(m, B), bytes(8))).toBe(false);
    expect(m.eventsOf("pci.dma")).toMatchObject([{ route: "fault" }]);
  });

  it.each([
    ["COMMAND.MEMORY is off", (m: TestMachine) => m.dev(B).configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER)],
    ["it sleeps in D3hot", (m: TestMachine) => void m.run(m.dev(B).setPowerState(3))],
    ["its port forwards no memory", (m: TestMachine) => m.dev("0000:02:01.0").configWrite(PCI_COMMAND, 2, PCI_COMMAND_MASTER)],
  ])("answers nothing when %s: ones are read, writes vanish, on either route", (_what, disable) => {
    for (const downstream of [{}, NO_ACS]) {
      const m = behindSwitch(downstream);
      const at = target(m, B);
      m.model(B).memory.write(0, bytes(4));
      disable(m);
      const dst = bytes(4, 0);
      expect(m.model(A).port.dmaRead(at, dst)).toBe(false);
      expect([...dst]).toEqual([255, 255, 255, 255]);
      expect(m.model(A).port.dmaWrite(at, bytes(4, 1))).toBe(false);
      const kept = new Uint8Array(4);
      m.model(B).memory.read(0, kept);
      expect(kept).toEqual(bytes(4));
    }
  });

  it("never turns back into the port it came from: a function cannot reach itself across the switch", () => {
    const m = behindSwitch(NO_ACS);
    m.model(A).port.dmaWrite(target(m, A), bytes(4));
    expect(m.eventsOf("pci.dma")).toMatchObject([{ route: "root" }]);
  });

  it("between root ports always passes the root, with or without ACS", () => {
    const m = up(machine({ root: [rootPort([E], NO_ACS), rootPort([endpoint(PLAIN)], NO_ACS)] }));
    m.model("0000:01:00.0").port.dmaWrite(target(m, "0000:02:00.0"), bytes(4));
    expect(m.eventsOf("pci.dma")).toMatchObject([{ route: "root", ok: true }]);
  });

  it("comes back after the peer was reset and restored", () => {
    const m = behindSwitch();
    expect(m.run(m.dev(B).tryResetFunction())).toBeUndefined();
    expect(m.dev(B).configRead(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY).not.toBe(0);
    expect(m.model(A).port.dmaWrite(target(m, B), bytes(4))).toBe(true);
  });
});
