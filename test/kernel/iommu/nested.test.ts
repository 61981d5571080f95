/**
 * Two stages of VT-d: a guest's table in memory that another table maps. The
 * reference is the specification (3.6, 3.8, 7.1.3, 9.7), and a naive walk of
 * both stages over random tables.
 */
import * as fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { IommuFault } from "../../../src/kernel/iommu/fault.ts";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import type { IommufdDevice } from "../../../src/kernel/iommufd/device.ts";
import { EFAULT, EINVAL, ENOENT, EOPNOTSUPP, Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { IommufdRig, ok } from "../iommufd/support.ts";

const SCALABLE: IommuDescription = { kind: "intel-scalable", nesting: true, coherentWalk: true, dirtyTracking: true };
const [P, RW, US, A, D, PS] = [1n, 2n, 4n, 0x20n, 0x40n, 0x80n];
const ALL = 0xffff_ffff_ffff_ffffn;
/** Where the guest has its memory, for the guest. */
const GUEST = 0x100_0000n;
const PAGES = 64;
/** The guest's page that holds its top table. */
const TOP = GUEST;

const rigs: Guest[] = [];
afterEach(() => {
  for (const r of rigs.splice(0)) r.finish();
});

/** A guest with memory behind a second stage, and a first stage that a device is on. */
class Guest extends IommufdRig {
  readonly ioas: number;
  readonly idev: IommufdDevice;
  readonly parent: number;
  /** The guest's memory in the program. */
  readonly memory: bigint;
  hwpt = 0;

  constructor(unit: IommuDescription = SCALABLE, { map = true } = {}) {
    super(unit);
    rigs.push(this);
    this.ioas = this.allocIoas();
    this.idev = this.bind();
    this.parent = ok(this.alloc(this.ioas, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT }));
    this.memory = this.user(PAGES * 4096);
    const flags = u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_WRITEABLE;
    if (map) ok(this.map({ ioas_id: this.ioas, user_va: this.memory, length: BigInt(PAGES * 4096), iova: GUEST, flags }));
  }

  alloc(pt: number, init: object = {}): number | Errno {
    const cmd = u.IommuHwptAlloc.alloc({ size: u.IommuHwptAlloc.size, dev_id: this.idev.id, pt_id: pt, ...init });
    const r = this.ioctl(u.IOMMU_HWPT_ALLOC, cmd);
    return r instanceof Errno ? r : cmd.out_hwpt_id;
  }

  nest(cfg: Parameters<typeof u.IommuHwptVtdS1.alloc>[0] = {}, init: object = {}): number | Errno {
    const s1 = u.IommuHwptVtdS1.alloc({ pgtbl_addr: TOP, addr_width: 48, ...cfg });
    const data = { data_type: u.IOMMU_HWPT_DATA_VTD_S1, data_len: s1.bytes.length, data_uptr: this.put(s1.bytes) };
    return this.alloc(this.parent, { ...data, ...init });
  }

  /** The device is on a first stage from here on. */
  nestDevice(cfg?: Parameters<typeof u.IommuHwptVtdS1.alloc>[0]): this {
    this.hwpt = ok(this.nest(cfg));
    ok(this.attach(this.idev, this.hwpt));
    return this;
  }

  entry(gpa: bigint): bigint {
    return new DataView(this.peek(this.memory + gpa - GUEST, 8).buffer).getBigUint64(0, true);
  }

  setEntry(gpa: bigint, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.process.mm.memory.write(this.memory + gpa - GUEST, bytes);
  }

  /** Tables 1, 2 and 3 of the guest's memory lead to `leaf` for `iova`. */
  mapFirst(iova: bigint, leaf: bigint, flags: bigint = P | RW | US): void {
    const tables = [TOP, GUEST + 0x1000n, GUEST + 0x2000n, GUEST + 0x3000n];
    for (const [i, table] of tables.entries()) {
      const at = table + ((iova >> BigInt(39 - 9 * i)) & 0x1ffn) * 8n;
      this.setEntry(at, i === 3 ? leaf | flags : (tables[i + 1] as bigint) | P | RW | US);
    }
  }

  dma(iova: bigint, write = false): bigint | string {
    const t = this.kernel.iommu.translate(this.idev.dev.rid, iova, write);
    return t instanceof IommuFault ? `${t.cause} 0x${t.reason.toString(16)}` : t.pa;
  }

  /** Where the guest's page is. */
  pa(gpa: bigint): bigint {
    const pages = this.process.mm.memory.pin(this.memory + (gpa & ~4095n) - GUEST, 1, false);
    if (pages instanceof Errno) throw new Error(pages.name);
    this.process.mm.memory.unpin(pages, false);
    return (BigInt(pages[0] as number) << 12n) | (gpa & 4095n);
  }

  invalidate(entries: Parameters<typeof u.IommuHwptVtdS1Invalidate.alloc>[0][], type: number = u.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1) {
    const bytes = entries.flatMap((e) => [...u.IommuHwptVtdS1Invalidate.alloc(e).bytes]);
    const cmd = u.IommuHwptInvalidate.alloc({
      size: u.IommuHwptInvalidate.size,
      hwpt_id: this.hwpt,
      data_type: type,
      entry_len: u.IommuHwptVtdS1Invalidate.size,
      entry_num: entries.length,
      data_uptr: this.put(Uint8Array.from(bytes)),
    });
    const e = this.ioctl(u.IOMMU_HWPT_INVALIDATE, cmd);
    return { e, done: cmd.entry_num };
  }

  finish(): void {
    this.detach(this.idev);
    this.unbind(this.idev);
    this.run(this.process.exit());
    this.kernel.sched.settle();
    expect(this.leaks()).toEqual({});
    expect(this.kernel.frames.pinned).toBe(0);
  }
}

