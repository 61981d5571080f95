/**
 * Looking at a whole tree: every table, every entry. The bytes are the source;
 * nothing here is on a hot path.
 */
import { highWord, indexAt, lowWord, pow2 } from "./arith.ts";
import { itemLg2, TABLE_ENTRIES } from "./format.ts";
import type { PageTable } from "./page_table.ts";
import type { PtTable } from "./table_memory.ts";

/** One table of a tree. */
export interface TableInfo {
  readonly level: number;
  /** First address its first entry maps. */
  readonly iova: bigint;
  /** Physical address of its memory. */
  readonly base: bigint;
  /** Its 4096 bytes, live. */
  readonly bytes: Uint8Array;
  /** `base` of the table that names it, and by which entry; absent for the top. */
  readonly parent?: bigint;
  readonly index?: number;
}

/** One present entry. A run of equal leaves comes as its entries, one by one. */
export interface EntryInfo {
  readonly kind: "table" | "leaf";
  readonly level: number;
  readonly index: number;
  readonly iova: bigint;
  /** `base` of the table it stands in. */
  readonly table: bigint;
  /** All 64 bits. */
  readonly value: bigint;
}

/** Every live table, parents first, then by address. */
export function* walkTables(pt: PageTable): Generator<TableInfo> {
  function* go(t: PtTable, lin: number, parent?: PtTable, index?: number): Generator<TableInfo> {
    const { base, words } = t.memory;
    const info = {
      level: t.level,
      iova: pt.addressOf(lin),
      base,
      bytes: new Uint8Array(words.buffer, words.byteOffset, words.byteLength),
    };
    yield parent === undefined || index === undefined ? info : { ...info, parent: parent.memory.base, index };
    for (let i = 0; i < t.children.length; i++) {
      const child = t.children[i];
      if (child) yield* go(child, lin + i * pow2(itemLg2(t.level)), t, i);
    }
  }
  if (pt.alive) yield* go(pt.root, 0);
}

/** Every present entry whose span meets [first, last], in address order, a table's own entry before what is in it. */
export function* walkEntries(pt: PageTable, first = 0n, last = 0xffff_ffff_ffff_ffffn): Generator<EntryInfo> {
  function* go(t: PtTable, lin: number): Generator<EntryInfo> {
    const item = pow2(itemLg2(t.level));
    const size = BigInt(item) << BigInt(pt.format.granuleLg2);
    for (let i = 0; i < TABLE_ENTRIES; i++) {
      const lo = t.words[2 * i] as number;
      if (lo === 0) continue;
      const at = lin + i * item;
      const iova = pt.addressOf(at);
      if (iova > last || iova + size - 1n < first) continue;
      const value = (BigInt(t.words[2 * i + 1] as number) << 32n) | BigInt(lo);
      const child = t.level === 0 ? undefined : t.children[i];
      yield {
        kind: child ? "table" : "leaf",
        level: t.level,
        index: indexAt(lowWord(at), highWord(at), t.level),
        iova,
        table: t.memory.base,
        value,
      };
      if (child) yield* go(child, at);
    }
  }
  if (pt.alive) yield* go(pt.root, 0);
}
