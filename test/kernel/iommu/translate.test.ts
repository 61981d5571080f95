import * as fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { IotlbGather } from "../../../src/kernel/iommu/domain.ts";
import { IommuFault } from "../../../src/kernel/iommu/fault.ts";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import { Iotlb } from "../../../src/kernel/iommu/iotlb.ts";
import { attachNew, groupOf, miniKernel, unitOf } from "./mini_kernel.ts";

const RW = 3;

describe("a translation that is cached", () => {
  it("goes on being used after an unmap without flush, and is gone with the flush", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    domain.map(0x1000n, 0xabc000n, 0x1000n, RW);
    expect(m.iommu.translate(dev.rid, 0x1010n, true)).toEqual({ pa: 0xabc010n, last: 0x1fffn });
    const gather = new IotlbGather();
    expect(domain.unmapFast(0x1000n, 0x1000n, gather)).toBe(0x1000n);
    expect(domain.iovaToPhys(0x1000n)).toBeUndefined();
    expect(m.iommu.translate(dev.rid, 0x1020n, true)).toEqual({ pa: 0xabc020n, last: 0x1fffn });
    domain.iotlbSync(gather);
    expect(m.iommu.translate(dev.rid, 0x1020n, true)).toMatchObject({ reason: 5 });
  });

  it("is not there for a page nobody had touched", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    domain.map(0x1000n, 0xabc000n, 0x2000n, RW);
    m.iommu.translate(dev.rid, 0x1000n, false);
    domain.unmapFast(0x1000n, 0x2000n, new IotlbGather());
    expect(m.iommu.translate(dev.rid, 0x1000n, false)).toMatchObject({ pa: 0xabc000n });
    expect(m.iommu.translate(dev.rid, 0x2000n, false)).toMatchObject({ reason: 6 });
  });

  it("of a large page goes wherever in the page the flush points", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    domain.map(0x20_0000n, 0x4000_0000n, 0x20_0000n, RW);
    expect(m.iommu.translate(dev.rid, 0x2f_f123n, true)).toEqual({ pa: 0x400f_f123n, last: 0x3f_ffffn });
    expect(domain.unmap(0x20_0000n, 0x20_0000n)).toBe(0x20_0000n);
    expect(m.iommu.translate(dev.rid, 0x2f_f123n, true)).toBeInstanceOf(IommuFault);
  });

  it("belongs to its domain: another domain of the device does not see it", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const first = attachNew(m, dev);
    first.map(0n, 0x1000n, 0x1000n, RW);
    m.iommu.translate(dev.rid, 0n, true);
    const second = m.run(unitOf(dev).domainAllocPagingFlags(dev, 0));
    if (!("map" in second)) throw new Error(second.name);
    second.map(0n, 0x7000n, 0x1000n, RW);
    m.run(groupOf(dev).replaceHandle(second, { domain: second }));
    expect(m.iommu.translate(dev.rid, 0n, true)).toMatchObject({ pa: 0x7000n });
  });

  it("does not survive the domain that owned its id", () => {
    const m = miniKernel({ kind: "amd" });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    domain.map(0n, 0x1000n, 0x1000n, RW);
    m.iommu.translate(dev.rid, 0n, true);
    m.run(groupOf(dev).detachHandle(domain));
    domain.free();
    const next = attachNew(m, dev);
    expect(next.id).toBe(domain.id);
    expect(m.iommu.translate(dev.rid, 0n, true)).toBeInstanceOf(IommuFault);
  });
});

