import { describe, expect, it } from "vitest";
import { EADDRINUSE, EINVAL, ENOENT, ENOMEM, ENXIO, EOPNOTSUPP, EOVERFLOW, ERANGE } from "../../src/lib/errno.ts";
import { KernelBug } from "../../src/lib/kernel_bug.ts";
import { amdv1, amdv1Mock, PageTable, PtGather, type PtOptions, TableArena, vtdss, x86_64 } from "../../src/pt/index.ts";

const K = 1024n;
const M = K * K;
const G = K * M;
const T = K * G;
const RO = 1;
const WO = 2;
const RW = 3;

const ss = (o: Partial<PtOptions> = {}): PageTable => new PageTable(vtdss, { vasz: 48, ...o });
const fs = (o: Partial<PtOptions> = {}): PageTable => new PageTable(x86_64, { vasz: 48, signExtend: true, ...o });
const amd = (o: Partial<PtOptions> = {}): PageTable => new PageTable(amdv1, { vasz: 48, ...o });
const leaves = (pt: PageTable): [number, bigint, string][] =>
  [...pt.walk()].filter((e) => e.kind === "leaf").map((e) => [e.level, e.iova, e.value.toString(16)]);
const tableValues = (pt: PageTable): string[] =>
  [...pt.walk()].filter((e) => e.kind === "table").map((e) => (e.value & ~0x000f_ffff_ffff_f000n).toString(16));

describe("entries", () => {
  it("are R and W on VT-d's second stage, with SNP when snooping is forced", () => {
    const pt = ss({ snoop: true });
    pt.map(0n, 0x12345000n, 4n * K, RO);
    pt.map(0x1000n, 0x12346000n, 4n * K, WO);
    pt.map(2n * M, 4n * M, 2n * M, RW);
    expect(leaves(pt)).toEqual([
      [0, 0n, "12345801"],
      [0, 0x1000n, "12346802"],
      [1, 2n * M, "400883"],
    ]);
  });

  it("carry the flushed bit in tables when the walk does not snoop", () => {
    const incoherent = ss({ incoherent: true });
    incoherent.map(0n, 0n, 4n * K, RW);
    expect(tableValues(incoherent)).toEqual(["403", "403", "403"]);
    const first = fs({ incoherent: true });
    first.map(0n, 0n, 4n * K, RW);
    expect(tableValues(first)).toEqual(["227", "227", "227"]);
    const coherent = ss();
    coherent.map(0n, 0n, 4n * K, RW);
    expect(tableValues(coherent)).toEqual(["3", "3", "3"]);
  });

  it("of x86-64 have accessed and dirty set beforehand, and write implies read", () => {
    const pt = fs();
    pt.map(0n, 0x5000n, 4n * K, WO);
    pt.map(0x1000n, 0x6000n, 4n * K, RO);
    expect(leaves(pt).map((l) => l[2])).toEqual(["5067", "6025"]);
    expect(pt.translate(0n)).toMatchObject({ readable: true, writable: true });
    expect(pt.translate(0x1000n)).toMatchObject({ readable: true, writable: false });
  });

  it("of AMD repeat one value over a power of two, the size in the address", () => {
    const pt = amd();
    pt.map(0x10000n, 0x200010000n, 64n * K, RW);
    const l = leaves(pt);
    expect(l).toHaveLength(16);
    expect(new Set(l.map((e) => e[2]))).toEqual(new Set(["7000000200017e01"]));
    expect(pt.translate(0x1f123n)).toEqual({ pa: 0x20001f123n, pageSize: 64n * K, readable: true, writable: true });
  });

  it("name tables by their true physical address", () => {
    const arena = new TableArena(0x8000_0000n);
    const pt = ss({ allocTable: (l) => arena.allocTable(l), freeTable: (m) => arena.freeTable(m) });
    pt.map(0n, 0n, 4n * K, RW);
    expect(pt.topBase).toBe(0x8000_0000n);
    const byBase = new Map(pt.tables.map((t) => [t.base, t]));
    for (const t of pt.tables) {
      if (t.parent === undefined || t.index === undefined) continue;
      const parent = byBase.get(t.parent);
      const at = new DataView(parent?.bytes.buffer as ArrayBuffer, (parent?.bytes.byteOffset ?? 0) + 8 * t.index, 8);
      expect(at.getBigUint64(0, true)).toBe(t.base | 3n);
    }
  });

  it("of 1 GiB and more cross 4 GiB of physical address correctly", () => {
    const pt = ss();
    pt.map(0n, 2n * G, 8n * G, RW);
    for (let i = 0n; i < 8n; i++) expect(pt.translate(i * G + 5n)).toMatchObject({ pa: (2n + i) * G + 5n, pageSize: G });
  });
});

