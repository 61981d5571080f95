/** Calls that must not wait, on descriptors that the target may have opened to wait: we share its open file, and its flags. */
import type { Errno } from "../lib/errno.ts";
import { fcntl } from "./fd.ts";
import { lastErrno, libcFunction, nr, reserve } from "./ffi.ts";

const PREADV2 = nr("preadv2");
const RWF_NOWAIT = 8;
const preadv2 = libcFunction("syscall", "intptr_t", ["intptr_t", "int", "uintptr_t", "int", "int64_t", "int64_t", "int"]);
const ppoll = libcFunction("ppoll", "int", ["uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t"]);
const pollfd = reserve(8);
const zero = reserve(16);
const iovec = reserve(16);
const word = reserve(8);

/** POLL* of `events` that hold now. */
export function pollNow(fd: number, events: number): number {
  pollfd.s32[0] = fd;
  pollfd.s32[1] = events & 0xffff;
  zero.u64.fill(0n);
  const n = ppoll(pollfd.address, 1, zero.address, 0);
  return n > 0 ? (pollfd.s32[1] as number) >>> 16 : 0;
}

/** Takes an eventfd's count (or 1 of it, with EFD_SEMAPHORE) without waiting: EAGAIN when it is 0. EOPNOTSUPP before Linux 5.8. */
export function eventfdTakeNow(fd: number): bigint | Errno {
  iovec.u64[0] = BigInt(word.address);
  iovec.u64[1] = 8n;
  // Position -1: the file's own. It is passed in two halves, of which 64-bit kernels read the first.
  const n = preadv2(PREADV2, fd, iovec.address, 1, -1, -1, RWF_NOWAIT);
  return n === -1 ? lastErrno() : (word.u64[0] as bigint);
}

const F_GET_SEALS = 1034;

/** F_SEAL_* of a memfd or a file of tmpfs; EINVAL for any other. */
export function fileSeals(fd: number): number | Errno {
  return fcntl(fd, F_GET_SEALS);
}
