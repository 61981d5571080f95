import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Device } from "../../../src/kernel/device.ts";
import { type DmaBufAttachment, dmaBufDynamicAttach } from "../../../src/kernel/dma_buf/attachment.ts";
import { type DmaBuf, dmaBufExport } from "../../../src/kernel/dma_buf/dma_buf.ts";
import {
  freeRamSgt,
  freeSgt,
  MAX_SG_ENTRY,
  type PhysVec,
  pageRuns,
  physVecToSgt,
  ramToSgt,
  type SgTable,
} from "../../../src/kernel/dma_buf/mapping.ts";
import { type P2pdmaProvider, pcimP2pdmaInit, pcimP2pdmaProvider } from "../../../src/kernel/pci/p2pdma.ts";
import type { PciDev } from "../../../src/kernel/pci/pci_dev.ts";
import type { PciNode } from "../../../src/kernel/pci/topology.ts";
import { type Pfn, type PhysAddr, physAddr } from "../../../src/lib/addr.ts";
import { EINVAL, EIO, ENOMEM, Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import type { Step } from "../../../src/sched/task.ts";
import { endpoint, FULL, machine, rootPort, switchOf, type TestMachine } from "../pci/machine.ts";
import { Exporter, ok, plainDevice } from "./support.ts";

const GIB = 1n << 30n;
const vec = (paddr: bigint, len: bigint): PhysVec => ({ paddr: physAddr(paddr), len });
const total = (ranges: readonly PhysVec[]): bigint => ranges.reduce((n, r) => n + r.len, 0n);

/** The exporter is the first endpoint of the tree, the importer the second. */
class Peers {
  readonly m: TestMachine;
  readonly provider: P2pdmaProvider;
  readonly importer: Device;
  readonly bar: bigint;
  readonly buf: DmaBuf;
  readonly att: DmaBufAttachment;

  constructor(root: readonly PciNode[], options: { iommu?: boolean; passthrough?: boolean } = {}) {
    const m = machine({ root, cpuSupportsP2pdma: true }, options.iommu === true ? { kind: "intel-legacy" } : undefined);
    const [exporter, importer] = [...m.kernel.pci.devices.values()].filter((d) => !d.isBridge);
    if (exporter === undefined || importer === undefined) throw new Error("two endpoints are wanted");
    this.m = m;
    this.importer = importer;
    ok(pcimP2pdmaInit(exporter) ?? 0);
    this.provider = pcimP2pdmaProvider(exporter, 2) as P2pdmaProvider;
    this.bar = exporter.resources[2]?.start as bigint;
    m.kernel.modules.load("x");
    const { ops } = new Exporter();
    this.buf = ok(dmaBufExport(m.kernel, { expName: "x", owner: "x", ops, size: 0x1000n, flags: 0, priv: 1 }));
    this.att = ok(m.run(dmaBufDynamicAttach(this.buf, importer, { allowPeer2peer: true })));
  }

  locked<T>(fn: () => T): T {
    const { resv } = this.buf;
    const body = function* (): Step<T> {
      yield* resv.lock();
      try {
        return fn();
      } finally {
        resv.unlock();
      }
    };
    return this.m.run(body());
  }

  map(ranges: readonly PhysVec[], att: DmaBufAttachment = this.att): SgTable | Errno {
    return this.locked(() => physVecToSgt(att, this.provider, ranges, total(ranges), "bidirectional"));
  }

  free(sgt: SgTable): void {
    this.locked(() => freeSgt(this.att, sgt));
  }
}

const belowOneSwitch = [rootPort([switchOf([endpoint(FULL), endpoint(FULL)], { acs: [] })])];
const overTheRoot = [rootPort([endpoint(FULL)]), rootPort([endpoint(FULL)])];

describe("below one switch that does not redirect", () => {
  it("gives bus addresses, range by range in order, and asks no IOMMU", () => {
    const p = new Peers(belowOneSwitch, { iommu: true });
    const sgt = ok(p.map([vec(p.bar + 0x3000n, 0x2000n), vec(p.bar, 0x1000n)]));
    expect(sgt.entries).toEqual([
      { address: p.bar + 0x3000n, length: 0x2000n },
      { address: p.bar, length: 0x1000n },
    ]);
    expect(p.m.eventsOf("iommu.map")).toEqual([]);
    p.free(sgt);
  });

  it("cuts what does not fit 32 bits on a page, and loses nothing", () => {
    const p = new Peers(belowOneSwitch);
    const sgt = ok(p.map([vec(p.bar, 9n * GIB)]));
    expect(sgt.entries).toEqual([
      { address: p.bar, length: MAX_SG_ENTRY },
      { address: p.bar + MAX_SG_ENTRY, length: MAX_SG_ENTRY },
      { address: p.bar + 2n * MAX_SG_ENTRY, length: 9n * GIB - 2n * MAX_SG_ENTRY },
    ]);
  });

  it("for any ranges: entries of whole pages, below 4 GiB each, that cover the ranges in order", () => {
    const p = new Peers(belowOneSwitch);
    const range = fc.record({ page: fc.nat(1 << 20), pages: fc.integer({ min: 1, max: 1 << 22 }) });
    fc.assert(
      fc.property(fc.array(range, { minLength: 1, maxLength: 6 }), (rs) => {
        const ranges = rs.map((r) => vec(BigInt(r.page) * 4096n, BigInt(r.pages) * 4096n));
        const { entries } = ok(p.map(ranges));
        const joined: { address: bigint; length: bigint }[] = [];
        let want = 0;
        for (const e of entries) {
          expect((e.address | e.length) & 4095n).toBe(0n);
          expect(e.length > 0n && e.length < 1n << 32n).toBe(true);
          const last = joined.at(-1);
          if (last !== undefined && last.length < (ranges[want - 1] as PhysVec).len) {
            expect(e.address).toBe(last.address + last.length);
            last.length += e.length;
          } else {
            joined.push({ ...e });
            want++;
          }
        }
        expect(joined).toEqual(ranges.map((r) => ({ address: r.paddr, length: r.len })));
      }),
    );
  });
});

describe("over the root", () => {
  it("puts all ranges back to back into one run of IOVAs, mapped as device memory, and unmaps it", () => {
    const p = new Peers(overTheRoot, { iommu: true });
    const sgt = ok(p.map([vec(p.bar + 0x3000n, 0x2000n), vec(p.bar, 0x1000n)]));
    const [e] = sgt.entries;
    if (e === undefined) throw new Error("no entry");
    expect(sgt.entries).toHaveLength(1);
    expect(e.length).toBe(0x3000n);
    const domain = p.importer.iommuGroup?.defaultDomain;
    const phys = [0n, 0x1000n, 0x2000n].map((o) => domain?.iovaToPhys(e.address + o));
    expect(phys).toEqual([p.bar + 0x3000n, p.bar + 0x4000n, p.bar]);
    // READ, WRITE and MMIO, no CACHE.
    expect(p.m.eventsOf("iommu.map").map((x) => x.prot)).toEqual([19, 19]);
    p.free(sgt);
    expect(domain?.iovaToPhys(e.address)).toBeUndefined();
    // The run is free again.
    expect(ok(p.map([vec(p.bar, 0x3000n)])).entries[0]?.address).toBe(e.address);
  });

  it("does not hand out the interrupt window, page 0, or an address where a BAR is", () => {
    const p = new Peers(overTheRoot, { iommu: true });
    p.importer.dmaMask = 0xffff_ffffn;
    const taken: { address: bigint; length: bigint }[] = [];
    for (let i = 0; i < 12; i++) taken.push(...ok(p.map([vec(p.bar, 0x80_0000n)])).entries);
    const bars = [...p.m.kernel.pci.devices.values()].flatMap((d) => d.resources.filter((r) => r.flags.mem && r.length > 0n));
    const windows = [
      ...bars.map((r) => [r.start, r.start + r.length] as const),
      [0xfee0_0000n, 0xfef0_0000n] as const,
      [0n, 0x1000n] as const,
    ];
    for (const t of taken) for (const [start, end] of windows) expect(t.address < end && start < t.address + t.length).toBe(false);
    const sorted = [...taken].sort((a, b) => (a.address < b.address ? -1 : 1));
    for (const [i, t] of sorted.entries()) if (i > 0) expect(t.address >= (sorted[i - 1]?.address as bigint) + 0x80_0000n).toBe(true);
  });

  it("goes above 4 GiB only when there is no room below, and answers ENOMEM when there is none at all", () => {
    const p = new Peers(overTheRoot, { iommu: true });
    expect((ok(p.map([vec(p.bar, 0x1000n)])).entries[0]?.address as bigint) < 1n << 32n).toBe(true);
    expect((ok(p.map([vec(p.bar, 8n * GIB)])).entries[0]?.address as bigint) >= 1n << 32n).toBe(true);
    p.importer.dmaMask = 0xffffn;
    expect(p.map([vec(p.bar, 0x2_0000n)])).toBe(ENOMEM);
  });

  it("gives physical addresses to a device behind no IOMMU, if its mask can hold them", () => {
    const p = new Peers(overTheRoot);
    const sgt = ok(p.map([vec(p.bar + 0x3000n, 0x2000n), vec(p.bar, 0x1000n)]));
    expect(sgt.entries).toEqual([
      { address: p.bar + 0x3000n, length: 0x2000n },
      { address: p.bar, length: 0x1000n },
    ]);
    p.free(sgt);
    p.importer.dmaMask = 0xffff_ffffn;
    expect(p.map([vec(0x1000n, 0x1000n), vec(p.bar, 0x1000n)])).toBe(ENOMEM);
  });

  it("a range the page table refuses leaves neither mapping nor IOVA behind", () => {
    const p = new Peers(overTheRoot, { iommu: true });
    const first = ok(p.map([vec(p.bar, 0x2000n)]));
    const at = first.entries[0]?.address;
    p.free(first);
    // The second range lies beyond what the table can hold.
    const r = p.map([vec(p.bar, 0x1000n), vec(1n << 60n, 0x1000n)]);
    expect(r).toBeInstanceOf(Errno);
    expect(p.importer.iommuGroup?.defaultDomain?.iovaToPhys(at as bigint)).toBeUndefined();
    expect(ok(p.map([vec(p.bar, 0x2000n)])).entries[0]?.address).toBe(at);
  });
});

it("RAM for a device behind an IOMMU is mapped block by block, cacheable, and the device reads it", () => {
  const p = new Peers(overTheRoot, { iommu: true });
  const { frames } = p.m.kernel;
  const pages = [frames.alloc(), frames.alloc(), frames.alloc()];
  frames.writeFrame(pages[2] as Pfn, 0, Uint8Array.of(7));
  const runs = pageRuns([pages[2], pages[0], pages[1]] as Pfn[]);
  const sgt = ok(p.locked(() => ramToSgt(p.importer, runs, "to_device")));
  expect(sgt.entries.map((e) => e.length)).toEqual(runs.map((r) => r.len));
  // READ and CACHE.
  expect(p.m.eventsOf("iommu.map").every((e) => e.prot === 5)).toBe(true);
  const dst = new Uint8Array(1);
  const address = sgt.entries[0]?.address as bigint;
  const importer = p.importer as PciDev;
  importer.enable();
  importer.setMaster(true);
  expect(p.m.model(p.importer.name).port.dmaRead(address, dst)).toBe(true);
  expect(dst[0]).toBe(7);
  p.locked(() => freeRamSgt(p.importer, sgt));
  expect(p.m.model(p.importer.name).port.dmaRead(address, dst)).toBe(false);
});

it("RAM that a device cannot address is EIO, or ENOMEM when its IOVAs run out; what was mapped before is undone", () => {
  const runs = [vec(0x1000n, 0x1000n), vec(0x1_0000_0000n, 0x1000n)];
  const bare = new Peers(overTheRoot);
  bare.importer.dmaMask = 0xffff_ffffn;
  expect(bare.locked(() => ramToSgt(bare.importer, runs, "from_device"))).toBe(EIO);
  const p = new Peers(overTheRoot, { iommu: true });
  p.importer.dmaMask = 0x1fffn;
  expect(p.locked(() => ramToSgt(p.importer, runs, "from_device"))).toBe(ENOMEM);
  expect(p.importer.iommuGroup?.defaultDomain?.iovaToPhys(0x1000n)).toBeUndefined();
  p.importer.dmaMask = 0xffff_ffffn;
  expect(p.locked(() => ramToSgt(p.importer, [vec(1n << 60n, 0x1000n)], "from_device"))).toBe(ENOMEM);
});

it("a device that is on no bus cannot be reached: EINVAL", () => {
  const p = new Peers(belowOneSwitch);
  const att = ok(p.m.run(dmaBufDynamicAttach(p.buf, plainDevice())));
  expect(p.map([vec(p.bar, 0x1000n)], att)).toBe(EINVAL);
});

it("mapping and unmapping want the reservation held", () => {
  const p = new Peers(belowOneSwitch);
  const sgt = ok(p.map([vec(p.bar, 0x1000n)]));
  const naked = function* (): Step<void> {
    yield* p.m.kernel.sched.yield();
    freeSgt(p.att, sgt);
  };
  expect(() => p.m.run(naked())).toThrow(KernelBug);
});

it("adjacent pages of RAM are one run", () => {
  const runs = pageRuns([5, 6, 7, 9, 10, 3] as Pfn[]);
  expect(runs.map((r) => [r.paddr as PhysAddr, r.len])).toEqual([
    [0x5000n, 0x3000n],
    [0x9000n, 0x2000n],
    [0x3000n, 0x1000n],
  ]);
});