describe("the largest leaf that fits", () => {
  it("is chosen from both addresses and the rest of the range", () => {
    const pt = ss();
    pt.map(2n * M - 4n * K, G + 2n * M - 4n * K, 4n * M + 8n * K, RW);
    expect(leaves(pt).map(([level, iova]) => [level, iova])).toEqual([
      [0, 2n * M - 4n * K],
      [1, 2n * M],
      [1, 4n * M],
      [0, 6n * M],
    ]);
  });

  it("is 4 KiB everywhere when the addresses differ by 4 KiB", () => {
    const pt = ss();
    pt.map(0n, 4n * K, 2n * M, RW);
    expect(leaves(pt).every(([level]) => level === 0)).toBe(true);
  });

  it("is limited by the sizes the hardware has", () => {
    const pt = ss({ pgsizes: (4n * K) | (2n * M) });
    expect(pt.pgsizeBitmap).toBe((4n * K) | (2n * M));
    pt.map(0n, 0n, G, RW);
    expect(leaves(pt)).toHaveLength(512);
    expect(pt.translate(0n)?.pageSize).toBe(2n * M);
  });

  it("is never 512 GiB on AMD", () => {
    const pt = amd();
    expect(pt.pgsizeBitmap & (512n * G)).toBe(0n);
    pt.map(0n, 0n, 512n * G, RW);
    expect(pt.translate(0n)?.pageSize).toBe(256n * G);
    pt.map(T, T, T, RW);
    expect(pt.translate(T)?.pageSize).toBe(T);
  });

  it("keeps 1 TiB of MMIO in a handful of tables", () => {
    for (const pt of [ss(), fs(), amd()]) {
      expect(pt.map(T, T, T, RW)).toBeUndefined();
      expect(pt.tableCount).toBeLessThanOrEqual(4);
      expect(pt.iovaToPhys(2n * T - 1n)).toBe(2n * T - 1n);
      expect(pt.unmap(T, T)).toBe(T);
      expect(leaves(pt)).toEqual([]);
    }
  });
});

