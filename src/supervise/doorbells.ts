/**
 * Registers in a mapping: found stores, kept-up values.
 *
 * Nobody tells when a program stores into memory that it has mapped. So the
 * image of a register BAR is compared with what it should be: before each call
 * that is served (what was stored before a call reaches the device before the
 * call does), and every millisecond, or every few when nothing happens. What
 * differs was stored; it goes to the device in ascending order of offset. What
 * the device makes of it, and whatever else changes its registers (its timers,
 * a call, a reset), is written back to the image at once.
 *
 * What a program can see of that:
 * - a store of the value that the register shows is no change, and is not seen;
 * - of several stores to one register between two looks the last one counts;
 * - stores to several registers between two looks arrive by offset, not by time
 *   (a look never takes a later store without an earlier one);
 * - a load right after a store gives what was stored, until the next look;
 * - loads have no effects.
 * None of this applies to pread and pwrite.
 *
 * How late: `LAZY_MS` at most for a register whose place the model declares
 * (`PciBarDescription.registers`), or that was stored to of late; a BAR whose
 * model declares nothing is swept, `SWEEP_PAGES` pages each time, and its values
 * are brought up to date `FRESHEN_PAGES` pages each time.
 */
import type { PciFunction } from "../kernel/pci/function.ts";
import type { BarStore, RegisterRange } from "../kernel/pci/pci_model.ts";

const PAGE = 4096;
/** Pages besides the hot ones that are looked at each time. */
const SWEEP_PAGES = 16;
/** Of so many sweeps one puts back what was stored where there are no registers. */
const REPAIR_EVERY = 16;
/** Cold pages that are brought up to date each time, of a BAR that may have registers anywhere. */
const FRESHEN_PAGES = 2;
/** Pages looked at each time, of a BAR that may have registers anywhere. */
const MAX_HOT = 16;
/** A look is repeated until the image holds still, this often at most. */
const MAX_TRIES = 8;

/** Between two looks: for `BUSY_FOR_MS` after something happened, for `CALM_FOR_MS`, and then. */
export const BUSY_MS = 1;
export const CALM_MS = 4;
export const LAZY_MS = 8;
const BUSY_FOR_MS = 100;
const CALM_FOR_MS = 1000;

const view = (b: Uint8Array): Buffer => Buffer.from(b.buffer, b.byteOffset, b.length);
const ZEROS = new Uint8Array(PAGE);
const ONES = new Uint8Array(PAGE).fill(0xff);

const sweepBuffer: Buffer = Buffer.alloc(SWEEP_PAGES * PAGE);

/** A page of an image. */
interface Page {
  /** Offset in the BAR. */
  readonly at: number;
  /** Bytes of the BAR in it. */
  readonly length: number;
  /** What the memfd was last seen or made to hold; one of the constants above until it is the page's own. */
  shadow: Uint8Array;
}

/** The part of a page that is looked at each time. */
interface Hot {
  readonly page: Page;
  readonly lo: number;
  readonly hi: number;
  /** The shadow of that part, the same bytes. */
  readonly shadow: Buffer;
  now: Buffer;
  next: Buffer;
  /** Look number of the last store. */
  used: number;
}

/** What a BAR without memory of its own looks like, in the memory of whoever has mapped it. */
export class RegisterImage {
  /** Called when a store was found or a value was brought up to date. */
  onChange: (() => void) | undefined = undefined;
  readonly #fn: PciFunction;
  readonly #bar: number;
  readonly #store: BarStore;
  readonly #size: number;
  readonly #ranges: readonly RegisterRange[];
  /** What there is outside of the ranges; undefined: they are not declared. */
  readonly #elsewhere: 0 | 0xff | undefined;
  readonly #pages: Page[] = [];
  #hot: Hot[] = [];
  #cursor = 0;
  #looks = 0;
  #skipped = 0;
  #busy = false;
  #stopped = false;
  /** Cold pages whose values may be out of date, of a BAR that may have registers anywhere. */
  readonly #stale: Set<Page> = new Set();

