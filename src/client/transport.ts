/**
 * What a program asks of an operating system, and nothing else.
 *
 * The typed calls of this package (`iommufd.ts`, `vfio.ts`, `dma_buf.ts`) are
 * written against this interface alone: they build the ioctl's bytes, hand them
 * over, and read the answer out of the same bytes. The embedded kernel
 * implements it in `embedded.ts`.
 *
 * A failed call returns the `Errno`; only the typed layer throws.
 */
import type { Errno } from "../lib/errno.ts";

/** Memory of the program that a call may point to. */
export interface UserBuffer {
  /** Where the program sees it, bytes. */
  readonly address: bigint;
  readonly length: number;
  /** Copies `length` bytes from `offset` on (default: all). */
  get(offset?: number, length?: number): Uint8Array;
  set(bytes: Uint8Array, offset?: number): void;
}

/** What the CPU gets for touching memory: bytes, or the signal. */
export type Signal = "SIGBUS" | "SIGSEGV";

/** A piece of the program's address space that mmap returned. */
export interface Mapping {
  readonly address: bigint;
  /** Bytes. */
  readonly length: number;
  /** A CPU load of `length` bytes. */
  load(offset: number, length: number): Uint8Array | Signal;
  /** A CPU store; undefined when it went through. */
  store(offset: number, bytes: Uint8Array): Signal | undefined;
  /** munmap. */
  unmap(): void;
}

export interface PollRequest {
  readonly fd: number;
  /** POLL* bits. */
  readonly events: number;
}

export interface FileStatus {
  /** st_mode. */
  readonly mode: number;
  /** st_size, bytes. */
  readonly size: bigint;
  /** st_blocks, 512 bytes each. */
  readonly blocks: bigint;
}

export interface Transport {
  open(path: string, flags: number): number | Errno;
  close(fd: number): Errno | undefined;
  /** `arg` as the third argument of ioctl(2): a pointer or a number. */
  ioctl(fd: number, request: number, arg: bigint): number | Errno;
  /** The usual case: `bytes` are in memory for the call and hold the answer after it. */
  ioctlBytes(fd: number, request: number, bytes: Uint8Array): number | Errno;
  read(fd: number, length: number): Uint8Array | Errno;
  write(fd: number, bytes: Uint8Array): number | Errno;
  pread(fd: number, length: number, position: bigint): Uint8Array | Errno;
  pwrite(fd: number, bytes: Uint8Array, position: bigint): number | Errno;
  lseek(fd: number, offset: bigint, whence: number): bigint | Errno;
  mmap(fd: number, length: number, prot: number, flags: number, offset: bigint): Mapping | Errno;
  poll(requests: readonly PollRequest[], timeoutMs: number): { ready: number; revents: number[] } | Errno;
  fcntl(fd: number, command: number, arg?: number): number | Errno;
  fstat(fd: number): FileStatus | Errno;
  ftruncate(fd: number, length: bigint): Errno | undefined;
  memfdCreate(name: string, flags: number): number | Errno;
  eventfd(initial: number, flags: number): number | Errno;
  /** Runs `body` with an allocator; what it allocated is given back after. */
  withMemory<T>(body: (allocate: (length: number) => UserBuffer) => T): T;
  /** Of a device, `0000:01:00.0`: where its VFIO cdev is; undefined when no VFIO driver holds it. */
  vfioDevicePath(address: string): string | undefined;
}
