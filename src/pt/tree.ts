/**
 * A radix tree of tables: its parameters, its memory, its top, and how entries
 * are told apart. What fills and empties it stands in map.ts and unmap.ts, what
 * callers see in page_table.ts.
 *
 * Positions in the tree are granule numbers counted from the start of the top
 * table (`lin`); the low half of a sign-extended space comes first in it.
 */
import { EADDRINUSE, EINVAL, EOVERFLOW, ERANGE, Errno } from "../lib/errno.ts";
import { cto, highWord, indexAt, lowWord, modPow2, pow2, SizeSet, TWO32 } from "./arith.ts";
import { itemLg2, type PtFormat, possibleSizes, TABLE_ENTRIES, TABLE_WORDS } from "./format.ts";
import type { PtGather } from "./gather.ts";
import { PtTable, TableArena, type TableHooks, type TableMemory } from "./table_memory.ts";

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

/** @internal The current operation's address and length, or address, physical address and length, as words; the fourth is a table's base. */
export const U64: BigUint64Array = new BigUint64Array(4);
/** @internal */
export const U32: Uint32Array = new Uint32Array(U64.buffer);

/** The caller's allocator, when it brought one. */
export function hooksOf(options: PtOptions): TableHooks | undefined {
  return options.allocTable && options.freeTable ? (options as TableHooks) : undefined;
}

/** Level of the top table at birth. */
export function topLevelOf(format: PtFormat, { topLevel, vasz }: PtOptions): number {
  const byWidth = Math.max(format.minTopLevel, Math.ceil((vasz - format.granuleLg2) / 9) - 1);
  return topLevel ?? (format.growingTop ? format.startLevel : byWidth);
}

export class PtTree {
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

  // From here on for the modules of this layer only.

  root: PtTable;
  readonly hooks: TableHooks;
  readonly options: PtOptions;
  readonly granule: number;
  readonly sizes: SizeSet;
  readonly minSizeLg2: number;
  readonly oaGranules: number;
  readonly linMaskLo: number;
  readonly linMaskHi: number;
  /** Granules the current top spans; grows with the top. */
  span: number;
  /** Entry bits by `prot & 3`; a low word of 0 stands for "not allowed". */
  readonly attrLo: Int32Array = new Int32Array(4);
  readonly attrHi: Int32Array = new Int32Array(4);
  readonly tableLo: number;

  // The last leaf table used, so that page after page costs no walk. The key is
  // the address above 2 MiB; keyLo is -1 when there is none.
  readonly fast: boolean;
  readonly oaHighMask: number;
  keyLo = -1;
  keyHi = 0;
  keyWords: Uint32Array;

  // Bits of the leaves that `fillRange` writes.
  leafLo = 0;
  leafHi = 0;
  // The current operation: first and last granule, the last one it covers whole,
  // and the granules that `fillRange` wrote or `clearRange` took away.
  lin = 0;
  linLast = 0;
  coverLast = 0;
  mapped = 0;
  unmapped = 0;
  // The leaf that `findLeaf` found: entry, and log2 granules.
  leafIndex = 0;
  leafLg2 = 0;

  /** @param topMemory zeroed memory for the top table; the allocator's when absent. RangeError for parameters the format cannot have. */
  constructor(format: PtFormat, options: PtOptions, topMemory?: TableMemory) {
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
    const top = topLevelOf(format, options);
    if (top < format.minTopLevel || top > format.maxTopLevel) misuse(`top level ${top}`);
    if (!format.growingTop && vasz > format.granuleLg2 + itemLg2(top + 1)) misuse(`top level ${top} is too low for ${vasz} bits`);

    this.format = format;
    this.options = options;
    this.hooks = hooksOf(options) ?? new TableArena();
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
    this.fast = this.granule === 12 && (this.sizes.lo & 1) !== 0 && oasz > 32;
    this.oaHighMask = -1 << (oasz - 32);
    const bits = vasz - this.granule;
    this.linMaskLo = bits >= 32 ? -1 : (1 << bits) - 1;
    this.linMaskHi = bits <= 32 ? 0 : (1 << (bits - 32)) - 1;

    this.tableLo = format.tableLo | (this.incoherent ? format.flushedLo : 0);
    this.setAttrs(options.snoop === true);
    const memory = topMemory ?? this.hooks.allocTable(top);
    if (memory instanceof Errno) throw new RangeError(`page table ${format.name}: no memory for the top table (${memory.name})`);
    this.root = this.adopt(top, memory);
    this.keyWords = this.root.words;
    this.span = this.spanOf(top);
  }

  get topLevel(): number {
    return this.root.level;
  }

  /** Physical address of the top table: what the context, PASID or device table entry names. */
  get topBase(): bigint {
    return this.root.memory.base;
  }

