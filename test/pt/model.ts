/**
 * The page tables' rules, naively: leaves in a list, tables in a set of names.
 * Everything is in pages of the format's granule.
 */
import { EADDRINUSE, EINVAL, ENXIO, ERANGE, type Errno } from "../../src/lib/errno.ts";
import type { PtFormat } from "../../src/pt/index.ts";

export interface Leaf {
  page: number;
  pfn: number;
  pages: number;
  prot: number;
}

export class Model {
  leaves: Leaf[] = [];
  readonly tables = new Set<string>();
  topLevel: number;
  private readonly format: PtFormat;
  private readonly sizes: number[];
  private readonly limit: number;

  constructor(format: PtFormat, sizes: number[], topLevel: number, limit: number) {
    this.format = format;
    this.sizes = sizes.toSorted((a, b) => b - a);
    this.topLevel = topLevel;
    this.limit = limit;
    this.tables.add(`${topLevel}:0`);
  }

  at(page: number): Leaf | undefined {
    return this.leaves.find((l) => l.page <= page && page < l.page + l.pages);
  }

  private taken(page: number, pages: number): boolean {
    return this.leaves.some((l) => l.page < page + pages && page < l.page + l.pages);
  }

  /** The errno, or undefined. */
  map(page: number, pfn: number, pages: number, prot: number): Errno | undefined {
    if ((prot & 3) === 0) return EINVAL;
    const pick = (at: number, left: number, to: number): number => this.sizes.find((s) => s <= left && at % s === 0 && to % s === 0) ?? 0;
    if (pick(page, pages, pfn) === 0) return ENXIO;
    if (page + pages > this.limit) return ERANGE;
    while (this.format.growingTop && page + pages > 512 ** (this.topLevel + 1)) {
      this.topLevel++;
      this.tables.add(`${this.topLevel}:0`);
    }
    for (let done = 0; done < pages; ) {
      const at = page + done;
      const size = pick(at, pages - done, pfn + done);
      const level = Math.floor(Math.log2(size) / 9);
      if (!this.makeRoom(at, size, level)) {
        if (done > 0) this.unmap(page, done);
        return EADDRINUSE;
      }
      this.leaves.push({ page: at, pfn: pfn + done, pages: size, prot });
      done += size;
    }
    return undefined;
  }

  /** Tables down to `level` for `at`, and none below; false when a leaf is in the way. */
  private makeRoom(at: number, size: number, level: number): boolean {
    for (let l = this.topLevel - 1; l >= level; l--) {
      const span = 512 ** (l + 1);
      const name = `${l}:${Math.floor(at / span)}`;
      if (this.tables.has(name)) continue;
      // The entry above would hold a leaf of its own level or a run that reaches it.
      const covering = this.at(at);
      if (covering !== undefined && covering.pages >= span) return false;
      this.tables.add(name);
    }
    const item = 512 ** level;
    for (let i = 0; i < size; i += item) {
      if (this.taken(at + i, item)) return false;
      for (const name of this.tables) {
        const [l, n] = name.split(":").map(Number) as [number, number];
        const span = 512 ** (l + 1);
        if (l < level && n * span >= at + i && (n + 1) * span <= at + i + item) this.tables.delete(name);
      }
    }
    return true;
  }

  /** Pages unmapped. */
  unmap(page: number, pages: number): number {
    if (page + pages > Math.min(this.limit, 512 ** (this.topLevel + 1))) return 0;
    let pos = page;
    while (pos < page + pages) {
      const i = this.leaves.findIndex((l) => l.page === pos);
      const l = this.leaves[i];
      if (l === undefined) break;
      this.leaves.splice(i, 1);
      pos += l.pages;
    }
    for (const name of this.tables) {
      const [l, n] = name.split(":").map(Number) as [number, number];
      const span = 512 ** (l + 1);
      if (l < this.topLevel && n * span >= page && (n + 1) * span <= Math.min(page + pages, pos)) this.tables.delete(name);
    }
    return pos - page;
  }
}