describe("a fault", () => {
  const lines: [string, IommuDescription, bigint, boolean, string][] = [
    [
      "a write to nothing",
      { kind: "intel-legacy" },
      0x3000000n,
      true,
      "DMAR: [DMA Write NO_PASID] Request device [0000:01:00.0] fault addr 0x3000000 [fault reason 0x05] PTE Write access is not set",
    ],
    [
      "a read of nothing",
      { kind: "intel-legacy" },
      0x3000123n,
      false,
      "DMAR: [DMA Read NO_PASID] Request device [0000:01:00.0] fault addr 0x3000000 [fault reason 0x06] PTE Read access is not set",
    ],
    [
      "AMD's",
      { kind: "amd" },
      0x3000123n,
      true,
      "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:01:00.0 domain=0x0002 address=0x3000123 flags=0x0020]",
    ],
  ];
  it.each(lines)("by %s is logged as Linux does", (_what, description, iova, write, text) => {
    const m = miniKernel(description);
    const dev = m.device(1);
    attachNew(m, dev);
    expect(m.iommu.translate(dev.rid, iova, write)).toMatchObject({ text, iova, write, requester: dev.rid });
    expect(m.events).toContainEqual({ type: "sched.printk", text });
    expect(m.events.find((e) => e.type === "iommu.fault")).toMatchObject({ device: dev.name, iova, write, text });
  });

  it.each<[string, IommuDescription, number, number]>([
    ["legacy", { kind: "intel-legacy" }, 0x05, 0x06],
    ["scalable", { kind: "intel-scalable" }, 0x85, 0x86],
  ])("on %s tables tells a missing permission", (_what, description, writeReason, readReason) => {
    const m = miniKernel(description);
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    domain.map(0x1000n, 0x1000n, 0x1000n, 1);
    domain.map(0x2000n, 0x2000n, 0x1000n, 2);
    expect(m.iommu.translate(dev.rid, 0x1000n, true)).toMatchObject({ cause: "write-denied", reason: writeReason });
    expect(m.iommu.translate(dev.rid, 0x2000n, false)).toMatchObject({ cause: "read-denied", reason: readReason });
    expect(m.iommu.translate(dev.rid, 0x1000n, false)).toMatchObject({ pa: 0x1000n });
    expect(m.iommu.translate(dev.rid, 0x2000n, true)).toMatchObject({ pa: 0x2000n });
  });

  it("is not made by write-only pages of the first stage: they can be read", () => {
    const m = miniKernel({ kind: "intel-first-stage" });
    const dev = m.device(1);
    attachNew(m, dev).map(0x2000n, 0x2000n, 0x1000n, 2);
    expect(m.iommu.translate(dev.rid, 0x2000n, false)).toMatchObject({ pa: 0x2000n });
  });

  it("tells an address that no first-stage table can hold from one that it does not", () => {
    const m = miniKernel({ kind: "intel-first-stage" });
    const dev = m.device(1);
    attachNew(m, dev);
    for (const [iova, reason] of [
      [0x7fff_ffff_f000n, 0x71],
      [0x8000_0000_0000n, 0x80],
      [0xffff_7fff_ffff_f000n, 0x80],
      [0xffff_8000_0000_0000n, 0x71],
    ] as const) {
      expect(m.iommu.translate(dev.rid, iova, true)).toMatchObject({ reason });
    }
  });

  it("is counted by reason and heard by listeners", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    attachNew(m, dev);
    const heard: bigint[] = [];
    const stop = m.iommu.onFault((f) => heard.push(f.iova));
    for (const iova of [0x1000n, 0x2000n]) m.iommu.translate(dev.rid, iova, true);
    m.iommu.translate(dev.rid, 0x3000n, false);
    stop();
    m.iommu.translate(dev.rid, 0x4000n, false);
    expect(heard).toEqual([0x1000n, 0x2000n, 0x3000n]);
    expect([...m.iommu.faultCount]).toEqual([
      [5, 2],
      [6, 2],
    ]);
    expect(m.iommu.faults).toBe(4);
  });

  it("stops a device that nobody registered, and DMA to the interrupt window", () => {
    const m = miniKernel({ kind: "intel-legacy" });
    const dev = m.device(1);
    const domain = attachNew(m, dev);
    expect(m.iommu.translate(0x1234, 0n, true)).toMatchObject({ device: "0000:12:06.4", cause: "no-domain", reason: 2 });
    domain.map(0xfee0_0000n, 0x1000n, 0x1000n, RW);
    expect(m.iommu.translate(dev.rid, 0xfee0_0000n, true)).toMatchObject({
      cause: "interrupt-window",
      text: expect.stringMatching(/^DMAR: \[INTR-REMAP\] Request device \[0000:01:00.0\] fault index 0x0 \[fault reason 0x25\]/),
    });
    const plain = miniKernel({ kind: "intel-legacy", interruptRemapping: false });
    plain.device(1);
    expect(plain.iommu.translate(0x100, 0xfee0_1000n, true)).toEqual({ pa: 0xfee0_1000n, last: 0xfeef_ffffn });
  });
});

it("translates nothing where there is no unit, or in the identity domain", () => {
  const none = miniKernel();
  none.device(1);
  expect(none.iommu.translate(0x100, 0x1234n, true)).toMatchObject({ pa: 0x1234n });
  const m = miniKernel({ kind: "intel-legacy" });
  m.iommu.passthrough = true;
  const dev = m.device(1);
  expect(m.iommu.translate(dev.rid, 0x1234n, true)).toMatchObject({ pa: 0x1234n });
});

describe.each<[string, IommuDescription]>([
  ["VT-d", { kind: "intel-scalable", coherentWalk: true, dirtyTracking: true }],
  ["AMD", { kind: "amd", dirtyTracking: true }],
])("dirty tracking on %s", (_name, description) => {
  const read = (domain: ReturnType<typeof attachNew>, flags = 0): bigint[] => {
    const pages: bigint[] = [];
    const e = domain.dirtyOps?.readAndClearDirty(0n, 0x10_0000n, flags, {
      record(iova, length) {
        for (let at = iova; at < iova + length; at += 0x1000n) pages.push(at);
      },
    });
    expect(e).toBeUndefined();
    return pages;
  };

  it("reports what was written since, through cached translations too, and only while it is on", () => {
    const m = miniKernel(description);
    const dev = m.device(1);
    const domain = attachNew(m, dev, 2);
    for (let i = 0n; i < 8n; i++) domain.map(i * 0x1000n, 0x10_0000n + i * 0x3000n, 0x1000n, RW);
    m.iommu.translate(dev.rid, 0x1000n, true);
    expect(read(domain)).toEqual([]);
    domain.dirtyOps?.setDirtyTracking(true);
    m.iommu.translate(dev.rid, 0x1000n, true);
    m.iommu.translate(dev.rid, 0x2000n, false);
    expect(read(domain, 1)).toEqual([0x1000n]);
    expect(read(domain)).toEqual([0x1000n]);
    expect(read(domain)).toEqual([]);
    m.iommu.translate(dev.rid, 0x1000n, true);
    m.iommu.translate(dev.rid, 0x2000n, true);
    expect(read(domain)).toEqual([0x1000n, 0x2000n]);
  });
});

