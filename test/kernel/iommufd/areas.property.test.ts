/**
 * Random commands against a naive model of what they do, with the checker after
 * every step. BARLINK_AREA_STEPS sets the number of steps (default 100,000),
 * BARLINK_AREA_SEED the first seed.
 */
import { expect, test } from "vitest";
import type { IommuDescription } from "../../../src/kernel/iommu/iommu.ts";
import type { IommufdDevice } from "../../../src/kernel/iommufd/device.ts";
import type { IommufdIoas } from "../../../src/kernel/iommufd/ioas.ts";
import { EADDRINUSE, EEXIST, EINVAL, ENODEV, ENOENT, EPERM, Errno } from "../../../src/lib/errno.ts";
import { Rng } from "../../../src/lib/rng.ts";
import { BAR_START } from "../vfio/dmabuf_support.ts";
import { FIXED, IommufdRig } from "./support.ts";

const STEPS = Number(process.env.BARLINK_AREA_STEPS ?? 100_000);
const SEED = Number(process.env.BARLINK_AREA_SEED ?? 1);
const STEPS_PER_RUN = 5_000;

const PAGE = 4096n;
/** Pages of IOVA that fixed maps use; small, so that they meet. */
const UNIVERSE = 48;
const BUFFER_PAGES = 16;
const MAX_AREAS = 10;

/** Two units that share no domain: an IOAS with devices of both has two. A run takes the pair of its seed. */
const UNITS: readonly (readonly [IommuDescription, IommuDescription])[] = [
  [{ kind: "intel-legacy", snoopControl: true }, { kind: "amd" }],
  [{ kind: "intel-scalable" }, { kind: "amd", dirtyTracking: true }],
  [{ kind: "amd" }, { kind: "intel-first-stage" }],
];
/** The unit of each device. */
const BEHIND: readonly number[] = [0, 0, 1];

interface ModelPages {
  readonly kind: "user" | "file" | "dmabuf";
  readonly writable: boolean;
  /** A revoke has come by. */
  dead: boolean;
}

interface ModelArea {
  readonly start: bigint;
  readonly last: bigint;
  readonly pages: ModelPages;
  /** Byte of the origin. */
  readonly byte: bigint;
}

class ModelIoas {
  areas: ModelArea[] = [];
  domains = 0;

  get alignment(): bigint {
    return this.domains > 0 ? PAGE : 1n;
  }

  hits(start: bigint, last: bigint): ModelArea[] {
    return this.areas.filter((a) => a.start <= last && start <= a.last).sort((a, b) => (a.start < b.start ? -1 : 1));
  }

  /** First fit, by trying every place. */
  place(byte: bigint, length: bigint): bigint {
    let align = 1n;
    while (align < length) align <<= 1n;
    if (byte !== 0n && (byte & -byte) < align) align = byte & -byte;
    if (align > 0x20_0000n) align = 0x20_0000n;
    let at = ((PAGE + align - 1n) / align) * align;
    while (this.hits(at, at + length - 1n).length > 0) at += align;
    return at;
  }

  /** What inserting the slices does: the IOVA, or why not. */
  insert(slices: { pages: ModelPages; byte: bigint; length: bigint }[], at: bigint | undefined, write: boolean): bigint | Errno {
    const length = slices.reduce((n, s) => n + s.length, 0n);
    const mask = this.alignment - 1n;
    const first = slices[0];
    if (first === undefined || (length & mask) !== 0n) return EINVAL;
    let iova: bigint;
    if (at === undefined) {
      iova = this.place(first.byte, length);
    } else {
      if ((at & mask) !== 0n) return EINVAL;
      if (this.hits(at, at + length - 1n).length > 0) return EEXIST;
      iova = at;
    }
    const made: ModelArea[] = [];
    let next = iova;
    for (const s of slices) {
      if (write && !s.pages.writable) return EPERM;
      if ((s.byte & 0xfffn & mask) !== 0n) return EINVAL;
      made.push({ start: next, last: next + s.length - 1n, pages: s.pages, byte: s.byte });
      next += s.length;
    }
    this.areas.push(...made);
    return iova;
  }

  unmap(start: bigint, last: bigint): bigint | Errno {
    let n = 0n;
    for (const a of this.hits(start, last)) {
      if (a.start < start || a.last > last) return ENOENT;
      this.areas.splice(this.areas.indexOf(a), 1);
      n += a.last - a.start + 1n;
    }
    return n === 0n ? ENOENT : n;
  }