describe("a map is refused", () => {
  it("with EINVAL without any access or any byte", () => {
    for (const pt of [ss(), fs(), amd()]) {
      expect(pt.map(0n, 0n, 4n * K, 0)).toBe(EINVAL);
      expect(pt.map(0n, 0n, 4n * K, 4)).toBe(EINVAL);
      expect(pt.map(0n, 0n, 0n, RW)).toBe(EINVAL);
    }
  });

  it("with EINVAL when it is read-only in a nesting parent", () => {
    const pt = ss({ forceWriteable: true });
    expect(pt.map(0n, 0n, 4n * K, RO)).toBe(EINVAL);
    expect(pt.map(0n, 0n, 2n * M, RO)).toBe(EINVAL);
    expect(pt.map(0n, 0n, 4n * K, WO)).toBeUndefined();
    expect(pt.tableCount).toBe(4);
  });

  it("with ERANGE past the aperture, at either end of the range", () => {
    for (const [pt, last] of [
      [ss(), (1n << 48n) - 1n],
      [ss({ vasz: 39 }), (1n << 39n) - 1n],
      [ss({ vasz: 57 }), (1n << 57n) - 1n],
      [fs(), (1n << 47n) - 1n],
      [new PageTable(x86_64, { vasz: 57, signExtend: true }), (1n << 56n) - 1n],
      [new PageTable(x86_64, { vasz: 47 }), (1n << 47n) - 1n],
      [amd(), (1n << 48n) - 1n],
    ] as const) {
      expect(pt.apertureLast).toBe(last);
      expect(pt.map(last + 1n - 4n * K, 0n, 8n * K, RW)).toBe(ERANGE);
      expect(pt.map(last + 1n, 0n, 4n * K, RW)).toBe(ERANGE);
      expect(pt.map(last + 1n - 4n * K, 0n, 4n * K, RW)).toBeUndefined();
      expect(pt.iovaToPhys(last)).toBe(4095n);
      expect(pt.iovaToPhys(last + 1n)).toBeUndefined();
    }
  });

  it("with ERANGE past the output width", () => {
    const pt = ss({ oasz: 39 });
    expect(pt.map(0n, 1n << 39n, 4n * K, RW)).toBe(ERANGE);
    expect(pt.map(0n, (1n << 39n) - 4n * K, 8n * K, RW)).toBe(ERANGE);
    expect(pt.map(0n, (1n << 39n) - 4n * K, 4n * K, RW)).toBeUndefined();
    expect(ss().map(0n, 1n << 52n, 2n * M, RW)).toBe(ERANGE);
  });

  it("with EOVERFLOW when it leaves the 64-bit space", () => {
    const pt = new PageTable(amdv1, { vasz: 64 });
    expect(pt.map((1n << 64n) - 4n * K, 0n, 8n * K, RW)).toBe(EOVERFLOW);
    expect(pt.map((1n << 64n) - 4n * K, 0n, 4n * K, RW)).toBeUndefined();
    expect(pt.topLevel).toBe(5);
    expect(pt.iovaToPhys((1n << 64n) - 1n)).toBe(4095n);
  });

  it("with ENXIO unless everything is a multiple of the smallest page", () => {
    for (const pt of [ss(), fs(), amd()]) {
      expect(pt.map(0x800n, 0n, 4n * K, RW)).toBe(ENXIO);
      expect(pt.map(0n, 0x800n, 4n * K, RW)).toBe(ENXIO);
      expect(pt.map(0n, 0n, 6n * K, RW)).toBe(ENXIO);
    }
    const big = ss({ pgsizes: 2n * M });
    expect(big.map(4n * K, 4n * K, 2n * M, RW)).toBe(ENXIO);
    expect(big.map(0n, 2n * M, 2n * M, RW)).toBeUndefined();
  });

  it("with EADDRINUSE over anything mapped, and then nothing of it stays", () => {
    for (const pt of [ss(), fs(), amd()]) {
      pt.map(16n * K, 0n, 4n * K, RW);
      expect(pt.map(16n * K, 0n, 4n * K, RW)).toBe(EADDRINUSE);
      expect(pt.map(0n, 4n * K, 64n * K, RW)).toBe(EADDRINUSE);
      expect(pt.map(0n, 0n, 2n * M, RW)).toBe(EADDRINUSE);
      expect(pt.map(0n, 0n, G, RW)).toBe(EADDRINUSE);
      expect(leaves(pt)).toHaveLength(1);
      pt.map(2n * M, 2n * M, 2n * M, RW);
      expect(pt.map(2n * M + 4n * K, 0n, 4n * K, RW)).toBe(EADDRINUSE);
      expect(pt.map(2n * M + 4n * K, 0n, 8n * K, RW)).toBe(EADDRINUSE);
      expect(leaves(pt)).toHaveLength(2);
    }
  });

  it("with the allocator's errno, and then nothing of it stays", () => {
    const arena = new TableArena();
    let budget = 4;
    const pt = ss({ allocTable: (l) => (budget-- > 0 ? arena.allocTable(l) : ENOMEM), freeTable: (m) => arena.freeTable(m) });
    expect(pt.map(0n, 4n * K, 4n * M, RW)).toBe(ENOMEM);
    expect(leaves(pt)).toEqual([]);
    // The leaf table was filled whole and so the rollback freed it; the ones above stay.
    expect(pt.tableCount).toBe(3);
    expect(arena.live).toBe(3);
    expect(PageTable.create(vtdss, { vasz: 48, allocTable: () => ENOMEM, freeTable: () => {} })).toBe(ENOMEM);
  });
});

