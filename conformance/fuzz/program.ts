/**
 * A sequence of calls as data, and as text: what `fuzz.c` makes on a real Linux
 * and `execute.ts` on the embedded kernel.
 *
 * Memory lies at fixed addresses, so that every pointer is a plain number and
 * every answer that holds one can be compared:
 *
 *   ARENA   two pages, filled with 0xa5 before each call; structures and lists lie here
 *   GUARD   the page after it, which cannot be touched
 *   RO      a page that can only be read
 *   DATA    64 pages of private memory, what is mapped for devices
 *   SHARED  where memfds are mapped
 *
 * What a call makes known (descriptors, ids, offsets) goes into a slot of eight
 * bytes, and later calls are patched from there. A slot starts as all ones, and
 * is all ones again after the descriptor in it was closed: a number that was
 * given out anew is never taken for the old one.
 *
 * A line of text is the operation, then words:
 *
 *   fd=5|$3           a descriptor; `$3`: the low 32 bits of slot 3
 *   n=1,2,3           numbers, or a slot, in the order that the operation has
 *   path=/dev/iommu   of open; `@edu` is the node of that VFIO device
 *   at=ADDRESS        where `x` is laid down, and the argument of an ioctl
 *   x=HEX             bytes
 *   m256=HEX          more bytes at that offset of the arena
 *   p8=3:4            4 bytes of slot 3 go to offset 8 of x
 *   s8=5:4            after success 4 bytes at offset 8 are kept in slot 5
 *   save=5            after success what the call returned is kept in slot 5
 */

export const PAGE = 0x1000;
export const ARENA = 0x2000_0000_0000n;
export const ARENA_BYTES: number = 2 * PAGE;
export const GUARD: bigint = ARENA + BigInt(ARENA_BYTES);
export const RO: bigint = GUARD + BigInt(PAGE);
export const DATA = 0x2000_0100_0000n;
export const DATA_PAGES = 64;
export const SHARED = 0x2000_0200_0000n;
export const FILL = 0xa5;
export const SLOTS = 1024;

/** A descriptor: a number, or what a slot holds. */
export type Fd = number | { readonly slot: number };

/** `width` bytes between a slot and offset `at` of the structure. */
export interface Link {
  readonly at: number;
  readonly slot: number;
  readonly width: 4 | 8;
}

export interface Data {
  readonly at: bigint;
  readonly bytes: Uint8Array;
  readonly patches: readonly Link[];
  readonly keeps: readonly Link[];
  readonly more: readonly { readonly at: number; readonly bytes: Uint8Array }[];
}

/** Operations and the numbers that each takes. */
export const OPERATIONS = {
  /** flags */
  open: 1,
  close: 0,
  dup: 0,
  /** flags, size */
  memfd: 2,
  /** size */
  truncate: 1,
  eventfd: 0,
  /** command */
  ioctl: 1,
  /** bytes */
  read: 1,
  write: 0,
  /** region, offset in it, bytes */
  pread: 3,
  /** region, offset in it */
  pwrite: 2,
  /** address, bytes, protection, flags, offset */
  mmap: 5,
  /** address, bytes */
  munmap: 2,
  /** address, bytes, protection */
  mprotect: 3,
  /** address, bytes: how many can be read, and a hash of them */
  look: 2,
  /** address, bytes, value: fills memory */
  poke: 3,
  /** events */
  poll: 1,
  /** RLIMIT_MEMLOCK, bytes */
  memlock: 1,
  /** number of the capability to lose */
  drop: 1,
  /** milliseconds */
  sleep: 1,
} as const;

export type Operation = keyof typeof OPERATIONS;

export interface Call {
  readonly op: Operation;
  readonly fd?: Fd;
  readonly n: readonly (bigint | { readonly slot: number })[];
  readonly path?: string;
  readonly data?: Data;
  readonly save?: number;
  /** Undoes what must not be left behind: never dropped when a sequence is made smaller. */
  readonly needed?: boolean;
}

