/** A small machine for these tests: a kernel, a topology of test functions, and a task to run calls on. */

import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { Kernel } from "../../../src/kernel/kernel.ts";
import type { PciDev } from "../../../src/kernel/pci/pci_dev.ts";
import { type PciFunctionDescription, PciModel, type PciPort, type ResetKind, SparseMemory } from "../../../src/kernel/pci/pci_model.ts";
import type { PciNode, PciTopology } from "../../../src/kernel/pci/topology.ts";
import { physAddr } from "../../../src/lib/addr.ts";
import type { Step } from "../../../src/sched/task.ts";
import type { TraceEvent } from "../../../src/trace/events.ts";

/** BAR 0: registers that echo; BAR 2: plain memory. */
export class TestModel extends PciModel {
  readonly description: PciFunctionDescription;
  port!: PciPort;
  readonly memory: SparseMemory = new SparseMemory();
  readonly registers: Map<number, bigint> = new Map();
  readonly resets: ResetKind[] = [];
  readonly powers: number[] = [];
  readonly accesses: string[] = [];
  readonly vfs: TestModel[] = [];

  constructor(description: PciFunctionDescription) {
    super();
    this.description = description;
  }
  override attach(port: PciPort): void {
    this.port = port;
  }
  override barMemory(bar: number): SparseMemory | undefined {
    return bar === 2 ? this.memory : undefined;
  }
  override barRead(bar: number, offset: number, size: number): bigint {
    this.accesses.push(`r${bar}+${offset}/${size}`);
    return this.registers.get(offset) ?? 0n;
  }
  override barWrite(bar: number, offset: number, size: number, value: bigint): void {
    this.accesses.push(`w${bar}+${offset}/${size}`);
    this.registers.set(offset, value);
  }
  override reset(kind: ResetKind): void {
    this.resets.push(kind);
    this.registers.clear();
  }
  override setPower(state: number): void {
    this.powers.push(state);
  }
  makeVf(_index: number): TestModel {
    const vf = new TestModel(this.description.extended?.sriov?.vf ?? this.description);
    this.vfs.push(vf);
    return vf;
  }
}

/** All of the ordinary: PM with a soft reset, MSI, MSI-X, PCIe with FLR. */
export const FULL: PciFunctionDescription = {
  name: "full",
  vendor: 0x1234,
  device: 0x11e8,
  subsystemVendor: 0x1af4,
  subsystemDevice: 0x1100,
  class: 0x00ff00,
  revision: 0x10,
  bars: [
    { index: 0, size: 0x4000n, kind: "mem32" },
    { index: 2, size: 0x100_0000n, kind: "mem64", prefetch: true },
    { index: 4, size: 0x20n, kind: "io" },
  ],
  rom: { size: 0x1_0000n },
  interruptPin: 1,
  capabilities: {
    pm: {},
    msi: { vectors: 4, maskable: true },
    msix: { vectors: 3, tableBar: 0, tableOffset: 0x2000, pbaBar: 0, pbaOffset: 0x3000 },
    pcie: { flr: true },
  },
};

/** As ivshmem: conventional, no capability. */
export const PLAIN: PciFunctionDescription = {
  name: "plain",
  vendor: 0x1af4,
  device: 0x1110,
  class: 0x050000,
  bars: [
    { index: 0, size: 0x100n, kind: "mem32" },
    { index: 2, size: 0x100_0000n, kind: "mem64", prefetch: true },
  ],
};

export const endpoint = (description: PciFunctionDescription, place: { device?: number; function?: number } = {}): PciNode => ({
  kind: "function",
  ...place,
  model: () => new TestModel(description),
});

export const rootPort = (children: readonly PciNode[], more: object = {}): PciNode => ({ kind: "root-port", children, ...more });

/** An upstream port with one downstream port per child. */
export const switchOf = (children: readonly PciNode[], downstream: object = {}): PciNode => ({
  kind: "upstream-port",
  children: children.map((c) => ({ kind: "downstream-port", children: [c], ...downstream })),
});

export interface TestMachine {
  readonly kernel: Kernel;
  readonly events: TraceEvent[];
  dev(bdf: string): PciDev;
  model(bdf: string): TestModel;
  /** Runs a call to its end on a task of its own. */
  run<T>(body: Step<T>): T;
  eventsOf<K extends TraceEvent["type"]>(type: K): Extract<TraceEvent, { type: K }>[];
}

export function machine(topology: PciTopology, iommu?: IommuDescription): TestMachine {
  const kernel = new Kernel();
  kernel.phys.addRam(physAddr(0n), 0x1000_0000n);
  if (iommu !== undefined) kernel.iommu.addUnit(iommu);
  kernel.pci.build(topology);
  const events: TraceEvent[] = [];
  kernel.trace.listen((r) => events.push(r.event));
  const task = kernel.sched.thread("test");
  const dev = (bdf: string): PciDev => {
    const d = kernel.pci.devices.get(bdf);
    if (d === undefined) throw new Error(`no ${bdf}; there are ${[...kernel.pci.devices.keys()].join(" ")}`);
    return d;
  };
  return {
    kernel,
    events,
    dev,
    model: (bdf) => dev(bdf).model as TestModel,
    run: (body) => kernel.sched.execute(task, body),
    eventsOf: <K extends TraceEvent["type"]>(type: K) => events.filter((e): e is Extract<TraceEvent, { type: K }> => e.type === type),
  };
}

/** One function alone below a root port: 0000:01:00.0. */
export const alone = (description: PciFunctionDescription, iommu?: IommuDescription): TestMachine =>
  machine({ root: [rootPort([endpoint(description)])] }, iommu);

export const read32 = (dev: PciDev, bar: number, offset: number): number => {
  const b = new Uint8Array(4);
  dev.barRead(bar, offset, b);
  return new DataView(b.buffer).getUint32(0, true);
};

export const write32 = (dev: PciDev, bar: number, offset: number, value: number): boolean => {
  const b = new Uint8Array(4);
  new DataView(b.buffer).setUint32(0, value, true);
  return dev.barWrite(bar, offset, b);
};
