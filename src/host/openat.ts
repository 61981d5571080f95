/** Opening by path, with limits on how the path may be walked (openat2(2)). */
import { ENAMETOOLONG, type Errno } from "../lib/errno.ts";
import { check, nr, putPath, reserve, syscall4 } from "./ffi.ts";

export const AT_FDCWD = -100;
/** Fail with EXDEV where the path crosses a mount. */
export const RESOLVE_NO_XDEV = 0x01;
/** Fail with ELOOP at a link like those of /proc/PID/fd. */
export const RESOLVE_NO_MAGICLINKS = 0x02;
/** Fail with ELOOP at any symbolic link. */
export const RESOLVE_NO_SYMLINKS = 0x04;
/** Fail with EXDEV where the path leaves the folder, `..` or an absolute link. */
export const RESOLVE_BENEATH = 0x08;
/** The folder is `/` to the path. */
export const RESOLVE_IN_ROOT = 0x10;

const OPENAT2 = nr("openat2");
const how = reserve(24);

export interface OpenOptions {
  /** Permissions of a file that O_CREAT makes. */
  readonly mode?: number;
  /** RESOLVE_* */
  readonly resolve?: number;
}

/** A descriptor; `flags` are O_*, and O_CLOEXEC is not implied. ENAMETOOLONG also for a path with a NUL inside. */
export function openAt(
  dirfd: number,
  path: string | Uint8Array,
  flags: number,
  { mode = 0, resolve = 0 }: OpenOptions = {},
): number | Errno {
  const address = putPath(path);
  if (address === 0) return ENAMETOOLONG;
  how.u64[0] = BigInt(flags >>> 0);
  how.u64[1] = BigInt(mode);
  how.u64[2] = BigInt(resolve);
  return check(syscall4(OPENAT2, dirfd, address, how.address, 24));
}
