/**
 * What a page-table format is: one row of masks and shifts.
 *
 * Every format here is a radix tree of 4 KiB tables of 512 eight-byte entries,
 * so formats differ in bits only. All rows have this one shape, which keeps the
 * walker that reads them monomorphic. An entry is a pair of 32-bit words, `Lo`
 * (bits 31:0) and `Hi` (bits 63:32); its address field is bits 51:12 in all of
 * them, filled with a frame number counted in granules.
 *
 * Words used in this layer:
 *   granule  the smallest page, 2^granuleLg2 bytes (4 KiB; 2 KiB in the
 *            selftest's format). Inside the engine every address is a number of
 *            granules, below 2^53, so a plain JavaScript number holds it.
 *   level    0 for the tables whose entries map one granule, upwards from there.
 *   item     what one entry of a table at some level spans.
 *   leaf     an entry that maps memory, as opposed to one that names a table.
 *   run      consecutive entries that together make one leaf (AMD only).
 *
 * Invariants that all rows keep, and that the engine relies on: an absent entry
 * is all zeros, a present one has a nonzero low word, a run holds one value.
 */

/** `prot` bits of `PageTable.map`, numbered as the kernel's IOMMU_READ and so on. */
export type PtProt = number;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const PROT_CACHE = 4;
export const PROT_NOEXEC = 8;
export const PROT_MMIO = 16;

export interface PtFormat {
  readonly name: string;
  /** Where the entries are specified. */
  readonly spec: string;
  readonly granuleLg2: number;
  /** Widest input and output addresses the format can express, bits. */
  readonly maxVaLg2: number;
  readonly maxOaLg2: number;
  readonly minTopLevel: number;
  readonly maxTopLevel: number;
  /** Leaves may stand at this level and below. */
  readonly maxLeafLevel: number;
  /** The tree starts small and gains levels at the top when an address needs them. */
  readonly growingTop: boolean;
  /** Top level of a growing tree at birth; 0 when the address width decides. */
  readonly startLevel: number;

  /** A leaf above level 0 has these bits (0: `nextLevelMask` tells instead). */
  readonly pageSizeBit: number;
  /** Field that holds the next table's level; all ones in it marks a run of leaves (0: no such field, no runs). */
  readonly nextLevelMask: number;
  /** What one level adds in that field. */
  readonly nextLevelUnit: number;
  /** log2 bytes of a size that must not be used though the encoding has it; 0 when none. */
  readonly brokenSizeLg2: number;

  /** Bits of an entry that names a table, apart from address and next level. */
  readonly tableLo: number;
  readonly tableHi: number;
  /** Bits that every leaf has. */
  readonly leafLo: number;
  readonly leafHi: number;
  /** Added to a leaf that may be read, or written. */
  readonly readLo: number;
  readonly readHi: number;
  readonly writeLo: number;
  readonly writeHi: number;
  /** Set in an entry exactly when the device may read (or write) through it. */
  readonly readableLo: number;
  readonly readableHi: number;
  readonly writableLo: number;
  readonly writableHi: number;

  /** Software bit set in a table entry once it was flushed to memory, for walkers that do not snoop; 0: always coherent. */
  readonly flushedLo: number;
  /** Makes the device's accesses snoop whatever they ask for; 0: the format has no such bit to choose. */
  readonly snoopLo: number;
  /** Set by hardware in a leaf written through; 0: no dirty tracking. */
  readonly dirtyLo: number;

  /** The input address may be sign extended (two halves around a hole). */
  readonly canSignExtend: boolean;
  /** Read-only leaves can be refused (parent of a nested domain on hardware with that erratum). */
  readonly canForceWriteable: boolean;
}

/** Entries of a table as log2, and the bytes of a table. */
export const TABLE_LG2 = 9;
export const TABLE_ENTRIES = 512;
export const TABLE_BYTES = 4096;
export const TABLE_WORDS = 1024;

/** log2 granules that one entry at `level` spans. */
export const itemLg2 = (level: number): number => TABLE_LG2 * level;

/** Every leaf size of `format` in a tree whose top is `topLevel`, as a bitmap of byte sizes, before hardware limits. */
export function possibleSizes(format: PtFormat, topLevel: number): bigint {
  let bitmap = 0n;
  for (let level = 0; level <= Math.min(topLevel, format.maxLeafLevel); level++) {
    const lg2 = format.granuleLg2 + itemLg2(level);
    if (format.nextLevelMask === 0) bitmap |= 1n << BigInt(lg2);
    else for (let i = lg2; i < lg2 + TABLE_LG2 && i <= 51; i++) bitmap |= 1n << BigInt(i);
  }
  return format.brokenSizeLg2 === 0 ? bitmap : bitmap & ~(1n << BigInt(format.brokenSizeLg2));
}
