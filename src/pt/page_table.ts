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
import { cto, ctz, floorLog2, highWord, indexAt, lowWord, modPow2, pow2, SizeSet, TWO32 } from "./arith.ts";
import { itemLg2, type PtFormat, type PtProt, possibleSizes, TABLE_ENTRIES } from "./format.ts";
import { PtGather } from "./gather.ts";
import { PtTable, TableArena, type TableHooks, type TableMemory } from "./table_memory.ts";
import { type EntryInfo, type TableInfo, walkEntries, walkTables } from "./walk.ts";

export interface PtOptions extends Partial<TableHooks> {
  /** Input address width, bits: what the IOMMU offers (39, 47, 48, 56, 57, 64). */
  readonly vasz: number;
  /** Output address width, bits; the format's own when absent. */
  readonly oasz?: number;
  /** Level of the top table; by the width (VT-d, x86) or the format (AMD) when absent. */
  readonly topLevel?: number;
  /** Two halves around a hole, as VT-d's first stage; `vasz` counts the sign bit. */
  readonly signExtend?: boolean;
  /** The IOMMU's walks do not snoop: table entries carry the "flushed" bit. */
  readonly incoherent?: boolean;
  /** Every leaf forces snooping (VT-d second stage: SNP). Also `forceSnoop()`. */
  readonly snoop?: boolean;
  /** Refuse read-only leaves, as a nesting parent does. */
  readonly forceWriteable?: boolean;
  /** Leaf sizes the hardware has, a bitmap of bytes; sizes the format lacks are ignored. */
  readonly pgsizes?: bigint;
  /** A growing tree got a new top; the device table must name it before the call returns. */
  changeTop?(base: bigint, topLevel: number): void;
  /** A map freed tables: flush what they covered. The tables go back to the allocator afterwards. */
  iotlbSync?(gather: PtGather): void;
}

/** What an IOMMU finds for an address. */
export interface Translation {
  readonly pa: bigint;
  /** Size of the page (or run) it lies in, bytes. */
  readonly pageSize: bigint;
  readonly readable: boolean;
  readonly writable: boolean;
}

const U64 = new BigUint64Array(4);
const U32 = new Uint32Array(U64.buffer);

export class PageTable {
  readonly format: PtFormat;
  /** First and last address the IOAS may use. */
  readonly apertureStart: bigint = 0n;
  readonly apertureLast: bigint;
  /** Leaf sizes in use, a bitmap of bytes. */
  readonly pgsizeBitmap: bigint;
  /** Input width in bits; with `signExtend` its topmost bit is the sign. */
  readonly vasz: number;
  readonly signExtend: boolean;
  readonly incoherent: boolean;
  readonly forceWriteable: boolean;
  /** Live tables, the top included. */
  tableCount = 1;
  /** True between construction and `destroy`. */
  alive = true;

  /** @internal The top table; other modules of this layer walk from it. */
  root: PtTable;
  private readonly hooks: TableHooks;
  private readonly options: PtOptions;
  private readonly granule: number;
  private readonly sizes: SizeSet;
  private readonly minSizeLg2: number;
  private readonly oaGranules: number;
  private readonly linMaskLo: number;
  private readonly linMaskHi: number;
  /** Granules the current top spans; grows with the top. */
  private span: number;
  /** Entry bits by `prot & 3`; a low word of 0 stands for "not allowed". */
  private readonly attrLo = new Int32Array(4);
  private readonly attrHi = new Int32Array(4);
  private readonly tableLo: number;

  // The last leaf table used, so that page after page costs no walk. The key is
  // the address above 2 MiB; keyLo is -1 when there is none.
  private readonly fast: boolean;
  private readonly oaHighMask: number;
  private keyLo = -1;
  private keyHi = 0;
  private keyWords: Uint32Array;

  // Results of the current operation.
  private lin = 0;
  private linLast = 0;
  private coverLast = 0;
  private unmapped = 0;

