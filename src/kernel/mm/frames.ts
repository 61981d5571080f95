/**
 * RAM, page by page.
 *
 * A frame is named by its page frame number. It is free, or it is live with a
 * count of references; a pin is a reference that is also counted apart, so that
 * what DMA may still reach is known exactly. The bytes of a frame are made when
 * they are first written: a frame nobody wrote reads as zeros.
 *
 * A frame may be backed by something else (a page of another process): then
 * reads and writes go there, and there are no bytes here. One backing may serve
 * a whole run of frames: it is told which one is meant.
 *
 * Frames come from ranges that the machine declares. Allocation is from the
 * bottom up, then the frame that was freed last: the same calls give the same
 * numbers.
 *
 * Invariants: refs ≥ pins for every frame; `live` is the number of frames with
 * a reference, `pinned` the sum of all pins.
 */

import { hex, PAGE_SIZE, type Pfn, type PhysAddr, physAddr } from "../../lib/addr.ts";
import { ENOMEM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Kernel } from "../kernel.ts";

/** What holds the bytes of `pfn` in place of this module. `offset` and the length stay within one page. */
export interface FrameBacking {
  /** False when nothing answers (the owner is gone); `dst` is then unspecified. */
  read(offset: number, dst: Uint8Array, pfn: Pfn): boolean;
  write(offset: number, src: Uint8Array, pfn: Pfn): boolean;
  /** The last reference is gone. */
  release?(pfn: Pfn): void;
}

/** What backs the frames [first, first + npages), which are pages [done, done + npages) of those asked for. */
export type RunBacking = (first: Pfn, npages: number, done: number) => FrameBacking;

interface FrameRange {
  readonly first: number;
  readonly count: number;
  /** Index of the first frame in the arrays. */
  readonly index: number;
}

const BLOCK_ORDER = 9;
const BLOCK: number = 2 ** BLOCK_ORDER;

/** RAM of a machine that declares none: 4 GiB, from 4 GiB up. */
const DEFAULT_BASE: PhysAddr = physAddr(0x1_0000_0000n);
const DEFAULT_LENGTH = 0x1_0000_0000n;

export class FrameAllocator {
  /** Frames with at least one reference. */
  live = 0;
  /** Pins, over all frames. */
  pinned = 0;
  /** Accesses to a frame of RAM that nobody owned: each is a use after free by whoever made it. */
  strayAccesses = 0;
  readonly #kernel: Kernel;
  readonly #ranges: FrameRange[] = [];
  #total = 0;
  /** Frames below this index were handed out at least once. */
  #fresh = 0;
  /** Indexes of freed frames; the last one goes first. */
  readonly #free: number[] = [];
  /** Reserved blocks of 512 frames: frame number / 512. */
  readonly #reserved: Set<number> = new Set();
  #refs: Int32Array = new Int32Array(64);
  #pins: Int32Array = new Int32Array(64);
  readonly #bytes: (Uint8Array | FrameBacking | undefined)[] = [];

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /** Declares frames; `PhysMap.addRam` calls this. */
  addRange(first: Pfn, count: number): void {
    this.#ranges.push({ first, count, index: this.#total });
    this.#total += count;
  }

  /** Frames declared. */
  get total(): number {
    return this.#total;
  }

  /** True when `pfn` is RAM, live or free. */
  isRam(pfn: Pfn): boolean {
    return this.#indexOf(pfn) >= 0;
  }

  /** A frame of zeros with one reference. Throws `KernelBug` when RAM is exhausted, and cannot be made to fail; see `tryAlloc`. */
  alloc(backing?: FrameBacking): Pfn {
    const pfn = this.#take(backing);
    if (pfn instanceof Errno) throw new KernelBug("out of memory");
    return pfn;
  }

  /** The same; ENOMEM when RAM is exhausted. */
  tryAlloc(backing?: FrameBacking): Pfn | Errno {
    return this.#kernel.fault.userPage("frame") ? ENOMEM : this.#take(backing);
  }

