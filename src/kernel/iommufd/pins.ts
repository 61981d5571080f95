/**
 * Which pages of an `IoptPages` are pinned, and where they are.
 *
 * A page is pinned exactly once, however many domains and in-kernel accesses
 * show it, and is unpinned when the last of them goes. Linux keeps the frame
 * numbers in whichever domain maps them and in an xarray for accesses; here
 * they stand in one place, in chunks made on first use, which nobody outside
 * can tell apart: the number of pins, their lifetime and the frame that every
 * reader sees are the same.
 *
 * Everything here is under the mutex of the pages.
 * Source: iopt_pages::pinned_pfns, access_itree (drivers/iommu/iommufd/pages.c).
 */
import type { Pfn } from "../../lib/addr.ts";
import { IntervalTree, ItreeNode } from "../../lib/interval_tree.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";

const CHUNK = 512;

/** A range of pages that in-kernel users hold; `users` of the very same range share one. */
export class PagesAccess extends ItreeNode {
  users = 1;

  constructor(index: number, last: number) {
    super(BigInt(index), BigInt(last));
  }
}

export class Pins {
  /** Pages pinned. */
  npinned = 0;
  /** Pages charged; differs from `npinned` only inside an operation. */
  lastNpinned = 0;
  readonly #npages: number;
  /** Chunk number → frames, -1 where not pinned. */
  readonly #chunks: Map<number, number[]> = new Map();
  #accesses: IntervalTree<PagesAccess> | undefined = undefined;

  constructor(npages: number) {
    this.#npages = npages;
  }

  /** Frame of a page, or undefined while it is not pinned. */
  at(index: number): Pfn | undefined {
    const pfn = this.#chunks.get(Math.floor(index / CHUNK))?.[index % CHUNK];
    return pfn === undefined || pfn < 0 ? undefined : (pfn as Pfn);
  }

  /** How many pages from `first` on, none after `last`, are not pinned. A table of holes is passed over chunk by chunk. */
  unpinnedFrom(first: number, last: number): number {
    if (this.npinned === 0) return last - first + 1;
    for (let i = first; i <= last; ) {
      const n = Math.floor(i / CHUNK);
      const end = Math.min(last, n * CHUNK + CHUNK - 1);
      const chunk = this.#chunks.get(n);
      if (chunk !== undefined) for (let k = i; k <= end; k++) if ((chunk[k % CHUNK] as number) >= 0) return k - first;
      i = end + 1;
    }
    return last - first + 1;
  }

  set(index: number, pfn: Pfn): void {
    const n = Math.floor(index / CHUNK);
    let chunk = this.#chunks.get(n);
    if (chunk === undefined) {
      chunk = new Array<number>(Math.min(CHUNK, this.#npages - n * CHUNK)).fill(-1);
      this.#chunks.set(n, chunk);
    }
    if (chunk[index % CHUNK] !== -1) throw new KernelBug(`iommufd: page ${index} is pinned twice`);
    chunk[index % CHUNK] = pfn;
    this.npinned++;
  }

  /** Forgets [first, last], where some pages may not be pinned; the frames that were. */
  take(first: number, last: number): Pfn[] {
    const out: Pfn[] = [];
    if (this.npinned === 0) return out;
    for (let i = first; i <= last; ) {
      const n = Math.floor(i / CHUNK);
      const end = Math.min(last, n * CHUNK + CHUNK - 1);
      const chunk = this.#chunks.get(n);
      if (chunk !== undefined) {
        for (let k = i; k <= end; k++) {
          const pfn = chunk[k % CHUNK];
          if (pfn === undefined || pfn < 0) continue;
          out.push(pfn as Pfn);
          chunk[k % CHUNK] = -1;
        }
        if (!chunk.some((p) => p >= 0)) this.#chunks.delete(n);
      }
      i = end + 1;
    }
    this.npinned -= out.length;
    return out;
  }

  get accesses(): IntervalTree<PagesAccess> | undefined {
    return this.#accesses;
  }

  /** The access of exactly that range. */
  exactAccess(first: number, last: number): PagesAccess | undefined {
    const [a, b] = [BigInt(first), BigInt(last)];
    for (const n of this.#accesses?.overlaps(a, b) ?? []) if (n.start === a && n.last === b) return n;
    return undefined;
  }

  addAccess(first: number, last: number): void {
    this.#accesses ??= new IntervalTree();
    this.#accesses.insert(new PagesAccess(first, last));
  }

  removeAccess(a: PagesAccess): void {
    this.#accesses?.remove(a);
    if (this.#accesses?.size === 0) this.#accesses = undefined;
  }
}
