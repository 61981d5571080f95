/**
 * Dirty bitmaps against a set of pages: random writes of a device, random
 * windows of IOVA, bitmaps at any address with anything in them, bits of several
 * sizes, with and without clearing, areas that come and go.
 */
import fc from "fast-check";
import { expect, it } from "vitest";
import { EINVAL, Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { SelftestRig, START } from "./selftest_support.ts";
import { FIXED, ok, RW } from "./support.ts";

const PAGE = 4096;
const PAGES = 96;
/** Bytes that a bit stands for, in a bitmap that is read; below a page, a page, and above. */
const GRAINS = [2048, 4096, 8192, 0x8000] as const;

type Op =
  | { readonly op: "write"; at: number; pages: readonly number[]; half: boolean }
  | { readonly op: "read"; at: number; n: number; grain: (typeof GRAINS)[number]; clear: boolean; offset: number; fill: number }
  | { readonly op: "track"; on: boolean }
  | { readonly op: "map"; at: number; n: number }
  | { readonly op: "unmap"; which: number };

const at = fc.nat(PAGES - 1);
const n = fc.integer({ min: 1, max: 40 });
const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ op: fc.constant("write" as const), at, pages: fc.array(fc.nat(40), { maxLength: 12 }), half: fc.boolean() }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant("read" as const),
      // Windows that larger bits fit into are rare among any.
      at: fc.oneof(at, fc.constantFrom(4, 8, 16, 24, 32, 40)),
      n: fc.oneof(fc.integer({ min: 0, max: PAGES }), fc.constantFrom(8, 16, 24)),
      grain: fc.constantFrom(...GRAINS),
      clear: fc.boolean(),
      // Over the end of a page now and then: what a bitmap spans there are two.
      offset: fc.oneof(fc.nat(16), fc.integer({ min: PAGE - 6, max: PAGE + 2 })),
      fill: fc.constantFrom(0, 0, 0xff, 0x5a),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("track" as const), on: fc.integer({ min: 0, max: 3 }).map((k) => k > 0) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant("map" as const), at, n }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("unmap" as const), which: fc.nat(5) }) },
);

class Scene {
  readonly rig = new SelftestRig();
  readonly ioas = this.rig.allocIoas();
  readonly hwpt: number;
  readonly user = this.rig.user(PAGES * PAGE);
  /** Three pages for bitmaps. */
  readonly bits = this.rig.user(3 * PAGE);
  tracking = false;
  areas: { readonly first: number; readonly n: number }[] = [];
  readonly dirty = new Set<number>();
  reported = 0;

