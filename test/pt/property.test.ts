import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { amdv1, amdv1Mock, PageTable, type PtFormat, type PtOptions, TableArena, vtdss, x86_64 } from "../../src/pt/index.ts";
import { Model } from "./model.ts";

interface Op {
  readonly kind: "map" | "unmap" | "again";
  readonly page: number;
  readonly pfn: number;
  readonly pages: number;
  readonly prot: number;
  /** For "again": which earlier map to take away. */
  readonly pick: number;
}

// Places where tables of each level meet, so that ranges straddle them.
const places = fc.constantFrom(0, 512, 1024 - 8, 512 * 511, 512 ** 2, 512 ** 2 * 3, 512 ** 3 - 512, 512 ** 3, 512 ** 4 / 8 - 1024);
// And beyond: past the aperture of some, at the far end of others.
const far = fc.constantFrom(512 ** 4 / 2 - 700, 512 ** 4 / 2, 512 ** 4 - 700, 512 ** 4, 512 ** 5 / 2, 512 ** 5 * 127);
const nudge = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 40 }), fc.constantFrom(256, 512, 1024));
const lengths = fc.oneof(
  { arbitrary: fc.integer({ min: 1, max: 20 }), weight: 4 },
  { arbitrary: fc.constantFrom(64, 256, 512, 513, 1024, 1536), weight: 3 },
);
const op: fc.Arbitrary<Op> = fc.record({
  kind: fc.constantFrom("map", "map", "map", "unmap", "again", "again"),
  page: fc.tuple(fc.oneof({ arbitrary: places, weight: 5 }, { arbitrary: far, weight: 1 }), nudge).map(([a, b]) => a + b),
  pfn: fc.tuple(places, nudge).map(([a, b]) => a + b),
  pages: lengths,
  prot: fc.constantFrom(3, 3, 3, 1, 2, 0),
  pick: fc.nat(1000),
});
// A huge aligned leaf, over which all of the above may lie.
const huge: fc.Arbitrary<Op> = fc.record({
  kind: fc.constantFrom("map", "unmap"),
  page: fc.constantFrom(0, 512 ** 2, 512 ** 2 * 3),
  pfn: fc.constantFrom(0, 512 ** 2 * 2),
  pages: fc.constantFrom(512 ** 2, 512 ** 2 * 2),
  prot: fc.constant(3),
  pick: fc.constant(0),
});
const program = fc.array(fc.oneof({ arbitrary: op, weight: 8 }, { arbitrary: huge, weight: 1 }), { maxLength: 25 });

const cases: readonly [string, PtFormat, PtOptions][] = [
  ["VT-d second stage", vtdss, { vasz: 48, incoherent: true }],
  ["VT-d second stage, three levels, no 1 GiB pages", vtdss, { vasz: 39, pgsizes: 0x201000n }],
  ["VT-d second stage, five levels", vtdss, { vasz: 57 }],
  ["x86-64, five levels, no sign", x86_64, { vasz: 56 }],
  ["AMD over 64 bits", amdv1, { vasz: 64 }],
  ["x86-64", x86_64, { vasz: 48, signExtend: true }],
  ["AMD", amdv1, { vasz: 48 }],
  ["AMD with a granule of 2 KiB", amdv1Mock, { vasz: 56, topLevel: 4 }],
];

