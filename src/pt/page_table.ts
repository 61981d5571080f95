/**
 * I/O page tables, byte for byte as Linux's generic_pt writes them.
 *
 * One `PageTable` is one domain's tree. `map` cuts a range into the largest
 * leaves that the input address, the output address and the rest of the range
 * allow; `unmap` takes leaves away whole. Tables appear when a leaf needs them
 * and go in two ways only: an unmap call covers all a table spans, or a large
 * leaf is mapped where an emptied table stood. So a table that two unmaps empty
 * between them stays, and counts, until one of those happens.
 *
 * The engine works in granule numbers (see format.ts) over Uint32Array pairs and
 * does not allocate on its inner loops. Addresses come in as bigint and are cut
 * into words through one scratch buffer, which is several times cheaper than
 * arithmetic on bigint; they are u64 and wrap as such. A tree that is not sign
 * extended starts at address 0; with sign extension the upper half of the input
 * space follows the lower one in the tree (`lin`, the position in the tree).
 *
 * There are no locks here: as in the kernel the caller keeps operations on one
 * range apart, and nothing sleeps. Source: drivers/iommu/generic_pt/iommu_pt.h
 * and pt_iter.h; formats in fmt/.
 */
import { EADDRINUSE, EINVAL, ENOENT, ENXIO, EOPNOTSUPP, EOVERFLOW, ERANGE, Errno } from "../lib/errno.ts";
import { KernelBug } from "../lib/kernel_bug.ts";
import { indexAt, modPow2, TWO32 } from "./arith.ts";
import type { PtFormat, PtProt } from "./format.ts";
import { PtGather } from "./gather.ts";
import { bestSize, fillRange } from "./map.ts";
import type { PtTable } from "./table_memory.ts";
import { hooksOf, type PtOptions, PtTree, topLevelOf, U32, U64 } from "./tree.ts";
import { clearRange, forDirty } from "./unmap.ts";
import { type EntryInfo, type TableInfo, walkEntries, walkTables } from "./walk.ts";

/** What an IOMMU finds for an address. */
export interface Translation {
  readonly pa: bigint;
  /** Size of the page (or run) it lies in, bytes. */
  readonly pageSize: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
}

export class PageTable extends PtTree {
  /** As the constructor, but a top table that cannot be allocated is an outcome. */
  static create(format: PtFormat, options: PtOptions): PageTable | Errno {
    const top = hooksOf(options)?.allocTable(topLevelOf(format, options));
    return top instanceof Errno ? top : new PageTable(format, options, top);
  }

  /** Every live table with level, address and bytes, parents first. */
  get tables(): TableInfo[] {
    return [...walkTables(this)];
  }

  /** Every present entry whose span meets [first, last], in address order. */
  walk(first?: bigint, last?: bigint): Generator<EntryInfo> {
    return walkEntries(this, first, last);
  }

  /** From now on every new leaf forces snooping; before the first map, or older leaves stay as they are. EOPNOTSUPP without such a bit. */
  forceSnoop(): Errno | undefined {
    if (this.format.snoopLo === 0) return EOPNOTSUPP;
    this.setAttrs(true);
    return undefined;
  }

  /**
   * Maps [iova, iova + length) to [pa, pa + length), all of it or nothing.
   *
   * EINVAL: no access in `prot`, no bytes, or a read-only leaf where those are
   * refused. ERANGE: an address outside the tree or the output width. EOVERFLOW:
   * the range leaves the 64-bit space. ENXIO: not a multiple of the smallest
   * page. EADDRINUSE: something is mapped there. ENOMEM: no table. Tables made
   * before a failure may stay, as the kernel's do.
   */
  map(iova: bigint, pa: bigint, length: bigint, prot: PtProt): Errno | undefined {
    U64[0] = iova;
    U64[1] = pa;
    U64[2] = length;
    if (U32[4] === 4096 && U32[5] === 0 && this.fast) {
      const il = U32[0] as number;
      const ih = U32[1] as number;
      const pl = U32[2] as number;
      const ph = U32[3] as number;
      if (((il | pl) & 4095) === 0 && (ph & this.oaHighMask) === 0) {
        const a = prot & 3;
        const lo = this.attrLo[a] as number;
        if (lo !== 0) {
          const words = ih === this.keyHi && il >>> 21 === this.keyLo ? this.keyWords : this.seek(il, ih);
          if (words !== null) {
            const i = (il >>> 11) & 1022;
            if (words[i] !== 0) return EADDRINUSE;
            words[i] = pl | lo;
            words[i + 1] = ph | (this.attrHi[a] as number);
            return undefined;
          }
        }
      }
    }
    return this.mapSlow(iova, prot);
  }

