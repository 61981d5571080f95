import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { IntervalTree, ItreeNode } from "../../src/lib/interval_tree.ts";
import { KernelBug } from "../../src/lib/kernel_bug.ts";
import { Rng } from "../../src/lib/rng.ts";

const LAST = 0xffff_ffff_ffff_ffffn;

class Area extends ItreeNode {
  readonly id: number;
  constructor(id: number, start: bigint, last: bigint) {
    super(start, last);
    this.id = id;
  }
}

/** The same as an array, sorted by start, equal starts in order of insertion. */
class Model {
  readonly list: Area[] = [];
  insert(a: Area): void {
    let i = this.list.findIndex((x) => x.start > a.start);
    if (i < 0) i = this.list.length;
    this.list.splice(i, 0, a);
  }
  overlaps(start: bigint, last: bigint): Area[] {
    return this.list.filter((a) => a.start <= last && a.last >= start);
  }
}

const ids = (areas: Iterable<Area>): number[] => [...areas].map((a) => a.id);

/** Small values, so that overlaps and repeats are many, and the ends of the space. */
const point = fc.oneof(
  { weight: 8, arbitrary: fc.bigInt(0n, 60n) },
  { weight: 1, arbitrary: fc.bigInt(LAST - 3n, LAST) },
  { weight: 1, arbitrary: fc.bigInt(0n, LAST) },
);
const range = fc.tuple(point, point).map(([a, b]) => (a < b ? ([a, b] as const) : ([b, a] as const)));
const step = fc.oneof(
  { weight: 5, arbitrary: range.map(([start, last]) => ({ op: "insert" as const, start, last })) },
  { weight: 3, arbitrary: fc.nat().map((nth) => ({ op: "remove" as const, nth })) },
  { weight: 3, arbitrary: range.map(([start, last]) => ({ op: "query" as const, start, last })) },
);

describe("the interval tree", () => {
  it("answers as a sorted array does, after any sequence of calls", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120, size: "max" }), (steps) => {
        const tree = new IntervalTree<Area>();
        const model = new Model();
        let id = 0;
        for (const s of steps) {
          if (s.op === "insert") {
            const a = new Area(id++, s.start, s.last);
            tree.insert(a);
            model.insert(a);
          } else if (s.op === "remove") {
            if (model.list.length === 0) continue;
            const [a] = model.list.splice(s.nth % model.list.length, 1) as [Area];
            tree.remove(a);
            expect(a.inTree).toBe(false);
          } else {
            const want = model.overlaps(s.start, s.last);
            expect(ids(tree.overlaps(s.start, s.last))).toEqual(ids(want));
            expect(tree.first(s.start, s.last)).toBe(want[0]);
            expect(tree.firstFrom(s.start)).toBe(model.list.find((a) => a.start >= s.start));
            expect(tree.lastUpTo(s.start)).toBe(model.list.findLast((a) => a.start <= s.start));
            expect(tree.stab(s.last)).toBe(model.overlaps(s.last, s.last)[0]);
          }
          tree.check();
          expect(tree.size).toBe(model.list.length);
        }
        expect(ids(tree)).toEqual(ids(model.list));
        expect(tree.lowest).toBe(model.list[0]);
      }),
      { numRuns: 500 },
    );
  });

  it("reaches the last byte of the space without leaving it", () => {
    const tree = new IntervalTree<Area>();
    const whole = new Area(0, 0n, LAST);
    const end = new Area(1, LAST, LAST);
    tree.insert(end);
    tree.insert(whole);
    expect(ids(tree.overlaps(LAST, LAST))).toEqual([0, 1]);
    expect(tree.next(end, LAST, LAST)).toBeUndefined();
  });

  it("forgets the largest last of a node whose place another took", () => {
    const tree = new IntervalTree<Area>();
    const areas = [new Area(0, 1n, 2n), new Area(1, 0n, 0n), new Area(2, 1n, 1n), new Area(3, 1n, 1n), new Area(4, 1n, 1n)];
    for (const a of areas) tree.insert(a);
    tree.remove(areas[0] as Area);
    tree.check();
    expect(tree.stab(2n)).toBeUndefined();
  });

  it("lets a loop remove the node it was handed", () => {
    const tree = new IntervalTree<Area>();
    for (let i = 0; i < 500; i++) tree.insert(new Area(i, BigInt(i), BigInt(i + 3)));
    for (const a of tree.overlaps(100n, 199n)) tree.remove(a);
    tree.check();
    expect(tree.first(100n, 199n)).toBeUndefined();
    for (const a of tree) tree.remove(a);
    expect(tree.size).toBe(0);
  });

  it("stays shallow when nodes come in order", () => {
    const tree = new IntervalTree<Area>();
    for (let i = 0; i < 4096; i++) tree.insert(new Area(i, BigInt(i) << 12n, (BigInt(i) << 12n) + 4095n));
    tree.check();
    const root = [...tree].find((a) => a.itParent === undefined);
    expect(root?.itHeight).toBeLessThanOrEqual(14);
  });

  it("survives a thousand areas that come and go at random", () => {
    const rng = new Rng(7);
    const tree = new IntervalTree<Area>();
    const live: Area[] = [];
    for (let i = 0; i < 6000; i++) {
      if (live.length < 1000 && rng.chance(0.6)) {
        const start = rng.u64() >> 4n;
        const a = new Area(i, start, start + BigInt(rng.below(0x1_0000_0000)));
        tree.insert(a);
        live.push(a);
      } else if (live.length > 0) {
        const [a] = live.splice(rng.below(live.length), 1) as [Area];
        tree.remove(a);
      }
      if (i % 500 === 0) tree.check();
    }
    tree.check();
    expect(tree.size).toBe(live.length);
  });

  it("has the same shape after the same calls", () => {
    const build = (): string => {
      const rng = new Rng(3);
      const tree = new IntervalTree<Area>();
      const all: Area[] = [];
      for (let i = 0; i < 300; i++) {
        const a = new Area(i, BigInt(rng.below(1000)), 2000n);
        all.push(a);
        tree.insert(a);
      }
      for (const a of rng.shuffle(all).slice(0, 150)) tree.remove(a);
      return [...tree].map((a) => `${a.id}/${a.itHeight}`).join(" ");
    };
    expect(build()).toBe(build());
  });

  it("takes an insert twice, or a remove of a stranger, for a bug", () => {
    const tree = new IntervalTree<Area>();
    const a = new Area(0, 1n, 2n);
    tree.insert(a);
    expect(() => tree.insert(a)).toThrow(KernelBug);
    tree.remove(a);
    expect(() => tree.remove(a)).toThrow(KernelBug);
    expect(() => tree.insert(new Area(1, 2n, 1n))).toThrow(RangeError);
  });
});

describe("the seeded generator", () => {
  it("gives the same numbers for the same seed and others for another", () => {
    const take = (seed: number): number[] => {
      const r = new Rng(seed);
      return Array.from({ length: 8 }, () => r.u32());
    };
    expect(take(1)).toEqual(take(1));
    expect(take(1)).not.toEqual(take(2));
    expect(new Set(take(0)).size).toBe(8);
  });

  it("stays below its bound and reaches every value", () => {
    const r = new Rng(42);
    const seen = new Array<number>(7).fill(0);
    for (let i = 0; i < 7000; i++) {
      const n = r.below(7);
      seen[n] = (seen[n] ?? 0) + 1;
    }
    for (const n of seen) expect(n).toBeGreaterThan(800);
    expect(() => r.below(0)).toThrow(RangeError);
  });
});
