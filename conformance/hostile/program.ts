/**
 * A list of calls as text, one a line: what `hostile.c` makes on a real Linux
 * and `interpret.ts` on the embedded kernel. `hostile.c` describes the words.
 *
 * Structures are given by their members. A string is a number kept earlier
 * (`$ioas`) in a 32-bit member, or a place in memory (`arena+4096`) in a 64-bit one.
 */

import type { AnyStruct } from "../../src/uapi/index.ts";
import * as u from "../../src/uapi/index.ts";

export type Members = Readonly<Record<string, number | bigint | string>>;

export interface Options {
  /** Where the structure lies; `arena` when not said. */
  readonly at?: string;
  /** `$name@offset`: kept from the structure, or `$name`: what the call returned. */
  readonly save?: string;
  /** Bytes after the structure, hex. */
  readonly tail?: string;
  /** `N:BYTES` after the structure. */
  readonly repeat?: string;
  /** Numbers kept earlier, by their offset in what follows the structure. */
  readonly tailNumbers?: Readonly<Record<number, string>>;
  /** Bytes of the structure that are laid down; all when not said. */
  readonly cut?: number;
  /** By offset in the arena: bytes in hex, or `$name`. */
  readonly memory?: Readonly<Record<number, string>>;
}

export const hexOf = (bytes: Uint8Array): string => [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");

/** 64-bit numbers as they lie in memory, hex. */
export function u64s(...values: bigint[]): string {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((v, i) => void view.setBigUint64(i * 8, BigInt.asUintN(64, v), true));
  return hexOf(new Uint8Array(view.buffer));
}

export function u32s(...values: number[]): string {
  const view = new DataView(new ArrayBuffer(values.length * 4));
  values.forEach((v, i) => void view.setUint32(i * 4, v >>> 0, true));
  return hexOf(new Uint8Array(view.buffer));
}

export class Program {
  readonly lines: string[] = [];

  section(name: string): void {
    this.lines.push(`section ${name}`);
  }

  /** Any call but ioctl. */
  call(op: string, what: string, words: Readonly<Record<string, string | number>> = {}): void {
    const text = Object.entries(words).map(([k, v]) => ` ${k}=${v}`);
    this.lines.push(`${op}${text.join("")} # ${what}`);
  }

  open(path: string, save: string, flags: number = u.O_RDWR): void {
    this.call("open", path, { path, flags, save });
  }

  close(fd: string, what: string): void {
    this.call("close", what, { fd });
  }

  /** An ioctl whose argument is no structure, or one that cannot be read. */
  bare(fd: string | number, cmd: string, at: string, what: string): void {
    this.call("ioctl", what, { fd, cmd, at });
  }

  ioctl(fd: string | number, cmd: string, struct: AnyStruct, what: string, members: Members, o: Options = {}): void {
    const bytes = new Uint8Array(struct.size);
    const view = struct.over(bytes) as unknown as Record<string, number | bigint>;
    const fixups: Record<string, string> = {};
    for (const [name, value] of Object.entries(members)) {
      const at = struct.offsets[name];
      if (at === undefined) throw new RangeError(`${struct.name} has no member ${name}`);
      if (typeof value === "string") fixups[`${struct.widths[name] === 8 ? "p" : "v"}${at}`] = value;
      else view[name] = struct.widths[name] === 8 ? BigInt(value) : Number(value);
    }
    for (const [at, value] of Object.entries(o.tailNumbers ?? {})) fixups[`v${struct.size + Number(at)}`] = value;
    const memory = Object.entries(o.memory ?? {}).map(([at, v]) => [`m${at}`, v]);
    this.call("ioctl", what, {
      fd,
      cmd,
      at: o.at ?? "arena",
      hex: hexOf(bytes.subarray(0, o.cut ?? bytes.length)) + (o.tail ?? ""),
      ...fixups,
      ...Object.fromEntries(memory),
      ...(o.repeat === undefined ? {} : { rep: o.repeat }),
      ...(o.save === undefined ? {} : { save: o.save }),
    });
  }

  /**
   * The ways in which the structure as such can be wrong. `min` is the least
   * that is accepted; the first member is the size. `members` are good.
   */
  shapes(fd: string, cmd: string, struct: AnyStruct, min: number, members: Members): void {
    const [size = "size"] = Object.keys(struct.fields);
    const good: Members = { [size]: struct.size, ...members };
    const shape = (what: string, m: Members = {}, o: Options = {}): void => this.ioctl(fd, cmd, struct, what, { ...good, ...m }, o);
    this.bare(fd, cmd, "0", "null pointer");
    this.bare(fd, cmd, "0xffff888000000000", "kernel address");
    this.bare(fd, cmd, "0x8000000000000000", "address no table can hold");
    this.bare(fd, cmd, "guard", "unreadable page");
    shape("size 0", { [size]: 0 });
    shape("size 4", { [size]: 4 });
    shape("least size less 1", { [size]: min - 1 });
    shape("size 0 and only its four bytes readable", { [size]: 0 }, { at: "guard-4" });
    shape("only the size readable", {}, { at: "guard-4" });
    shape("last byte unreadable", {}, { at: `guard-${min - 1}` });
    shape("8 more, not zero", { [size]: struct.size + 8 }, { tail: "0000000000000001" });
    shape("size of 5000, first byte after the known not zero", { [size]: 5000 }, { tail: "01" });
    shape("8 more, unreadable", { [size]: struct.size + 8 }, { at: `guard-${struct.size}` });
    shape(
      "16 more, not zero before the unreadable",
      { [size]: struct.size + 16 },
      { at: `guard-${struct.size + 8}`, tail: "0000010000000000" },
    );
    shape(
      "16 more, zero before the unreadable",
      { [size]: struct.size + 16 },
      { at: `guard-${struct.size + 8}`, tail: "0000000000000000" },
    );
    shape("size ~0, zero up to the unreadable", { [size]: 0xffff_ffff }, { at: `guard-${struct.size}` });
  }

  /** The bytes of the program. */
  text(): string {
    return `${this.lines.join("\n")}\n`;
  }
}
