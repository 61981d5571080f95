import { describe, expect, it } from "vitest";
import { Edu, Ivshmem, Nvme } from "../../src/devices/index.ts";
import { IOMMU_MMIO, IOMMU_READ, IOMMU_WRITE, type IommuDomain } from "../../src/kernel/iommu/domain.ts";
import type { IommuDescription } from "../../src/kernel/iommu/iommu.ts";
import { Kernel } from "../../src/kernel/kernel.ts";
import type { PciDev } from "../../src/kernel/pci/pci_dev.ts";
import { ENOTTY, Errno, physAddr, physOfPfn } from "../../src/lib/index.ts";
import type { Step } from "../../src/sched/index.ts";

/** The recorded machine's first three slots, with memory and an IOMMU. */
function boot(iommu: IommuDescription = { kind: "intel-legacy" }) {
  const kernel = new Kernel();
  kernel.phys.addRam(physAddr(0n), 0x1000_0000n);
  kernel.iommu.addUnit(iommu);
  kernel.pci.build({
    root: [() => new Edu(), () => new Ivshmem(), () => new Nvme()].map((model) => ({
      kind: "root-port",
      children: [{ kind: "function", model }],
    })),
  });
  const task = kernel.sched.thread("test");
  const run = <T>(body: Step<T>): T => kernel.sched.execute(task, body);
  const dev = (bdf: string): PciDev => {
    const d = kernel.pci.devices.get(bdf);
    if (d === undefined) throw new Error(`no ${bdf}`);
    return d;
  };
  const edu = dev("0000:01:00.0");
  const ivshmem = dev("0000:02:00.0");
  const nvme = dev("0000:03:00.0");
  for (const d of [edu, ivshmem, nvme]) {
    d.enable();
    d.setMaster(true);
  }
  return { kernel, run, edu, ivshmem, nvme };
}

type Machine = ReturnType<typeof boot>;

function w64(dev: PciDev, offset: number, value: bigint): void {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setBigUint64(0, value, true);
  dev.barWrite(0, offset, b);
}

function r32(dev: PciDev, offset: number): number {
  const b = new Uint8Array(4);
  dev.barRead(0, offset, b);
  return new DataView(b.buffer).getUint32(0, true);
}

/** The edu device alone in a domain of its own. */
function attach(m: Machine): IommuDomain {
  const { iommuUnit: unit, iommuGroup: group } = m.edu;
  if (unit === undefined || group === undefined) throw new Error("no IOMMU");
  const domain = m.run(unit.domainAllocPagingFlags(m.edu, 0));
  if (domain instanceof Errno) throw new Error(domain.name);
  m.run(group.claimDmaOwner(m));
  m.run(group.attachHandle(domain, { domain }));
  return domain;
}

function eduDma(m: Machine, src: bigint, dst: bigint, count: bigint, cmd: bigint): void {
  w64(m.edu, 0x80, src);
  w64(m.edu, 0x88, dst);
  w64(m.edu, 0x90, count);
  w64(m.edu, 0x98, cmd);
  m.kernel.sched.settle();
}

describe.each<[string, IommuDescription]>([
  ["VT-d legacy", { kind: "intel-legacy" }],
  ["VT-d first stage", { kind: "intel-first-stage" }],
  ["AMD", { kind: "amd" }],
])("peer to peer behind %s", (_name, iommu) => {
  it("moves bytes from RAM through edu into the BAR of ivshmem, until the range is unmapped", () => {
    const m = boot(iommu);
    const domain = attach(m);
    const bar = m.ivshmem.resources[2]?.start ?? 0n;
    expect(domain.map(0x200_0000n, bar, 0x100_0000n, IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO)).toBeUndefined();
    const pfn = m.kernel.frames.alloc();
    const page = physOfPfn(pfn);
    expect(domain.map(0x100_0000n, page, 0x1000n, IOMMU_READ | IOMMU_WRITE)).toBeUndefined();
    m.kernel.phys.write(physAddr(page + 8n), new Uint8Array([1, 2, 3, 4]));
    eduDma(m, 0x100_0008n, 0x40000n, 4n, 1n);
    eduDma(m, 0x40000n, 0x2ff_fffcn, 4n, 3n);
    const got = new Uint8Array(4);
    (m.ivshmem.model as Ivshmem).memory.read(0xff_fffc, got);
    expect([...got]).toEqual([1, 2, 3, 4]);
    expect(m.kernel.iommu.faults).toBe(0);

    eduDma(m, 0x40000n, 0x300_0000n, 8n, 3n);
    expect(m.kernel.iommu.faults).toBe(1);
    domain.unmap(0x200_0000n, 0x100_0000n);
    eduDma(m, 0x40000n, 0x2ff_fffcn, 4n, 3n);
    expect(m.kernel.iommu.faults).toBe(2);
    eduDma(m, 0x2ff_fffcn, 0x40000n, 4n, 1n);
    expect([...(m.edu.model as Edu).buffer.subarray(0, 4)]).toEqual([0, 0, 0, 0]);
    expect(m.kernel.iommu.faults).toBe(3);
  });
});

