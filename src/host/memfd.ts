/**
 * Memory files, and the ones that stand for a kernel file in a target.
 *
 * A *held* memfd is named `barlink:<id>` and opened anew through /proc: only a file that was opened tells inotify when its
 * last descriptor goes. A target's descriptor is found to be held by its link, `/memfd:barlink:<id> (deleted)`, which
 * survives dup, fork and SCM_RIGHTS, and which no other process can put on a file of its own, except on one of that
 * name: who must be sure compares device and inode as well. An unlinked file `barlink:<id>` of any folder is one too.
 */
import { EINVAL, ENOENT, Errno } from "../lib/errno.ts";
import { closeFd } from "./fd.ts";
import { check, checkVoid, errnoNumber, lastErrno, libcFunction, nr, putPath, reserve, syscall4, syscall6 } from "./ffi.ts";
import { openAt } from "./openat.ts";

export const MFD_CLOEXEC = 1;
export const MFD_ALLOW_SEALING = 2;
export const MFD_HUGETLB = 4;
const O_RDWR = 2;
const O_CLOEXEC = 0o2000000;
const AT_FDCWD = -100;

const MEMFD_CREATE = nr("memfd_create");
const FALLOCATE = nr("fallocate");
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const ftruncate64 = libcFunction("ftruncate64", "int", ["int", "int64_t"]);
const readlinkat = libcFunction("readlinkat", "intptr_t", ["int", "uintptr_t", "uintptr_t", "uintptr_t"]);

/** A memfd; its name only shows in /proc. */
export function memfdCreate(name: string, flags: number = MFD_CLOEXEC): number | Errno {
  const address = putPath(name);
  return address === 0 ? EINVAL : check(syscall4(MEMFD_CREATE, address, flags, 0, 0));
}

/** Another open file of what `fd` refers to, with FD_CLOEXEC: own flags, own offset, and inotify sees its last close. */
export function reopenFd(fd: number, flags: number = O_RDWR): number | Errno {
  return openAt(AT_FDCWD, `/proc/self/fd/${fd}`, flags | O_CLOEXEC);
}

export function ftruncateFd(fd: number, size: number | bigint): Errno | undefined {
  return checkVoid(ftruncate64(fd, size));
}

/** Frees the pages; the bytes read as zeros. Mappings stay. */
export function punchHole(fd: number, offset: number | bigint, length: number | bigint): Errno | undefined {
  return checkVoid(syscall6(FALLOCATE, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, Number(offset), Number(length), 0, 0));
}

/** A fresh memfd `barlink:<id>` that was re-opened, ready to be injected: the only descriptor of it, with FD_CLOEXEC. */
export function createHeldMemfd(id: number): number | Errno {
  const raw = memfdCreate(`barlink:${id}`);
  if (raw instanceof Errno) return raw;
  const fd = reopenFd(raw);
  closeFd(raw);
  return fd;
}

/** What stands before the id, after ":" of a memfd or "/" of another file that was unlinked. */
const NAME = [..."barlink:"].map((c) => c.charCodeAt(0));
const SUFFIX = [..." (deleted)"].map((c) => c.charCodeAt(0));
const digits = reserve(16);
const digitBytes = digits.bytes;
const link = reserve(4096);
const linkBytes = link.bytes;
const decoder = new TextDecoder();

/** `n` in decimal with a NUL, in the arena; returns where. */
function putNumber(n: number): number {
  let at = 15;
  digitBytes[at] = 0;
  let rest = n;
  do {
    digitBytes[--at] = 48 + (rest % 10);
    rest = Math.floor(rest / 10);
  } while (rest > 0);
  return digits.address + at;
}

const ENOENT_CODE = ENOENT.code;

/**
 * A process's (or thread's) folder of descriptors, held open: looking one up costs half of what the whole path does, and
 * once the process is dead every look fails with ESRCH or ENOENT, whoever has its pid now.
 */
export class FdLinks {
  readonly #dir: number;

  constructor(dir: number) {
    this.#dir = dir;
  }

  /** EACCES: the process is not dumpable, or another user's. ENOENT: it is gone. */
  static open(pid: number): FdLinks | Errno {
    const O_PATH = 0o10000000;
    const dir = openAt(AT_FDCWD, `/proc/${pid}/fd`, O_PATH | O_CLOEXEC);
    return dir instanceof Errno ? dir : new FdLinks(dir);
  }

  /** The id of the held memfd behind a descriptor of the target; 0 when it is something else, -1 when it is not open. Errno: no such process. */
  heldId(fd: number): number | Errno {
    if (fd < 0) return -1;
    const n = readlinkat(this.#dir, putNumber(fd), link.address, 4096);
    if (n !== -1) return parseHeld(n);
    return errnoNumber() === ENOENT_CODE ? -1 : lastErrno();
  }

  /** Where a descriptor leads, as readlink shows it. ENOENT: not open. */
  read(fd: number): string | Errno {
    if (fd < 0) return ENOENT;
    const n = readlinkat(this.#dir, putNumber(fd), link.address, 4096);
    return n === -1 ? lastErrno() : decoder.decode(linkBytes.slice(0, n));
  }

  close(): void {
    closeFd(this.#dir);
  }
}

/** Of `/memfd:barlink:ID (deleted)`, or of `…/barlink:ID (deleted)`. */
function parseHeld(length: number): number {
  let at = length - SUFFIX.length;
  if (at <= NAME.length) return 0;
  for (let i = 0; i < SUFFIX.length; i++) if (linkBytes[at + i] !== SUFFIX[i]) return 0;
  let id = 0;
  let unit = 1;
  for (; ; unit *= 10) {
    const digit = (linkBytes[at - 1] as number) - 48;
    if (!(digit >= 0 && digit <= 9)) break;
    id += digit * unit;
    at--;
  }
  if (unit === 1 || at <= NAME.length) return 0;
  at -= NAME.length;
  for (let i = 0; i < NAME.length; i++) if (linkBytes[at + i] !== NAME[i]) return 0;
  const before = linkBytes[at - 1];
  return before === 58 || before === 47 ? id : 0;
}

/** `FdLinks.heldId` without keeping the folder open. */
export function heldMemfdId(tid: number, fd: number): number | Errno {
  if (fd < 0) return -1;
  const n = readlinkat(AT_FDCWD, putPath(`/proc/${tid}/fd/${fd}`), link.address, 4096);
  if (n !== -1) return parseHeld(n);
  return errnoNumber() === ENOENT_CODE ? -1 : lastErrno();
}

/** Where a symbolic link leads. */
export function readLinkAt(dirfd: number, path: string | Uint8Array): string | Errno {
  const address = putPath(path);
  if (address === 0) return EINVAL;
  const n = readlinkat(dirfd, address, link.address, 4096);
  return n === -1 ? lastErrno() : decoder.decode(linkBytes.slice(0, n));
}