  spanOf(top: number): number {
    return pow2(Math.min(this.vasz - this.granule, itemLg2(top + 1)));
  }

  /** The scratch's (address, length) as `lin`, `linLast`, `coverLast`. */
  range(): Errno | undefined {
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

  linOf(lo: number, hi: number): number {
    const g = this.granule;
    return ((hi >>> g) & this.linMaskHi) * TWO32 + ((((lo >>> g) | (hi << (32 - g))) & this.linMaskLo) >>> 0);
  }

  /** The address that a position in the tree stands for. */
  addressOf(lin: number): bigint {
    const at = BigInt(lin) << BigInt(this.granule);
    // With sign extension what lies past the aperture is the upper half.
    return this.signExtend && at > this.apertureLast ? BigInt.asUintN(64, BigInt.asIntN(this.vasz, at)) : at;
  }

  setAttrs(snoop: boolean): void {
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

  /** A present entry above level 0 with this low word names a table. */
  namesTable(lo: number): boolean {
    const f = this.format;
    if (f.nextLevelMask === 0) return (lo & f.pageSizeBit) === 0;
    const next = lo & f.nextLevelMask;
    return next !== 0 && next !== f.nextLevelMask;
  }

  /** log2 of the entries a leaf fills: 0 unless it is a run. */
  runLg2(lo: number, hi: number, level: number): number {
    const m = this.format.nextLevelMask;
    if (m === 0 || (lo & m) !== m) return 0;
    return cto((lo >>> 12) | (hi << 20), (hi >>> 12) & 0xff) + 1 - itemLg2(level);
  }

  link(parent: PtTable, index: number, child: PtTable, tableLo: number): void {
    U64[3] = child.memory.base;
    const lo = U32[6] as number;
    const hi = U32[7] as number;
    const gnLo = (lo >>> this.granule) | (hi << (32 - this.granule));
    parent.words[2 * index] = (gnLo << 12) | tableLo | (parent.level * this.format.nextLevelUnit);
    parent.words[2 * index + 1] = (gnLo >>> 20) | ((hi >>> this.granule) << 12) | this.format.tableHi;
    parent.children[index] = child;
  }

  adopt(level: number, memory: TableMemory): PtTable {
    U64[3] = memory.base;
    if (memory.words.length !== TABLE_WORDS || ((U32[6] as number) & 4095) !== 0 || (U32[7] as number) >>> 20 !== 0) {
      throw new RangeError(`page table ${this.format.name}: a table of ${memory.words.length} words at 0x${memory.base.toString(16)}`);
    }
    return new PtTable(level, memory);
  }

  newTable(level: number): PtTable | Errno {
    const memory = this.hooks.allocTable(level);
    if (memory instanceof Errno) return memory;
    this.tableCount++;
    return this.adopt(level, memory);
  }

  /** The table of `level` that holds `lin`, made when it is not there; EADDRINUSE when a leaf is in the way. */
  tableFor(lin: number, level: number): PtTable | Errno {
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

  /**
   * Adds levels above the top until the tree spans `last` and may hold a leaf of
   * `leafLevel`; entry 0 of each new table names the one below. All of them or none.
   */
  growTop(last: number, leafLevel: number): Errno | undefined {
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

  /** After the flush of a gather: its tables go back to the allocator, and it is empty again. */
  releaseGather(gather: PtGather): void {
    for (const t of gather.freed) this.hooks.freeTable(t.memory);
    gather.freed.length = 0;
    gather.reset();
  }

  /** Takes the table of entry `i` (and all below) out of the tree. */
  detach(t: PtTable, i: number, child: PtTable, gather: PtGather): void {
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

  /** The table whose entry `leafIndex` maps `iova`; `leafLg2` is the leaf's size in granules. */
  findLeaf(iova: bigint): PtTable | null {
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

  leafPa(t: PtTable): bigint {
    return leafGn(t.words[2 * this.leafIndex] as number, t.words[2 * this.leafIndex + 1] as number, this.leafLg2) << BigInt(this.granule);
  }
}

/** Nothing is mapped in `t` or below it. */
export function isEmpty(t: PtTable): boolean {
  const w = t.words;
  for (let i = 0; i < TABLE_ENTRIES; i++) {
    if (w[2 * i] === 0) continue;
    const child = t.level === 0 ? null : (t.children[i] as PtTable | null);
    if (child === null || !isEmpty(child)) return false;
  }
  return true;
}

/** Granule number a leaf of 2^lg2 granules starts at. */
export function leafGn(lo: number, hi: number, lg2: number): bigint {
  const gn = (hi & 0xfffff) * 1048576 + (lo >>> 12);
  return BigInt(gn - modPow2(gn, lg2));
}
