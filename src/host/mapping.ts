/**
 * Memory of our own that a file backs, touched from outside.
 *
 * A mapping faults when its file is cut, or when no page is to be had, and a
 * fault kills Node. So its bytes are written as another process's are: the
 * kernel answers EFAULT instead.
 */
import type { Errno } from "../lib/errno.ts";
import { lastErrno, libcFunction, nr, reserve } from "./ffi.ts";
import { writeMemory } from "./process_vm.ts";

const PROT_READ_WRITE = 3;
const MAP_SHARED_NORESERVE = 0x4001;
const mmap = libcFunction("mmap", "intptr_t", ["uintptr_t", "uintptr_t", "int", "int", "int", "int64_t"]);
const munmap = libcFunction("munmap", "int", ["uintptr_t", "uintptr_t"]);

const STATX = nr("statx");
const AT_EMPTY_PATH = 0x1000;
const STATX_SIZE = 0x200;
const statx = libcFunction("syscall", "intptr_t", ["intptr_t", "int", "uintptr_t", "int", "uint", "uintptr_t"]);
const status = reserve(256);
const noPath = reserve(1);

/** Bytes of a file: what `statFd` says, for a path that asks at each access. */
export function sizeOfFd(fd: number): number | Errno {
  const n = statx(STATX, fd, noPath.address, AT_EMPTY_PATH, STATX_SIZE, status.address);
  return n === -1 ? lastErrno() : Number(status.u64[5]);
}

/**
 * Writes to a file through a mapping, for one that write(2) does not work on (hugetlbfs): bytes written. `unit`: the file's
 * page size, which [offset, offset + src.length) does not cross. EFAULT, or why it cannot be mapped.
 */
export function writeMapped(fd: number, offset: number, src: Uint8Array, unit: number): number | Errno {
  const from = offset - (offset % unit);
  const address = mmap(0, unit, PROT_READ_WRITE, MAP_SHARED_NORESERVE, fd, from);
  if (address === -1) return lastErrno();
  try {
    return writeMemory(process.pid, BigInt(address + (offset - from)), src);
  } finally {
    munmap(address, unit);
  }
}
