/**
 * Accesses, domains and user memory over the same pages, in any order, against a
 * model that knows pages and nothing else.
 *
 * Whoever comes first decides which frame a page of an `iopt_pages` is: the
 * program's memory as it is then. Whoever comes later (a second domain, an
 * access, a copy in another IOAS) gets that frame, also when the program has
 * something else at the address by now; when the last of them goes, so does the
 * pin. On Linux these are three places to find a frame number in (a domain, the
 * xarray of accesses, the memory itself); here they must be one.
 *
 * After every step: the invariants, the pins of every frame, where each domain
 * leads, and every byte that was read.
 */
import fc from "fast-check";
import { expect, it } from "vitest";
import { EBADE, EEXIST, EINVAL, ENODEV, ENOENT, EPERM, Errno } from "../../../src/lib/errno.ts";
import * as u from "../../../src/uapi/index.ts";
import { SelftestRig, START } from "./selftest_support.ts";
import { FIXED, ok } from "./support.ts";

const PAGE = 4096;
const PAGE_N = 4096n;
const ORIGIN_PAGES = 6;
const UNIVERSE = 12;
const IOASES = 2;

/** What is at a page now: the bytes, by identity. */
interface Frame {
  readonly bytes: Uint8Array;
}

type Kind = "user" | "file" | "dmabuf";

/** What one map made, and copies share. */
interface ModelPages {
  readonly kind: Kind;
  readonly writable: boolean;
  /** Page of the origin → the frame that stands for it. */
  readonly pinned: Map<number, Frame>;
}

/** One page of an area. Areas are `[first, first + n)` of these with one `area`. */
interface ModelArea {
  readonly first: number;
  readonly n: number;
  readonly pages: ModelPages;
  /** Page of the origin at `first`. */
  readonly origin: number;
  readonly write: boolean;
}

interface Item {
  readonly id: number;
  readonly first: number;
  readonly n: number;
  /** What it holds. */
  readonly held: readonly { readonly pages: ModelPages; readonly origin: number }[];
}

interface ModelIoas {
  readonly id: number;
  readonly access: number;
  readonly copier: number;
  areas: ModelArea[];
  items: Item[];
  stdevs: { readonly stdev: number; readonly idev: number; readonly hwpt: number }[];
  hwpts: number[];
}

type Op =
  | { readonly op: "map"; ioas: number; kind: Kind; origin: number; n: number; at: number; write: boolean }
  | { readonly op: "copy"; from: number; to: number; at: number; n: number; dst: number; write: boolean }
  | { readonly op: "unmap"; ioas: number; at: number; n: number; area: boolean }
  | { readonly op: "pin"; ioas: number; at: number; n: number; write: boolean }
  | { readonly op: "unpin"; ioas: number; which: number }
  | { readonly op: "rw"; ioas: number; at: number; offset: number; length: number; write: boolean; slow: boolean; seed: number }
  | { readonly op: "store"; kind: "user" | "file"; page: number; offset: number; seed: number }
  | { readonly op: "drop"; page: number; seed: number }
  | { readonly op: "device"; ioas: number }
  | { readonly op: "domain"; ioas: number }
  | { readonly op: "leave"; ioas: number; which: number; hwpt: boolean }
  | { readonly op: "revoke" };