describe("unmap", () => {
  it("takes leaves whole: a range that ends inside one unmaps more than it names", () => {
    const pt = ss();
    pt.map(0n, 0n, 2n * M, RW);
    expect(pt.unmap(0n, 4n * K)).toBe(2n * M);
    const run = amd();
    run.map(0n, 0n, 64n * K, RW);
    expect(run.unmap(0n, 4n * K)).toBe(64n * K);
    expect(leaves(run)).toEqual([]);
  });

  it("does nothing from inside a leaf", () => {
    for (const pt of [ss(), fs(), amd()]) {
      pt.map(0n, 0n, 2n * M, RW);
      expect(pt.unmap(4n * K, 4n * K)).toBe(0n);
      expect(pt.unmap(M, M)).toBe(0n);
      expect(pt.iovaToPhys(M)).toBe(M);
    }
    const run = amd();
    run.map(0n, 0n, 64n * K, RW);
    expect(run.unmap(32n * K, 4n * K)).toBe(0n);
    expect(run.unmap(32n * K, 32n * K)).toBe(0n);
  });

  it("stops at the first hole", () => {
    for (const pt of [ss(), fs(), amd()]) {
      pt.map(0n, 4n * K, 8n * K, RW);
      pt.map(16n * K, 4n * K, 4n * K, RW);
      expect(pt.unmap(0n, 64n * K)).toBe(8n * K);
      expect(pt.unmap(0n, 64n * K)).toBe(0n);
      expect(pt.iovaToPhys(16n * K)).toBe(4n * K);
    }
  });

  it("frees a table only when one range covers it whole", () => {
    const pt = ss();
    pt.map(0n, 4n * K, M, RW);
    pt.map(M, 4n * K, M, RW);
    pt.unmap(0n, M);
    pt.unmap(M, M);
    expect(leaves(pt)).toEqual([]);
    expect(pt.tableCount).toBe(4);
    pt.map(0n, 4n * K, 2n * M, RW);
    pt.unmap(0n, 2n * M);
    expect(pt.tableCount).toBe(3);
  });

  it("leaves an emptied table until a large page is mapped over it, and says what to flush then", () => {
    const flushed: [bigint, bigint, number][] = [];
    for (const make of [ss, fs, amd]) {
      flushed.length = 0;
      const pt = make({ iotlbSync: (g) => flushed.push([g.start, g.last, g.freed.length]) });
      pt.map(2n * M, 4n * K, 4n * K, RW);
      pt.unmap(2n * M, 4n * K);
      const before = pt.tableCount;
      expect(pt.map(2n * M, 2n * M, 2n * M, RW)).toBeUndefined();
      expect(pt.tableCount).toBe(before - 1);
      expect(flushed).toEqual([[2n * M, 4n * M - 1n, 1]]);
    }
  });

  it("forgets the last leaf table used once that is freed", () => {
    for (const pt of [ss(), fs(), amd()]) {
      pt.map(0n, 8n * K, 4n * K, RW);
      pt.map(4n * K, 8n * K, 4n * K, RW);
      pt.unmap(0n, 4n * K);
      pt.unmap(4n * K, 4n * K);
      pt.map(0n, 0n, 2n * M, RW);
      expect(pt.map(4n * K, 8n * K, 4n * K, RW)).toBe(EADDRINUSE);
      expect(pt.unmap(4n * K, 4n * K)).toBe(0n);
      pt.unmap(0n, 2n * M);
      pt.map(0n, 4n * K, 2n * M, RW);
      pt.unmap(0n, 4n * K);
      pt.map(0n, 0x5000n, 4n * K, RW);
      expect(pt.unmap(0n, 2n * M)).toBe(2n * M);
      expect(pt.unmap(0n, 4n * K)).toBe(0n);
      pt.map(0n, 0x7000n, 4n * K, RW);
      expect(pt.iovaToPhys(0n)).toBe(0x7000n);
      expect(leaves(pt)).toHaveLength(1);
    }
  });

  it("keeps freed tables in a gather until that is released", () => {
    const arena = new TableArena();
    const pt = ss({ allocTable: (l) => arena.allocTable(l), freeTable: (m) => arena.freeTable(m) });
    pt.map(0n, 4n * K, 2n * M, RW);
    const gather = new PtGather();
    expect(gather.empty).toBe(true);
    expect(pt.unmap(0n, 2n * M, gather)).toBe(2n * M);
    expect([gather.start, gather.last, gather.freed.length]).toEqual([0n, 2n * M - 1n, 1]);
    expect([pt.tableCount, arena.live]).toEqual([3, 4]);
    pt.releaseGather(gather);
    expect([gather.empty, arena.live]).toEqual([true, 3]);
    pt.map(8n * M, 0n, 4n * K, RW);
    pt.unmap(8n * M, 4n * K, gather);
    expect([gather.start, gather.last]).toEqual([8n * M, 8n * M + 4095n]);
    expect(gather.isDisjoint(0n, M)).toBe(true);
    expect(gather.isDisjoint(8n * M + 4n * K, M)).toBe(false);
  });
});

