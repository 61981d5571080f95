/**
 * Another process's memory (process_vm_readv(2)): page protections count as they do for the process itself. A copy that
 * meets a page that it may not touch stops at that page's first byte.
 *
 * A pid that has died is ESRCH; one that has been given to another process is that process. Confirm with
 * `Listener.idValid` after a read, and do not write before.
 */
import { EFAULT, ENAMETOOLONG, Errno } from "../lib/errno.ts";
import { addressOf, lastErrno, libcFunction, reserve, scratch } from "./ffi.ts";

const types = ["int", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t"] as const;
const readv = libcFunction("process_vm_readv", "intptr_t", types);
const writev = libcFunction("process_vm_writev", "intptr_t", types);

// Two struct iovec: here, there.
const iovecs = reserve(32);
const iovec64 = iovecs.u64;
const HERE = iovecs.address;
const THERE = iovecs.address + 16;

/** Up to here a copy through the arena is cheaper than finding out where the caller's bytes are. */
const COPY_BELOW = 4096;
const scratchAddress = BigInt(scratch.address);
const scratchBytes = scratch.bytes;
const ADDRESS_END = 1n << 64n;

function describe(address: bigint, here: bigint, length: number): void {
  const n = BigInt(length);
  iovec64[0] = here;
  iovec64[1] = n;
  iovec64[2] = address;
  iovec64[3] = n;
}

/** Copies from `address` of `pid`: the count of bytes copied, from the start. EFAULT: none. ESRCH, EPERM: no such process, or not ours. */
export function readMemory(pid: number, address: bigint, dst: Uint8Array): number | Errno {
  const length = dst.length;
  if (length === 0) return 0;
  const small = length <= COPY_BELOW;
  describe(address, small ? scratchAddress : BigInt(addressOf(dst)), reach(address, length));
  const n = readv(pid, HERE, 1, THERE, 1, 0);
  if (n === -1) return lastErrno();
  if (small) {
    // For a few bytes a loop is faster than a view.
    if (n <= 64) for (let i = 0; i < n; i++) dst[i] = scratchBytes[i] as number;
    else dst.set(scratchBytes.subarray(0, n));
  }
  return n;
}

/** Copies to `address` of `pid`; as `readMemory`. */
export function writeMemory(pid: number, address: bigint, src: Uint8Array): number | Errno {
  const length = src.length;
  if (length === 0) return 0;
  const small = length <= COPY_BELOW;
  if (small) scratchBytes.set(src);
  describe(address, small ? scratchAddress : BigInt(addressOf(src)), reach(address, length));
  const n = writev(pid, HERE, 1, THERE, 1, 0);
  return n === -1 ? lastErrno() : n;
}

/** How much of a range lies below the end of the 64-bit space: no wrapping around to 0. */
function reach(address: bigint, length: number): number {
  return address + BigInt(length) > ADDRESS_END ? Number(ADDRESS_END - address) : length;
}

/** Most paths end within this: read first. */
const FIRST = 256;
const PAGE = 4096;

/**
 * The bytes up to a NUL at `address`, without it, as strncpy_from_user: EFAULT when memory ends first, ENAMETOOLONG when
 * `max` bytes hold no NUL (PATH_MAX counts it).
 */
export function readCString(pid: number, address: bigint, max = 4096): Uint8Array | Errno {
  if (max > scratchBytes.length) throw new RangeError(`a string of ${max} bytes is too long to be read`);
  let got = 0;
  while (got < max) {
    const at = address + BigInt(got);
    const toPageEnd = PAGE - Number(at & 0xfffn);
    const want = Math.min(max - got, got === 0 ? Math.min(FIRST, toPageEnd) : toPageEnd);
    iovec64[0] = scratchAddress + BigInt(got);
    iovec64[1] = BigInt(want);
    iovec64[2] = at;
    iovec64[3] = BigInt(want);
    const n = readv(pid, HERE, 1, THERE, 1, 0);
    if (n === -1) return lastErrno();
    if (n === 0) return EFAULT;
    const end = scratchBytes.subarray(0, got + n).indexOf(0, got);
    if (end >= 0) return scratchBytes.slice(0, end);
    got += n;
  }
  return ENAMETOOLONG;
}

const decoder = new TextDecoder();

/** The same as text; bytes that are not UTF-8 become U+FFFD. */
export function readPath(pid: number, address: bigint): string | Errno {
  const bytes = readCString(pid, address);
  return bytes instanceof Errno ? bytes : decoder.decode(bytes);
}