const page = fc.nat(UNIVERSE - 1);
const few = fc.integer({ min: 1, max: 4 });
const ioas = fc.nat(IOASES - 1);
const mostly = fc.integer({ min: 0, max: 3 }).map((n) => n > 0);
const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant("map" as const),
      ioas,
      kind: fc.constantFrom<Kind>("user", "user", "file", "dmabuf"),
      origin: fc.nat(ORIGIN_PAGES - 1),
      n: few,
      at: page,
      write: mostly,
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ op: fc.constant("copy" as const), from: ioas, to: ioas, at: page, n: few, dst: page, write: mostly }),
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("unmap" as const), ioas, at: page, n: few, area: mostly }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant("pin" as const), ioas, at: page, n: few, write: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("unpin" as const), ioas, which: fc.nat(5) }) },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant("rw" as const),
      ioas,
      at: page,
      offset: fc.nat(PAGE - 1),
      length: fc.oneof(fc.integer({ min: 1, max: 64 }), fc.integer({ min: 1, max: 3 * PAGE })),
      write: fc.boolean(),
      slow: fc.boolean(),
      seed: fc.nat(255),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant("store" as const),
      kind: fc.constantFrom("user" as const, "file" as const),
      page: fc.nat(ORIGIN_PAGES - 1),
      offset: fc.nat(PAGE - 9),
      seed: fc.nat(255),
    }),
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("drop" as const), page: fc.nat(ORIGIN_PAGES - 1), seed: fc.nat(255) }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("device" as const), ioas }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant("domain" as const), ioas }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant("leave" as const), ioas, which: fc.nat(1), hwpt: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant("revoke" as const) }) },
);

const pattern = (seed: number, length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (seed * 31 + i * 7) & 0xff);
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;
const iovaOf = (at: number): bigint => START + BigInt(at) * PAGE_N;

class Scene {
  readonly rig = new SelftestRig();
  readonly userVa: bigint;
  readonly fileVa: bigint;
  readonly memfd: number;
  readonly dmabuf: number;
  readonly buffer: bigint;
  revoked = false;
  readonly current: Record<"user" | "file", Frame[]> = { user: [], file: [] };
  readonly ioases: ModelIoas[];
  readonly live = new Set<ModelPages>();

  constructor() {
    const r = this.rig;
    const { sys } = r.process;
    this.userVa = r.user(ORIGIN_PAGES * PAGE);
    this.memfd = r.memfd(ORIGIN_PAGES * PAGE);
    this.fileVa = ok(r.run(sys.mmap(0n, BigInt(ORIGIN_PAGES * PAGE), u.PROT_READ | u.PROT_WRITE, u.MAP_SHARED, this.memfd)));
    this.buffer = r.user(4 * PAGE);
    this.dmabuf = r.dmabuf(BigInt(ORIGIN_PAGES) * PAGE_N);
    for (const kind of ["user", "file"] as const) {
      for (let i = 0; i < ORIGIN_PAGES; i++) {
        this.current[kind].push({ bytes: new Uint8Array(PAGE) });
        this.store(kind, i, 0, pattern(i + (kind === "user" ? 1 : 100), PAGE));
      }
    }
    this.ioases = Array.from({ length: IOASES }, () => {
      const id = r.allocIoas();
      return { id, access: r.access(id), copier: r.access(id, false), areas: [], items: [], stdevs: [], hwpts: [] };
    });
  }

  store(kind: "user" | "file", at: number, offset: number, bytes: Uint8Array): void {
    const va = (kind === "user" ? this.userVa : this.fileVa) + BigInt(at * PAGE + offset);
    expect(this.rig.process.mm.memory.write(va, bytes)).toBe(0);
    this.current[kind][at]?.bytes.set(bytes, offset);
  }

  domainsOf(m: ModelIoas): number[] {
    return [...new Set([...m.stdevs.map((s) => s.hwpt), ...m.hwpts])];
  }

  areaAt(m: ModelIoas, at: number): ModelArea | undefined {
    return m.areas.find((a) => at >= a.first && at < a.first + a.n);
  }

  /** A page of IOVA: of an area more often than not. */
  spot(m: ModelIoas, n: number): number {
    const a = n % 4 === 0 ? undefined : m.areas[n % Math.max(1, m.areas.length)];
    return a === undefined ? n : a.first + (n % a.n);
  }

  /** The frame that whoever asks now for a page of the pages gets. */
  frameOf(pages: ModelPages, origin: number): Frame {
    return pages.pinned.get(origin) ?? (this.current[pages.kind as "user" | "file"][origin] as Frame);
  }