describe("a growing top", () => {
  it("is added when an address needs it, names the old one at index 0 and stays", () => {
    const tops: [bigint, number][] = [];
    const pt = amd({ changeTop: (base, level) => tops.push([base, level]) });
    pt.map(0n, 0n, 4n * K, RW);
    expect([pt.topLevel, pt.tableCount]).toEqual([2, 3]);
    expect(pt.unmap(1n << 39n, 4n * K)).toBe(0n);
    expect(pt.iovaToPhys(1n << 39n)).toBeUndefined();
    pt.map(1n << 39n, 0n, 4n * K, RW);
    expect([pt.topLevel, pt.tableCount]).toEqual([3, 7]);
    expect(tops).toEqual([[pt.topBase, 3]]);
    expect(pt.iovaToPhys(0n)).toBe(0n);
    pt.unmap(1n << 39n, 4n * K);
    expect(pt.topLevel).toBe(3);
  });

  it("grows by several levels at once or, without memory, not at all", () => {
    const arena = new TableArena();
    let budget = 2;
    const pt = new PageTable(amdv1, {
      vasz: 64,
      allocTable: (l) => (budget-- > 0 ? arena.allocTable(l) : ENOMEM),
      freeTable: (m) => arena.freeTable(m),
    });
    expect(pt.map(1n << 60n, 0n, 4n * K, RW)).toBe(ENOMEM);
    expect([pt.topLevel, pt.tableCount, arena.live]).toEqual([2, 1, 1]);
    budget = 100;
    expect(pt.map(1n << 60n, 0n, 4n * K, RW)).toBeUndefined();
    expect([pt.topLevel, pt.tableCount]).toEqual([5, 9]);
  });

  it("stops at the width", () => {
    const pt = new PageTable(amdv1, { vasz: 42 });
    expect(pt.map(1n << 42n, 0n, 4n * K, RW)).toBe(ERANGE);
    expect(pt.map((1n << 42n) - 4n * K, 0n, 4n * K, RW)).toBeUndefined();
    expect(pt.topLevel).toBe(3);
  });
});

