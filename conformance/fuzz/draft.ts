/**
 * An ioctl in the making: first well-formed, by the members of its structure,
 * then perhaps spoilt in one of the ways in which a call can be wrong.
 */
import type { AnyStruct } from "../../src/uapi/index.ts";
import { ARENA, type Call, type Fd, GUARD, type Link, RO } from "./program.ts";
import type { Context, Ref, World } from "./world.ts";

export type Members = Readonly<Record<string, number | bigint | Ref>>;

export interface DraftOptions {
  /** Least bytes that the kernel accepts; all when not said. */
  readonly min?: number;
  /** Members kept after success, by slot. */
  readonly keeps?: Readonly<Record<string, Ref>>;
  readonly more?: readonly { readonly at: number; readonly bytes: Uint8Array }[];
  /** Bytes after the structure. */
  readonly tail?: Uint8Array;
  /** Slots in the tail, by offset. */
  readonly tailRefs?: Readonly<Record<number, Ref>>;
  /** Members whose bits are never flipped. */
  readonly fixed?: readonly string[];
  /** Never spoilt. */
  readonly good?: boolean;
  readonly needed?: boolean;
  /** What the call returned is kept. */
  readonly save?: Ref;
}

/** Where a member lies, `outer.inner` in a nested structure, and its width. */
export function member(struct: AnyStruct, path: string): { at: number; width: number } {
  const [first = "", inner] = path.split(".");
  const at = struct.offsets[first];
  if (at === undefined) throw new RangeError(`${struct.name} has no member ${first}`);
  if (inner === undefined) return { at, width: struct.widths[first] ?? 0 };
  const m = member(struct.fields[first] as AnyStruct, inner);
  return { at: at + m.at, width: m.width };
}

/** Lists and other memory that a structure points to lie here, clear of the structure. */
export const LIST_OFFSET = 2048;
export const LIST: bigint = ARENA + BigInt(LIST_OFFSET);
/** What a call is to write goes here. */
export const OUT_OFFSET = 4096;
export const OUT: bigint = ARENA + BigInt(OUT_OFFSET);

