/**
 * The only door out of JavaScript: libc, by koffi.
 *
 * Everything that a call reads or writes lives in one ArrayBuffer, the arena, whose address is taken once: V8 never moves
 * it. Pointers are declared `uintptr_t` and passed as Numbers (a user address has 47 bits, and is exact), fields are read
 * and written through typed arrays over the arena. A call costs 0.3 µs so; a struct that koffi marshals costs ten times
 * that. Each thread that loads this module has an arena of its own.
 *
 * Nothing here is reentrant, and nothing needs to be: a call returns before the next one starts.
 */
import { createRequire } from "node:module";
import { type Errno, errnoOf } from "../lib/errno.ts";
import { HostError } from "./host_error.ts";
import { ARCHITECTURES, type Architecture } from "./syscall_table.ts";

function findArchitecture(): Architecture {
  const found = ARCHITECTURES.get(process.arch);
  if (process.platform !== "linux" || found === undefined) {
    throw new HostError(
      "platform",
      undefined,
      `running programs under barlink needs Linux on x86-64 or arm64, and this is ${process.platform} on ${process.arch}; ` +
        "the embedded kernel (import barlink) runs here",
    );
  }
  return found;
}

/** Where this runs. Loading the module anywhere else throws a `HostError`. */
export const arch: Architecture = findArchitecture();

// Required only now: on another system its import could fail first, and less clearly.
const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
const libc = koffi.load(null);

/** The number of a system call; RangeError when this architecture has none of that name. */
export function nr(name: string): number {
  const n = arch.numbers.get(name);
  if (n === undefined) throw new RangeError(`${arch.name} has no system call ${name}`);
  return n;
}

type Type = "int" | "uint" | "uintptr_t" | "intptr_t" | "int64_t";

/** A libc function that takes and gives integers. koffi has no ssize_t: intptr_t. */
export function libcFunction(name: string, result: Type, parameters: readonly Type[]): (...values: (number | bigint)[]) => number {
  return libc.func(name, result, [...parameters]) as (...values: (number | bigint)[]) => number;
}

/** Why the last call on this thread returned -1. */
export function lastErrno(): Errno {
  return errnoOf(koffi.errno());
}

/** The same as a number: no lookup, for loops in which a failure is the ordinary end. */
export const errnoNumber: () => number = koffi.errno as () => number;

/** `result`, or why it is -1. */
export function check(result: number): number | Errno {
  return result === -1 ? lastErrno() : result;
}

/** `undefined`, or why the call returned -1. */
export function checkVoid(result: number): Errno | undefined {
  return result === -1 ? lastErrno() : undefined;
}

// A variadic libc function takes integers like any other on both architectures.
/** syscall(2) with up to four arguments. */
export const syscall4: (nr: number, a: number, b: number, c: number, d: number) => number = libcFunction("syscall", "intptr_t", [
  "intptr_t",
  "uintptr_t",
  "uintptr_t",
  "uintptr_t",
  "uintptr_t",
]);
/** syscall(2) with six. */
export const syscall6: (nr: number, a: number, b: number, c: number, d: number, e: number, f: number) => number = libcFunction(
  "syscall",
  "intptr_t",
  ["intptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t", "uintptr_t"],
);
/** ioctl(2). `argument` is an address or a number. */
export const ioctl: (fd: number, request: number, argument: number) => number = libcFunction("ioctl", "int", [
  "int",
  "uintptr_t",
  "uintptr_t",
]);

const ARENA_BYTES = 256 * 1024;
const arena = new ArrayBuffer(ARENA_BYTES);
const arenaAddress = Number(koffi.address(arena));
let arenaUsed = 0;

/** A part of the arena, for good. */
export interface Block {
  /** Where it is in memory. */
  readonly address: number;
  readonly bytes: Uint8Array;
  readonly u32: Uint32Array;
  readonly s32: Int32Array;
  readonly u64: BigUint64Array;
}

/** Takes `size` bytes of the arena, zeroed, at a multiple of 16. Called while modules load; there is no way to give one back. */
export function reserve(size: number): Block {
  const offset = arenaUsed;
  const rounded = (size + 15) & ~15;
  arenaUsed += rounded;
  if (arenaUsed > ARENA_BYTES) throw new RangeError("the arena of the host layer is too small");
  return {
    address: arenaAddress + offset,
    bytes: new Uint8Array(arena, offset, size),
    u32: new Uint32Array(arena, offset, rounded >> 2),
    s32: new Int32Array(arena, offset, rounded >> 2),
    u64: new BigUint64Array(arena, offset, rounded >> 3),
  };
}

/**
 * Where bytes outside of the arena are. Good for one call: the caller keeps `bytes` alive until that has returned.
 * For what is too large to be copied through `scratch`.
 */
export function addressOf(bytes: Uint8Array): number {
  return Number(koffi.address(bytes));
}

/** Room for one call's data, shared by all: whoever fills it uses it at once. */
export const scratch: Block = reserve(64 * 1024);

const PATH_MAX = 4096;
const pathBlocks: readonly Block[] = [reserve(PATH_MAX + 1), reserve(PATH_MAX + 1)];
const encoder = new TextEncoder();

/**
 * Puts a path, NUL at its end, into the arena, and returns its address, or 0 when it is too long or has a NUL inside.
 * `slot` 1 is for the second path of one call.
 */
export function putPath(path: string | Uint8Array, slot: 0 | 1 = 0): number {
  const block = pathBlocks[slot] as Block;
  let length: number;
  if (typeof path === "string") {
    const { read, written } = encoder.encodeInto(path, block.bytes.subarray(0, PATH_MAX));
    if (read < path.length || path.includes("\0")) return 0;
    length = written;
  } else {
    if (path.length >= PATH_MAX || path.includes(0)) return 0;
    block.bytes.set(path);
    length = path.length;
  }
  block.bytes[length] = 0;
  return block.address;
}
