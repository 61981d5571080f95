/** Counters to wake by (eventfd(2)). */
import type { Errno } from "../lib/errno.ts";
import { check, lastErrno, libcFunction, reserve } from "./ffi.ts";

export const EFD_SEMAPHORE = 1;
export const EFD_NONBLOCK = 0o4000;
export const EFD_CLOEXEC = 0o2000000;

const make = libcFunction("eventfd", "int", ["uint", "int"]);
const read = libcFunction("read", "intptr_t", ["int", "uintptr_t", "uintptr_t"]);
const write = libcFunction("write", "intptr_t", ["int", "uintptr_t", "uintptr_t"]);
const counter = reserve(8);

export function eventfdCreate(initial = 0, flags: number = EFD_CLOEXEC | EFD_NONBLOCK): number | Errno {
  return check(make(initial, flags));
}

/** Adds `n`. EAGAIN: the counter is full and the descriptor does not block. */
export function eventfdSignal(fd: number, n = 1n): Errno | undefined {
  counter.u64[0] = n;
  return write(fd, counter.address, 8) === -1 ? lastErrno() : undefined;
}

/** Takes the count (or 1, with EFD_SEMAPHORE). EAGAIN: it is 0. */
export function eventfdTake(fd: number): bigint | Errno {
  return read(fd, counter.address, 8) === -1 ? lastErrno() : (counter.u64[0] as bigint);
}
