/**
 * Addresses for BARs and bridge windows.
 *
 * Three pools: 32-bit memory (also everything not prefetchable: a bridge has no
 * other window for it), 64-bit prefetchable memory, I/O ports. On every bus the
 * largest alignment goes first, ties in order of discovery; a bridge's window is
 * what its bus needs, in whole megabytes (4 KiB of ports). Deterministic: the
 * same tree gets the same addresses.
 */
import { alignUp, hex } from "../../lib/addr.ts";
import type { BridgeWindow } from "./bus.ts";

/** A pool's base and length: 32-bit memory, 64-bit prefetchable memory, I/O. */
export type Windows = readonly { readonly base: bigint; readonly length: bigint }[];

export interface Claim {
  readonly name: string;
  /** Index of the bridge above; -1: root bus. */
  readonly parent: number;
  readonly bridge: boolean;
  readonly bars: readonly { readonly index: number; readonly size: bigint; readonly align: bigint; readonly pool: 0 | 1 | 2 }[];
}

export interface Assigned {
  /** By BAR index. */
  readonly starts: readonly (bigint | undefined)[];
  /** Of a bridge: 32-bit memory, then prefetchable; `last` below `start`: empty. */
  readonly windows: readonly BridgeWindow[];
}

interface Item {
  readonly size: bigint;
  readonly align: bigint;
  readonly put: (at: bigint) => void;
}

interface Layout {
  readonly size: bigint;
  readonly align: bigint;
  readonly items: readonly Item[];
  readonly place: (base: bigint) => void;
}

const MEMORY_STEP = 0x10_0000n;
const IO_STEP = 0x1000n;
const EMPTY: BridgeWindow = { start: 1n, last: 0n };

/** RangeError, naming the pool, when one of memory is too small; I/O BARs that do not fit stay without an address. */
export function assignAddresses(claims: readonly Claim[], pools: Windows): Assigned[] {
  const starts: (bigint | undefined)[][] = claims.map(() => []);
  const windows: BridgeWindow[][] = claims.map((c) => (c.bridge ? [EMPTY, EMPTY] : []));
  const children = (parent: number): number[] => claims.flatMap((c, i) => (c.parent === parent ? [i] : []));

  for (const pool of [0, 1, 2] as const) {
    const step = pool === 2 ? IO_STEP : MEMORY_STEP;
    /** What a bus needs: in order of placement, with its place relative to the bus's start. */
    const layout = (parent: number): Layout => {
      const items: Item[] = [];
      for (const i of children(parent)) {
        const claim = claims[i] as Claim;
        const mine = starts[i] as (bigint | undefined)[];
        for (const b of claim.bars) {
          if (b.pool !== pool) continue;
          const put = (at: bigint): void => {
            mine[b.index] = at;
          };
          items.push({ size: b.size, align: b.align, put });
        }
        if (!claim.bridge) continue;
        const inner = layout(i);
        if (inner.size === 0n) continue;
        const size = alignUp(inner.size, step);
        items.push({
          size,
          align: inner.align > step ? inner.align : step,
          put: (at) => {
            if (pool !== 2) (windows[i] as BridgeWindow[])[pool] = { start: at, last: at + size - 1n };
            inner.place(at);
          },
        });
      }
      // A stable sort: equal alignments keep the order of discovery.
      items.sort((a, b) => (a.align === b.align ? 0 : a.align > b.align ? -1 : 1));
      let size = 0n;
      const offsets = items.map((it) => {
        const at = alignUp(size, it.align);
        size = at + it.size;
        return at;
      });
      const place = (base: bigint): void => {
        items.forEach((it, k) => {
          it.put(base + (offsets[k] as bigint));
        });
      };
      return { size, align: items[0]?.align ?? 1n, place, items };
    };
    const all = layout(-1);
    const range = pools[pool];
    if (range === undefined || all.size === 0n) continue;
    if (pool === 2) {
      placeWhatFits(all.items, range);
      continue;
    }
    const base = alignUp(range.base, all.align);
    if (base + all.size > range.base + range.length) {
      throw new RangeError(
        `the BARs need ${hex(all.size)} bytes of ${pool === 0 ? "32-bit" : "64-bit prefetchable"} space from ${hex(base)}; there are ${hex(range.length)} from ${hex(range.base)}`,
      );
    }
    all.place(base);
  }
  return claims.map((_, i) => ({ starts: starts[i] ?? [], windows: windows[i] ?? [] }));
}

/** I/O ports are scarce: who comes too late goes without, and cannot be enabled. */
function placeWhatFits(items: readonly Item[], range: Windows[number]): void {
  let next = range.base;
  for (const it of items) {
    const at = alignUp(next, it.align);
    if (at + it.size > range.base + range.length) continue;
    it.put(at);
    next = at + it.size;
  }
}