describe("the IOTLB, against a list", () => {
  it("drops exactly the entries whose leaf touches the range", () => {
    const op = fc.oneof(
      fc.record({ insert: fc.nat(63), order: fc.constantFrom(0, 0, 2), domain: fc.nat(1) }),
      fc.record({ from: fc.nat(63), count: fc.integer({ min: 1, max: 64 }), domain: fc.nat(1) }),
    );
    fc.assert(
      fc.property(fc.array(op, { maxLength: 60 }), (ops) => {
        const tlb = new Iotlb();
        let model: { domain: number; page: number; start: bigint; last: bigint }[] = [];
        for (const o of ops) {
          if ("insert" in o) {
            const first = (o.insert >> o.order) << o.order;
            const start = BigInt(first) << 12n;
            const last = start + (0x1000n << BigInt(o.order)) - 1n;
            tlb.insert(o.domain, BigInt(o.insert) << 12n, { start, last, pa: start, readable: true, writable: true, dirty: false });
            model = model.filter((e) => e.domain !== o.domain || e.page !== o.insert);
            model.push({ domain: o.domain, page: o.insert, start, last });
          } else {
            const start = BigInt(o.from) << 12n;
            const last = start + (BigInt(o.count) << 12n) - 1n;
            const kept = model.filter((e) => e.domain !== o.domain || e.start > last || e.last < start);
            expect(tlb.invalidate(o.domain, start, last)).toBe(model.length - kept.length);
            model = kept;
          }
          for (const d of [0, 1]) expect(tlb.size(d)).toBe(model.filter((e) => e.domain === d).length);
        }
        for (const d of [0, 1]) {
          for (let p = 0; p < 64; p++) {
            const known = model.find((e) => e.domain === d && e.page === p);
            expect(tlb.lookup(d, BigInt(p) << 12n)?.start).toBe(known?.start);
          }
        }
      }),
    );
  });

  it("makes room by forgetting the oldest entry of the domain", () => {
    const tlb = new Iotlb(2);
    const entry = (p: bigint) => ({ start: p << 12n, last: (p << 12n) + 0xfffn, pa: 0n, readable: true, writable: true, dirty: false });
    for (const p of [1n, 2n, 3n]) tlb.insert(7, p << 12n, entry(p));
    expect([1n, 2n, 3n].map((p) => tlb.lookup(7, p << 12n) !== undefined)).toEqual([false, true, true]);
  });
});

describe("translation, against a map of pages", () => {
  let freed = 0;
  afterEach(() => expect(freed).toBeGreaterThanOrEqual(0));

  it("always tells what map and unmap left, once flushed", () => {
    const kinds = fc.constantFrom<IommuDescription>({ kind: "intel-legacy" }, { kind: "intel-first-stage" }, { kind: "amd" });
    const op = fc.record({ map: fc.boolean(), at: fc.nat(40), pages: fc.integer({ min: 1, max: 12 }), pa: fc.nat(200) });
    fc.assert(
      fc.property(kinds, fc.array(op, { maxLength: 40 }), (description, ops) => {
        const m = miniKernel(description);
        const dev = m.device(1);
        const domain = attachNew(m, dev);
        const model = new Map<number, number>();
        for (const o of ops) {
          const iova = BigInt(o.at) << 12n;
          const length = BigInt(o.pages) << 12n;
          const range = Array.from({ length: o.pages }, (_, i) => o.at + i);
          if (o.map) {
            const e = domain.map(iova, BigInt(o.pa) << 12n, length, RW);
            const taken = range.some((p) => model.has(p));
            expect(e?.name).toBe(taken ? "EADDRINUSE" : undefined);
            if (!taken) for (const p of range) model.set(p, o.pa + p - o.at);
          } else if (range.every((p) => model.has(p)) && domain.pgsizeBitmap === 0x4020_1000n) {
            expect(domain.unmap(iova, length)).toBe(length);
            for (const p of range) model.delete(p);
          }
          for (let p = 0; p < 56; p++) {
            const t = m.iommu.translate(dev.rid, BigInt(p) << 12n, true);
            const known = model.get(p);
            if (known === undefined) expect(t).toBeInstanceOf(IommuFault);
            else expect(t).toMatchObject({ pa: BigInt(known) << 12n });
          }
        }
        m.run(groupOf(dev).detachHandle(domain));
        domain.free();
        m.run(groupOf(dev).releaseDmaOwner());
        m.iommu.removeDevice(dev);
        expect([m.iommu.groups.size, m.iommu.requester(dev.rid)]).toEqual([0, undefined]);
        freed++;
      }),
      { numRuns: 60 },
    );
  });
});