  /** Pins what is covered, lets go of what is not. */
  settle(): void {
    const covered = new Map<ModelPages, Set<number>>();
    const cover = (pages: ModelPages, origin: number): void => {
      if (pages.kind === "dmabuf") return;
      const set = covered.get(pages) ?? new Set();
      covered.set(pages, set.add(origin));
    };
    this.live.clear();
    for (const m of this.ioases) {
      for (const a of m.areas) {
        this.live.add(a.pages);
        if (this.domainsOf(m).length > 0) for (let i = 0; i < a.n; i++) cover(a.pages, a.origin + i);
      }
      for (const item of m.items) for (const h of item.held) cover(h.pages, h.origin);
    }
    for (const pages of this.live) {
      const set = covered.get(pages) ?? new Set<number>();
      for (const origin of set) pages.pinned.set(origin, this.frameOf(pages, origin));
      for (const origin of [...pages.pinned.keys()]) if (!set.has(origin)) pages.pinned.delete(origin);
    }
  }

  insert(m: ModelIoas, at: number, slices: readonly Omit<ModelArea, "first">[]): Errno | undefined {
    const n = slices.reduce((sum, s) => sum + s.n, 0);
    for (let i = at; i < at + n; i++) if (this.areaAt(m, i) !== undefined) return EEXIST;
    for (const s of slices) if (s.write && !s.pages.writable) return EPERM;
    let first = at;
    for (const s of slices) {
      m.areas.push({ ...s, first });
      first += s.n;
    }
    return undefined;
  }