it("puts every device alone in a group, since the root ports isolate", () => {
  const m = boot();
  expect(new Set([m.edu, m.ivshmem, m.nvme].map((d) => d.iommuGroup)).size).toBe(3);
});

it("interrupts by MSI once that is enabled", () => {
  const m = boot();
  let interrupts = 0;
  expect(m.edu.allocIrqVectors("msi", 1)).toBe(1);
  m.edu.requestIrq(0, () => {
    interrupts++;
  });
  m.edu.barWrite(0, 0x60, new Uint8Array([1, 0, 0, 0]));
  expect([interrupts, r32(m.edu, 0x24)]).toEqual([1, 1]);
});

describe("resets", () => {
  it("of nvme: FLR works and disables the persistent region; the bus reset ends in ENOTTY", () => {
    const m = boot();
    m.nvme.barWrite(0, 0xe04, new Uint8Array([1, 0, 0, 0]));
    expect(r32(m.nvme, 0xe04)).toBe(1);
    expect(m.nvme.resetMethods).toEqual(["flr", "bus"]);
    expect(m.run(m.nvme.tryResetFunction())).toBeUndefined();
    expect(r32(m.nvme, 0xe04)).toBe(0);
    const before = m.kernel.sched.now;
    expect(m.run(m.nvme.resetBus())).toBe(ENOTTY);
    // Recorded: 1.04 s.
    expect(m.kernel.sched.now - before).toBeGreaterThan(1_000_000_000);
    expect(m.kernel.sched.now - before).toBeLessThan(1_300_000_000);
  });

  it("of edu and ivshmem: by the bus only, and their state survives", () => {
    const m = boot();
    for (const d of [m.edu, m.ivshmem]) expect(d.resetMethods).toEqual(["bus"]);
    (m.ivshmem.model as Ivshmem).memory.write(0, new Uint8Array([7]));
    m.edu.barWrite(0, 4, new Uint8Array([0, 0, 0, 0]));
    for (const d of [m.edu, m.ivshmem]) expect(m.run(d.tryResetFunction())).toBeUndefined();
    const b = new Uint8Array(1);
    m.ivshmem.barRead(2, 0, b);
    expect([b[0], r32(m.edu, 4)]).toEqual([7, 0xffff_ffff]);
  });
});

it("loses a write to the region of an nvme in D3hot without a fault, and sees it again in D0", () => {
  const m = boot();
  const domain = attach(m);
  domain.map(0x200_0000n, m.nvme.resources[2]?.start ?? 0n, 0x20_0000n, IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO);
  (m.edu.model as Edu).buffer.set([5], 0);
  m.run(m.nvme.setPowerState(3));
  eduDma(m, 0x40000n, 0x200_0000n, 1n, 3n);
  m.run(m.nvme.setPowerState(0));
  const b = new Uint8Array(1);
  m.nvme.barRead(2, 0, b);
  expect([b[0], m.kernel.iommu.faults]).toEqual([0, 0]);
  eduDma(m, 0x40000n, 0x200_0000n, 1n, 3n);
  m.nvme.barRead(2, 0, b);
  expect(b[0]).toBe(5);
});
