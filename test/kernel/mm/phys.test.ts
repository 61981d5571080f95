import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Kernel } from "../../../src/kernel/kernel.ts";
import type { FrameBacking } from "../../../src/kernel/mm/frames.ts";
import type { MmioHandler } from "../../../src/kernel/mm/phys.ts";
import { type Pfn, physAddr, physOfPfn } from "../../../src/lib/addr.ts";
import { ENOMEM, type Errno } from "../../../src/lib/errno.ts";
import { KernelBug } from "../../../src/lib/kernel_bug.ts";
import { expectNothingLeaks, failFrames, ok } from "../../harness.ts";

let k: Kernel;
beforeEach(() => {
  k = new Kernel();
});

/** A device that remembers what it is asked. */
class Recorder implements MmioHandler {
  readonly log: string[] = [];
  readonly fill: number;
  constructor(fill = 0) {
    this.fill = fill;
  }
  read(offset: number, dst: Uint8Array): boolean {
    this.log.push(`read ${offset}+${dst.length}`);
    dst.fill(this.fill);
    return this.fill !== 0xee;
  }
  write(offset: number, src: Uint8Array): boolean {
    this.log.push(`write ${offset}+${src.length}`);
    return this.fill !== 0xee;
  }
}

describe("the physical map", () => {
  it("says who answers where", () => {
    k.phys.addRam(physAddr(0x10_0000n), 0x10_0000n);
    const r = k.phys.addMmio(physAddr(0xe000_0000n), 0x1000n, new Recorder(), "bar");
    expect(k.phys.at(0x10_0000n)).toBe("ram");
    expect(k.phys.at(0x1f_ffffn)).toBe("ram");
    expect(k.phys.at(0x20_0000n)).toBe("none");
    expect(k.phys.at(0xe000_0fffn)).toBe("mmio");
    expect(k.phys.at(0xe000_1000n)).toBe("none");
    expect(k.phys.mmioAt(0xe000_0010n)).toBe(r);
    k.phys.removeMmio(r);
    expect(k.phys.at(0xe000_0000n)).toBe("none");
    expect(() => k.phys.removeMmio(r)).toThrow(KernelBug);
  });

  it("reads all ones where nobody answers, and says so", () => {
    const dst = new Uint8Array(8);
    expect(k.phys.read(physAddr(0xdead_0000n), dst)).toBe(false);
    expect([...dst]).toEqual(new Array(8).fill(0xff));
    expect(k.phys.write(physAddr(0xdead_0000n), dst)).toBe(false);
  });

  it("hands a device the offset within its region, up to the region's end", () => {
    const dev = new Recorder(0x11);
    k.phys.addMmio(physAddr(0xe000_0000n), 0x100n, dev, "bar");
    const dst = new Uint8Array(16);
    expect(k.phys.read(physAddr(0xe000_00f8n), dst)).toBe(false);
    expect([...dst]).toEqual([...new Array(8).fill(0x11), ...new Array(8).fill(0xff)]);
    expect(k.phys.write(physAddr(0xe000_0010n), new Uint8Array(4))).toBe(true);
    expect(dev.log).toEqual(["read 248+8", "write 16+4"]);
  });

  it("reads all ones from a device that does not answer", () => {
    k.phys.addMmio(physAddr(0xe000_0000n), 0x1000n, new Recorder(0xee), "dead");
    const dst = new Uint8Array(4);
    expect(k.phys.read(physAddr(0xe000_0000n), dst)).toBe(false);
    expect([...dst]).toEqual([255, 255, 255, 255]);
    expect(k.phys.write(physAddr(0xe000_0000n), dst)).toBe(false);
  });

  it("finds a region among a thousand", () => {
    for (let i = 999; i >= 0; i--) k.phys.addMmio(physAddr(0xe000_0000n + BigInt(i) * 0x2000n), 0x1000n, new Recorder(i & 0x7f), `r${i}`);
    const dst = new Uint8Array(1);
    for (const i of [0, 1, 500, 998, 999]) {
      expect(k.phys.read(physAddr(0xe000_0000n + BigInt(i) * 0x2000n + 5n), dst)).toBe(true);
      expect(dst[0]).toBe(i & 0x7f);
      expect(k.phys.at(0xe000_0000n + BigInt(i) * 0x2000n + 0x1000n)).toBe("none");
    }
  });

  it("lets the region that came last answer while two overlap", () => {
    k.phys.addMmio(physAddr(0xe000_0000n), 0x4000n, new Recorder(1), "first");
    const over = k.phys.addMmio(physAddr(0xe000_1000n), 0x1000n, new Recorder(2), "second");
    expect(k.phys.mmioAt(0xe000_1800n)?.name).toBe("second");
    expect(k.phys.mmioAt(0xe000_2800n)?.name).toBe("first");
    k.phys.removeMmio(over);
    expect(k.phys.mmioAt(0xe000_1800n)?.name).toBe("first");
  });

  it("refuses RAM that overlaps or is not whole pages", () => {
    k.phys.addRam(physAddr(0n), 0x10000n);
    expect(() => k.phys.addRam(physAddr(0xf000n), 0x1000n)).toThrow(RangeError);
    expect(() => k.phys.addRam(physAddr(0x20800n), 0x1000n)).toThrow(RangeError);
  });
});