  constructor(format: PtFormat, options: PtOptions) {
    const { vasz, oasz = format.maxOaLg2, signExtend = false } = options;
    const misuse = (what: string): never => {
      throw new RangeError(`page table ${format.name}: ${what}`);
    };
    if (!Number.isInteger(vasz) || vasz <= format.granuleLg2 + 18 || vasz > format.maxVaLg2) misuse(`input width ${vasz}`);
    if (!Number.isInteger(oasz) || oasz <= format.granuleLg2 || oasz > format.maxOaLg2) misuse(`output width ${oasz}`);
    if (signExtend && (!format.canSignExtend || vasz < 34)) misuse("no sign extension");
    if (options.incoherent === true && format.flushedLo === 0) misuse("walks always snoop");
    if (options.snoop === true && format.snoopLo === 0) misuse("no snoop bit in a leaf");
    if (options.forceWriteable === true && !format.canForceWriteable) misuse("read-only leaves cannot be refused");
    const byWidth = Math.max(format.minTopLevel, Math.ceil((vasz - format.granuleLg2) / 9) - 1);
    const top = options.topLevel ?? (format.growingTop ? format.startLevel : byWidth);
    if (top < format.minTopLevel || top > format.maxTopLevel) misuse(`top level ${top}`);
    if (!format.growingTop && vasz > format.granuleLg2 + itemLg2(top + 1)) misuse(`top level ${top} is too low for ${vasz} bits`);

    this.format = format;
    this.options = options;
    this.hooks =
      options.allocTable && options.freeTable ? { allocTable: options.allocTable, freeTable: options.freeTable } : new TableArena();
    this.vasz = vasz;
    this.signExtend = signExtend;
    this.granule = format.granuleLg2;
    this.incoherent = options.incoherent === true;
    this.forceWriteable = options.forceWriteable === true;
    this.apertureLast = (1n << BigInt(signExtend ? vasz - 1 : vasz)) - 1n;

    let highest = top;
    if (format.growingTop) while (highest < format.maxTopLevel && this.granule + itemLg2(highest + 1) < vasz) highest++;
    // A page may be neither the whole space nor as wide as the output address.
    const widest = (1n << BigInt(Math.min(vasz - 1, oasz))) - 1n;
    this.pgsizeBitmap = possibleSizes(format, highest) & widest & (options.pgsizes ?? -1n);
    if (this.pgsizeBitmap === 0n) misuse("no page size left");
    this.sizes = new SizeSet(this.pgsizeBitmap >> BigInt(this.granule));
    this.minSizeLg2 = this.sizes.least();
    this.oaGranules = pow2(oasz - this.granule);
    this.fast = this.granule === 12 && (this.sizes.lo & 1) !== 0;
    this.oaHighMask = oasz >= 64 ? 0 : -1 << (oasz - 32);
    const bits = vasz - this.granule;
    this.linMaskLo = bits >= 32 ? -1 : (1 << bits) - 1;
    this.linMaskHi = bits <= 32 ? 0 : (1 << (bits - 32)) - 1;

    this.tableLo = format.tableLo | (this.incoherent ? format.flushedLo : 0);
    this.setAttrs(options.snoop === true);
    const memory = this.hooks.allocTable(top);
    if (memory instanceof Errno) throw new RangeError(`page table ${format.name}: no memory for the top table (${memory.name})`);
    this.root = this.adopt(top, memory);
    this.keyWords = this.root.words;
    this.span = this.spanOf(top);
  }

  /** As the constructor, but a top table that cannot be allocated is an outcome. */
  static create(format: PtFormat, options: PtOptions): PageTable | Errno {
    const { allocTable, freeTable } = options;
    if (!allocTable || !freeTable) return new PageTable(format, options);
    let failed: Errno | undefined;
    try {
      return new PageTable(format, {
        ...options,
        allocTable: (level) => {
          const m = allocTable.call(options, level);
          if (m instanceof Errno) failed = m;
          return m;
        },
        freeTable: (m) => freeTable.call(options, m),
      });
    } catch (e) {
      if (failed) return failed;
      throw e;
    }
  }