describe("a first stage of VT-d", () => {
  test.each<[string, (g: Guest) => number | Errno, Errno]>([
    ["of another unit's type", (g) => g.nest({}, { data_type: u.IOMMU_HWPT_DATA_AMD_GUEST }), EOPNOTSUPP],
    ["with dirty tracking of its own", (g) => g.nest({}, { flags: u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }), EOPNOTSUPP],
    ["with a byte missing", (g) => g.nest({}, { data_len: u.IommuHwptVtdS1.size - 1 }), EINVAL],
    ["with a byte too many", (g) => g.nest({}, { data_len: u.IommuHwptVtdS1.size + 1 }), EINVAL],
    ["that cannot be read", (g) => g.nest({}, { data_uptr: 0x10n }), EFAULT],
    ["on no table", (g) => g.nest({}, { pt_id: 0x7fff }), EINVAL],
  ])("%s is refused", (_, make, errno) => {
    expect(make(new Guest())).toBe(errno);
  });

  test("needs a unit that nests, and so does its parent", () => {
    const g = new Guest({ kind: "intel-scalable", coherentWalk: true, nesting: true });
    expect(g.nest({}, { pt_id: ok(g.alloc(g.ioas)) })).toBe(EINVAL);
    const plain = new IommufdRig({ kind: "intel-scalable", coherentWalk: true });
    const ioas = plain.allocIoas();
    const idev = plain.bind();
    const cmd = u.IommuHwptAlloc.alloc({
      size: u.IommuHwptAlloc.size,
      dev_id: idev.id,
      pt_id: ioas,
      flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT,
    });
    expect(plain.ioctl(u.IOMMU_HWPT_ALLOC, cmd)).toBe(EOPNOTSUPP);
    plain.unbind(idev);
    plain.run(plain.process.exit());
  });

  test.each<[string, Parameters<typeof u.IommuHwptVtdS1.alloc>[0], Errno | "attached"]>([
    ["of 48 bits", {}, "attached"],
    ["of 57 bits, which takes five levels", { addr_width: 57 }, EINVAL],
    ["of 39 bits", { addr_width: 39 }, EINVAL],
    ["with supervisor requests, which the unit has", { flags: u.IOMMU_VTD_S1_SRE }, "attached"],
    ["with extended accessed bits, which it has not", { flags: u.IOMMU_VTD_S1_EAFE }, EINVAL],
    ["with write protection", { flags: u.IOMMU_VTD_S1_WPE }, "attached"],
  ])("%s can be made; whether it suits the unit shows when a device is attached", (_, cfg, want) => {
    const g = new Guest();
    const hwpt = ok(g.nest(cfg));
    const r = g.attach(g.idev, hwpt);
    expect(r instanceof Errno ? r : "attached").toBe(want);
  });

  test("leads through both tables, and marks what it used", () => {
    const g = new Guest();
    g.mapFirst(0x7f12_3456_7000n, GUEST + 0x8000n);
    g.nestDevice();
    expect(g.dma(0x7f12_3456_7abcn)).toBe(g.pa(GUEST + 0x8abcn));
    const leaf = GUEST + 0x3000n + 0x167n * 8n;
    expect(g.entry(leaf) & (A | D)).toBe(A);
    expect(g.entry(TOP + 0xfen * 8n) & (A | D)).toBe(A);
    // A write after a cached read must still set D.
    expect(g.dma(0x7f12_3456_7000n, true)).toBe(g.pa(GUEST + 0x8000n));
    expect(g.entry(leaf) & (A | D)).toBe(A | D);
    expect(g.entry(TOP + 0xfen * 8n) & D).toBe(0n);
  });

  test("may be in the upper half of the addresses, and nowhere between", () => {
    const g = new Guest();
    g.mapFirst(0xffff_8000_0000_0000n, GUEST + 0x9000n);
    g.nestDevice();
    expect(g.dma(0xffff_8000_0000_0010n)).toBe(g.pa(GUEST + 0x9010n));
    expect(g.dma(0x0000_8000_0000_0000n)).toBe("first-stage-not-canonical 0x80");
    expect(g.dma(0xfffe_ffff_ffff_f000n)).toBe("first-stage-not-canonical 0x80");
  });

  test("of large pages is cut where the second stage's pages end", () => {
    const g = new Guest();
    const second = GUEST + 0x2000n;
    g.mapFirst(0n, 0n);
    g.setEntry(second, (GUEST & ~0x1f_ffffn) | P | RW | US | PS);
    g.nestDevice();
    const t = g.kernel.iommu.translate(g.idev.dev.rid, 0x1234n, false);
    expect(t).toMatchObject({ pa: g.pa(GUEST + 0x1234n), last: 0x1fffn });
    expect(g.dma(0x1f_0000n)).toBe("second-stage 0x79");
    expect(g.entry(second) & (A | D)).toBe(A);
  });

  const leafAt = GUEST + 0x3000n;
  test.each<[string, (g: Guest) => void, boolean, string]>([
    ["an entry that is not there", (g) => g.setEntry(leafAt, 0n), false, "first-stage-not-present 0x71"],
    ["a table that is not there", (g) => g.setEntry(TOP, 0n), false, "first-stage-not-present 0x71"],
    ["a page of the supervisor", (g) => g.setEntry(leafAt, (GUEST + 0x8000n) | P | RW), false, "first-stage-supervisor 0x81"],
    ["a write to a page that is read only", (g) => g.setEntry(leafAt, (GUEST + 0x8000n) | P | US), true, "write-denied 0x85"],
    ["a write below a table that is read only", (g) => g.setEntry(TOP, (GUEST + 0x1000n) | P | US), true, "write-denied 0x85"],
    ["a leaf above the tables", (g) => g.setEntry(TOP, GUEST | P | RW | US | PS), false, "first-stage-reserved 0x72"],
    ["a leaf of 1 GiB, which the unit lacks", (g) => g.setEntry(GUEST + 0x1000n, P | RW | US | PS), false, "first-stage-reserved 0x72"],
    [
      "a large leaf that is not aligned",
      (g) => g.setEntry(GUEST + 0x2000n, 0x2000n | P | RW | US | PS),
      false,
      "first-stage-reserved 0x72",
    ],
    ["a table where the guest has no memory", (g) => g.setEntry(TOP, 0x5000n | P | RW | US), false, "first-stage-unreadable 0x76"],
    ["a table beyond the second stage", (g) => g.setEntry(TOP, (1n << 50n) | P | RW | US), false, "first-stage-beyond-width 0x74"],
    ["a page where the guest has no memory", (g) => g.setEntry(leafAt, 0x5000n | P | RW | US), false, "second-stage 0x79"],
  ])("stops at %s, and changes nothing", (_, spoil, write, why) => {
    const g = new Guest();
    g.mapFirst(0n, GUEST + 0x8000n);
    spoil(g);
    g.nestDevice();
    const before = g.peek(g.memory, 0x4000);
    expect(g.dma(0n, write)).toBe(why);
    expect(g.peek(g.memory, 0x4000)).toEqual(before);
  });

  test("whose own memory the second stage lets be read only cannot be marked", () => {
    const g = new Guest({ ...SCALABLE }, { map: false });
    // A nest parent's pages are always writable on this unit (erratum), so the ones the program cannot write are not there at all.
    const ro = u.IOMMU_IOAS_MAP_FIXED_IOVA | u.IOMMU_IOAS_MAP_READABLE;
    expect(g.map({ ioas_id: g.ioas, user_va: g.memory, length: 0x4000n, iova: GUEST, flags: ro })).toBe(EINVAL);
    g.nestDevice();
    expect(g.dma(0n)).toBe("first-stage-unreadable 0x76");
  });
});