describe.each(cases)("%s", (_name, format, options) => {
  it("agrees with a naive map in outcome, leaves, tables and translation under random maps and unmaps", () => {
    fc.assert(
      fc.property(program, (ops) => {
        const arena = new TableArena();
        const hooks = {
          allocTable: (l: number) => arena.allocTable(l),
          freeTable: (m: Parameters<TableArena["freeTable"]>[0]) => arena.freeTable(m),
        };
        const pt = new PageTable(format, { ...options, ...hooks });
        const g = BigInt(format.granuleLg2);
        const sizes: number[] = [];
        for (let i = 0; i < 40; i++) if ((pt.pgsizeBitmap >> g) & (1n << BigInt(i))) sizes.push(2 ** i);
        const model = new Model(format, sizes, pt.topLevel, Number((pt.apertureLast + 1n) >> g));
        const bytes = (pages: number): bigint => BigInt(pages) << g;
        const mapped: Op[] = [];
        for (const o of ops) {
          if (o.kind === "map") {
            const got = pt.map(bytes(o.page), bytes(o.pfn), bytes(o.pages), o.prot);
            expect(got?.name).toBe(model.map(o.page, o.pfn, o.pages, o.prot)?.name);
            if (got === undefined) mapped.push(o);
          } else {
            const what = o.kind === "again" ? mapped.splice(o.pick % Math.max(1, mapped.length), 1)[0] : o;
            if (what !== undefined) expect(pt.unmap(bytes(what.page), bytes(what.pages))).toBe(bytes(model.unmap(what.page, what.pages)));
          }
          expect(pt.tableCount).toBe(model.tables.size);
          expect(arena.live).toBe(model.tables.size);
          for (const page of [o.page, o.page + o.pages - 1, o.page + (o.pages >> 1)]) {
            const leaf = model.at(page);
            const pa = leaf && bytes(leaf.pfn + page - leaf.page) + 5n;
            expect(pt.iovaToPhys(bytes(page) + 5n)).toBe(pa);
            const t = pt.translate(bytes(page) + 5n);
            expect(t?.pa).toBe(pa);
            if (leaf === undefined || t === undefined) continue;
            expect(t.pageSize).toBe(bytes(leaf.pages));
            expect(t.writable).toBe((leaf.prot & 2) !== 0);
            expect(t.readable).toBe((leaf.prot & 1) !== 0 || format === x86_64);
          }
        }
        expect(pt.topLevel).toBe(model.topLevel);
        const tables = pt.tables.map((t) => `${t.level}:${(t.iova >> g) / 512n ** BigInt(t.level + 1)}`);
        expect(new Set(tables)).toEqual(model.tables);
        // Entry by entry: a leaf of 2^n pages fills its level's items.
        const expected = model.leaves
          .toSorted((a, b) => a.page - b.page)
          .flatMap((l) => {
            const item = 512 ** Math.floor(Math.log2(l.pages) / 9);
            return Array.from({ length: l.pages / item }, (_, i) => l.page + i * item);
          });
        const leaves = [...pt.walk()].filter((e) => e.kind === "leaf").map((e) => Number(e.iova >> g));
        expect(leaves).toEqual(expected);
        pt.destroy();
        expect(arena.live).toBe(0);
      }),
      { numRuns: 120 },
    );
  });
});

describe("dirty tracking", () => {
  it.each([
    ["vtdss", vtdss],
    ["amdv1", amdv1],
  ] as const)("of %s reports exactly the marked leaves that a range meets", (_n, format) => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(2047), { maxLength: 20 }),
        fc.nat(2047),
        fc.integer({ min: 1, max: 600 }),
        fc.nat(3),
        (marks, from, n, phase) => {
          const pt = new PageTable(format, { vasz: 48 });
          pt.map(0n, BigInt(phase) << 12n, 2048n << 12n, 3);
          const dirty = new Set<bigint>();
          for (const m of marks) {
            const at = BigInt(m) << 12n;
            pt.setDirty(at);
            const size = pt.translate(at)?.pageSize ?? 0n;
            dirty.add(at - (at % size));
          }
          const first = BigInt(from) << 12n;
          const last = BigInt(Math.min(2048, from + n)) << 12n;
          const expected = [...dirty].filter((d) => d < last && d + (pt.translate(d)?.pageSize ?? 0n) > first);
          const got: bigint[] = [];
          expect(pt.readAndClearDirty(first, last - first, (iova) => got.push(iova))).toBeUndefined();
          expect(new Set(got)).toEqual(new Set(expected));
          expect(got).toHaveLength(expected.length);
          const rest: bigint[] = [];
          pt.readAndClearDirty(0n, 2048n << 12n, (iova) => rest.push(iova));
          expect(new Set(rest)).toEqual(new Set([...dirty].filter((d) => !expected.includes(d))));
        },
      ),
    );
  });
});