  get topLevel(): number {
    return this.root.level;
  }

  /** Physical address of the top table: what the context, PASID or device table entry names. */
  get topBase(): bigint {
    return this.root.memory.base;
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
            if (gather !== undefined) gather.add(iova, 4096n);
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
    this.dirtyIn(this.root, this.lin, this.linLast, (lin, granules) => {
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

  /** After the flush of a gather: its tables go back to the allocator, and it is empty again. */
  releaseGather(gather: PtGather): void {
    for (const t of gather.freed) this.hooks.freeTable(t.memory);
    gather.freed.length = 0;
    gather.reset();
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

  // ---- addresses

  private spanOf(top: number): number {
    return pow2(Math.min(this.vasz - this.granule, itemLg2(top + 1)));
  }

  /** The scratch's (address, length) as `lin`, `linLast`, `coverLast`. */
  private range(): Errno | undefined {
    const il = U32[0] as number;
    const ih = U32[1] as number;
    const ll = U32[2] as number;
    const lh = U32[3] as number;
    if (ll === 0 && lh === 0) return EINVAL;
    const low = il + ll - 1;
    const carry = low < 0 ? -1 : low >= TWO32 ? 1 : 0;
    const eh = ih + lh + carry;
    if (eh >= TWO32) return EOVERFLOW;
    const el = low - carry * TWO32;
    if (this.signExtend) {
      const half = ih >> (this.vasz - 33);
      if ((half !== 0 && half !== -1) || (eh | 0) >> (this.vasz - 33) !== half) return ERANGE;
    } else if (this.vasz > 32 ? this.vasz < 64 && eh >>> (this.vasz - 32) !== 0 : eh !== 0 || el >= pow2(this.vasz)) return ERANGE;
    this.lin = this.linOf(il, ih);
    this.linLast = this.linOf(el, eh);
    // A table is covered when the last byte is; a range that ends within a granule does not cover it.
    this.coverLast = ((el + 1) & ((1 << this.granule) - 1)) === 0 ? this.linLast : this.linLast - 1;
    return undefined;
  }

  private linOf(lo: number, hi: number): number {
    const g = this.granule;
    return ((hi >>> g) & this.linMaskHi) * TWO32 + ((((lo >>> g) | (hi << (32 - g))) & this.linMaskLo) >>> 0);
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

  // ---- entries

  private setAttrs(snoop: boolean): void {
    const f = this.format;
    for (let prot = 0; prot < 4; prot++) {
      const readable = (prot & 1) !== 0;
      const writable = (prot & 2) !== 0;
      const allowed = prot !== 0 && !(this.forceWriteable && !writable);
      const bits = f.leafLo | (readable ? f.readLo : 0) | (writable ? f.writeLo : 0) | (snoop ? f.snoopLo : 0);
      this.attrLo[prot] = allowed ? bits : 0;
      this.attrHi[prot] = f.leafHi | (readable ? f.readHi : 0) | (writable ? f.writeHi : 0);
    }
  }

  /** @internal A present entry above level 0 with this low word names a table. */
  namesTable(lo: number): boolean {
    const f = this.format;
    if (f.nextLevelMask === 0) return (lo & f.pageSizeBit) === 0;
    const next = lo & f.nextLevelMask;
    return next !== 0 && next !== f.nextLevelMask;
  }

  /** @internal log2 of the entries a leaf fills: 0 unless it is a run. */
  runLg2(lo: number, hi: number, level: number): number {
    const m = this.format.nextLevelMask;
    if (m === 0 || (lo & m) !== m) return 0;
    return cto((lo >>> 12) | (hi << 20), (hi >>> 12) & 0xff) + 1 - itemLg2(level);
  }

  private link(parent: PtTable, index: number, child: PtTable, tableLo: number): void {
    const gn = Number(child.memory.base >> BigInt(this.granule));
    parent.words[2 * index] = (lowWord(gn) << 12) | tableLo | (parent.level * this.format.nextLevelUnit);
    parent.words[2 * index + 1] = Math.floor(gn / 1048576) | this.format.tableHi;
    parent.children[index] = child;
  }

  private adopt(level: number, memory: TableMemory): PtTable {
    if (memory.words.length !== 1024 || (memory.base & 4095n) !== 0n || memory.base >> 52n !== 0n) {
      throw new RangeError(`page table ${this.format.name}: a table of ${memory.words.length} words at 0x${memory.base.toString(16)}`);
    }
    return new PtTable(level, memory);
  }

  private newTable(level: number): PtTable | Errno {
    const memory = this.hooks.allocTable(level);
    if (memory instanceof Errno) return memory;
    this.tableCount++;
    return this.adopt(level, memory);
  }

  // ---- map

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
    const grown = this.growTop(this.linLast, Math.floor(this.bestSize(lin, oa, n) / 9));
    if (grown !== undefined) return grown;
    const failed = this.mapRange(lin, oa, n, this.attrLo[prot & 3] as number, this.attrHi[prot & 3] as number);
    if (failed === undefined) return undefined;
    if (this.mapped > 0) {
      const gather = new PtGather();
      this.coverLast = lin + this.mapped - 1;
      this.unmapTable(this.root, lin, this.coverLast, gather);
      gather.add(iova, BigInt(this.mapped) << BigInt(g));
      this.options.iotlbSync?.(gather);
      this.releaseGather(gather);
    }
    return failed;
  }

  private mapped = 0;

  /** log2 granules of the largest leaf that may start a range; -1 for none. */
  private bestSize(lin: number, oa: number, n: number): number {
    const align = ctz(lowWord(lin) | lowWord(oa), highWord(lin) | highWord(oa));
    return this.sizes.atMost(Math.min(align, floorLog2(n)));
  }

  /** Fills [lin, lin + n); `mapped` tells how far it came. */
  private mapRange(lin: number, oa: number, n: number, attrLo: number, attrHi: number): Errno | undefined {
    this.mapped = 0;
    const apart = modDiff(lin, oa);
    let done = 0;
    while (done < n) {
      const at = lin + done;
      const left = n - done;
      const size = this.bestSize(at, oa + done, left);
      if (size < 0) return ENXIO;
      // This size serves until both addresses are aligned for the next one.
      let count = left;
      const next = this.sizes.above(size);
      if (next >= 0 && apart >= next) count = Math.min(left, pow2(next) - modPow2(at, next));
      const level = Math.floor(size / 9);
      const bytesLeft = count - modPow2(count, size);
      const failed = this.mapLeaves(at, oa + done, bytesLeft, size, level, attrLo, attrHi);
      done += this.mapped;
      if (failed !== undefined) {
        this.mapped = done;
        return failed;
      }
    }
    this.mapped = done;
    return undefined;
  }

  /** Leaves of one size over [lin, lin + n), table after table; `mapped` is what was filled. */
  private mapLeaves(lin: number, oa: number, n: number, size: number, level: number, attrLo: number, attrHi: number): Errno | undefined {
    const item = itemLg2(level);
    const run = pow2(size - item);
    const f = this.format;
    const runLo = run > 1 ? f.nextLevelMask : level > 0 ? f.pageSizeBit : 0;
    let done = 0;
    while (done < n) {
      const at = lin + done;
      const t = this.tableFor(at, level);
      if (t instanceof Errno) {
        this.mapped = done;
        return t;
      }
      const first = indexAt(lowWord(at), highWord(at), level);
      const end = Math.min(TABLE_ENTRIES, first + (n - done) / pow2(item));
      const filled =
        run === 1
          ? this.fill(t, first, end, oa + done, attrLo | runLo, attrHi)
          : this.fillRuns(t, first, end, oa + done, run, size, attrLo | runLo, attrHi);
      done += filled * pow2(item);
      if (first + filled < end) {
        this.mapped = done;
        return EADDRINUSE;
      }
    }
    this.mapped = done;
    return undefined;
  }

  /** The table of `level` that holds `lin`, made when it is not there; EADDRINUSE when a leaf is in the way. */
  private tableFor(lin: number, level: number): PtTable | Errno {
    const lo = lowWord(lin);
    const hi = highWord(lin);
    let t = this.root;
    while (t.level > level) {
      const i = indexAt(lo, hi, t.level);
      let child = t.children[i] as PtTable | null;
      if (child === null) {
        if (t.words[2 * i] !== 0) return EADDRINUSE;
        const made = this.newTable(t.level - 1);
        if (made instanceof Errno) return made;
        this.link(t, i, made, this.tableLo);
        child = made;
      }
      t = child;
    }
    return t;
  }

  /** One-entry leaves into [first, end); returns how many went in before one was taken. */
  private fill(t: PtTable, first: number, end: number, oa: number, bitsLo: number, bitsHi: number): number {
    const w = t.words;
    const stepGn = pow2(itemLg2(t.level));
    // An address below 2^20 granules further on changes the high word: at most once per table at level 0.
    const stepLo = stepGn < 1048576 ? stepGn * 4096 : 0;
    const stepHi = stepGn < 1048576 ? 0 : stepGn / 1048576;
    let lo = modPow2(oa, 20) * 4096;
    let hi = Math.floor(oa / 1048576);
    let i = first;
    while (i < end) {
      let stop = end;
      if (stepLo !== 0) stop = Math.min(end, i + Math.ceil((TWO32 - lo) / stepLo));
      let l = lo | bitsLo;
      let h = hi | bitsHi;
      const last = 2 * stop;
      let j = 2 * i;
      for (; j < last; j += 2) {
        if (w[j] !== 0) break;
        w[j] = l;
        w[j + 1] = h;
        l = (l + stepLo) | 0;
        h = (h + stepHi) | 0;
      }
      const reached = j >> 1;
      lo += (reached - i) * stepLo;
      hi += (reached - i) * stepHi;
      i = reached;
      if (lo >= TWO32) {
        lo -= TWO32;
        hi++;
      }
      if (i < stop && !this.clearWay(t, i, 1)) break;
    }
    return i - first;
  }

  /** Runs of `run` equal entries. */
  private fillRuns(t: PtTable, first: number, end: number, oa: number, run: number, size: number, bitsLo: number, bitsHi: number): number {
    const w = t.words;
    let at = oa;
    for (let i = first; i < end; i += run) {
      if (!this.clearWay(t, i, run)) return i - first;
      const field = at + pow2(size - 1) - 1;
      const lo = (modPow2(field, 20) * 4096) | bitsLo;
      const hi = Math.floor(field / 1048576) | bitsHi;
      for (let j = 2 * i; j < 2 * (i + run); j += 2) {
        w[j] = lo;
        w[j + 1] = hi;
      }
      at += pow2(size);
    }
    return end - first;
  }

  /** Makes [first, first + n) empty by freeing emptied tables; false when something is mapped there. */
  private clearWay(t: PtTable, first: number, n: number): boolean {
    const w = t.words;
    for (let i = first; i < first + n; i++) {
      if (w[2 * i] === 0) continue;
      const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
      if (child === null || !isEmpty(child)) return false;
      const gather = new PtGather();
      this.detach(t, i, child, gather);
      this.options.iotlbSync?.(gather);
      this.releaseGather(gather);
    }
    return true;
  }

  /**
   * Adds levels above the top until the tree spans `last` and may hold a leaf of
   * `leafLevel`; entry 0 of each new table names the one below. All of them or none.
   */
  private growTop(last: number, leafLevel: number): Errno | undefined {
    let top = this.root;
    let span = this.span;
    let failed: Errno | undefined;
    while (last >= span || leafLevel > top.level) {
      const level = top.level + 1;
      if (!this.format.growingTop || level > this.format.maxTopLevel || this.granule + itemLg2(level) >= this.vasz) failed = ERANGE;
      const above = failed ?? this.newTable(level);
      if (above instanceof Errno) {
        failed = above;
        break;
      }
      this.link(above, 0, top, this.format.tableLo);
      top = above;
      span = this.spanOf(level);
    }
    if (failed !== undefined) {
      while (top !== this.root) {
        const below = top.children[0] as PtTable;
        top.words.fill(0);
        this.tableCount--;
        this.hooks.freeTable(top.memory);
        top = below;
      }
      return failed;
    }
    if (top === this.root) return undefined;
    this.options.changeTop?.(top.memory.base, top.level);
    this.root = top;
    this.span = span;
    return undefined;
  }

  // ---- unmap

  private unmapSlow(iova: bigint, gather: PtGather | undefined): bigint {
    if (this.range() !== undefined || this.linLast >= this.span) return 0n;
    this.unmapped = 0;
    const own = gather ?? new PtGather();
    this.unmapTable(this.root, this.lin, this.linLast, own);
    const bytes = BigInt(this.unmapped) << BigInt(this.granule);
    if (gather === undefined) this.releaseGather(own);
    else gather.add(BigInt.asUintN(64, iova), bytes);
    return bytes;
  }

  /** Takes out the leaves of one table within [lin, last]; false when it met a hole or the inside of a leaf. */
  private unmapTable(t: PtTable, lin: number, last: number, gather: PtGather): boolean {
    const w = t.words;
    const level = t.level;
    const item = itemLg2(level);
    const base = lin - modPow2(lin, Math.min(52, item + 9));
    const itemSize = pow2(item);
    const first = Math.floor((lin - base) / itemSize);
    const end = Math.min(TABLE_ENTRIES, Math.floor((last - base) / itemSize) + 1);
    const nextLevelMask = this.format.nextLevelMask;
    let i = first;
    let leaves = 0;
    let whole = true;

    const firstLo = w[2 * i] as number;
    if (firstLo !== 0 && (level === 0 || !this.namesTable(firstLo))) {
      const size = this.runLg2(firstLo, w[2 * i + 1] as number, level) + item;
      if (modPow2(lin, size) !== 0) return false;
    }
    if (level === 0) {
      while (i < end) {
        let j = 2 * i;
        const stop = 2 * end;
        for (; j < stop; j += 2) {
          const lo = w[j] as number;
          if (lo === 0 || (lo & nextLevelMask) !== 0) break;
          w[j] = 0;
          w[j + 1] = 0;
        }
        leaves += (j >> 1) - i;
        i = j >> 1;
        if (i >= end) break;
        const lo = w[2 * i] as number;
        if (lo === 0) {
          whole = false;
          break;
        }
        const n = 1 << this.runLg2(lo, w[2 * i + 1] as number, 0);
        w.fill(0, 2 * i, 2 * (i + n));
        leaves += n;
        i += n;
      }
    } else {
      while (i < end) {
        const lo = w[2 * i] as number;
        if (lo === 0) {
          whole = false;
          break;
        }
        const child = t.children[i] as PtTable | null;
        if (child === null) {
          const n = 1 << this.runLg2(lo, w[2 * i + 1] as number, level);
          w.fill(0, 2 * i, 2 * (i + n));
          leaves += n;
          i += n;
          continue;
        }
        const at = i === first ? lin : base + i * itemSize;
        if (!this.unmapTable(child, at, last, gather)) {
          whole = false;
          break;
        }
        const itemBase = base + i * itemSize;
        if (at === itemBase && this.coverLast >= itemBase + itemSize - 1) this.detach(t, i, child, gather);
        i++;
      }
    }
    this.unmapped += leaves * itemSize;
    return whole;
  }

  /** Takes the table of entry `i` (and all below) out of the tree. */
  private detach(t: PtTable, i: number, child: PtTable, gather: PtGather): void {
    t.words[2 * i] = 0;
    t.words[2 * i + 1] = 0;
    t.children[i] = null;
    this.keyLo = -1;
    const drop = (x: PtTable): void => {
      for (let k = 0; k < x.children.length; k++) {
        const below = x.children[k] as PtTable | null;
        if (below === null) continue;
        x.words[2 * k] = 0;
        x.words[2 * k + 1] = 0;
        drop(below);
      }
      this.tableCount--;
      gather.freed.push(x);
    };
    drop(child);
  }

  // ---- lookup

  private leafIndex = 0;
  private leafLg2 = 0;

  /** The table whose entry `leafIndex` maps `iova`; `leafLg2` is the leaf's size in granules. */
  private findLeaf(iova: bigint): PtTable | null {
    U64[0] = iova;
    U64[1] = 1n;
    if (!this.alive || this.range() !== undefined || this.lin >= this.span) return null;
    const lo = lowWord(this.lin);
    const hi = highWord(this.lin);
    let t = this.root;
    for (;;) {
      const i = indexAt(lo, hi, t.level);
      const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
      if (child !== null) {
        t = child;
        continue;
      }
      const word = t.words[2 * i] as number;
      if (word === 0) return null;
      this.leafIndex = i;
      this.leafLg2 = this.runLg2(word, t.words[2 * i + 1] as number, t.level) + itemLg2(t.level);
      return t;
    }
  }

  private leafPa(t: PtTable): bigint {
    return leafGn(t.words[2 * this.leafIndex] as number, t.words[2 * this.leafIndex + 1] as number, this.leafLg2) << BigInt(this.granule);
  }

  // ---- dirty

  private dirtyIn(t: PtTable, lin: number, last: number, found: (lin: number, granules: number) => boolean): void {
    const item = itemLg2(t.level);
    const base = lin - modPow2(lin, Math.min(52, item + 9));
    const itemSize = pow2(item);
    const end = Math.min(TABLE_ENTRIES, Math.floor((last - base) / itemSize) + 1);
    const w = t.words;
    for (let i = Math.floor((lin - base) / itemSize); i < end; ) {
      const lo = w[2 * i] as number;
      const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
      if (child !== null) {
        this.dirtyIn(child, Math.max(lin, base + i * itemSize), last, found);
        i++;
        continue;
      }
      const run = lo === 0 ? 1 : 1 << this.runLg2(lo, w[2 * i + 1] as number, t.level);
      const start = i - (i % run);
      let dirty = 0;
      for (let k = start; k < start + run; k++) dirty |= (w[2 * k] as number) & this.format.dirtyLo;
      if (lo !== 0 && dirty !== 0 && found(base + start * itemSize, run * itemSize)) {
        for (let k = start; k < start + run; k++) w[2 * k] = (w[2 * k] as number) & ~this.format.dirtyLo;
      }
      i = start + run;
    }
  }
}

/** log2 of the alignment two granule numbers have in common with their difference. */
function modDiff(a: number, b: number): number {
  return ctz(lowWord(a) ^ lowWord(b), highWord(a) ^ highWord(b));
}

function isEmpty(t: PtTable): boolean {
  const w = t.words;
  for (let i = 0; i < TABLE_ENTRIES; i++) {
    if (w[2 * i] === 0) continue;
    const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
    if (child === null || !isEmpty(child)) return false;
  }
  return true;
}

/** Granule number a leaf of 2^lg2 granules starts at. */
function leafGn(lo: number, hi: number, lg2: number): bigint {
  const gn = (hi & 0xfffff) * 1048576 + (lo >>> 12);
  return BigInt(gn - modPow2(gn, lg2));
}
