import fc from "fast-check";
import { expect, it } from "vitest";
import { Kernel } from "../../src/kernel/kernel.ts";
import { type Pfn, physAddr } from "../../src/lib/addr.ts";
import { Errno } from "../../src/lib/errno.ts";
import { type PageStore, PinBudget, PinnedPages } from "../../src/supervise/pins.ts";
import { leaks } from "../harness.ts";

const UNIT = 512;

class FakeStore implements PageStore {
  readonly name = "fake";
  idles = 0;
  read(page: number, _offset: number, dst: Uint8Array): undefined {
    dst.fill(1 + (page % 200));
  }
  write(): undefined {}
  idle(): void {
    this.idles++;
  }
}

function scene(): { kernel: Kernel; pages: PinnedPages; budget: PinBudget; store: FakeStore } {
  const kernel = new Kernel();
  // An odd start, and room for six huge pages.
  kernel.phys.addRam(physAddr(0x10_3000n), 14n << 20n);
  const budget = new PinBudget();
  const store = new FakeStore();
  return { kernel, pages: new PinnedPages(kernel, store, budget), budget, store };
}

const pinned = (r: Pfn[] | Errno): Pfn[] => {
  if (r instanceof Errno) throw new Error(r.name);
  return r;
};

it("pages of one huge page are adjacent, aligned frames, whoever pins which of them first", () => {
  const { kernel, pages } = scene();
  const middle = pinned(pages.pin(UNIT + 100, 2, UNIT));
  const across = pinned(pages.pin(UNIT - 3, UNIT + 6, UNIT));
  expect((middle[0] as Pfn) % UNIT).toBe(100);
  expect(across.slice(3 + 100, 3 + 102)).toEqual(middle);
  const base = (middle[0] as Pfn) - 100;
  expect(across.slice(3, 3 + UNIT)).toEqual(Array.from({ length: UNIT }, (_, k) => base + k));
  expect(across.map((p) => p % UNIT)).toEqual(Array.from({ length: UNIT + 6 }, (_, k) => (UNIT - 3 + k) % UNIT));
  for (const p of [...middle, ...across]) kernel.frames.unpin(p);
  expect(leaks(kernel)).toEqual({});
});

it("what is pinned anew at the place of a huge page that left has other frames", () => {
  const { kernel, pages } = scene();
  const old = pinned(pages.pin(7, 1, UNIT));
  expect(pages.setApart(0, UNIT, "munmap")).toBe(1);
  const next = pinned(pages.pin(0, UNIT, UNIT));
  expect(next).not.toContain(old[0]);
  const byte = new Uint8Array(1);
  kernel.frames.readFrame(old[0] as Pfn, 0, byte);
  expect(byte[0]).toBe(8);
  for (const p of [...old, ...next]) kernel.frames.unpin(p);
  expect(leaks(kernel)).toEqual({});
});

it("any order of pins, unpins and unmaps keeps frames aligned, apart, and within the room there is", () => {
  const op = fc.oneof(
    fc.record({ what: fc.constant("pin" as const), first: fc.nat(3 * UNIT - 1), n: fc.integer({ min: 1, max: UNIT }) }),
    fc.record({ what: fc.constant("unpin" as const), which: fc.nat(50) }),
    fc.record({ what: fc.constant("apart" as const), huge: fc.nat(3) }),
  );
  fc.assert(
    fc.property(fc.array(op, { maxLength: 40 }), (ops) => {
      const { kernel, pages, budget, store } = scene();
      /** The model: pinned runs, each with the generation of the huge pages it shows. */
      const held: { pfns: Pfn[]; first: number; generation: number[] }[] = [];
      const generation = [0, 0, 0, 0];
      let ever = false;
      for (const o of ops) {
        if (o.what === "pin") {
          const n = Math.min(o.n, 4 * UNIT - o.first);
          const r = pages.pin(o.first, n, UNIT);
          // Six huge pages fit: more than that are wanted only when some left their place while pinned.
          if (r instanceof Errno) expect(new Set(held.flatMap((h) => h.pfns.map((p) => Math.floor(p / UNIT)))).size).toBeGreaterThan(3);
          else ever = held.push({ pfns: r, first: o.first, generation: [...generation] }) > 0;
        } else if (o.what === "unpin") {
          const [gone] = held.splice(held.length === 0 ? 0 : o.which % held.length, 1);
          for (const p of gone?.pfns ?? []) kernel.frames.unpin(p);
        } else {
          pages.setApart(o.huge * UNIT, (o.huge + 1) * UNIT, "munmap");
          generation[o.huge] = (generation[o.huge] as number) + 1;
        }
        const owner = new Map<Pfn, string>();
        const baseOf = new Map<string, number>();
        for (const h of held) {
          for (const [k, pfn] of h.pfns.entries()) {
            const page = h.first + k;
            const huge = Math.floor(page / UNIT);
            expect(pfn % UNIT).toBe(page % UNIT);
            const who = `${page}.${h.generation[huge]}`;
            expect(owner.get(pfn) ?? who).toBe(who);
            owner.set(pfn, who);
            // Frames that were pinned while the page was there are all in its one run.
            const key = `${huge}.${h.generation[huge]}`;
            expect(baseOf.get(key) ?? pfn - (page % UNIT)).toBe(pfn - (page % UNIT));
            baseOf.set(key, pfn - (page % UNIT));
          }
        }
        expect(kernel.frames.live).toBe(owner.size);
      }
      for (const h of held) for (const p of h.pfns) kernel.frames.unpin(p);
      expect(leaks(kernel)).toEqual({});
      expect([pages.live, pages.size, budget.apart]).toEqual([0, 0, 0]);
      if (ever) expect(store.idles).toBeGreaterThan(0);
    }),
    { numRuns: 15 },
  );
});
