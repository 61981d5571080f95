/** Descriptors of this process, and bytes through them. */
import type { Errno } from "../lib/errno.ts";
import { addressOf, check, checkVoid, libcFunction, nr, scratch, syscall4 } from "./ffi.ts";

const close = libcFunction("close", "int", ["int"]);
const readInto = libcFunction("read", "intptr_t", ["int", "uintptr_t", "uintptr_t"]);
const writeFrom = libcFunction("write", "intptr_t", ["int", "uintptr_t", "uintptr_t"]);
const preadInto = libcFunction("pread64", "intptr_t", ["int", "uintptr_t", "uintptr_t", "int64_t"]);
const pwriteFrom = libcFunction("pwrite64", "intptr_t", ["int", "uintptr_t", "uintptr_t", "int64_t"]);
const FCNTL = nr("fcntl");
const F_DUPFD_CLOEXEC = 1030;
const F_GETFD = 1;
const F_GETFL = 3;
const F_SETFL = 4;

/** Up to here a copy through the arena is cheaper than finding out where the caller's bytes are. */
const COPY_BELOW = 4096;

export function closeFd(fd: number): Errno | undefined {
  return checkVoid(close(fd));
}

/** A second descriptor of the same open file, not below `least`, with FD_CLOEXEC. */
export function dupFd(fd: number, least = 0): number | Errno {
  return fcntl(fd, F_DUPFD_CLOEXEC, least);
}

export function fcntl(fd: number, command: number, argument = 0): number | Errno {
  return check(syscall4(FCNTL, fd, command, argument, 0));
}

export function isOpen(fd: number): boolean {
  return typeof fcntl(fd, F_GETFD) === "number";
}

/** O_*, as F_GETFL tells them. */
export function fdFlags(fd: number): number | Errno {
  return fcntl(fd, F_GETFL);
}

export function setFdFlags(fd: number, flags: number): Errno | undefined {
  const r = fcntl(fd, F_SETFL, flags);
  return typeof r === "number" ? undefined : r;
}

/** Bytes read into `dst`; 0 is the end. */
export function readFd(fd: number, dst: Uint8Array): number | Errno {
  if (dst.length > COPY_BELOW) return check(readInto(fd, addressOf(dst), dst.length));
  return copiedOut(readInto(fd, scratch.address, dst.length), dst);
}

/** Bytes written of `src`, which may be fewer. SIGPIPE is ignored in Node: EPIPE. */
export function writeFd(fd: number, src: Uint8Array): number | Errno {
  return check(writeFrom(fd, addressToWrite(src), src.length));
}

/** The same at an offset. Past the end of the file, 0. */
export function preadFd(fd: number, dst: Uint8Array, offset: number | bigint): number | Errno {
  if (dst.length > COPY_BELOW) return check(preadInto(fd, addressOf(dst), dst.length, offset));
  return copiedOut(preadInto(fd, scratch.address, dst.length, offset), dst);
}

export function pwriteFd(fd: number, src: Uint8Array, offset: number | bigint): number | Errno {
  return check(pwriteFrom(fd, addressToWrite(src), src.length, offset));
}

function copiedOut(n: number, dst: Uint8Array): number | Errno {
  if (n > 0) dst.set(scratch.bytes.subarray(0, n));
  return check(n);
}

function addressToWrite(src: Uint8Array): number {
  if (src.length > COPY_BELOW) return addressOf(src);
  scratch.bytes.set(src);
  return scratch.address;
}
