/** Making files that are not for bytes (mknodat(2)). */
import { ENAMETOOLONG, type Errno } from "../lib/errno.ts";
import { checkVoid, nr, putPath, syscall4 } from "./ffi.ts";

const MKNODAT = nr("mknodat");

/** Makes a node; `mode` has the kind in it. A character device of number 0 needs no privilege, and cannot be opened. */
export function mknodAt(dirfd: number, path: string, mode: number, device: number): Errno | undefined {
  const address = putPath(path);
  return address === 0 ? ENAMETOOLONG : checkVoid(syscall4(MKNODAT, dirfd, address, mode, device));
}
