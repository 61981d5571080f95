/**
 * Pinned pages of a real program: which frame stands for which page, and where
 * the page's bytes are.
 *
 * Nothing can pin a page of another process from outside. What barlink can do
 * is keep a *name* of it that stays good: a file and an offset, or a process's
 * memory and an address (`PageStore`). A frame of the embedded kernel is backed
 * by that name: DMA to the frame is a read or a write there, so that the program
 * sees it, and sees it at once.
 *
 * `PinnedPages` is one store's table, page → frame. A page has one frame as
 * long as it is pinned, whoever pins it and how often: two areas, two I/O
 * address spaces and two processes that map the same page of a file get the
 * same physical address, as on Linux. Frames are made in runs and backed by one
 * object a run, the table by 512 pages: a pin of 1 GiB makes no million objects.
 * A huge page has a run of frames of its own, aligned as it is, of which those
 * are live that are pinned; such runs are used again, and by huge pages alone.
 *
 * When a page leaves its store while it is pinned (unmapped, replaced), Linux
 * keeps the page for whoever pinned it, apart from what is at that address now.
 * So does this: `setApart` takes the bytes as they are at that moment, and the
 * frame lives on them. What could not be taken in time is lost: a device that
 * reaches for it gets no answer, and `mm.lost` says so (once a page).
 *
 * Invariants: a frame in a table is live; its run leads back to its page unless
 * it is apart, and then it is in no table; the store is idle exactly when no
 * frame is live.
 */

import type { Kernel } from "../kernel/kernel.ts";
import type { FrameBacking } from "../kernel/mm/frames.ts";
import { PAGE_SHIFT, PAGE_SIZE, type Pfn } from "../lib/addr.ts";
import { ENOMEM, Errno } from "../lib/errno.ts";
import { bugOn } from "../lib/kernel_bug.ts";
import type { LostReason } from "../trace/events/mm.ts";

/** Where pages can be reached by a number: a file's, or a process's memory. */
export interface PageStore {
  /** For people: `process 12`, `/memfd:ring (deleted)`. */
  readonly name: string;
  /** Copies out of one page. undefined: done; otherwise why it cannot be. */
  read(page: number, offset: number, dst: Uint8Array): LostReason | undefined;
  write(page: number, offset: number, src: Uint8Array): LostReason | undefined;
  /** The last frame is gone. */
  idle(): void;
}

/** Hears of every page that is lost; `pinned` pages of that store were pinned then. */
export type OnLost = (store: PageStore, why: LostReason) => void;

const CHUNK = 512;
const NONE = -1;
/** A page that was zeros when it was set apart, and that nobody has written since. */
const ZEROS: Uint8Array = new Uint8Array(PAGE_SIZE);
/** What is set apart at most, over all stores of one run of the program: pages. */
const APART_LIMIT = (512 << 20) >> PAGE_SHIFT;

/** What the stores of one kernel share. */
export class PinBudget {
  /** Pages whose bytes are held here. */
  apart = 0;
  /** Most that there may be. */
  limit: number = APART_LIMIT;
  /** Runs of frames for huge pages that no page has now, by their length. */
  readonly blocks: Map<number, Pfn[]> = new Map();
  /** Pages lost so far. */
  lost = 0;
  onLost: OnLost | undefined = undefined;
}

/** The frames of one huge page. */
interface HugeRun {
  readonly base: Pfn;
  /** How many. */
  readonly unit: number;
  /** Live ones. */
  live: number;
  /** Which huge page of its store it is. */
  readonly index: number;
}

export class PinnedPages {
  readonly kernel: Kernel;
  readonly store: PageStore;
  readonly budget: PinBudget;
  /** Page / 512 → frames, -1 where none is. */
  readonly #chunks: Map<number, Float64Array> = new Map();
  /** Frames whose page is in the store no more: their bytes, or why there are none. */
  readonly #apart: Map<Pfn, Uint8Array | LostReason> = new Map();
  /** Frames whose loss was told. */
  readonly #told: Set<Pfn> = new Set();
  /** Huge pages of which something is pinned: page / length → its frames. */
  readonly #huge: Map<number, HugeRun> = new Map();
  /** All of them, those included that left the store: frame / 512 → its run. */
  readonly #hugeByFrame: Map<number, HugeRun> = new Map();
  /** A chunk without a page: pages of one place come and go. */
  #spare: Float64Array | undefined = undefined;
  #live = 0;
  #inTable = 0;

  constructor(kernel: Kernel, store: PageStore, budget: PinBudget) {
    this.kernel = kernel;
    this.store = store;
    this.budget = budget;
  }

  /** Frames that stand for pages of this store, or did. */
  get live(): number {
    return this.#live;
  }

  /** Pages that are pinned and in the store. */
  get size(): number {
    return this.#inTable;
  }

  /** The frame of a page that is pinned. */
  at(page: number): Pfn | undefined {
    const pfn = this.#chunks.get(Math.floor(page / CHUNK))?.[page % CHUNK] ?? NONE;
    return pfn === NONE ? undefined : (pfn as Pfn);
  }