  /**
   * Unmaps from `iova` on and returns how many bytes went: more than `length`
   * when the range ends inside a leaf (leaves go whole), fewer when it meets a
   * hole or starts inside a leaf. With `gather` the tables taken out stay there
   * until `releaseGather`; without it they go back at once.
   */
  unmap(iova: bigint, length: bigint, gather?: PtGather): bigint {
    U64[0] = iova;
    U64[1] = length;
    if (U32[2] === 4096 && U32[3] === 0 && this.fast) {
      const il = U32[0] as number;
      const ih = U32[1] as number;
      if ((il & 4095) === 0) {
        const words = ih === this.keyHi && il >>> 21 === this.keyLo ? this.keyWords : this.seek(il, ih);
        if (words !== null) {
          const i = (il >>> 11) & 1022;
          const lo = words[i] as number;
          if (lo === 0) return 0n;
          if ((lo & this.format.nextLevelMask) === 0) {
            words[i] = 0;
            words[i + 1] = 0;
            if (gather !== undefined) gather.addUnits(ih * 2097152 + (il >>> 11), 2);
            return 4096n;
          }
        }
      }
    }
    return this.unmapSlow(iova, gather);
  }

  /** Physical address behind `iova`, undefined when nothing is mapped there. */
  iovaToPhys(iova: bigint): bigint | undefined {
    const t = this.findLeaf(iova);
    if (t === null) return undefined;
    const inside = this.leafLg2 + this.granule;
    return this.leafPa(t) | BigInt.asUintN(inside, iova);
  }

  /** What the hardware makes of `iova`; undefined: a fault, not present. Permissions of table entries are always full. */
  translate(iova: bigint): Translation | undefined {
    const t = this.findLeaf(iova);
    if (t === null) return undefined;
    const f = this.format;
    const lo = t.words[2 * this.leafIndex] as number;
    const hi = t.words[2 * this.leafIndex + 1] as number;
    const inside = this.leafLg2 + this.granule;
    return {
      pa: this.leafPa(t) | BigInt.asUintN(inside, iova),
      pageSize: 1n << BigInt(inside),
      readable: ((lo & f.readableLo) | (hi & f.readableHi)) !== 0,
      writable: ((lo & f.writableLo) | (hi & f.writableHi)) !== 0,
    };
  }

  /**
   * Calls `record` with address and length of every leaf in the range that was
   * written through, and cleans it unless `noClear`. EOPNOTSUPP when the format
   * does not track; EINVAL, EOVERFLOW, ERANGE for the range.
   */
  readAndClearDirty(
    iova: bigint,
    length: bigint,
    record: (iova: bigint, length: bigint) => void,
    { noClear = false, gather }: { readonly noClear?: boolean; readonly gather?: PtGather } = {},
  ): Errno | undefined {
    if (this.format.dirtyLo === 0) return EOPNOTSUPP;
    U64[0] = iova;
    U64[1] = length;
    const bad = this.range();
    if (bad !== undefined) return bad;
    if (this.linLast >= this.span) return ERANGE;
    // lin may differ from the address by the sign extension only, which no tracking format has.
    forDirty(this, this.root, this.lin, this.linLast, (lin, granules) => {
      const at = BigInt(lin) << BigInt(this.granule);
      const bytes = BigInt(granules) << BigInt(this.granule);
      record(at, bytes);
      if (!noClear) gather?.add(at, bytes);
      return !noClear;
    });
    return undefined;
  }

