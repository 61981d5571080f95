/**
 * The memory that tables stand in.
 *
 * A table is 4 KiB of real memory with a physical address: entries that name a
 * table hold that address, so the tree can be read from the bytes alone, the way
 * an IOMMU reads it. A machine that wants its tables in its own RAM gives the
 * page table two hooks (`allocTable`, `freeTable`); without them a `TableArena`
 * serves, which places tables one after another from a base address on.
 *
 * Invariant: memory handed out is all zeros. The engine gives a table back
 * zeroed, so an arena reuses it without clearing.
 */
import type { Errno } from "../lib/errno.ts";
import { TABLE_BYTES, TABLE_WORDS } from "./format.ts";

export interface TableMemory {
  /** Physical address, a multiple of 4096 below 2^52. */
  readonly base: bigint;
  /** Its 1024 little-endian words: entry i is words 2i (bits 31:0) and 2i + 1. */
  readonly words: Uint32Array;
}

export interface TableHooks {
  /** One zeroed table for `level`, or an errno (ENOMEM) that the map then returns. */
  allocTable(level: number): TableMemory | Errno;
  /** The table is in no tree and its bytes are zero. */
  freeTable(memory: TableMemory): void;
}

/** A stretch of physical addresses that hands out tables; the last one freed is the first one reused. */
export class TableArena implements TableHooks {
  /** Tables handed out and not yet freed. */
  live = 0;
  private readonly free: TableMemory[] = [];
  private nextBase: bigint;
  private slab: ArrayBuffer = new ArrayBuffer(0);
  private slabUsed = 0;
  private slabTables = 2;

  /** @param base physical address of the first table, a multiple of 4096. */
  constructor(base = 0x1_0000_0000n) {
    if (base < 0n || (base & 4095n) !== 0n) throw new RangeError(`table arena at 0x${base.toString(16)}: not a multiple of 4096`);
    this.nextBase = base;
  }

  allocTable(_level: number): TableMemory {
    this.live++;
    const reused = this.free.pop();
    if (reused !== undefined) return reused;
    if (this.slabUsed === this.slab.byteLength) {
      // Slabs double up to 2 MiB: a small tree stays small, a large one costs one buffer per 512 tables.
      this.slabTables = Math.min(this.slabTables * 2, 512);
      this.slab = new ArrayBuffer(this.slabTables * TABLE_BYTES);
      this.slabUsed = 0;
    }
    const words = new Uint32Array(this.slab, this.slabUsed, TABLE_WORDS);
    this.slabUsed += TABLE_BYTES;
    const base = this.nextBase;
    this.nextBase += 4096n;
    return { base, words };
  }

  freeTable(memory: TableMemory): void {
    this.live--;
    this.free.push(memory);
  }
}

const NO_CHILDREN: (PtTable | null)[] = [];

/**
 * One table of a tree. `children[i]` is the table that entry i names, null when
 * it names none; it repeats what the bytes say so that a walk needs no search
 * for an address. Tables of level 0 have no children array of their own.
 */
export class PtTable {
  readonly level: number;
  readonly words: Uint32Array;
  readonly children: (PtTable | null)[];
  readonly memory: TableMemory;

  constructor(level: number, memory: TableMemory) {
    this.level = level;
    this.words = memory.words;
    this.children = level === 0 ? NO_CHILDREN : new Array<PtTable | null>(512).fill(null);
    this.memory = memory;
  }
}