describe("sign extension", () => {
  it("puts the upper half at the top of the 64-bit space", () => {
    const pt = fs();
    const up = (1n << 64n) - (1n << 47n);
    expect(pt.map(up, 0x5000n, 4n * K, RW)).toBeUndefined();
    expect(pt.map(up - 4n * K, 0x5000n, 4n * K, RW)).toBe(ERANGE);
    expect(pt.map((1n << 64n) - 2n * M, 0n, 2n * M, RW)).toBeUndefined();
    expect(pt.iovaToPhys(up + 7n)).toBe(0x5007n);
    expect(pt.iovaToPhys((1n << 64n) - 1n)).toBe(2n * M - 1n);
    expect(leaves(pt).map((l) => l[1])).toEqual([up, (1n << 64n) - 2n * M]);
    expect(pt.unmap(up, 4n * K)).toBe(4n * K);
  });
});

describe("dirty tracking", () => {
  it("reports whole leaves written through, once, and cleans them", () => {
    for (const pt of [ss(), amd()]) {
      pt.map(0n, 4n * K, 16n * K, RW);
      pt.map(2n * M, 2n * M, 2n * M, RW);
      expect(pt.setDirty(4n * K + 5n)).toBeUndefined();
      expect(pt.setDirty(3n * M)).toBeUndefined();
      expect(pt.setDirty(8n * M)).toBe(ENOENT);
      const read = (noClear: boolean): [bigint, bigint][] => {
        const got: [bigint, bigint][] = [];
        expect(pt.readAndClearDirty(0n, 4n * M, (iova, length) => got.push([iova, length]), { noClear })).toBeUndefined();
        return got;
      };
      const dirty = [
        [4n * K, 4n * K],
        [2n * M, 2n * M],
      ];
      expect(read(true)).toEqual(dirty);
      expect(read(false)).toEqual(dirty);
      expect(read(false)).toEqual([]);
    }
  });

  it("takes a run of AMD entries as one leaf, whichever entry is marked", () => {
    const pt = amd();
    pt.map(64n * K, 64n * K, 64n * K, RW);
    pt.setDirty(100n * K);
    const gather = new PtGather();
    const got: [bigint, bigint][] = [];
    pt.readAndClearDirty(80n * K, 4n * K, (iova, length) => got.push([iova, length]), { gather });
    expect(got).toEqual([[64n * K, 64n * K]]);
    expect([gather.start, gather.last]).toEqual([64n * K, 128n * K - 1n]);
    expect(new Set(leaves(pt).map((l) => l[2])).size).toBe(1);
  });

  it("uses bit 9 on VT-d, bit 6 on AMD, and does not exist for x86-64", () => {
    const intel = ss();
    intel.map(0n, 0n, 4n * K, RW);
    intel.setDirty(0n);
    expect(leaves(intel)[0]?.[2]).toBe("203");
    const a = amd();
    a.map(0n, 0n, 4n * K, RW);
    a.setDirty(0n);
    expect(leaves(a)[0]?.[2]).toBe("7000000000000041");
    expect(fs().setDirty(0n)).toBe(EOPNOTSUPP);
    expect(fs().readAndClearDirty(0n, 4n * K, () => {})).toBe(EOPNOTSUPP);
    expect(intel.readAndClearDirty(1n << 48n, 4n * K, () => {})).toBe(ERANGE);
    expect(intel.readAndClearDirty(0n, 0n, () => {})).toBe(EINVAL);
  });
});