describe("a cached translation of both stages", () => {
  const cached = (): Guest => {
    const g = new Guest();
    g.mapFirst(0n, GUEST + 0x8000n);
    g.nestDevice();
    g.dma(0n, true);
    g.mapFirst(0n, GUEST + 0x9000n);
    return g;
  };

  test("stays until the guest says what it changed", () => {
    const g = cached();
    expect(g.dma(0n)).toBe(g.pa(GUEST + 0x8000n));
    expect(g.invalidate([{ addr: 0x1000n, npages: 1n }])).toEqual({ e: 0, done: 1 });
    expect(g.dma(0n)).toBe(g.pa(GUEST + 0x8000n));
    expect(g.invalidate([{ addr: 0n, npages: 1n, flags: u.IOMMU_VTD_INV_FLAGS_LEAF }])).toEqual({ e: 0, done: 1 });
    expect(g.dma(0n)).toBe(g.pa(GUEST + 0x9000n));
  });

  test.each<[string, bigint, bigint]>([
    ["all of it", 0n, ALL],
    ["a range that only reaches it when rounded to a power of two", 0x1000n, 2n],
    ["a range of no pages at 0, which is all of it", 0n, 0n],
  ])("goes with %s", (_, addr, npages) => {
    const g = cached();
    expect(g.invalidate([{ addr, npages }])).toEqual({ e: 0, done: 1 });
    expect(g.dma(0n)).toBe(g.pa(GUEST + 0x9000n));
  });

  test.each<[string, Parameters<Guest["invalidate"]>[0][0], Errno]>([
    ["an unknown flag", { addr: 0n, npages: 1n, flags: 2 }, EOPNOTSUPP],
    ["a reserved word", { addr: 0n, npages: 1n, __reserved: 1 }, EOPNOTSUPP],
    ["an address between pages", { addr: 0x10n, npages: 1n }, EINVAL],
    ["all of it from somewhere", { addr: 0x1000n, npages: ALL }, EINVAL],
  ])("stays when a request before it has %s", (_, bad, e) => {
    const g = cached();
    expect(g.invalidate([{ addr: 0x40_0000n, npages: 1n }, bad, { addr: 0n, npages: 1n }])).toEqual({ e, done: 1 });
    expect(g.dma(0n)).toBe(g.pa(GUEST + 0x8000n));
    expect(g.invalidate([{ addr: 0n, npages: 1n }], 5)).toEqual({ e: EINVAL, done: 0 });
  });

  test("is dropped when the second stage changes anywhere", () => {
    const g = cached();
    expect(g.unmap(g.ioas, GUEST, BigInt(PAGES * 4096))).toBe(BigInt(PAGES * 4096));
    expect(g.dma(0n)).toBe("first-stage-unreadable 0x76");
    expect(g.alloc(0x7fff)).toBe(EINVAL);
    expect(g.nest({}, { dev_id: 0x7fff })).toBe(ENOENT);
  });

  test("does not hide a write from dirty tracking of the second stage", () => {
    const g = new Guest();
    const parent = ok(g.alloc(g.ioas, { flags: u.IOMMU_HWPT_ALLOC_NEST_PARENT | u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }));
    g.mapFirst(0n, GUEST + 0x8000n);
    g.hwpt = ok(g.nest({}, { pt_id: parent }));
    ok(g.attach(g.idev, g.hwpt));
    g.dma(0n, true);
    const on = u.IommuHwptSetDirtyTracking.alloc({ size: u.IommuHwptSetDirtyTracking.size, hwpt_id: parent, flags: 1 });
    expect(g.ioctl(u.IOMMU_HWPT_SET_DIRTY_TRACKING, on)).toBe(0);
    const dirty = (): bigint => {
      const at = g.put(new Uint8Array(8));
      const cmd = u.IommuHwptGetDirtyBitmap.alloc({
        size: u.IommuHwptGetDirtyBitmap.size,
        hwpt_id: parent,
        iova: GUEST,
        length: BigInt(PAGES * 4096),
        page_size: 4096n,
        data: at,
      });
      expect(g.ioctl(u.IOMMU_HWPT_GET_DIRTY_BITMAP, cmd)).toBe(0);
      return new DataView(g.peek(at, 8).buffer).getBigUint64(0, true);
    };
    g.dma(0n, true);
    expect(dirty()).toBe(1n << 8n);
    g.dma(0n, true);
    expect(dirty()).toBe(1n << 8n);
    // Marks in the guest's own table are writes as well: tables 0 to 3.
    g.mapFirst(0x1000n, GUEST + 0xa000n);
    g.dma(0x1000n, true);
    expect(dirty() & (1n << 10n)).toBe(1n << 10n);
    expect(dirty()).toBe(0n);
  });
});

