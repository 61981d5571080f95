/**
 * What programs write into sysfs, as the kernel reads it.
 *
 * Source: lib/kstrtox.c, sysfs_streq, drivers/base/driver.c.
 */
import { EINVAL, type Errno } from "../../lib/errno.ts";

const decoder = new TextDecoder("latin1");

/** The text up to the first NUL: the kernel handles it as a C string. */
export function textOf(data: Uint8Array): string {
  const end = data.indexOf(0);
  return decoder.decode(end < 0 ? data : data.subarray(0, end));
}

/** The text without the one newline that `echo` leaves. */
export function lineOf(data: Uint8Array): string {
  const text = textOf(data);
  return text.endsWith("\n") ? text.slice(0, -1) : text;
}

/** kstrtoul(base 0): decimal, 0x or 0 before hexadecimal or octal, one newline allowed. EINVAL, also when it is over `max`. */
export function parseUnsigned(data: Uint8Array, max = 0xffff_ffff_ffff_ffffn): bigint | Errno {
  const m = /^\+?(?:(0[xX][0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))$/.exec(lineOf(data));
  if (m === null) return EINVAL;
  const value = m[1] !== undefined ? BigInt(m[1]) : m[2] !== undefined ? BigInt(`0o${m[2]}`) : BigInt(m[3] as string);
  return value > max ? EINVAL : value;
}

/** kstrtobool: y, Y, t, T, 1, on; n, N, f, F, 0, off. EINVAL. */
export function parseBoolean(data: Uint8Array): boolean | Errno {
  const text = textOf(data);
  const first = text[0] ?? "";
  if ("yYtT1".includes(first) && first !== "") return true;
  if ("nNfF0".includes(first) && first !== "") return false;
  const two = text.slice(0, 2).toLowerCase();
  if (two === "on") return true;
  return two === "of" ? false : EINVAL;
}

/** Up to seven hexadecimal numbers, as `sscanf("%x %x …")` finds them: it stops at the first thing that is none. */
export function parseHexFields(data: Uint8Array): number[] {
  const out: number[] = [];
  for (const word of textOf(data).trim().split(/\s+/).slice(0, 7)) {
    const m = /^(?:0[xX])?([0-9a-fA-F]+)/.exec(word);
    if (m === null) break;
    out.push(Number(BigInt(`0x${m[1]}`) & 0xffff_ffffn));
    if (m[0].length !== word.length) break;
  }
  return out;
}

const ACTIONS: readonly string[] = ["add", "remove", "change", "move", "online", "offline", "bind", "unbind"];

/** A write to `uevent`: the first word must be an action. */
export function checkUevent(data: Uint8Array): Errno | undefined {
  const word = lineOf(data).split(" ")[0] ?? "";
  return ACTIONS.includes(word) ? undefined : EINVAL;
}
