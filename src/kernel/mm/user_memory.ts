/**
 * Reaching a process's memory.
 *
 * `UserMemory` is what the kernel needs of it: simulated here
 * (`address_space.ts`), another process's when a real program is served.
 * Copies stop at the exact byte that cannot be accessed and say how many are
 * left, as copy_from_user does.
 *
 * A copy may be made to fail (`Kernel.fault`), as a whole. Single words
 * (get_user, put_user), clearing and the look for zeros cannot: Linux has no
 * such point there.
 *
 * A copy may fault, and a fault takes the mmap lock: copying with a lock held
 * records that order with lockdep even when nothing faults this time.
 */
import { PAGE_MASK_N, type Pfn, type PhysAddr } from "../../lib/addr.ts";
import { E2BIG, EFAULT, EINVAL, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import type { Kernel } from "../kernel.ts";
import type { Mm } from "./mm.ts";

export interface UserMemory {
  /** Copies from `addr`; returns the bytes NOT read, and those of `dst` are left alone. */
  read(addr: bigint, dst: Uint8Array): number;
  /** Copies to `addr`; returns the bytes NOT written. */
  write(addr: bigint, src: Uint8Array): number;
  /**
   * Pins `npages` pages from the page-aligned `addr` for long (FOLL_LONGTERM):
   * all of them, or none and EFAULT (a hole, a protection that forbids it,
   * device memory) or ENOMEM. `write` breaks copy on write first, and so does a
   * pin for reading in a private mapping.
   */
  pin(addr: bigint, npages: number, write: boolean): Pfn[] | Errno;
  /** Undoes `pin`; the address space may be gone meanwhile. */
  unpin(pfns: readonly Pfn[], dirty: boolean): void;
  /**
   * The physical page behind a mapping of device memory, faulted in if need be;
   * EFAULT when it cannot be had so. Undefined: `addr` is no such mapping. The
   * mmap lock is held for reading.
   */
  followPfnmap?(addr: bigint, write: boolean): Step<PhysAddr | Errno | undefined>;
  /** Told once which mm it serves. */
  attach?(mm: Mm): void;
  /** The last user is gone. */
  destroy?(): void;
  /** A copy for a child process. */
  fork?(): UserMemory;
}

/** Struct views as the copy functions need them; `src/uapi` makes them. */
export interface StructLike<V> {
  readonly size: number;
  over(bytes: Uint8Array, offset?: number): V;
}

function currentMm(k: Kernel): Mm {
  const mm = k.current.mm;
  const task = k.sched.current;
  if (task.held.length > 0) k.sched.lockdep.acquire(task, mm.mmapLock, true);
  return mm;
}

/** Fills `dst` from the current process's memory; returns the bytes NOT copied, which are zeroed. */
export function copyFromUser(k: Kernel, dst: Uint8Array, src: bigint): number {
  const left = k.fault.userCopy() ? dst.length : currentMm(k).memory.read(src, dst);
  if (left > 0) dst.fill(0, dst.length - left);
  return left;
}

/** Copies `src` to the current process's memory; returns the bytes NOT copied. */
export function copyToUser(k: Kernel, dst: bigint, src: Uint8Array): number {
  return k.fault.userCopy() ? src.length : currentMm(k).memory.write(dst, src);
}

/** Fills `dst` by way of pages that are pinned for it, which cannot be made to fail; returns the bytes NOT copied. */
export function copyFromPinned(k: Kernel, dst: Uint8Array, src: bigint): number {
  return currentMm(k).memory.read(src, dst);
}

/** Copies `src` the same way. */
export function copyToPinned(k: Kernel, dst: bigint, src: Uint8Array): number {
  return currentMm(k).memory.write(dst, src);
}

/**
 * Reads a versioned struct of which the caller says it is `usize` bytes long.
 * Shorter than this kernel's: the rest is zeros. Longer: E2BIG unless the rest
 * is zeros. EFAULT when it cannot be read; EINVAL below `minSize`.
 * Source: copy_struct_from_user.
 */
export function copyStructFromUser<V>(k: Kernel, struct: StructLike<V>, src: bigint, usize: number, minSize = 0): V | Errno {
  const bytes = copyBytesFromUser(k, struct.size, src, usize, minSize);
  return bytes instanceof Errno ? bytes : struct.over(bytes);
}

/** The same, into fresh bytes. */
export function copyBytesFromUser(k: Kernel, ksize: number, src: bigint, usize: number, minSize = 0): Uint8Array | Errno {
  if (usize < minSize) return EINVAL;
  const bytes = new Uint8Array(ksize);
  if (usize > ksize) {
    const rest = checkZeroedUser(k, src + BigInt(ksize), usize - ksize);
    if (rest instanceof Errno) return rest;
    if (!rest) return E2BIG;
  }
  const n = Math.min(usize, ksize);
  return copyFromUser(k, n === ksize ? bytes : bytes.subarray(0, n), src) > 0 ? EFAULT : bytes;
}

/** True when `length` bytes at `src` are all zero; EFAULT when they cannot be read up to the first that is not. */
export function checkZeroedUser(k: Kernel, src: bigint, length: number): boolean | Errno {
  const memory = currentMm(k).memory;
  for (let done = 0; done < length; ) {
    const at = src + BigInt(done);
    const n = Math.min(length - done, 4096 - Number(at & PAGE_MASK_N));
    const chunk = new Uint8Array(n);
    const left = memory.read(at, chunk);
    if (chunk.subarray(0, n - left).some((b) => b !== 0)) return false;
    if (left > 0) return EFAULT;
    done += n;
  }
  return true;
}

/** Zeroes `length` bytes at `dst`; returns the bytes NOT zeroed. */
export function clearUser(k: Kernel, dst: bigint, length: number): number {
  return currentMm(k).memory.write(dst, new Uint8Array(length));
}

const word = new DataView(new ArrayBuffer(8));
const wordBytes = new Uint8Array(word.buffer);

/** One u32 at `src`. */
export function getUserU32(k: Kernel, src: bigint): number | Errno {
  return currentMm(k).memory.read(src, wordBytes.subarray(0, 4)) > 0 ? EFAULT : word.getUint32(0, true);
}

/** One u64 at `src`. */
export function getUserU64(k: Kernel, src: bigint): bigint | Errno {
  return currentMm(k).memory.read(src, wordBytes) > 0 ? EFAULT : word.getBigUint64(0, true);
}

/** Stores one u32 at `dst`. */
export function putUserU32(k: Kernel, dst: bigint, value: number): Errno | undefined {
  word.setUint32(0, value, true);
  return currentMm(k).memory.write(dst, wordBytes.subarray(0, 4)) > 0 ? EFAULT : undefined;
}

/** Stores one u64 at `dst`. */
export function putUserU64(k: Kernel, dst: bigint, value: bigint): Errno | undefined {
  word.setBigUint64(0, value, true);
  return currentMm(k).memory.write(dst, wordBytes) > 0 ? EFAULT : undefined;
}