  /** Fills the image: `store` is all zeros. */
  constructor(fn: PciFunction, bar: number, store: BarStore) {
    const d = fn.template.bars[bar];
    if (d === undefined) throw new RangeError(`${fn.name} has no BAR ${bar}`);
    this.#fn = fn;
    this.#bar = bar;
    this.#store = store;
    this.#size = Number(d.size);
    const plain = fn.model.barMemory(bar) === undefined && fn.barAnswers(bar);
    const declared = plain ? d.registers : undefined;
    this.#elsewhere = declared?.elsewhere;
    const width = Math.min(d.accessSize ?? 4, 4) as 1 | 2 | 4;
    this.#ranges = declared === undefined ? [{ offset: 0, length: this.#size, width }] : withMsix(fn, bar, declared.ranges);
    this.#fill();
  }

  /** Carries out what was stored where it is looked each time. True: something was. */
  look(): boolean {
    if (this.#busy || this.#stopped) return false;
    this.#busy = true;
    try {
      this.#looks++;
      let found = false;
      for (let i = 0; i < MAX_TRIES; i++) {
        if (!this.#snapshot()) break;
        found = true;
        this.#apply();
        if (this.#stopped || this.#update()) break;
      }
      if (found) this.onChange?.();
      return found;
    } finally {
      this.#busy = false;
    }
  }

  /** Looks at some of the rest. True: something was stored there. */
  sweep(): boolean {
    const pages = this.#pages.length;
    if (this.#stopped || (pages <= this.#hot.length && this.#elsewhere === undefined)) return false;
    // Where registers are declared there is nothing to find, only what was overwritten to put back.
    if (this.#elsewhere !== undefined && ++this.#skipped < REPAIR_EVERY) return false;
    this.#skipped = 0;
    this.#freshen();
    const first = this.#cursor;
    const last = Math.min(first + SWEEP_PAGES, pages);
    this.#cursor = last >= pages ? 0 : last;
    const from = first * PAGE;
    const bytes = sweepBuffer.subarray(0, Math.min(last * PAGE, this.#size) - from);
    this.#store.read(from, bytes);
    let found = false;
    for (let i = first; i < last; i++) {
      const page = this.#pages[i] as Page;
      const now = bytes.subarray(page.at - from, page.at - from + page.length);
      if (now.equals(page.shadow.subarray(0, page.length))) continue;
      if (this.#elsewhere === undefined) {
        this.#heat(page);
        found = true;
      } else this.#repair(page, now);
    }
    if (found) this.look();
    return found;
  }

  /** Looks at every page once: nobody will store any more. */
  sweepAll(): void {
    for (let i = 0; i < this.#pages.length; i += SWEEP_PAGES) {
      this.#skipped = REPAIR_EVERY;
      this.sweep();
    }
  }

  /** Brings what the device shows up to date. */
  refresh(): void {
    if (this.#busy || this.#stopped) return;
    this.#busy = true;
    try {
      this.#update();
      if (this.#elsewhere === undefined) for (const page of this.#pages) this.#stale.add(page);
    } finally {
      this.#busy = false;
    }
  }

  /** The store is no longer this image's. */
  stop(): void {
    this.#stopped = true;
  }

  /** Brings a few cold pages up to date. */
  #freshen(): void {
    let n = 0;
    for (const page of this.#stale) {
      if (n++ === FRESHEN_PAGES) return;
      this.#stale.delete(page);
      const want = new Uint8Array(page.length);
      this.#peek(page.at, want);
      const shadow = page.shadow.subarray(0, page.length);
      if (view(want).equals(shadow) || this.#hot.some((h) => h.page === page)) continue;
      const there = Buffer.alloc(page.length);
      this.#store.read(page.at, there);
      // Stored to: the sweep finds it.
      if (!there.equals(shadow)) continue;
      this.#store.write(page.at, want);
      page.shadow = want;
    }
  }

  #fill(): void {
    const step = SWEEP_PAGES * PAGE;
    for (let from = 0; from < this.#size; from += step) {
      const bytes = new Uint8Array(Math.min(step, this.#size - from));
      this.#peek(from, bytes);
      let plain = true;
      for (let at = 0; at < bytes.length; at += PAGE) {
        const part = bytes.subarray(at, Math.min(at + PAGE, bytes.length));
        const is = (constant: Uint8Array): boolean => view(part).equals(constant.subarray(0, part.length));
        const shadow = is(ZEROS) ? ZEROS : is(ONES) ? ONES : part.slice();
        plain &&= shadow === ZEROS;
        this.#pages.push({ at: from + at, length: part.length, shadow });
      }
      if (!plain) this.#store.write(from, bytes);
    }
    if (this.#elsewhere === undefined) this.#heat(this.#pages[0] as Page);
    else {
      for (const page of this.#pages) {
        const parts = this.#ranges.filter((r) => r.offset < page.at + page.length && r.offset + r.length > page.at);
        if (parts.length === 0) continue;
        const lo = Math.max(Math.min(...parts.map((r) => r.offset)) - page.at, 0);
        const hi = Math.min(Math.max(...parts.map((r) => r.offset + r.length)) - page.at, page.length);
        this.#hot.push(this.#hotPart(page, lo, hi));
      }
    }
  }

  #hotPart(page: Page, lo: number, hi: number): Hot {
    if (page.shadow === ZEROS || page.shadow === ONES) page.shadow = page.shadow.slice(0, page.length);
    const buffer = (): Buffer => Buffer.alloc(hi - lo);
    return { page, lo, hi, shadow: view(page.shadow).subarray(lo, hi), now: buffer(), next: buffer(), used: this.#looks };
  }

  /** From now on looked at each time; the one whose last store is longest ago cools down for it. */
  #heat(page: Page): void {
    if (this.#hot.some((h) => h.page === page)) return;
    if (this.#hot.length >= MAX_HOT) {
      const oldest = this.#hot.reduce((a, b) => (b.used < a.used ? b : a));
      this.#hot = this.#hot.filter((h) => h !== oldest);
    }
    this.#hot.push(this.#hotPart(page, 0, page.length));
    this.#hot.sort((a, b) => a.page.at - b.page.at);
  }

  /**
   * Reads the hot parts into `now`; false: nothing differs. Read twice the same
   * they are what memory held at one time, so that no store is taken without
   * those before it.
   */
  #snapshot(): boolean {
    let differs = false;
    for (const h of this.#hot) {
      this.#store.read(h.page.at + h.lo, h.now);
      differs ||= !h.now.equals(h.shadow);
    }
    if (!differs) return false;
    for (let i = 0; i < MAX_TRIES; i++) {
      let still = true;
      for (const h of this.#hot) {
        this.#store.read(h.page.at + h.lo, h.next);
        still &&= h.next.equals(h.now);
        const { now } = h;
        h.now = h.next;
        h.next = now;
      }
      if (still) break;
    }
    return true;
  }

  #apply(): void {
    const stores: [offset: number, bytes: Uint8Array][] = [];
    for (const h of this.#hot) {
      if (h.now.equals(h.shadow)) continue;
      h.used = this.#looks;
      for (const r of this.#ranges) this.#changed(h, r, stores);
      h.shadow.set(h.now);
    }
    const { trace } = this.#fn.kernel;
    for (const [offset, bytes] of stores) {
      if (trace.on)
        trace.emit({
          type: "vfio.bar_store",
          device: this.#fn.name,
          bar: this.#bar,
          offset,
          length: bytes.length,
          value: littleEndian(bytes),
        });
      this.#fn.barWrite(this.#bar, offset, bytes);
    }
  }

  #changed(h: Hot, r: RegisterRange, out: [offset: number, bytes: Uint8Array][]): void {
    const base = h.page.at;
    const from = Math.max(r.offset - base, h.lo);
    const to = Math.min(r.offset + r.length - base, h.hi);
    for (let at = from; at < to; at += r.width) {
      const i = at - h.lo;
      for (let b = 0; b < r.width; b++) {
        if (h.now[i + b] === h.shadow[i + b]) continue;
        out.push([base + at, Uint8Array.prototype.slice.call(h.now, i, i + r.width)]);
        break;
      }
    }
  }

  /**
   * Writes what the device shows otherwise than the image does. False: some of
   * it was stored to meanwhile, which must be looked at first.
   */
  #update(): boolean {
    let clean = true;
    let changed = false;
    for (const h of this.#hot) {
      const want = h.next;
      this.#peek(h.page.at + h.lo, want);
      if (want.equals(h.shadow)) continue;
      changed = true;
      for (let i = 0; i < want.length; ) {
        if (want[i] === h.shadow[i]) {
          i++;
          continue;
        }
        let end = i + 1;
        while (end < want.length && want[end] !== h.shadow[end]) end++;
        const there = Buffer.alloc(end - i);
        this.#store.read(h.page.at + h.lo + i, there);
        if (there.equals(h.shadow.subarray(i, end))) {
          this.#store.write(h.page.at + h.lo + i, want.subarray(i, end));
          h.shadow.set(want.subarray(i, end), i);
        } else clean = false;
        i = end;
      }
    }
    if (changed) this.onChange?.();
    return clean;
  }

  /** Puts back what was stored where there is no register; the hot part is looked at elsewhere. */
  #repair(page: Page, now: Uint8Array): void {
    const hot = this.#hot.find((h) => h.page === page);
    const restore = (from: number, to: number): void => {
      const want = page.shadow.subarray(from, to);
      if (to > from && !view(now).subarray(from, to).equals(want)) this.#store.write(page.at + from, want);
    };
    restore(0, hot?.lo ?? page.length);
    if (hot !== undefined) restore(hot.hi, page.length);
  }

  /** What the BAR shows from `offset` on. */
  #peek(offset: number, dst: Uint8Array): void {
    if (this.#elsewhere !== undefined) dst.fill(this.#elsewhere);
    for (const r of this.#ranges) {
      const from = Math.max(r.offset, offset);
      const to = Math.min(r.offset + r.length, offset + dst.length);
      if (from < to) this.#fn.barPeek(this.#bar, from, dst.subarray(from - offset, to - offset), r.width);
    }
  }
}

/** The declared ranges and those of the MSI-X table and its pending bits, which lie in front of them. */
function withMsix(fn: PciFunction, bar: number, ranges: readonly RegisterRange[]): readonly RegisterRange[] {
  const c = fn.template.description.capabilities?.msix;
  if (c === undefined) return ranges;
  const all = [...ranges];
  if (c.tableBar === bar) all.push({ offset: c.tableOffset, length: 16 * c.vectors, width: 4 });
  if (c.pbaBar === bar) all.push({ offset: c.pbaOffset, length: 8 * Math.ceil(c.vectors / 64), width: 8 });
  return all.sort((a, b) => a.offset - b.offset);
}

function littleEndian(bytes: Uint8Array): bigint {
  let v = 0n;
  for (let i = bytes.length - 1; i >= 0; i--) v = (v << 8n) | BigInt(bytes[i] as number);
  return v;
}

/** Looks at all images, as often as what happens asks for. Costs nothing while there are none. */
export class Doorbells {
  readonly #images: Set<RegisterImage> = new Set();
  readonly #every: (ms: number, callback: () => void) => () => void;
  readonly #now: () => number;
  #stop: (() => void) | undefined = undefined;
  #interval = 0;
  #lastChange = 0;

  /** `every` calls back each so many ms of real time until what it returns is called; `now` is real time in ms. */
  constructor(every: (ms: number, callback: () => void) => () => void, now: () => number = () => performance.now()) {
    this.#every = every;
    this.#now = now;
  }

  /** Images that are kept. */
  get size(): number {
    return this.#images.size;
  }

  /** Between two looks now, ms; 0: nothing to look at. */
  get interval(): number {
    return this.#interval;
  }

  add(image: RegisterImage): void {
    this.#images.add(image);
    image.onChange = () => {
      this.#lastChange = this.#now();
      this.#pace(BUSY_MS);
    };
    image.onChange();
  }

  remove(image: RegisterImage): void {
    image.onChange = undefined;
    this.#images.delete(image);
    if (this.#images.size === 0) this.#pace(0);
  }

  /** Before a call is served. */
  look(): void {
    for (const image of this.#images) image.look();
  }

  #tick(): void {
    for (const image of this.#images) {
      image.look();
      image.sweep();
    }
    if (this.#images.size === 0) return;
    const idle = this.#now() - this.#lastChange;
    this.#pace(idle < BUSY_FOR_MS ? BUSY_MS : idle < CALM_FOR_MS ? CALM_MS : LAZY_MS);
  }

  #pace(ms: number): void {
    if (ms === this.#interval) return;
    this.#interval = ms;
    this.#stop?.();
    this.#stop = ms === 0 ? undefined : this.#every(ms, () => this.#tick());
  }
}