  slices(start: bigint, last: bigint): { pages: ModelPages; byte: bigint; length: bigint }[] | Errno {
    const out: { pages: ModelPages; byte: bigint; length: bigint }[] = [];
    let at = start;
    for (const a of this.hits(start, last)) {
      if (a.start > at) return ENOENT;
      const end = a.last < last ? a.last : last;
      out.push({ pages: a.pages, byte: a.byte + (at - a.start), length: end - at + 1n });
      at = end + 1n;
    }
    return at > last ? out : ENOENT;
  }
}

class Run {
  readonly rig: IommufdRig;
  readonly rng: Rng;
  readonly ids: number[];
  readonly model: ModelIoas[];
  readonly devices: IommufdDevice[];
  /** Per device: index of the IOAS it is attached to. */
  readonly on: (number | undefined)[];
  readonly memfd: number;
  readonly user: bigint;
  readonly dmabuf: number;
  revoked = false;
  what = "";

  constructor(seed: number) {
    this.rng = new Rng(seed);
    const [first, second] = UNITS[seed % UNITS.length] as (typeof UNITS)[number];
    this.rig = new IommufdRig(first);
    this.rig.kernel.iommu.addUnit(second);
    this.ids = [this.rig.allocIoas(), this.rig.allocIoas(), this.rig.allocIoas()];
    this.model = this.ids.map(() => new ModelIoas());
    this.devices = BEHIND.map((unit) => this.rig.bind(this.rig.device({ unit })));
    this.on = this.devices.map(() => undefined);
    this.memfd = this.rig.memfd(BUFFER_PAGES * 4096);
    this.user = this.rig.user(BUFFER_PAGES * 4096);
    this.dmabuf = this.rig.dmabuf(BigInt(BUFFER_PAGES) * PAGE);
  }

  pages(n: number): bigint {
    return BigInt(this.rng.below(n)) * PAGE;
  }

  /** A few bytes off, now and then. */
  askew(): bigint {
    return this.rng.below(40) === 0 ? 16n : 0n;
  }

  ioas(): { id: number; m: ModelIoas; index: number } {
    const index = this.rng.below(this.ids.length);
    return { id: this.ids[index] as number, m: this.model[index] as ModelIoas, index };
  }

  step(): void {
    const pick = this.rng.below(100);
    if (pick < 40) this.map();
    else if (pick < 70) this.unmap();
    else if (pick < 84) this.copy();
    else if (pick < 95) this.device();
    else this.revoke();
    this.rig.check();
    this.compare();
    this.rig.events.length = 0;
  }

  map(): void {
    const { id, m } = this.ioas();
    if (m.areas.length >= MAX_AREAS) return;
    const kind = (["user", "file", "dmabuf", "dmabuf"] as const)[this.rng.below(4)] ?? "file";
    const first = this.rng.below(BUFFER_PAGES);
    const start = BigInt(first) * PAGE + this.askew();
    const length = this.pages(Math.min(4, BUFFER_PAGES - first)) + PAGE - (start & 0xfffn) - this.askew();
    const write = this.rng.below(5) !== 0;
    const fixed = this.rng.below(3) !== 0 || ((start | length) & 0xfffn) !== 0n;
    const at = fixed ? this.pages(UNIVERSE) + this.askew() : undefined;
    const flags = 4 | (write ? 2 : 0) | (fixed ? FIXED : 0);
    this.what = `map ${kind} ${start}+${length} at ${at} write ${write} in ${id}`;
    const args = { ioas_id: id, length, iova: at ?? 0n, flags };
    const got =
      kind === "user"
        ? this.rig.map({ ...args, user_va: this.user + start })
        : this.rig.mapFile({ ...args, start, fd: kind === "file" ? this.memfd : this.dmabuf });
    const origin = kind === "user" ? this.user + start : start;
    const pages: ModelPages = { kind, writable: write, dead: false };
    const want = kind === "dmabuf" && this.revoked ? ENODEV : m.insert([{ pages, byte: origin, length }], at, write);
    expect(got, this.what).toBe(want);
  }

  unmap(): void {
    const { id, m } = this.ioas();
    const some = m.areas[this.rng.below(Math.max(1, m.areas.length))];
    let start = this.pages(UNIVERSE);
    let length = this.pages(6) + PAGE;
    if (some !== undefined && this.rng.below(3) !== 0) {
      start = some.start;
      length = some.last - some.start + 1n;
    }
    this.what = `unmap ${start}+${length} in ${id}`;
    expect(this.rig.unmap(id, start, length), this.what).toBe(m.unmap(start, start + length - 1n));
  }