export interface Sequence {
  readonly name: string;
  readonly calls: readonly Call[];
}

export const HEX: readonly string[] = Array.from({ length: 256 }, (_, i) => i.toString(16).padStart(2, "0"));
export function hexOf(bytes: Uint8Array): string {
  let s = "";
  for (const b of bytes) s += HEX[b];
  return s;
}

function unhex(text: string): Uint8Array {
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => Number.parseInt(text.slice(2 * i, 2 * i + 2), 16));
}

export function callText(c: Call): string {
  const words: string[] = [c.op];
  if (c.fd !== undefined) words.push(typeof c.fd === "number" ? `fd=${c.fd}` : `fd=$${c.fd.slot}`);
  if (c.n.length > 0) words.push(`n=${c.n.map((v) => (typeof v === "bigint" ? `${v}` : `$${v.slot}`)).join(",")}`);
  if (c.path !== undefined) words.push(`path=${c.path}`);
  if (c.data !== undefined) {
    const { at, bytes, patches, keeps, more } = c.data;
    words.push(`at=0x${at.toString(16)}`, `x=${hexOf(bytes)}`);
    for (const m of more) words.push(`m${m.at}=${hexOf(m.bytes)}`);
    for (const p of patches) words.push(`p${p.at}=${p.slot}:${p.width}`);
    for (const k of keeps) words.push(`s${k.at}=${k.slot}:${k.width}`);
  }
  if (c.save !== undefined) words.push(`save=${c.save}`);
  if (c.needed === true) words.push("needed=1");
  return words.join(" ");
}

export function programText(sequences: readonly Sequence[]): string {
  return sequences.map((s) => `sequence ${s.name}\n${s.calls.map((c) => `${callText(c)}\n`).join("")}`).join("");
}

function parseCall(line: string): Call {
  const [op = "", ...words] = line.split(" ");
  if (!(op in OPERATIONS)) throw new RangeError(`unknown operation ${op}`);
  const at = new Map(words.map((w) => [w.slice(0, w.indexOf("=")), w.slice(w.indexOf("=") + 1)]));
  const [fd, path, save] = [at.get("fd"), at.get("path"), at.get("save")];
  const link = (offset: string, value: string): Link => {
    const [slot, width] = value.split(":").map(Number);
    return { at: Number(offset), slot: slot ?? 0, width: width === 8 ? 8 : 4 };
  };
  const links = (letter: string): Link[] =>
    [...at].filter(([k]) => k[0] === letter && /^.\d+$/.test(k)).map(([k, v]) => link(k.slice(1), v));
  const place = at.get("at");
  return {
    op: op as Operation,
    ...(fd === undefined ? {} : { fd: fd.startsWith("$") ? { slot: Number(fd.slice(1)) } : Number(fd) }),
    n: (at.get("n") ?? "")
      .split(",")
      .filter((v) => v !== "")
      .map((v) => (v.startsWith("$") ? { slot: Number(v.slice(1)) } : BigInt(v))),
    ...(path === undefined ? {} : { path }),
    ...(place === undefined
      ? {}
      : {
          data: {
            at: BigInt(place),
            bytes: unhex(at.get("x") ?? ""),
            patches: links("p"),
            keeps: links("s"),
            more: [...at].filter(([k]) => /^m\d+$/.test(k)).map(([k, v]) => ({ at: Number(k.slice(1)), bytes: unhex(v) })),
          },
        }),
    ...(save === undefined ? {} : { save: Number(save) }),
    ...(at.has("needed") ? { needed: true } : {}),
  };
}

/** The sequences of a text that `programText` wrote. */
export function parseProgram(text: string): Sequence[] {
  const out: { name: string; calls: Call[] }[] = [];
  for (const line of text.split("\n")) {
    if (line === "") continue;
    if (line.startsWith("sequence ")) out.push({ name: line.slice(9), calls: [] });
    else out.at(-1)?.calls.push(parseCall(line));
  }
  return out;
}
