/**
 * Reads page tables the way the recording's reader did: from the root's address
 * through memory, with the entry formats as their specifications give them and
 * nothing of the engine under test. Also what changed since the last look, in
 * the recording's own terms.
 */
export type Memory = ReadonlyMap<bigint, Uint32Array>;

export interface Entry {
  level: number;
  index: number;
  iova: string;
  value_hex: string;
  count?: number;
  step?: string;
}
export interface Table {
  table: number;
  level: number;
  iova: string;
  parent?: number;
  index?: number;
  value_hex?: string;
}
/** What the recording holds of the tables after a step; absent lists are empty. */
export interface Snapshot {
  top_level: number;
  tables: Table[];
  freed_tables: Table[];
  entries: Entry[];
  cleared: Omit<Entry, "value_hex" | "step">[];
  changed_entries: number;
  table_count: number;
  leaf_count: number;
}

type Kind = "empty" | "leaf" | "table";
/** Three formats by their specifications: VT-d 9.8 (vtdss) and 9.7 (x86_64), AMD 48882 2.2.3 (amdv1). */
function kindOf(format: string, level: number, lo: number, hi: number): Kind {
  if (lo === 0 && hi === 0) return "empty";
  if (format === "amdv1") {
    if ((lo & 1) === 0) throw new Error("an entry that is neither empty nor present");
    const next = (lo >>> 9) & 7;
    return level === 0 || next === 0 || next === 7 ? "leaf" : "table";
  }
  if (format === "x86_64" && (lo & 1) === 0) throw new Error("an entry that is neither empty nor present");
  return level === 0 || (level <= 2 && (lo & 0x80) !== 0) ? "leaf" : "table";
}

const ADDRESS = 0x000f_ffff_ffff_f000n;
const hex = (v: bigint): string => `0x${v.toString(16)}`;
const hex16 = (v: bigint): string => `0x${v.toString(16).padStart(16, "0")}`;
/** Pages that one entry spans. */
const span = (level: number): number => 512 ** level;

interface Seen {
  readonly level: number;
  /** First page the table's entries map. */
  readonly page: number;
  readonly pa: bigint;
  readonly parent: Seen | undefined;
  readonly index: number;
  /** The parent's entry without its address. */
  readonly raw: bigint;
  /** Its leaf entries; everything else is 0 here. */
  readonly leaves: Uint32Array;
  readonly leafCount: number;
  id: number;
}

interface Change {
  readonly level: number;
  readonly page: number;
  readonly lo: number;
  readonly hi: number;
}

/** Consecutive entries of one level whose value grows by a constant become one with `count` and `step`. */
function runs(list: Change[]): Entry[] {
  const out: Entry[] = [];
  for (let i = 0; i < list.length; ) {
    const e = list[i] as Change;
    const pages = span(e.level);
    let n = 1;
    let step: number | undefined;
    for (let prev = e; i + n < list.length; n++) {
      const c = list[i + n] as Change;
      if (c.level !== e.level || c.page !== e.page + n * pages) break;
      const d = (c.hi - prev.hi) * 4294967296 + (c.lo - prev.lo);
      if (step === undefined ? d !== 0 && d !== pages * 4096 : d !== step) break;
      step = d;
      prev = c;
    }
    const value = (BigInt(e.hi) << 32n) | BigInt(e.lo);
    const entry: Entry = { level: e.level, index: (e.page / pages) % 512, iova: hex(BigInt(e.page) << 12n), value_hex: hex16(value) };
    if (n > 1) {
      entry.count = n;
      entry.step = hex(BigInt(step ?? 0));
    }
    out.push(entry);
    i += n;
  }
  return out;
}

/** Follows one tree from step to step. Tables are numbered in the order of their first visit. */
export class Reader {
  private before = new Map<string, Seen>();
  private nextId = 0;

  look(memory: Memory, format: string, root: bigint, topLevel: number): Snapshot {
    const now = new Map<string, Seen>();
    const go = (level: number, page: number, pa: bigint, parent: Seen | undefined, index: number, raw: bigint): void => {
      const words = memory.get(pa);
      if (words === undefined) throw new Error(`an entry names ${hex(pa)}, where no table is`);
      const key = `${level}:${page}`;
      const leaves = new Uint32Array(1024);
      const below: (() => void)[] = [];
      let leafCount = 0;
      const seen = { level, page, pa, parent, index, raw, leaves, leafCount: 0, id: -1 };
      for (let i = 0; i < 512; i++) {
        const lo = words[2 * i] as number;
        const hi = words[2 * i + 1] as number;
        if (lo === 0 && hi === 0) continue;
        if (kindOf(format, level, lo, hi) === "leaf") {
          leaves[2 * i] = lo;
          leaves[2 * i + 1] = hi;
          leafCount++;
        } else {
          const value = (BigInt(hi) << 32n) | BigInt(lo);
          below.push(() => go(level - 1, page + i * span(level), value & ADDRESS, seen, i, value & ~ADDRESS));
        }
      }
      seen.leafCount = leafCount;
      now.set(key, seen);
      for (const f of below) f();
    };
    go(topLevel, 0, root, undefined, 0, 0n);

    const before = this.before;
    for (const [key, t] of now) {
      const old = before.get(key);
      if (old !== undefined && old.pa === t.pa) t.id = old.id;
    }
    const freed: Table[] = [];
    for (const [key, old] of before) {
      if (now.get(key)?.id !== old.id) freed.push({ table: old.id, level: old.level, iova: hex(BigInt(old.page) << 12n) });
    }
    for (const t of now.values()) if (t.id < 0) t.id = this.nextId++;
    const tables: Table[] = [];
    for (const [key, t] of now) {
      const old = before.get(key);
      const same = old !== undefined && old.id === t.id;
      if (same && t.parent?.id === old.parent?.id && t.index === old.index && t.raw === old.raw) continue;
      const line: Table = { table: t.id, level: t.level, iova: hex(BigInt(t.page) << 12n) };
      if (t.parent !== undefined) Object.assign(line, { parent: t.parent.id, index: t.index, value_hex: hex16(t.raw) });
      tables.push(line);
    }

    const changed: Change[] = [];
    const gone: Change[] = [];
    for (const key of new Set([...now.keys(), ...before.keys()])) {
      const a = now.get(key);
      const b = before.get(key);
      const at = (a ?? b) as Seen;
      for (let i = 0; i < 512; i++) {
        const lo = a?.leaves[2 * i] ?? 0;
        const hi = a?.leaves[2 * i + 1] ?? 0;
        if (lo === (b?.leaves[2 * i] ?? 0) && hi === (b?.leaves[2 * i + 1] ?? 0)) continue;
        const c = { level: at.level, page: at.page + i * span(at.level), lo, hi };
        (lo === 0 && hi === 0 ? gone : changed).push(c);
      }
    }
    const order = (x: Change, y: Change): number => x.page - y.page || y.level - x.level;
    changed.sort(order);
    gone.sort(order);
    this.before = now;
    let leafCount = 0;
    for (const t of now.values()) leafCount += t.leafCount;
    return {
      top_level: topLevel,
      tables,
      freed_tables: freed,
      entries: runs(changed),
      cleared: runs(gone).map(({ value_hex: _v, step: _s, ...rest }) => rest),
      changed_entries: changed.length,
      table_count: now.size,
      leaf_count: leafCount,
    };
  }
}
