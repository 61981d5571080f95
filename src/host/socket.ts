/** Two ends that a program can really read, write and poll (socketpair(2), pipe2(2)). */
import type { Errno } from "../lib/errno.ts";
import { checkVoid, libcFunction, reserve } from "./ffi.ts";

export const SOCK_STREAM = 1;
/** Keeps the bounds of messages; a read of the peer's end of life is 0 bytes. */
export const SOCK_SEQPACKET = 5;
const AF_UNIX = 1;
const SOCK_CLOEXEC = 0o2000000;
export const SOCK_NONBLOCK = 0o4000;
export const SHUT_RD = 0;
export const SHUT_WR = 1;
export const SHUT_RDWR = 2;

const socketpair = libcFunction("socketpair", "int", ["int", "int", "int", "uintptr_t"]);
const pipe2 = libcFunction("pipe2", "int", ["uintptr_t", "int"]);
const shutdownSocket = libcFunction("shutdown", "int", ["int", "int"]);
const pair = reserve(8);

/** Two connected sockets with FD_CLOEXEC. `flags`: SOCK_NONBLOCK. */
export function socketPair(type: number, flags = 0): [number, number] | Errno {
  return checkVoid(socketpair(AF_UNIX, type | SOCK_CLOEXEC | flags, 0, pair.address)) ?? ends();
}

/** [to read from, to write to], with FD_CLOEXEC. `flags`: O_NONBLOCK. */
export function makePipe(flags = 0): [number, number] | Errno {
  return checkVoid(pipe2(pair.address, SOCK_CLOEXEC | flags)) ?? ends();
}

/** Ends one direction for both ends, whoever else holds them. */
export function shutdownFd(fd: number, how: number): Errno | undefined {
  return checkVoid(shutdownSocket(fd, how));
}

function ends(): [number, number] {
  return [pair.s32[0] as number, pair.s32[1] as number];
}