  /**
   * Pins pages [first, first + npages): one pin and one reference each. ENOMEM,
   * and none. `unit`: the store has them in huge pages of so many, each of which
   * is adjacent frames, naturally aligned.
   */
  pin(first: number, npages: number, unit = 1): Pfn[] | Errno {
    const { frames } = this.kernel;
    // What cannot fit is refused before its pages are gone through: a program may ask for terabytes of holes.
    if (frames.total > 0 && npages - this.#inTable > frames.total - frames.live) return ENOMEM;
    const out: Pfn[] = new Array(npages);
    for (let i = 0; i < npages; ) {
      const have = this.at(first + i);
      if (have !== undefined) {
        frames.pin(have);
        out[i++] = have;
        continue;
      }
      let end = i + 1;
      while (end < npages && this.at(first + end) === undefined) end++;
      const from = first + i;
      if (unit > 1) end = Math.min(end, i + unit - (from % unit));
      const made =
        unit > 1 ? this.#allocHuge(from, end - i, unit) : frames.allocRuns(end - i, (pfn, _n, done) => new Run(this, pfn, from + done));
      if (made instanceof Errno) {
        for (let k = 0; k < i; k++) frames.unpin(out[k] as Pfn);
        return made;
      }
      this.#live += made.length;
      for (const pfn of made) {
        // The pin's reference is the only one: the frame lives while it is pinned.
        frames.pin(pfn);
        frames.put(pfn);
        this.#enter(first + i, pfn);
        out[i++] = pfn;
      }
    }
    return out;
  }

  /**
   * Pages [first, end) leave the store: those that are pinned live on their
   * bytes, taken now, and are lost where that is not possible. With `lost` no
   * byte is taken. Returns how many were pinned.
   */
  setApart(first: number, end: number, why: string, lost?: LostReason): number {
    for (const [index, run] of this.#huge) {
      // Whatever comes to be at the page's place is another huge page.
      if (index * run.unit < end && (index + 1) * run.unit > first) this.#huge.delete(index);
    }
    let n = 0;
    let runFirst = 0;
    let run = 0;
    this.#each(first, end, (page, pfn) => {
      this.#leave(page);
      const bytes = lost ?? this.#take(page);
      this.#apart.set(pfn, bytes);
      n++;
      if (typeof bytes === "string") return;
      if (page !== runFirst + run) {
        this.#tellKept(runFirst, run, why);
        runFirst = page;
        run = 0;
      }
      run++;
    });
    this.#tellKept(runFirst, run, why);
    return n;
  }

  /** Pages pinned in [first, end)? */
  pinnedIn(first: number, end: number): boolean {
    let found = false;
    this.#each(first, end, () => {
      found = true;
    });
    return found;
  }

  /** For a run: reads of the page that `pfn` stands for. */
  readPage(page: number, offset: number, dst: Uint8Array, pfn: Pfn): boolean {
    const apart = this.#apart.size === 0 ? undefined : this.#apart.get(pfn);
    if (apart instanceof Uint8Array) {
      dst.set(apart.subarray(offset, offset + dst.length));
      return true;
    }
    const why = apart ?? this.store.read(page, offset, dst);
    return why === undefined || this.#lose(page, pfn, false, why);
  }

  writePage(page: number, offset: number, src: Uint8Array, pfn: Pfn): boolean {
    let apart = this.#apart.size === 0 ? undefined : this.#apart.get(pfn);
    if (apart instanceof Uint8Array) {
      if (apart === ZEROS) {
        apart = new Uint8Array(PAGE_SIZE);
        this.#apart.set(pfn, apart);
      }
      apart.set(src, offset);
      return true;
    }
    const why = apart ?? this.store.write(page, offset, src);
    return why === undefined || this.#lose(page, pfn, true, why);
  }

  /** The frame's last reference is gone. */
  released(page: number, pfn: Pfn): void {
    if (this.#apart.size > 0) {
      if (this.#apart.get(pfn) instanceof Uint8Array) this.budget.apart--;
      this.#apart.delete(pfn);
    }
    this.#told.delete(pfn);
    if (this.at(page) === pfn) this.#leave(page);
    if (this.#hugeByFrame.size > 0) this.#putHuge(pfn);
    this.#live--;
    if (this.#live > 0) return;
    bugOn(this.#inTable !== 0, "a store without frames has pages");
    this.store.idle();
  }

  /** Frames for pages of one huge page, none of which is pinned. */
  #allocHuge(first: number, npages: number, unit: number): Pfn[] | Errno {
    const { frames } = this.kernel;
    const index = Math.floor(first / unit);
    let run = this.#huge.get(index);
    if (run === undefined || run.unit !== unit) {
      const base = this.budget.blocks.get(unit)?.pop() ?? frames.reserve(Math.log2(unit));
      if (base instanceof Errno) return base;
      run = { base, unit, live: 0, index };
      this.#huge.set(index, run);
      for (let k = 0; k < unit; k += CHUNK) this.#hugeByFrame.set((base + k) / CHUNK, run);
    }
    const pfn = (run.base + (first % unit)) as Pfn;
    frames.allocAt(pfn, npages, new Run(this, pfn, first));
    run.live += npages;
    return Array.from({ length: npages }, (_, k) => (pfn + k) as Pfn);
  }

  /** A frame is free: with the last one of its huge page the run is. */
  #putHuge(pfn: Pfn): void {
    const run = this.#hugeByFrame.get(Math.floor(pfn / CHUNK));
    if (run === undefined) return;
    run.live--;
    if (run.live > 0) return;
    if (this.#huge.get(run.index) === run) this.#huge.delete(run.index);
    for (let k = 0; k < run.unit; k += CHUNK) this.#hugeByFrame.delete((run.base + k) / CHUNK);
    const free = this.budget.blocks.get(run.unit);
    if (free === undefined) this.budget.blocks.set(run.unit, [run.base]);
    else free.push(run.base);
  }

  #take(page: number): Uint8Array | LostReason {
    if (this.budget.apart >= this.budget.limit) return "unmapped";
    const bytes = new Uint8Array(PAGE_SIZE);
    const why = this.store.read(page, 0, bytes);
    if (why !== undefined) return why;
    this.budget.apart++;
    return isZero(bytes) ? ZEROS : bytes;
  }

  #lose(page: number, pfn: Pfn, write: boolean, why: LostReason): false {
    if (this.#told.has(pfn)) return false;
    this.#told.add(pfn);
    this.budget.lost++;
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "mm.lost", origin: this.store.name, page, pfn, pinned: this.#live, write, why });
    this.budget.onLost?.(this.store, why);
    return false;
  }

  #tellKept(page: number, npages: number, why: string): void {
    const { trace } = this.kernel;
    if (npages > 0 && trace.on) trace.emit({ type: "mm.kept", origin: this.store.name, page, npages, why });
  }

  #enter(page: number, pfn: Pfn): void {
    const index = Math.floor(page / CHUNK);
    let chunk = this.#chunks.get(index);
    if (chunk === undefined) {
      chunk = this.#spare ?? new Float64Array(CHUNK).fill(NONE);
      this.#spare = undefined;
      this.#chunks.set(index, chunk);
    }
    chunk[page % CHUNK] = pfn;
    this.#inTable++;
  }

  #leave(page: number): void {
    const index = Math.floor(page / CHUNK);
    const chunk = this.#chunks.get(index);
    if (chunk === undefined) return;
    chunk[page % CHUNK] = NONE;
    this.#inTable--;
    // Neighbours go together: a chunk is looked at when its first or last page goes.
    const at = page % CHUNK;
    if (this.#inTable === 0) {
      this.#spare = chunk;
      this.#chunks.clear();
    } else if ((at === 0 || at === CHUNK - 1) && chunk.every((p) => p === NONE)) this.#chunks.delete(index);
  }

  /** Calls `f` for each pinned page of [first, end), in order; `f` may take it out. */
  #each(first: number, end: number, f: (page: number, pfn: Pfn) => void): void {
    if (this.#inTable === 0) return;
    const from = Math.floor(first / CHUNK);
    const to = Math.ceil(end / CHUNK);
    const sparse = to - from > this.#chunks.size;
    const indexes = sparse ? [...this.#chunks.keys()].filter((i) => i >= from && i < to).sort((a, b) => a - b) : undefined;
    const count = indexes?.length ?? to - from;
    for (let k = 0; k < count; k++) {
      const index = indexes?.[k] ?? from + k;
      const chunk = this.#chunks.get(index);
      if (chunk === undefined) continue;
      const stop = Math.min(CHUNK, end - index * CHUNK);
      for (let at = Math.max(0, first - index * CHUNK); at < stop; at++) {
        const pfn = chunk[at] as number;
        if (pfn !== NONE) f(index * CHUNK + at, pfn as Pfn);
      }
    }
  }
}

/** What backs frames [first, …): pages [page, …) of one store. */
class Run implements FrameBacking {
  readonly #pages: PinnedPages;
  readonly #first: number;
  readonly #page: number;

  constructor(pages: PinnedPages, first: Pfn, page: number) {
    this.#pages = pages;
    this.#first = first;
    this.#page = page;
  }

  read(offset: number, dst: Uint8Array, pfn: Pfn): boolean {
    return this.#pages.readPage(this.#page + (pfn - this.#first), offset, dst, pfn);
  }

  write(offset: number, src: Uint8Array, pfn: Pfn): boolean {
    return this.#pages.writePage(this.#page + (pfn - this.#first), offset, src, pfn);
  }

  release(pfn: Pfn): void {
    this.#pages.released(this.#page + (pfn - this.#first), pfn);
  }
}

const isZero = (bytes: Uint8Array): boolean => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2).every((w) => w === 0);