describe("a page table", () => {
  it("can be told to force snooping only where leaves have the bit", () => {
    const pt = ss();
    expect(pt.forceSnoop()).toBeUndefined();
    pt.map(0n, 0n, 4n * K, RW);
    expect(leaves(pt)[0]?.[2]).toBe("803");
    expect(fs().forceSnoop()).toBe(EOPNOTSUPP);
    expect(amd().forceSnoop()).toBe(EOPNOTSUPP);
  });

  it("works in granules of 2 KiB for the selftest's format", () => {
    const pt = new PageTable(amdv1Mock, { vasz: 56 });
    expect(pt.pgsizeBitmap & 0xfffn).toBe(2n * K);
    expect(pt.map(2n * K, 0x1234_5800n, 2n * K, RW)).toBeUndefined();
    expect(pt.map(64n * K, 64n * K, 6n * K, RO)).toBeUndefined();
    expect(pt.iovaToPhys(2n * K + 3n)).toBe(0x1234_5803n);
    expect(pt.translate(64n * K)).toEqual({ pa: 64n * K, pageSize: 4n * K, readable: true, writable: false });
    expect(pt.unmap(64n * K, 6n * K)).toBe(6n * K);
    expect(pt.map(K, 0n, 2n * K, RW)).toBe(ENXIO);
  });

  it("gives everything back when it is destroyed, and maps nothing afterwards", () => {
    for (const [format, o] of [
      [vtdss, { vasz: 57 }],
      [x86_64, { vasz: 48, signExtend: true }],
      [amdv1, { vasz: 64 }],
    ] as const) {
      const arena = new TableArena();
      const pt = new PageTable(format, { ...o, allocTable: (l) => arena.allocTable(l), freeTable: (m) => arena.freeTable(m) });
      for (let i = 0n; i < 40n; i++) pt.map(i * 5n * G, 4n * K, i * 1000n * K + 4n * K, RW);
      expect(arena.live).toBe(pt.tableCount);
      pt.destroy();
      pt.destroy();
      expect([arena.live, pt.tableCount, pt.tables.length]).toEqual([0, 0, 0]);
      expect(pt.iovaToPhys(0n)).toBeUndefined();
      expect(pt.unmap(0n, 4n * K)).toBe(0n);
      expect(() => pt.map(0n, 0n, 4n * K, RW)).toThrow(KernelBug);
      for (let n = 0; n < 20; n++) expect(arena.allocTable(0).words.every((w) => w === 0)).toBe(true);
    }
  });

  it("rejects parameters its format cannot have", () => {
    expect(() => ss({ vasz: 58 })).toThrow(RangeError);
    expect(() => ss({ oasz: 53 })).toThrow(RangeError);
    expect(() => ss({ signExtend: true })).toThrow(RangeError);
    expect(() => ss({ topLevel: 2 })).toThrow(RangeError);
    expect(() => ss({ topLevel: 5 })).toThrow(RangeError);
    expect(() => ss({ pgsizes: 8n * K })).toThrow(RangeError);
    expect(() => fs({ snoop: true })).toThrow(RangeError);
    expect(() => fs({ forceWriteable: true })).toThrow(RangeError);
    expect(() => amd({ incoherent: true })).toThrow(RangeError);
    expect(() => ss({ allocTable: () => ENOMEM, freeTable: () => {} })).toThrow(RangeError);
    expect(() => new TableArena(5n)).toThrow(RangeError);
  });

  it("may stand with a taller tree than its width needs", () => {
    const pt = ss({ vasz: 39, topLevel: 3 });
    expect(pt.map((1n << 39n) - 4n * K, 0n, 8n * K, RW)).toBe(ERANGE);
    expect(pt.map((1n << 39n) - 4n * K, 0n, 4n * K, RW)).toBeUndefined();
    expect(pt.topLevel).toBe(3);
    expect(pt.tableCount).toBe(4);
  });

  it("may be used from inside another's allocator", () => {
    const arena = new TableArena();
    const inner = ss();
    let at = 0n;
    const pt = ss({
      allocTable: (l) => {
        at += 2n * M;
        inner.map(at, 0x7000n, 4n * K, RW);
        return arena.allocTable(l);
      },
      freeTable: (m) => arena.freeTable(m),
    });
    expect(pt.map(4n * K, 0x9000n, 8n * K, RO)).toBeUndefined();
    expect(pt.iovaToPhys(8n * K)).toBe(0xa000n);
    expect(pt.translate(8n * K)?.writable).toBe(false);
  });
});