  copy(): void {
    const src = this.ioas();
    const dst = this.ioas();
    if (dst.m.areas.length >= MAX_AREAS) return;
    const some = src.m.areas[this.rng.below(Math.max(1, src.m.areas.length))];
    const from = (some?.start ?? this.pages(UNIVERSE)) + (this.rng.below(3) === 0 ? PAGE : 0n);
    const length = this.pages(4) + PAGE;
    const write = this.rng.below(2) === 0;
    const at = this.rng.below(2) === 0 ? this.pages(UNIVERSE) : undefined;
    this.what = `copy ${from}+${length} of ${src.id} to ${at} in ${dst.id} write ${write}`;
    const flags = 4 | (write ? 2 : 0) | (at === undefined ? 0 : FIXED);
    const slices = src.m.slices(from, from + length - 1n);
    // The model knows automatic placement for page-aligned bytes only.
    if (at === undefined && !(slices instanceof Errno) && slices.some((s) => ((s.byte | s.length) & 0xfffn) !== 0n)) return;
    const got = this.rig.copy({ src_ioas_id: src.id, dst_ioas_id: dst.id, src_iova: from, dst_iova: at ?? 0n, length, flags });
    expect(got, this.what).toBe(slices instanceof Errno ? slices : dst.m.insert(slices, at, write));
  }

  device(): void {
    const i = this.rng.below(this.devices.length);
    const dev = this.devices[i] as IommufdDevice;
    const at = this.on[i];
    if (at !== undefined) {
      this.what = `detach device ${i} from ${this.ids[at]}`;
      this.rig.detach(dev);
      this.on[i] = undefined;
      this.countDomains();
      return;
    }
    const { id, m, index } = this.ioas();
    this.what = `attach device ${i} to ${id}`;
    const askew = m.areas.some((a) => ((a.start | (a.last + 1n) | a.byte) & 0xfffn) !== 0n);
    const got = this.rig.attach(dev, id);
    if (askew) {
      expect(got, this.what).toBe(EADDRINUSE);
      return;
    }
    expect(got, this.what).toBeTypeOf("number");
    this.on[i] = index;
    this.countDomains();
  }

  /** One for each unit that has a device on the IOAS. */
  countDomains(): void {
    for (const [index, m] of this.model.entries()) m.domains = new Set(BEHIND.filter((_, k) => this.on[k] === index)).size;
  }

  revoke(): void {
    this.revoked = !this.revoked;
    this.what = `revoke ${this.revoked}`;
    this.rig.revoke(this.revoked);
    if (this.revoked) for (const m of this.model) for (const a of m.areas) if (a.pages.kind === "dmabuf") a.pages.dead = true;
  }

  /** The areas are those of the model, and lead where it says. */
  compare(): void {
    for (const [i, id] of this.ids.entries()) {
      const m = this.model[i] as ModelIoas;
      const ioas = this.rig.ctx.objects.load(id) as IommufdIoas;
      const want = [...m.areas].sort((a, b) => (a.start < b.start ? -1 : 1));
      const have = [...ioas.iopt.areas];
      if (have.length !== want.length || ioas.iopt.domains.length !== m.domains) throw new Error(`after ${this.what}: ${id} differs`);
      for (const [k, a] of have.entries()) {
        const w = want[k] as ModelArea;
        if (a.start !== w.start || a.last !== w.last || a.pages?.type !== w.pages.kind)
          throw new Error(`after ${this.what}: ${id} differs`);
        if (w.pages.kind !== "dmabuf") continue;
        for (const d of ioas.iopt.domains) {
          const pa = d.iovaToPhys(w.start);
          if (pa !== (w.pages.dead ? undefined : BAR_START + w.byte)) throw new Error(`after ${this.what}: ${w.start} leads to ${pa}`);
        }
      }
    }
  }

  /** Everything goes when everybody lets go. */
  end(): void {
    for (const d of this.devices) {
      this.rig.detach(d);
      this.rig.unbind(d);
    }
    this.rig.run(this.rig.process.exit());
    for (const name of ["iommufd context", "iommufd area", "iommufd pages", "dma_buf", "dma_buf attachment"]) {
      expect(this.rig.kernel.leakChecks.get(name)?.(), name).toBe(0);
    }
    expect(this.rig.kernel.frames.pinned).toBe(0);
  }
}

const runs = Math.max(1, Math.ceil(STEPS / STEPS_PER_RUN));

test(`${STEPS} random steps do what a naive model says, and keep every invariant`, { timeout: 600_000 }, () => {
  for (let i = 0; i < runs; i++) {
    const run = new Run(SEED + i);
    for (let s = 0; s < Math.min(STEPS_PER_RUN, STEPS - i * STEPS_PER_RUN); s++) {
      try {
        run.step();
      } catch (e) {
        throw new Error(`seed ${SEED + i}, step ${s}: ${run.what}`, { cause: e });
      }
    }
    run.end();
  }
});
