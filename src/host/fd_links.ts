/**
 * What the descriptors of another thread refer to, by readlink in /proc/TID/fd.
 *
 * The folder is held open: that spares the walk to it, and a folder of a
 * thread that has ended stays empty, even when its number is used again.
 */
import type { Errno } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { lastErrno, libcFunction, putPath, reserve } from "./ffi.ts";

const O_PATH_DIRECTORY_CLOEXEC = 0o10000000 | (process.arch === "arm64" ? 0o40000 : 0o200000) | 0o2000000;
const AT_FDCWD = -100;
const openat = libcFunction("openat", "int", ["int", "uintptr_t", "int", "int"]);
const readlinkat = libcFunction("readlinkat", "intptr_t", ["int", "uintptr_t", "uintptr_t", "uintptr_t"]);

const name = reserve(16);
const TARGET_MAX = 4096;
const target = reserve(TARGET_MAX);
const decoder = new TextDecoder();

export class FdLinks {
  readonly #fd: number;
  /** Bytes of the link that `read` found last; good until the next `read` of any. */
  static readonly bytes: Uint8Array = target.bytes;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** ENOENT when there is no such thread, EACCES when it may not be looked into. */
  static open(tid: number): FdLinks | Errno {
    const fd = openat(AT_FDCWD, putPath(`/proc/${tid}/fd`), O_PATH_DIRECTORY_CLOEXEC, 0);
    return fd === -1 ? lastErrno() : new FdLinks(fd);
  }

  /** Length of the link of descriptor `fd` in `FdLinks.bytes`. ENOENT: it is closed, or the thread has ended. */
  read(fd: number): number | Errno {
    const n = readlinkat(this.#fd, putNumber(fd), target.address, TARGET_MAX);
    return n === -1 ? lastErrno() : n;
  }

  /** The link found last, as text. */
  static text(length: number): string {
    return decoder.decode(target.bytes.subarray(0, length));
  }

  close(): void {
    closeFd(this.#fd);
  }
}

/** `fd` in decimal; below zero it is no descriptor, and "-" is no name in the folder. */
function putNumber(fd: number): number {
  let at = 15;
  name.bytes[at] = 0;
  let n = fd;
  if (n < 0) name.bytes[--at] = 0x2d;
  else {
    do {
      name.bytes[--at] = 0x30 + (n % 10);
      n = Math.trunc(n / 10);
    } while (n > 0);
  }
  return name.address + at;
}