test("any table of the guest's, walked by the unit and by a naive walk of both stages, says the same", () => {
  const g = new Guest();
  g.nestDevice();
  const bits = fc.constantFrom(P | RW | US, P | US, P | RW, 0n, P | RW | US | PS, P | RW | US | A | D);
  const frame = fc.integer({ min: -2, max: PAGES + 2 }).map((n) => GUEST + BigInt(n) * 0x1000n);
  const entries = fc.array(fc.tuple(fc.integer({ min: 0, max: 15 }), fc.integer({ min: 0, max: 3 }), frame, bits), { maxLength: 40 });
  const naive = (iova: bigint, write: boolean): bigint | undefined => {
    let table = TOP;
    let allowed = true;
    for (let level = 3; ; level--) {
      const at = table + ((iova >> BigInt(12 + 9 * level)) & 0x1ffn) * 8n;
      if (at < GUEST || at >= GUEST + BigInt(PAGES) * 0x1000n) return undefined;
      const e = g.entry(at);
      if ((e & (P | US)) !== (P | US)) return undefined;
      if ((e & RW) === 0n && write) allowed = false;
      const base = e & 0xf_ffff_ffff_f000n;
      if (level > 0 && (e & PS) !== 0n) {
        if (level > 1 || (base & 0x1f_e000n) !== 0n) return undefined;
      } else if (level > 0) {
        table = base;
        continue;
      }
      const size = 1n << BigInt(12 + 9 * level);
      const gpa = (base & ~(size - 1n)) | (iova & (size - 1n));
      return allowed && gpa >= GUEST && gpa < GUEST + BigInt(PAGES) * 0x1000n ? g.pa(gpa) : undefined;
    }
  };
  fc.assert(
    fc.property(entries, fc.array(fc.tuple(fc.nat(255), fc.boolean()), { maxLength: 24 }), (table, accesses) => {
      g.process.mm.memory.write(g.memory, new Uint8Array(16 * 4096));
      for (const [page, index, leaf, flags] of table) g.setEntry(GUEST + BigInt(page) * 0x1000n + BigInt(index) * 8n, leaf | flags);
      expect(g.invalidate([{ addr: 0n, npages: ALL }])).toEqual({ e: 0, done: 1 });
      for (const [n, write] of accesses) {
        // Two bits of each index: all entries that there are.
        const iova = [0, 2, 4, 6].reduce((v, s, i) => v | (BigInt((n >> s) & 3) << BigInt(39 - 9 * i)), 0n);
        const want = naive(iova, write);
        const got = g.dma(iova, write);
        expect(typeof got === "bigint" ? got : undefined).toBe(want);
      }
    }),
    { numRuns: 300 },
  );
});
