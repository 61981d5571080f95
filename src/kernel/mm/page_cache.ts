/**
 * The pages of a file that lives in memory: memfd, tmpfs, shared anonymous memory.
 *
 * Pages are made when first touched and read as zeros. The cache holds one
 * reference to each; mappings and pins hold their own, so a page that is
 * truncated away stays with whoever still uses it. A cache of huge pages
 * allocates and truncates by 2 MiB, and still speaks of 4 KiB pages.
 *
 * Shared by every open file of the object: it has a reference count.
 * Source: mm/shmem.c, fs/hugetlbfs; memfd_pin_folios in mm/gup.c.
 */
import { PAGE_SIZE, type Pfn } from "../../lib/addr.ts";
import { EINVAL, Errno } from "../../lib/errno.ts";
import { Refcount } from "../../sched/refcount.ts";
import type { Kernel } from "../kernel.ts";
import { FileMapping } from "./file_mapping.ts";

export const HUGE_SHIFT = 21;
const HUGE_PAGES = 512;

/** A file whose pages can be pinned for long. */
export interface PageSource {
  /**
   * Pins `npages` pages from `start`, making those that are missing: all or
   * none. EINVAL when the last byte lies past the end of the file; ENOMEM.
   */
  pin(start: number, npages: number): Pfn[] | Errno;
}

export class PageCache implements PageSource {
  readonly kernel: Kernel;
  readonly name: string;
  /** Pages of 2 MiB. */
  readonly huge: boolean;
  /** Bytes (i_size). */
  size = 0n;
  /** F_SEAL_* bits. */
  seals = 0;
  /** Permission bits. */
  mode = 0o777;
  readonly mapping: FileMapping = new FileMapping();
  readonly ino: number;
  /** 4 KiB page index → frame. */
  readonly #pages: Map<number, Pfn> = new Map();
  readonly #refs: Refcount = new Refcount("page cache");

  constructor(kernel: Kernel, name: string, huge = false) {
    this.kernel = kernel;
    this.name = name;
    this.huge = huge;
    this.ino = kernel.fs.nextIno();
    kernel.fs.pageCaches++;
  }

  get(): this {
    this.#refs.get();
    return this;
  }

  /** The last put gives every page back. */
  put(): void {
    if (!this.#refs.put()) return;
    this.#dropFrom(0);
    this.kernel.fs.pageCaches--;
  }

  /** Frame of a page, allocated if it is not there; ENOMEM. No reference is taken, and the size is not looked at. */
  page(index: number): Pfn | Errno {
    const have = this.#pages.get(index);
    if (have !== undefined) return have;
    const { frames } = this.kernel;
    if (!this.huge) {
      const pfn = frames.tryAlloc();
      if (!(pfn instanceof Errno)) this.#pages.set(index, pfn);
      return pfn;
    }
    const first = frames.allocContiguous(HUGE_SHIFT - 12);
    if (first instanceof Errno) return first;
    const base = index - (index % HUGE_PAGES);
    for (let i = 0; i < HUGE_PAGES; i++) this.#pages.set(base + i, (first + i) as Pfn);
    return (first + (index - base)) as Pfn;
  }

  /** Frame of a page that is there. */
  peek(index: number): Pfn | undefined {
    return this.#pages.get(index);
  }

  /** Pages that are there. */
  get resident(): number {
    return this.#pages.size;
  }

  /** Copies out of [pos, pos + dst.length), which lies within the size. */
  read(pos: bigint, dst: Uint8Array): void {
    eachPage(pos, dst.length, (index, offset, at, n) => {
      const part = dst.subarray(at, at + n);
      const pfn = this.#pages.get(index);
      if (pfn === undefined) part.fill(0);
      else this.kernel.frames.readFrame(pfn, offset, part);
      return true;
    });
  }

  /** Copies in; returns the bytes written, fewer than asked when memory runs out, or ENOMEM for none. Grows the size. */
  write(pos: bigint, src: Uint8Array): number | Errno {
    let failed: Errno | undefined;
    let done = 0;
    eachPage(pos, src.length, (index, offset, at, n) => {
      const pfn = this.page(index);
      if (pfn instanceof Errno) {
        failed = pfn;
        return false;
      }
      this.kernel.frames.writeFrame(pfn, offset, src.subarray(at, at + n));
      done = at + n;
      return true;
    });
    if (done === 0 && failed !== undefined) return failed;
    const end = pos + BigInt(done);
    if (end > this.size) this.size = end;
    return done;
  }

  /** Sets the size. Pages past it go, out of every mapping too; the rest of the last page is zeroed. */
  truncate(size: bigint): void {
    const before = this.size;
    this.size = size;
    if (size >= before) return;
    const keep = Number((size + 4095n) >> 12n);
    for (const vma of this.mapping.vmas) vma.zapFilePages(keep, Number.POSITIVE_INFINITY);
    this.#dropFrom(keep);
    const tail = Number(size & 4095n);
    const last = this.#pages.get(keep - 1);
    if (tail !== 0 && last !== undefined) this.kernel.frames.writeFrame(last, tail, new Uint8Array(PAGE_SIZE - tail));
  }

  pin(start: number, npages: number): Pfn[] | Errno {
    if (npages <= 0 || start < 0) return EINVAL;
    if ((BigInt(start) + BigInt(npages)) * 4096n > this.size) return EINVAL;
    const { frames } = this.kernel;
    const out: Pfn[] = new Array(npages);
    for (let i = 0; i < npages; i++) {
      const pfn = this.page(start + i);
      if (pfn instanceof Errno) {
        for (let k = 0; k < i; k++) frames.unpin(out[k] as Pfn);
        return pfn;
      }
      frames.pin(pfn);
      out[i] = pfn;
    }
    return out;
  }

  /** True while any page is pinned. */
  hasPins(): boolean {
    for (const pfn of this.#pages.values()) if (this.kernel.frames.pins(pfn) > 0) return true;
    return false;
  }

  #dropFrom(index: number): void {
    if (this.huge) index = Math.ceil(index / HUGE_PAGES) * HUGE_PAGES;
    // The frame freed last is handed out first: backwards, so that the next file gets them in order.
    for (const [i, pfn] of [...this.#pages].reverse()) {
      if (i < index) continue;
      this.#pages.delete(i);
      this.kernel.frames.put(pfn);
    }
  }
}

/** Calls `f` for each page of [pos, pos + length) until it says false. */
function eachPage(pos: bigint, length: number, f: (index: number, offset: number, at: number, n: number) => boolean): void {
  let index = Number(pos >> 12n);
  let offset = Number(pos & 4095n);
  for (let at = 0; at < length; ) {
    const n = Math.min(length - at, PAGE_SIZE - offset);
    if (!f(index, offset, at, n)) return;
    at += n;
    index++;
    offset = 0;
  }
}