  apply(o: Op): void {
    const r = this.rig;
    switch (o.op) {
      case "map": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const n = Math.min(o.n, ORIGIN_PAGES - o.origin);
        const flags = u.IOMMU_IOAS_MAP_READABLE | (o.write ? u.IOMMU_IOAS_MAP_WRITEABLE : 0) | FIXED;
        const start = BigInt(o.origin * PAGE);
        const args = { ioas_id: m.id, length: BigInt(n * PAGE), iova: iovaOf(o.at), flags };
        const got =
          o.kind === "user"
            ? r.map({ ...args, user_va: this.userVa + start })
            : r.mapFile({ ...args, start, fd: o.kind === "file" ? this.memfd : this.dmabuf });
        const pages: ModelPages = { kind: o.kind, writable: o.write, pinned: new Map() };
        const refused =
          o.kind === "dmabuf" && this.revoked ? ENODEV : this.insert(m, o.at, [{ n, pages, origin: o.origin, write: o.write }]);
        expect(got).toBe(refused ?? iovaOf(o.at));
        break;
      }
      case "copy": {
        const [from, to] = [this.ioases[o.from] as ModelIoas, this.ioases[o.to] as ModelIoas];
        const at = this.spot(from, o.at);
        const flags = u.IOMMU_IOAS_MAP_READABLE | (o.write ? u.IOMMU_IOAS_MAP_WRITEABLE : 0) | FIXED;
        const got = r.copy({
          src_ioas_id: from.id,
          dst_ioas_id: to.id,
          src_iova: iovaOf(at),
          dst_iova: iovaOf(o.dst),
          length: BigInt(o.n * PAGE),
          flags,
        });
        const slices: Omit<ModelArea, "first">[] = [];
        let hole = false;
        for (let i = at; i < at + o.n; ) {
          const a = this.areaAt(from, i);
          if (a === undefined) {
            hole = true;
            break;
          }
          const n = Math.min(a.first + a.n, at + o.n) - i;
          slices.push({ n, pages: a.pages, origin: a.origin + (i - a.first), write: o.write });
          i += n;
        }
        expect(got).toBe(hole ? ENOENT : (this.insert(to, o.dst, slices) ?? iovaOf(o.dst)));
        break;
      }
      case "unmap": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const whole = o.area ? this.areaAt(m, o.at) : undefined;
        const [first, n] = whole === undefined ? [o.at, o.n] : [whole.first, whole.n];
        const got = r.unmap(m.id, iovaOf(first), BigInt(n * PAGE));
        let bytes = 0;
        let want: Errno | bigint | undefined;
        for (const a of [...m.areas].sort((x, y) => x.first - y.first)) {
          if (a.first >= first + n || a.first + a.n <= first) continue;
          if (a.first < first || a.first + a.n > first + n) {
            want = ENOENT;
            break;
          }
          // Whoever pinned a page of it is asked to let go of all it pinned in one call.
          m.items = m.items.filter((i) => i.first >= a.first + a.n || i.first + i.n <= a.first);
          m.areas = m.areas.filter((b) => b !== a);
          bytes += a.n * PAGE;
        }
        expect(got).toBe(want ?? (bytes === 0 ? ENOENT : BigInt(bytes)));
        break;
      }
      case "pin": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const held: { pages: ModelPages; origin: number }[] = [];
        const at = this.spot(m, o.at);
        let want: Errno | undefined;
        for (let i = at; i < at + o.n && want === undefined; i++) {
          const a = this.areaAt(m, i);
          if (a === undefined) want = ENOENT;
          else if (o.write && !a.write) want = EPERM;
          else if (a.pages.kind === "dmabuf") want = EINVAL;
          else held.push({ pages: a.pages, origin: a.origin + (i - a.first) });
        }
        const [first] = held;
        // The pages of one origin in a row can be held against the program's memory.
        const inRow = first !== undefined && held.every((h, k) => h.pages.kind === first.pages.kind && h.origin === first.origin + k);
        const uptr = inRow ? (first.pages.kind === "user" ? this.userVa : this.fileVa) + BigInt(first.origin * PAGE) : 0n;
        const stays = held.every((h) => this.frameOf(h.pages, h.origin) === this.current[h.pages.kind as "user" | "file"][h.origin]);
        if (want === undefined && inRow && !stays) want = EBADE;
        const got = r.pin(m.access, iovaOf(at), BigInt(o.n * PAGE), uptr, o.write ? u.MOCK_FLAGS_ACCESS_WRITE : 0);
        if (want !== undefined) expect(got).toBe(want);
        else m.items.push({ id: got instanceof Errno ? expect.fail(got.name) : got, first: at, n: o.n, held });
        break;
      }
      case "unpin": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const item = m.items[o.which % Math.max(1, m.items.length)];
        expect(r.unpin(m.access, item?.id ?? 10_000)).toBe(item === undefined ? ENOENT : 0);
        m.items = m.items.filter((i) => i !== item);
        break;
      }
      case "rw":
        this.#rw(o);
        break;
      case "store":
        this.store(o.kind, o.page, o.offset, pattern(o.seed, 8));
        break;
      case "drop": {
        // Something else comes to be at the address; who has the old page pinned keeps it.
        const flags = u.MAP_PRIVATE | u.MAP_ANONYMOUS | u.MAP_FIXED;
        ok(r.run(r.process.sys.mmap(this.userVa + BigInt(o.page * PAGE), PAGE_N, u.PROT_READ | u.PROT_WRITE, flags, -1)));
        this.current.user[o.page] = { bytes: new Uint8Array(PAGE) };
        this.store("user", o.page, 0, pattern(o.seed, PAGE));
        break;
      }
      case "device": {
        const m = this.ioases[o.ioas] as ModelIoas;
        if (m.stdevs.length < 2) m.stdevs.push(r.mock(m.id));
        break;
      }
      case "domain": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const [device] = m.stdevs;
        if (device !== undefined && m.hwpts.length < 2) m.hwpts.push(ok(r.hwpt(device.idev, m.id)));
        break;
      }
      case "leave": {
        const m = this.ioases[o.ioas] as ModelIoas;
        const id = o.hwpt ? m.hwpts[o.which] : m.stdevs[o.which]?.stdev;
        if (id === undefined) break;
        expect(r.destroy(id)).toBe(0);
        m.hwpts = m.hwpts.filter((h) => h !== id);
        m.stdevs = m.stdevs.filter((s) => s.stdev !== id);
        break;
      }
      case "revoke":
        this.revoked = !this.revoked;
        r.revoke(this.revoked);
        break;
    }
    this.settle();
  }

  #rw({ ioas: which, at: near, offset, length, write, slow, seed }: Extract<Op, { op: "rw" }>): void {
    const m = this.ioases[which] as ModelIoas;
    const at = this.spot(m, near);
    const { memory } = this.rig.process.mm;
    const data = pattern(seed, length);
    memory.write(this.buffer, write ? data : new Uint8Array(length));
    const flags = (write ? u.MOCK_ACCESS_RW_WRITE : 0) | (slow ? u.MOCK_ACCESS_RW_SLOW_PATH : 0);
    let want: Errno | 0 = 0;
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const where = at * PAGE + offset + done;
      const a = this.areaAt(m, Math.floor(where / PAGE));
      if (a === undefined) want = ENOENT;
      else if (write && !a.write) want = EPERM;
      else if (a.pages.kind === "dmabuf") want = EINVAL;
      if (want !== 0 || a === undefined) break;
      const origin = a.origin + (Math.floor(where / PAGE) - a.first);
      const inPage = where % PAGE;
      const n = Math.min(PAGE - inPage, length - done);
      // The program's own memory is reached by its addresses, as long as it may be; the slow way, too, where one page of an area is all.
      const from = Math.max(a.first * PAGE, at * PAGE + offset);
      const end = Math.min((a.first + a.n) * PAGE, at * PAGE + offset + length);
      const single = Math.floor(from / PAGE) === Math.floor((end - 1) / PAGE);
      const frame = a.pages.kind === "user" && (!slow || single) ? (this.current.user[origin] as Frame) : this.frameOf(a.pages, origin);
      if (write) frame.bytes.set(data.subarray(done, done + n), inPage);
      else bytes.set(frame.bytes.subarray(inPage, inPage + n), done);
      done += n;
    }
    expect(this.rig.rw(m.copier, iovaOf(at) + BigInt(offset), length, this.buffer, flags)).toBe(want);
    if (want === 0 && !write && !same(this.rig.peek(this.buffer, length), bytes)) expect.fail("other bytes were read");
  }

  check(): void {
    const r = this.rig;
    r.check();
    const pins = new Map<Frame, number>();
    for (const pages of this.live) for (const f of pages.pinned.values()) pins.set(f, (pins.get(f) ?? 0) + 1);
    expect(r.kernel.frames.pinned).toBe([...pins.values()].reduce((a, b) => a + b, 0));
    for (const kind of ["user", "file"] as const) {
      const va = kind === "user" ? this.userVa : this.fileVa;
      for (const [i, frame] of this.current[kind].entries()) {
        expect(r.checkRefs(va + BigInt(i * PAGE), PAGE_N, pins.get(frame) ?? 0), `${kind} page ${i}`).toBe(0);
        if (!same(r.peek(va + BigInt(i * PAGE), PAGE), frame.bytes)) expect.fail(`${kind} page ${i} has other bytes`);
      }
    }
    for (const m of this.ioases) {
      for (const hwpt of this.domainsOf(m)) {
        for (const a of m.areas) {
          if (a.pages.kind === "dmabuf") continue;
          const [va, now] = a.pages.kind === "user" ? [this.userVa, this.current.user] : [this.fileVa, this.current.file];
          for (let i = 0; i < a.n; i++) {
            const origin = a.origin + i;
            const stays = a.pages.pinned.get(origin) === now[origin];
            expect(r.checkMap(hwpt, iovaOf(a.first + i), PAGE_N, va + BigInt(origin * PAGE))).toBe(stays ? 0 : EINVAL);
          }
        }
      }
    }
    r.events.length = 0;
  }
}

it("a page is one frame for all who show it, pinned once while anybody does", { timeout: 120_000 }, () => {
  let pinned = 0;
  let kept = 0;
  fc.assert(
    fc.property(fc.array(op, { minLength: 60, maxLength: 120, size: "max" }), (ops) => {
      const scene = new Scene();
      for (const o of ops) {
        scene.apply(o);
        scene.check();
        for (const pages of scene.live) {
          pinned += pages.pinned.size;
          for (const [origin, frame] of pages.pinned) if (pages.kind === "user" && scene.current.user[origin] !== frame) kept++;
        }
      }
    }),
    { numRuns: 30 },
  );
  // The runs came to where it matters: pages that the program no longer has were still shown.
  expect(pinned).toBeGreaterThan(1000);
  expect(kept).toBeGreaterThan(50);
});
