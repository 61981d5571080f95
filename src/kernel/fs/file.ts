/**
 * An open file: what a descriptor refers to, and what a kernel subsystem holds.
 *
 * A file lives until its last reference is put, and is released after that, not
 * at once (`Vfs.fput`). What it does is its `FileOps`; an operation that is
 * absent fails as Linux fails there (see `syscalls.ts`).
 *
 * Source: struct file, struct file_operations.
 */
import type { Errno } from "../../lib/errno.ts";
import { Refcount } from "../../sched/refcount.ts";
import type { Step } from "../../sched/task.ts";
import { O_ACCMODE, O_PATH, O_RDONLY, O_WRONLY } from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import { FileMapping } from "../mm/file_mapping.ts";
import type { PageCache, PageSource } from "../mm/page_cache.ts";
import type { Vma } from "../mm/vma.ts";
import type { EventfdCtx } from "./eventfd.ts";
import { PollQueue } from "./poll.ts";

/** What fstat tells of a file; absent members are 0. */
export interface FileStat {
  /** Type and permissions, as st_mode. */
  readonly mode: number;
  readonly size?: bigint;
  readonly ino?: number;
  readonly nlink?: number;
  /** major << 8 | minor, for a device. */
  readonly rdev?: number;
  readonly blksize?: number;
  /** In units of 512 bytes. */
  readonly blocks?: bigint;
}

/** What a kind of file can do. `buf` is an address in the caller's memory. */
export interface FileOps {
  readonly name: string;
  /** Reads and writes have no position: pread fails with ESPIPE, and `pos` stays 0. */
  readonly stream?: boolean;
  ioctl?(f: File, cmd: number, arg: bigint): Step<number | Errno>;
  read?(f: File, buf: bigint, count: number, pos: bigint): Step<number | Errno>;
  write?(f: File, buf: bigint, count: number, pos: bigint): Step<number | Errno>;
  /** Fills in `vma.ops` (device memory) or `vma.cache` (pages of a file). May not sleep. */
  mmap?(f: File, vma: Vma): Errno | undefined;
  /** POLL* bits that hold now; a change wakes `f.pollQueue`. */
  poll?(f: File): number;
  /** What reads with room enough would give one after the other, at most so many: for who shows it to readers of its own. */
  packets?(f: File, most: number): Uint8Array[];
  /** The first `n` of those were read elsewhere. */
  packetsRead?(f: File, n: number): void;
  /** The new position; stores it in `f.pos` itself. Absent: ESPIPE. */
  llseek?(f: File, offset: bigint, whence: number): Step<bigint | Errno>;
  fsync?(f: File): Step<Errno | undefined>;
  ftruncate?(f: File, length: bigint): Step<Errno | undefined>;
  /** F_ADD_SEALS, F_GET_SEALS; absent: EINVAL. */
  addSeals?(f: File, seals: number): Errno | undefined;
  getSeals?(f: File): number | Errno;
  /** The last reference is gone. */
  release?(f: File): Step<void>;
  /** Lines of /proc/PID/fdinfo after the common ones. */
  fdinfo?(f: File): string[];
  stat?(f: File): FileStat;
  /** The pages of a file that can be pinned as such (memfd, tmpfs). */
  pageCache?(f: File): PageCache;
  /** The same of a file whose pages are not in this kernel: a real program's. */
  pageSource?(f: File): PageSource;
  /** An eventfd's counter. */
  eventfdCtx?(f: File): EventfdCtx;
}

export class File {
  readonly kernel: Kernel;
  readonly ops: FileOps;
  /** O_* bits, as F_GETFL shows them. */
  flags: number;
  pos = 0n;
  privateData: unknown;
  /** What readlink of /proc/self/fd/N says. */
  path: string;
  readonly count: Refcount;
  /** Where it is mapped. Files of one object may share it: the owner sets it. */
  mapping: FileMapping = new FileMapping();
  #pollQueue: PollQueue | undefined = undefined;

  /** Use `Vfs.newFile`, which counts it. */
  constructor(kernel: Kernel, ops: FileOps, flags: number, privateData: unknown, path: string) {
    this.kernel = kernel;
    this.ops = ops;
    this.flags = flags;
    this.privateData = privateData;
    this.path = path;
    this.count = new Refcount(path);
  }

  /** One more reference to a file that the caller knows to be alive. */
  get(): this {
    this.count.get();
    return this;
  }

  /** One more reference unless the last one is gone already (get_file_active). */
  getActive(): boolean {
    return this.count.getNotZero();
  }

  /** Whoever polls it. Made on first use. */
  get pollQueue(): PollQueue {
    this.#pollQueue ??= new PollQueue();
    return this.#pollQueue;
  }

  /** Shares another object's queue (an eventfd's). */
  set pollQueue(queue: PollQueue) {
    this.#pollQueue = queue;
  }

  get isPath(): boolean {
    return (this.flags & O_PATH) !== 0;
  }

  get readable(): boolean {
    return !this.isPath && (this.flags & O_ACCMODE) !== O_WRONLY;
  }

  get writable(): boolean {
    return !this.isPath && (this.flags & O_ACCMODE) !== O_RDONLY;
  }

  /** Name in messages and in the trace. */
  get name(): string {
    return this.path;
  }
}