  constructor() {
    const { rig, ioas } = this;
    // A page is one entry of the table: what is dirty is what was written.
    const single = { option_id: u.IOMMU_OPTION_HUGE_PAGES, op: u.IOMMU_OPTION_OP_SET, object_id: ioas, val64: 0n };
    expect(rig.ioctl(u.IOMMU_OPTION, u.IommuOption.alloc({ size: u.IommuOption.size, ...single }))).toBe(0);
    const { idev } = rig.mock(ioas);
    this.hwpt = ok(rig.hwpt(idev, ioas, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }));
    this.apply({ op: "map", at: 3, n: 30 });
    this.apply({ op: "map", at: 33, n: 20 });
    this.apply({ op: "track", on: true });
  }

  mapped(page: number): boolean {
    return this.areas.some((a) => page >= a.first && page < a.first + a.n);
  }

  apply(o: Op): void {
    const { rig } = this;
    switch (o.op) {
      case "map": {
        const count = Math.min(o.n, PAGES - o.at);
        const free = Array.from({ length: count }, (_, i) => o.at + i).every((p) => !this.mapped(p));
        const args = { ioas_id: this.ioas, user_va: this.user, length: BigInt(count * PAGE), iova: iovaOf(o.at), flags: RW | FIXED };
        expect(rig.map(args) instanceof Errno).toBe(!free);
        if (free) this.areas.push({ first: o.at, n: count });
        break;
      }
      case "unmap": {
        const a = this.areas[o.which];
        if (a === undefined) break;
        expect(rig.unmap(this.ioas, iovaOf(a.first), BigInt(a.n * PAGE))).toBe(BigInt(a.n * PAGE));
        this.areas = this.areas.filter((b) => b !== a);
        for (let p = a.first; p < a.first + a.n; p++) this.dirty.delete(p);
        break;
      }
      case "track": {
        const flags = o.on ? u.IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0;
        const cmd = u.IommuHwptSetDirtyTracking.alloc({ size: u.IommuHwptSetDirtyTracking.size, flags, hwpt_id: this.hwpt });
        expect(rig.ioctl(u.IOMMU_HWPT_SET_DIRTY_TRACKING, cmd)).toBe(0);
        this.tracking = o.on;
        // Whoever begins to track begins from nothing.
        if (o.on) this.dirty.clear();
        break;
      }
      case "write": {
        const size = o.half ? PAGE / 2 : PAGE;
        const bitmap = new Uint8Array(64);
        const pages = new Set(o.pages.filter((p) => o.at + p < PAGES));
        for (const p of pages) {
          const bit = o.half ? 2 * p + (p & 1) : p;
          bitmap[bit >> 3] = (bitmap[bit >> 3] as number) | (1 << (bit & 7));
        }
        rig.process.mm.memory.write(this.bits, bitmap);
        const dirty = { iova: iovaOf(o.at), length: BigInt((PAGES - o.at) * PAGE), page_size: BigInt(size), uptr: this.bits };
        const r = rig.test(u.IOMMU_TEST_OP_DIRTY, this.hwpt, { dirty });
        if (!this.tracking) {
          expect(r).toBe(EINVAL);
          break;
        }
        expect(ok(r).cmd.dirty.out_nr_dirty).toBe(BigInt(pages.size));
        for (const p of pages) if (this.mapped(o.at + p)) this.dirty.add(o.at + p);
        break;
      }
      case "read":
        this.#read(o);
        break;
    }
    rig.check();
    rig.events.length = 0;
  }

  #read({ at: first, n: wanted, grain, clear, offset, fill }: Extract<Op, { op: "read" }>): void {
    const { rig } = this;
    const count = Math.min(wanted, PAGES - first);
    const before = new Uint8Array(3 * PAGE).fill(fill);
    rig.process.mm.memory.write(this.bits, before);
    const [iova, length] = [iovaOf(first), BigInt(count * PAGE)];
    const flags = clear ? 0 : u.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
    const cmd = u.IommuHwptGetDirtyBitmap.alloc({
      size: u.IommuHwptGetDirtyBitmap.size,
      hwpt_id: this.hwpt,
      flags,
      iova,
      length,
      page_size: BigInt(grain),
      data: this.bits + BigInt(offset),
    });
    const got = rig.ioctl(u.IOMMU_HWPT_GET_DIRTY_BITMAP, cmd);
    const whole = iova % BigInt(grain) === 0n && (iova + length) % BigInt(grain) === 0n;
    const want = before.slice();
    if (count === 0 || !whole) expect(got).toBe(EINVAL);
    else {
      expect(got).toBe(0);
      // Up to the first hole: what lies behind it is neither told nor cleared.
      for (let p = first; p < first + count && this.mapped(p); p++) {
        if (!this.dirty.has(p)) continue;
        this.reported++;
        for (let byte = (p - first) * PAGE; byte < (p - first + 1) * PAGE; byte += Math.min(grain, PAGE)) {
          const bit = Math.floor(byte / grain);
          want[offset + (bit >> 3)] = (want[offset + (bit >> 3)] as number) | (1 << (bit & 7));
        }
        if (clear) this.dirty.delete(p);
      }
    }
    if (Buffer.compare(rig.peek(this.bits, want.length), want) !== 0) {
      expect([...rig.peek(this.bits + BigInt(offset), 32)]).toEqual([...want.subarray(offset, offset + 32)]);
      expect.fail("a byte outside of the bitmap changed");
    }
  }
}

const iovaOf = (page: number): bigint => START + BigInt(page * PAGE);

it("a bitmap tells the pages that were written since they were last cleared, and changes nothing else", () => {
  let reported = 0;
  fc.assert(
    fc.property(fc.array(op, { minLength: 20, maxLength: 80, size: "max" }), (ops) => {
      const scene = new Scene();
      for (const o of ops) scene.apply(o);
      reported += scene.reported;
    }),
    { numRuns: 80 },
  );
  expect(reported).toBeGreaterThan(300);
});