  #take(backing: FrameBacking | undefined): Pfn | Errno {
    let i = this.#free.pop();
    if (i === undefined) {
      if (this.#total === 0) this.#kernel.phys.addRam(DEFAULT_BASE, DEFAULT_LENGTH);
      if (this.#fresh >= this.#total) return ENOMEM;
      i = this.#fresh++;
      this.#grow(this.#fresh);
    }
    this.#refs[i] = 1;
    this.#bytes[i] = backing;
    this.live++;
    return this.#pfnAt(i);
  }

  /**
   * 2^order adjacent frames, naturally aligned, each with one reference (each
   * is put on its own). ENOMEM when no run is free.
   */
  allocContiguous(order: number): Pfn | Errno {
    if (order === 0) return this.tryAlloc();
    if (this.#kernel.fault.userPage("frames", order)) return ENOMEM;
    if (this.#total === 0) this.#kernel.phys.addRam(DEFAULT_BASE, DEFAULT_LENGTH);
    let i = this.#carve(2 ** order);
    if (i < 0) i = this.#reuse(2 ** order);
    if (i < 0) return ENOMEM;
    this.#refs.fill(1, i, i + 2 ** order);
    this.live += 2 ** order;
    return this.#pfnAt(i);
  }

  /**
   * 2^order adjacent frames, naturally aligned, at least 512, for an owner who
   * hands them out by `allocAt`: nobody else gets them, and they do not come
   * back. ENOMEM when no run is left that was never used.
   */
  reserve(order: number): Pfn | Errno {
    if (order < BLOCK_ORDER) throw new RangeError(`${2 ** order} frames are too few to be reserved`);
    if (this.#kernel.fault.userPage("frames", order)) return ENOMEM;
    if (this.#total === 0) this.#kernel.phys.addRam(DEFAULT_BASE, DEFAULT_LENGTH);
    const i = this.#carve(2 ** order);
    if (i < 0) return ENOMEM;
    const first = this.#pfnAt(i);
    for (let k = 0; k < 2 ** order; k += BLOCK) this.#reserved.add((first + k) / BLOCK);
    return first;
  }

  /** Frames [first, first + npages) of a reserved run, none of them live, get one reference each. */
  allocAt(first: Pfn, npages: number, backing: FrameBacking): void {
    const i = this.#indexOf(first);
    for (let k = 0; k < npages; k++) {
      if (i < 0 || !this.#reserved.has(Math.floor((first + k) / BLOCK)) || (this.#refs[i + k] as number) !== 0) {
        throw new KernelBug(`frame ${hex(first + k)} is not a free one of a reserved run`);
      }
      this.#bytes[i + k] = backing;
    }
    this.#refs.fill(1, i, i + npages);
    this.live += npages;
  }

  /** Index of `n` adjacent frames, naturally aligned, that were never used; -1. What is passed over becomes free. */
  #carve(n: number): number {
    for (const r of this.#ranges) {
      const from = Math.max(r.index, this.#fresh);
      const first = r.first + (from - r.index);
      const aligned = Math.ceil(first / n) * n;
      const i = r.index + (aligned - r.first);
      if (i + n > r.index + r.count) continue;
      for (let skipped = this.#fresh; skipped < i; skipped++) this.#free.push(skipped);
      this.#fresh = i + n;
      this.#grow(this.#fresh);
      return i;
    }
    return -1;
  }

  /**
   * `npages` frames with one reference each, in runs of adjacent frames as long
   * as they are to be had: `backing` is asked once for each run, in order. All,
   * or ENOMEM and none.
   */
  allocRuns(npages: number, backing: RunBacking): Pfn[] | Errno {
    if (this.#kernel.fault.userPage("frames")) return ENOMEM;
    if (this.#total === 0) this.#kernel.phys.addRam(DEFAULT_BASE, DEFAULT_LENGTH);
    // Frames that were used before go first, the last ones freed, as everywhere.
    const used = this.#free.length >= npages || this.#total - this.#fresh < npages ? Math.min(npages, this.#free.length) : 0;
    if (npages - used > this.#total - this.#fresh) return ENOMEM;
    const indexes = Int32Array.from(this.#free.splice(this.#free.length - used)).sort();
    const fresh = this.#fresh;
    this.#fresh += npages - used;
    this.#grow(this.#fresh);
    const at = (k: number): number => (k < used ? (indexes[k] as number) : fresh + (k - used));
    const out: Pfn[] = new Array(npages);
    for (let from = 0; from < npages; ) {
      const i = at(from);
      const range = this.#rangeOf(i);
      const limit = Math.min(npages, from + range.index + range.count - i);
      let to = from + 1;
      while (to < limit && at(to) === i + to - from) to++;
      const first = (range.first + i - range.index) as Pfn;
      const b = backing(first, to - from, from);
      this.#refs.fill(1, i, i + to - from);
      for (let k = 0; k < to - from; k++) {
        this.#bytes[i + k] = b;
        out[from + k] = (first + k) as Pfn;
      }
      from = to;
    }
    this.live += npages;
    return out;
  }

  /** One more reference to a live frame. */
  get(pfn: Pfn): void {
    const i = this.#liveIndex(pfn, "get");
    this.#refs[i] = (this.#refs[i] as number) + 1;
  }

  /** Drops one; the last frees the frame and forgets its bytes. */
  put(pfn: Pfn): void {
    const i = this.#liveIndex(pfn, "put");
    const refs = (this.#refs[i] as number) - 1;
    if (refs < (this.#pins[i] as number)) throw new KernelBug(`frame ${hex(pfn)}: a reference of a pin is put`);
    this.#refs[i] = refs;
    if (refs > 0) return;
    const b = this.#bytes[i];
    this.#bytes[i] = undefined;
    this.live--;
    if (this.#reserved.size === 0 || !this.#reserved.has(Math.floor(pfn / BLOCK))) this.#free.push(i);
    if (b !== undefined && !(b instanceof Uint8Array)) b.release?.(pfn);
  }

  /** One more pin, and the reference that goes with it. */
  pin(pfn: Pfn): void {
    const i = this.#liveIndex(pfn, "pin");
    this.#refs[i] = (this.#refs[i] as number) + 1;
    this.#pins[i] = (this.#pins[i] as number) + 1;
    this.pinned++;
  }

  /** Undoes one `pin`. */
  unpin(pfn: Pfn): void {
    const i = this.#liveIndex(pfn, "unpin");
    const pins = this.#pins[i] as number;
    if (pins === 0) throw new KernelBug(`frame ${hex(pfn)}: unpin of a frame without pins`);
    this.#pins[i] = pins - 1;
    this.pinned--;
    this.put(pfn);
  }

  /** References, pins included; 0 for a free frame. */
  refs(pfn: Pfn): number {
    const i = this.#indexOf(pfn);
    return i < 0 ? 0 : (this.#refs[i] ?? 0);
  }

  pins(pfn: Pfn): number {
    const i = this.#indexOf(pfn);
    return i < 0 ? 0 : (this.#pins[i] ?? 0);
  }

  /** The frame's bytes themselves, made now if need be. Throws `KernelBug` when something else backs it. */
  bytes(pfn: Pfn): Uint8Array {
    const i = this.#liveIndex(pfn, "bytes");
    const b = this.#bytes[i];
    if (b instanceof Uint8Array) return b;
    if (b !== undefined) throw new KernelBug(`frame ${hex(pfn)} is backed elsewhere: use readFrame and writeFrame`);
    const made = new Uint8Array(PAGE_SIZE);
    this.#bytes[i] = made;
    return made;
  }

  /** True when something else holds the frame's bytes. */
  isBacked(pfn: Pfn): boolean {
    const b = this.#bytes[this.#liveIndex(pfn, "isBacked")];
    return b !== undefined && !(b instanceof Uint8Array);
  }

  /**
   * Hands a live frame's bytes to `backing`, which must hold the same content
   * already. With none the frame has bytes of its own again, zeros.
   */
  adopt(pfn: Pfn, backing: FrameBacking | undefined): void {
    this.#bytes[this.#liveIndex(pfn, "adopt")] = backing;
  }

  /** Reads within one page. False when the backing does not answer. */
  readFrame(pfn: Pfn, offset: number, dst: Uint8Array): boolean {
    const i = this.#indexOf(pfn);
    const b = i < 0 ? undefined : this.#bytes[i];
    if (b instanceof Uint8Array) {
      dst.set(b.subarray(offset, offset + dst.length));
      return true;
    }
    if (b !== undefined) return b.read(offset, dst, pfn);
    if (i < 0 || (this.#refs[i] ?? 0) === 0) this.#stray(pfn, false);
    dst.fill(0);
    return true;
  }

  /** Writes within one page. */
  writeFrame(pfn: Pfn, offset: number, src: Uint8Array): boolean {
    const i = this.#indexOf(pfn);
    const b = i < 0 ? undefined : this.#bytes[i];
    if (b instanceof Uint8Array) {
      b.set(src, offset);
      return true;
    }
    if (b !== undefined) return b.write(offset, src, pfn);
    if (i < 0 || (this.#refs[i] ?? 0) === 0) {
      // The next owner gets zeros all the same: what is broken is counted, not spread.
      this.#stray(pfn, true);
      return true;
    }
    this.bytes(pfn).set(src, offset);
    return true;
  }

  #stray(pfn: Pfn, write: boolean): void {
    this.strayAccesses++;
    const { trace } = this.#kernel;
    if (trace.on) trace.emit({ type: "mm.stray", pfn, write });
  }

  #liveIndex(pfn: Pfn, what: string): number {
    const i = this.#indexOf(pfn);
    if (i < 0 || (this.#refs[i] ?? 0) === 0) throw new KernelBug(`frame ${hex(pfn)}: ${what} of a frame that is not live`);
    return i;
  }

  #indexOf(pfn: Pfn): number {
    for (const r of this.#ranges) {
      const at = pfn - r.first;
      if (at >= 0 && at < r.count) return r.index + at;
    }
    return -1;
  }

  /**
   * Takes `n` adjacent frames, naturally aligned, from those that were used before; the first one's index, or -1. It looks at
   * all of them, so only what was never used having run out leads here.
   */
  #reuse(n: number): number {
    const free = Int32Array.from(this.#free).sort();
    for (let at = 0; at + n <= free.length; at++) {
      const first = free[at] as number;
      const last = first + n - 1;
      if (free[at + n - 1] !== last || this.#pfnAt(first) % n !== 0 || this.#rangeOf(first) !== this.#rangeOf(last)) continue;
      const kept = this.#free.filter((i) => i < first || i > last);
      this.#free.length = 0;
      for (const i of kept) this.#free.push(i);
      return first;
    }
    return -1;
  }

  #pfnAt(index: number): Pfn {
    const r = this.#rangeOf(index);
    return (r.first + index - r.index) as Pfn;
  }

  #rangeOf(index: number): FrameRange {
    for (const r of this.#ranges) if (index < r.index + r.count) return r;
    throw new KernelBug(`no frame of index ${index}`);
  }

  #grow(count: number): void {
    if (count <= this.#refs.length) return;
    const n = Math.max(count, this.#refs.length * 2);
    const refs = new Int32Array(n);
    refs.set(this.#refs);
    this.#refs = refs;
    const pins = new Int32Array(n);
    pins.set(this.#pins);
    this.#pins = pins;
  }
}