  /** What hardware does on a write with tracking on: marks the leaf of `iova` dirty. ENOENT when nothing is mapped. */
  setDirty(iova: bigint): Errno | undefined {
    if (this.format.dirtyLo === 0) return EOPNOTSUPP;
    const t = this.findLeaf(iova);
    if (t === null) return ENOENT;
    t.words[2 * this.leafIndex] = (t.words[2 * this.leafIndex] as number) | this.format.dirtyLo;
    return undefined;
  }

  /** Gives all tables back, whatever is mapped. The hardware must have stopped using them. */
  destroy(): void {
    if (!this.alive) return;
    this.alive = false;
    this.keyLo = -1;
    this.span = 0;
    const drop = (t: PtTable): void => {
      for (const child of t.children) if (child !== null) drop(child);
      t.words.fill(0);
      this.tableCount--;
      this.hooks.freeTable(t.memory);
    };
    drop(this.root);
  }

  /** Words of the existing leaf table of an address in the lower half, remembered; null: take the slow path. */
  private seek(il: number, ih: number): Uint32Array | null {
    const lo = (il >>> 12) | (ih << 20);
    const hi = ih >>> 12;
    if (hi * TWO32 + (lo >>> 0) >= (this.signExtend ? this.span / 2 : this.span)) return null;
    let t = this.root;
    for (let level = t.level; level > 0; level--) {
      const child = t.children[indexAt(lo, hi, level)] as PtTable | null;
      if (child === null) return null;
      t = child;
    }
    this.keyLo = il >>> 21;
    this.keyHi = ih;
    this.keyWords = t.words;
    return t.words;
  }

  private mapSlow(iova: bigint, prot: PtProt): Errno | undefined {
    // The hooks may run another page table, so the scratch is read out first.
    const pl = U32[2] as number;
    const ph = U32[3] as number;
    U32[2] = U32[4] as number;
    U32[3] = U32[5] as number;
    if (!this.alive) throw new KernelBug(`page table ${this.format.name}: mapped after it was destroyed`);
    if ((prot & 3) === 0) return EINVAL;
    const g = this.granule;
    const oa = (ph >>> g) * TWO32 + (((pl >>> g) | (ph << (32 - g))) >>> 0);
    if (oa >= this.oaGranules) return ERANGE;
    if (this.attrLo[prot & 3] === 0) return EINVAL;
    const il = U32[0] as number;
    const ll = U32[2] as number;
    const bad = this.range();
    // A range outside the tree is looked at after its page sizes, as the kernel does.
    if (bad === EINVAL || bad === EOVERFLOW) return bad;
    if (((il | pl | ll) & ((1 << g) - 1)) !== 0) return ENXIO;
    if (bad !== undefined) return bad;
    const lin = this.lin;
    const n = this.linLast - lin + 1;
    const least = this.minSizeLg2;
    if (least !== 0 && (modPow2(lin, least) !== 0 || modPow2(oa, least) !== 0 || modPow2(n, least) !== 0)) return ENXIO;
    if (oa + n > this.oaGranules) return ERANGE;
    const grown = this.growTop(this.linLast, Math.floor(bestSize(this, lin, oa, n) / 9));
    if (grown !== undefined) return grown;
    this.leafLo = this.attrLo[prot & 3] as number;
    this.leafHi = this.attrHi[prot & 3] as number;
    const failed = fillRange(this, lin, oa, n);
    if (failed === undefined) return undefined;
    if (this.mapped > 0) {
      const gather = new PtGather();
      this.coverLast = lin + this.mapped - 1;
      clearRange(this, this.root, lin, this.coverLast, gather);
      gather.add(iova, BigInt(this.mapped) << BigInt(g));
      this.options.iotlbSync?.(gather);
      this.releaseGather(gather);
    }
    return failed;
  }

  private unmapSlow(iova: bigint, gather: PtGather | undefined): bigint {
    if (this.range() !== undefined || this.linLast >= this.span) return 0n;
    this.unmapped = 0;
    const own = gather ?? new PtGather();
    clearRange(this, this.root, this.lin, this.linLast, own);
    const bytes = BigInt(this.unmapped) << BigInt(this.granule);
    if (gather === undefined) this.releaseGather(own);
    else gather.add(BigInt.asUintN(64, iova), bytes);
    return bytes;
  }
}