describe("frames", () => {
  afterEach(() => expectNothingLeaks(k));

  it("read as zeros, keep what is written, and are zeros for the next owner", () => {
    const pfn = k.frames.alloc();
    const pa = physOfPfn(pfn);
    const dst = new Uint8Array(3).fill(9);
    k.phys.read(pa, dst);
    expect([...dst]).toEqual([0, 0, 0]);
    k.phys.write(physAddr(pa + 4094n), new Uint8Array([1, 2]));
    k.phys.read(physAddr(pa + 4094n), dst.subarray(0, 2));
    expect([...dst]).toEqual([1, 2, 0]);
    k.frames.put(pfn);
    const again = k.frames.alloc();
    expect(again).toBe(pfn);
    expect(k.frames.bytes(again).every((b) => b === 0)).toBe(true);
    k.frames.put(again);
  });

  it("cross from one page to the next in one physical access", () => {
    const [a, b] = [k.frames.alloc(), k.frames.alloc()];
    expect(b).toBe(a + 1);
    k.phys.write(
      physAddr(physOfPfn(a) + 4090n),
      new Uint8Array(12).map((_, i) => i + 1),
    );
    const dst = new Uint8Array(12);
    k.phys.read(physAddr(physOfPfn(a) + 4090n), dst);
    expect([...dst]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    expect(k.frames.bytes(b)[0]).toBe(7);
    k.frames.put(a);
    k.frames.put(b);
  });

  it("stay while pinned, and are counted", () => {
    const pfn = k.frames.alloc();
    k.frames.pin(pfn);
    k.frames.put(pfn);
    expect([k.frames.live, k.frames.pinned, k.frames.refs(pfn), k.frames.pins(pfn)]).toEqual([1, 1, 1, 1]);
    expect(() => k.frames.put(pfn)).toThrow(/a reference of a pin/);
    k.frames.unpin(pfn);
    expect([k.frames.live, k.frames.pinned]).toEqual([0, 0]);
  });

  it("cannot be touched once free, except by DMA, which is counted as stray", () => {
    const pfn = k.frames.alloc();
    k.frames.put(pfn);
    for (const touch of [() => k.frames.get(pfn), () => k.frames.put(pfn), () => k.frames.pin(pfn), () => k.frames.bytes(pfn)]) {
      expect(touch).toThrow(KernelBug);
    }
    expect(k.phys.write(physOfPfn(pfn), new Uint8Array([1]))).toBe(true);
    expect(k.frames.strayAccesses).toBe(1);
    k.frames.strayAccesses = 0;
  });

  it("may be backed by something else", () => {
    const log: string[] = [];
    const backing: FrameBacking = {
      read: (o, dst) => {
        dst.fill(7);
        log.push(`read ${o}`);
        return true;
      },
      write: (o) => {
        log.push(`write ${o}`);
        return false;
      },
      release: () => log.push("release"),
    };
    const pfn = k.frames.alloc(backing);
    const dst = new Uint8Array(2);
    expect(k.phys.read(physAddr(physOfPfn(pfn) + 16n), dst)).toBe(true);
    expect(dst[1]).toBe(7);
    expect(k.phys.write(physOfPfn(pfn), dst)).toBe(false);
    expect(() => k.frames.bytes(pfn)).toThrow(/backed elsewhere/);
    k.frames.put(pfn);
    expect(log).toEqual(["read 16", "write 0", "release"]);
    const other = k.frames.alloc();
    k.frames.adopt(other, backing);
    k.frames.readFrame(other, 1, dst);
    expect(log.at(-1)).toBe("read 1");
    expect(k.frames.isBacked(other)).toBe(true);
    k.frames.adopt(other, undefined);
    expect(k.frames.isBacked(other)).toBe(false);
    expect(k.frames.bytes(other)[1]).toBe(0);
    k.frames.put(other);
  });

  it("come in runs under one backing each", () => {
    k.phys.addRam(physAddr(0x10_0000n), 0x6000n);
    k.phys.addRam(physAddr(0x20_0000n), 0x4000n);
    const runs: [number, number, number][] = [];
    const released: Pfn[] = [];
    const seen: [number, Pfn][] = [];
    const take = (n: number): Pfn[] | Errno =>
      k.frames.allocRuns(n, (first, npages, done) => {
        runs.push([first, npages, done]);
        return {
          read: (o, _dst, pfn) => seen.push([o, pfn]) > 0,
          write: () => true,
          release: (pfn) => released.push(pfn),
        };
      });
    const a = take(8) as Pfn[];
    // A run ends where a range does.
    expect(runs.splice(0)).toEqual([
      [0x100, 6, 0],
      [0x200, 2, 6],
    ]);
    expect(a).toEqual([0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x200, 0x201]);
    k.frames.readFrame(0x103 as Pfn, 5, new Uint8Array(1));
    expect(seen).toEqual([[5, 0x103]]);
    expect(take(3)).toBe(ENOMEM);
    expect(k.frames.live).toBe(8);
    for (const p of [0x104, 0x102, 0x103, 0x201]) k.frames.put(p as Pfn);
    expect(released).toEqual([0x104, 0x102, 0x103, 0x201]);
    // Freed frames are put in order again, and what they lack comes from the fresh ones.
    expect(take(6)).toEqual([0x102, 0x103, 0x104, 0x201, 0x202, 0x203]);
    expect(runs).toEqual([
      [0x102, 3, 0],
      [0x201, 3, 3],
    ]);
    expect(take(1)).toBe(ENOMEM);
    failFrames(k, 1);
    expect(take(0)).toBe(ENOMEM);
    failFrames(k, undefined);
    for (const p of [0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x200, 0x201, 0x202, 0x203]) k.frames.put(p as Pfn);
    expect(k.frames.live).toBe(0);
  });

  it("of a reserved run are their owner's alone, and may be live in part", () => {
    k.phys.addRam(physAddr(0x1000n), 0x60_0000n);
    const released: Pfn[] = [];
    const backing: FrameBacking = { read: () => true, write: () => true, release: (pfn) => released.push(pfn) };
    const run = ok(k.frames.reserve(9));
    expect(run % 512).toBe(0);
    expect(k.frames.live).toBe(0);
    k.frames.allocAt((run + 3) as Pfn, 2, backing);
    expect([2, 3, 4, 5].map((i) => k.frames.refs((run + i) as Pfn))).toEqual([0, 1, 1, 0]);
    expect(() => k.frames.allocAt((run + 4) as Pfn, 1, backing)).toThrow(/not a free one/);
    for (const i of [3, 4]) k.frames.put((run + i) as Pfn);
    expect(released).toEqual([run + 3, run + 4]);
    const others = Array.from({ length: 0x600 - 512 }, () => ok(k.frames.tryAlloc()));
    expect(others.some((p) => p >= run && p < run + 512)).toBe(false);
    expect(k.frames.tryAlloc()).toBe(ENOMEM);
    expect(k.frames.reserve(9)).toBe(ENOMEM);
    expect(() => k.frames.allocAt(others[0] as Pfn, 1, backing)).toThrow(/not a free one/);
    expect(() => k.frames.reserve(8)).toThrow(RangeError);
    for (const p of others) k.frames.put(p);
    k.frames.allocAt(run, 512, backing);
    for (let i = 0; i < 512; i++) k.frames.put((run + i) as Pfn);
    expect(k.frames.live).toBe(0);
  });

  it("run out", () => {
    k.phys.addRam(physAddr(0x10_0000n), 0x2000n);
    const [a, b] = [k.frames.alloc(), k.frames.alloc()];
    expect(k.frames.tryAlloc()).toBe(ENOMEM);
    expect(() => k.frames.alloc()).toThrow(/out of memory/);
    expect(k.frames.allocContiguous(1)).toBe(ENOMEM);
    k.frames.put(a);
    k.frames.put(b);
  });

  it("fail on demand", () => {
    failFrames(k, 2);
    const a = ok(k.frames.tryAlloc());
    expect(k.frames.tryAlloc()).toBe(ENOMEM);
    failFrames(k, undefined);
    k.frames.put(a);
  });

  it("that are adjacent are found again among those that were freed", () => {
    k.phys.addRam(physAddr(0x1000n), 0x6000n);
    // Frames 1 to 6: pairs can begin at 2 and 4.
    const pairs = [ok(k.frames.allocContiguous(1)), ok(k.frames.allocContiguous(1))];
    expect(pairs).toEqual([2, 4]);
    expect(k.frames.allocContiguous(1)).toBe(ENOMEM);
    const single = k.frames.alloc();
    for (const p of [4, 2, 5, 3] as Pfn[]) k.frames.put(p);
    expect(ok(k.frames.allocContiguous(1))).toBe(2);
    expect(ok(k.frames.allocContiguous(1))).toBe(4);
    expect(k.frames.allocContiguous(1)).toBe(ENOMEM);
    expect(k.frames.live).toBe(5);
    for (const p of [2, 3, 4, 5, single] as Pfn[]) k.frames.put(p);
  });

  it("come from every range of RAM, adjacent and aligned when asked", () => {
    k.phys.addRam(physAddr(0x1000n), 0x3000n);
    k.phys.addRam(physAddr(0x1_0000_1000n), 0x40_0000n);
    const single = k.frames.alloc();
    const huge = ok(k.frames.allocContiguous(9));
    expect(huge % 512).toBe(0);
    expect(k.frames.live).toBe(513);
    const rest = [k.frames.alloc(), k.frames.alloc()];
    expect(new Set([single, ...rest]).size).toBe(3);
    for (const p of [single, ...rest]) k.frames.put(p);
    for (let i = 0; i < 512; i++) k.frames.put((huge + i) as Pfn);
  });
});
