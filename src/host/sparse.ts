/** Where a file has data, and where it is a hole (lseek(2), SEEK_DATA). Moves the open file's offset. */
import { ENXIO, type Errno } from "../lib/errno.ts";
import { check, libcFunction } from "./ffi.ts";

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const lseek64 = libcFunction("lseek64", "int64_t", ["int", "int64_t", "int"]);

/** The first run of data at or after `from`, [start, end); undefined: there is none. */
export function nextData(fd: number, from: number): { readonly start: number; readonly end: number } | undefined | Errno {
  const start = check(lseek64(fd, from, SEEK_DATA));
  if (typeof start !== "number") return start === ENXIO ? undefined : start;
  const end = check(lseek64(fd, start, SEEK_HOLE));
  return typeof end === "number" ? { start, end } : end;
}