export function u64Bytes(...values: bigint[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((v, i) => void view.setBigUint64(i * 8, BigInt.asUintN(64, v), true));
  return new Uint8Array(view.buffer);
}

export function u32Bytes(...values: number[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(values.length * 4));
  values.forEach((v, i) => void view.setUint32(i * 4, v >>> 0, true));
  return new Uint8Array(view.buffer);
}

interface Draft {
  fd: Fd;
  cmd: number;
  at: bigint;
  bytes: Uint8Array;
  patches: Link[];
  keeps: Link[];
}

/** Chance that a call is spoilt. */
const SPOILT = 0.15;

/** Makes an ioctl up, and makes it. True when it succeeded. */
export function ioctl(w: World, c: Context, fd: Fd, cmd: number, struct: AnyStruct, members: Members, o: DraftOptions = {}): boolean {
  const tail = o.tail ?? new Uint8Array(0);
  const bytes = new Uint8Array(struct.size + tail.length);
  const view = new DataView(bytes.buffer);
  bytes.set(tail, struct.size);
  const patches: Link[] = [];
  const [size = "size"] = Object.keys(struct.fields);
  for (const [path, value] of Object.entries({ [size]: bytes.length, ...members })) {
    const { at, width } = member(struct, path);
    if (typeof value === "object") patches.push({ at, slot: value.slot, width: width === 8 ? 8 : 4 });
    else if (width === 8) view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
    else if (width === 4) view.setUint32(at, Number(BigInt.asUintN(32, BigInt(value))), true);
    else if (width === 2) view.setUint16(at, Number(value), true);
    else view.setUint8(at, Number(value));
  }
  for (const [at, ref] of Object.entries(o.tailRefs ?? {})) patches.push({ at: struct.size + Number(at), slot: ref.slot, width: 4 });
  const keeps = Object.entries(o.keeps ?? {}).map(([path, ref]): Link => {
    const { at, width } = member(struct, path);
    return { at, slot: ref.slot, width: width === 8 ? 8 : 4 };
  });
  const d: Draft = { fd, cmd, at: ARENA, bytes, patches, keeps };
  if (o.good !== true && w.chance(SPOILT)) {
    const fixed = (o.fixed ?? []).map((m) => member(struct, m));
    spoilt(w, c, d, o.min ?? struct.size, fixed);
  }
  const call: Call = {
    op: "ioctl",
    fd: d.fd,
    n: [BigInt(d.cmd)],
    data: { at: d.at, bytes: d.bytes, patches: d.patches, keeps: d.keeps, more: o.more ?? [] },
    ...(o.save === undefined ? {} : { save: o.save.slot }),
    ...(o.needed === true ? { needed: true } : {}),
  };
  return w.push(call);
}

function setSize(d: Draft, size: number): void {
  new DataView(d.bytes.buffer).setUint32(0, size, true);
}

function lengthen(d: Draft, by: number, last: number): void {
  const longer = new Uint8Array(d.bytes.length + by);
  longer.set(d.bytes);
  longer[longer.length - 1] = last;
  d.bytes = longer;
  setSize(d, longer.length);
}

type Place = { readonly at: number; readonly width: number };

/** A bit outside of the size and of what must stay; undefined when chance found none. */
function freeBit(w: World, d: Draft, fixed: readonly Place[]): number | undefined {
  for (let i = 0; i < 4; i++) {
    const bit = 32 + w.rng.below(Math.max(1, d.bytes.length * 8 - 32));
    const byte = bit >> 3;
    if (byte < d.bytes.length && !fixed.some((f) => byte >= f.at && byte < f.at + f.width)) return bit;
  }
  return undefined;
}

function spoilt(w: World, c: Context, d: Draft, min: number, fixed: readonly Place[]): void {
  switch (w.rng.below(10)) {
    case 0:
      setSize(d, w.pick([0, 4, min - 1, min - 4, min]));
      return;
    case 1:
      lengthen(d, w.pick([4, 8, 64]), 0);
      return;
    case 2:
      lengthen(d, w.pick([1, 8, 64]), 1);
      return;
    case 3:
      setSize(d, w.pick([5000, 0xffff_ffff, 0x8000_0000]));
      return;
    case 4:
      d.at = w.pick([
        0n,
        1n,
        GUARD,
        0xffff_8880_0000_0000n,
        0x8000_0000_0000_0000n,
        GUARD - 4n,
        GUARD - BigInt(min - 1),
        GUARD - BigInt(min),
      ]);
      return;
    case 5:
      d.at = RO;
      return;
    case 6:
      d.fd = w.wrongFd();
      return;
    case 7: {
      const p = w.some(d.patches.filter((x) => x.width === 4 && !fixed.some((f) => f.at === x.at)));
      if (p === undefined) {
        setSize(d, min - 1);
        return;
      }
      d.patches = d.patches.filter((x) => x !== p);
      const ghost = w.pick([0, 0x7777, 0xffff_ffff, 0x8000_0000]);
      const other = w.some(w.ids(c));
      if (other !== undefined && w.chance(0.6)) d.patches.push({ ...p, slot: other.slot });
      else new DataView(d.bytes.buffer).setUint32(p.at, ghost, true);
      return;
    }
    default: {
      const bit = freeBit(w, d, fixed);
      if (bit === undefined) {
        setSize(d, min - 1);
        return;
      }
      const byte = bit >> 3;
      // What is patched comes from a slot: there the whole of it becomes a plain number.
      const p = d.patches.find((x) => byte >= x.at && byte < x.at + x.width);
      if (p !== undefined) d.patches = d.patches.filter((x) => x !== p);
      d.bytes[byte] = (d.bytes[byte] as number) ^ (1 << (bit & 7));
    }
  }
}
