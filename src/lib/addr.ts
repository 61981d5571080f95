/**
 * Addresses and page arithmetic.
 *
 * Addresses are bigint at the ABI and in IOVA arithmetic, page frame numbers
 * are numbers (52 bits, exact). `last` is inclusive and `end` is open; an IOVA
 * range may reach 2^64 - 1, so `last + 1n` is never computed on one.
 */
import { EINVAL, EOVERFLOW, type Errno } from "./errno.ts";

declare const brand: unique symbol;
/** A nominal type over `T`; converts only in the named functions below. */
export type Brand<T, Name extends string> = T & { readonly [brand]: Name };

/** I/O virtual address, bytes, 0 … 2^64 - 1. */
export type Iova = Brand<bigint, "iova">;
/** Physical address on the machine's bus, bytes, below 2^52. */
export type PhysAddr = Brand<bigint, "phys">;
/** Address in a process's memory, bytes. */
export type UserPtr = Brand<bigint, "user">;
/** Page frame number: a physical address / PAGE_SIZE. */
export type Pfn = Brand<number, "pfn">;

export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
export const PAGE_SIZE_N = 4096n;
export const PAGE_MASK_N = 4095n;
export const U64_MAX: bigint = 0xffff_ffff_ffff_ffffn;
export const U32_MAX = 0xffff_ffff;
export const IOVA_LAST: Iova = U64_MAX as Iova;

export const iova = (v: bigint): Iova => BigInt.asUintN(64, v) as Iova;
export const physAddr = (v: bigint): PhysAddr => BigInt.asUintN(64, v) as PhysAddr;
export const userPtr = (v: bigint): UserPtr => BigInt.asUintN(64, v) as UserPtr;
export const pfnOf = (pa: PhysAddr): Pfn => Number(pa >> 12n) as Pfn;
export const physOfPfn = (pfn: Pfn): PhysAddr => (BigInt(pfn) << 12n) as PhysAddr;

/** Last byte of [start, start+length); EINVAL for no bytes, EOVERFLOW when it leaves the 64-bit space. */
export function lastOf(start: bigint, length: bigint): bigint | Errno {
  if (length === 0n) return EINVAL;
  const last = start + length - 1n;
  return last > U64_MAX ? EOVERFLOW : last;
}

export const isPageAligned = (v: bigint): boolean => (v & PAGE_MASK_N) === 0n;
export const alignDown = (v: bigint, align: bigint): bigint => v - (v % align);
export const alignUp = (v: bigint, align: bigint): bigint => ((v + align - 1n) / align) * align;
export const minN = (a: bigint, b: bigint): bigint => (a < b ? a : b);
export const maxN = (a: bigint, b: bigint): bigint => (a > b ? a : b);

/** `0x` and lower-case digits, the way every message of barlink prints an address. */
export const hex = (v: bigint | number): string => `0x${v.toString(16)}`;
