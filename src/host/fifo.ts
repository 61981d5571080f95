/**
 * Pipes whose name is gone: of what a program has of them inotify tells the last close, and poll, select and epoll find them
 * ready as their maker wants it. One that is open for reading and writing is writable while it has room, and readable while
 * something is in it; one that is open for reading only is never writable.
 */
import { Errno } from "../lib/errno.ts";
import { closeFd, readFd, writeFd } from "./fd.ts";
import { checkVoid, ioctl, nr, putPath, reserve, syscall4 } from "./ffi.ts";
import { mknodAt } from "./mknod.ts";
import { AT_FDCWD, openAt } from "./openat.ts";

const S_IFIFO = 0o010000;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const FIONREAD = 0x541b;
const UNLINKAT = nr("unlinkat");
const count = reserve(4);
const drained = new Uint8Array(4096);
const token = new Uint8Array(1);

/** A pipe that was made at `path` and unlinked, open for reading and writing without waiting. What opens it anew goes by /proc/self/fd. */
export function createFifo(path: string): number | Errno {
  const failed = mknodAt(AT_FDCWD, path, S_IFIFO | 0o600, 0);
  if (failed !== undefined) return failed;
  const fd = openAt(AT_FDCWD, path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  const left = checkVoid(syscall4(UNLINKAT, AT_FDCWD, putPath(path), 0, 0));
  if (fd instanceof Errno || left === undefined) return fd;
  closeFd(fd);
  return left;
}

/** Makes a pipe of `createFifo` readable or not, whatever others have put into it or taken out. */
export function setReadable(fd: number, readable: boolean): void {
  let n = ioctl(fd, FIONREAD, count.address) === 0 ? (count.u32[0] as number) : 0;
  if (n === (readable ? 1 : 0)) return;
  while (n > 0) {
    const got = readFd(fd, drained);
    if (got instanceof Errno) break;
    n -= got;
  }
  if (readable) writeFd(fd, token);
}
