/**
 * A served process's descriptors, as the embedded kernel uses them.
 *
 * They are the real process's own, looked up when they are asked for. One that
 * is not ours (an eventfd, a memfd of the program's) becomes a foreign file for
 * the length of the call.
 *
 * Opening, closing and copying descriptors is the real kernel's business, so
 * only what an ioctl may do is here: look up, and make new ones.
 */
import type { FdTable } from "../kernel/fs/fd_table.ts";
import type { File } from "../kernel/fs/file.ts";
import { EBADF, Errno } from "../lib/errno.ts";
import { KernelBug } from "../lib/kernel_bug.ts";
import { O_CLOEXEC } from "../uapi/index.ts";

/** What the table needs of the call that is served. */
export interface DescriptorSource {
  /** One of ours, or a foreign one; EBADF. */
  lookUp(fd: number): File | Errno;
  /** A real descriptor in the caller for a file that comes later. */
  reserve(cloexec: boolean): number | Errno;
  install(fd: number, file: File): void;
  putUnused(fd: number): void;
}

export class SupervisedFdTable implements FdTable {
  readonly rlimits: { nofile: number };
  readonly #source: () => DescriptorSource | undefined;

  /** `source`: the call that is served now, undefined in a kernel thread. */
  constructor(rlimits: { nofile: number }, source: () => DescriptorSource | undefined) {
    this.rlimits = rlimits;
    this.#source = source;
  }

  get limit(): number {
    return this.rlimits.nofile;
  }

  /** Not counted here. */
  get size(): number {
    return 0;
  }

  getUnused(flags: number): number | Errno {
    return this.#call("getUnused").reserve((flags & O_CLOEXEC) !== 0);
  }

  install(fd: number, file: File): void {
    this.#call("install").install(fd, file);
    const { trace } = file.kernel;
    if (trace.on) trace.emit({ type: "fs.install", fd, path: file.path, pid: file.kernel.fs.currentPid });
  }

  putUnused(fd: number): void {
    this.#call("putUnused").putUnused(fd);
  }

  get(fd: number): File | Errno {
    const f = this.getRaw(fd);
    return f instanceof Errno || f.isPath ? EBADF : f;
  }

  getRaw(fd: number): File | Errno {
    return this.#source()?.lookUp(fd) ?? EBADF;
  }

  fget(fd: number): File | Errno {
    const f = this.get(fd);
    return f instanceof Errno ? f : f.get();
  }

  take(): never {
    return realOnly("take");
  }

  replace(): never {
    return realOnly("replace");
  }

  dup(): never {
    return realOnly("dup");
  }

  cloexec(): boolean {
    return false;
  }

  setCloexec(): never {
    return realOnly("setCloexec");
  }

  /** Nothing: the real kernel closes them, and we hear of it. */
  takeAll(): File[] {
    return [];
  }

  fork(): never {
    return realOnly("fork");
  }

  *[Symbol.iterator](): Generator<[fd: number, file: File], void, void> {}

  #call(what: string): DescriptorSource {
    const source = this.#source();
    if (source === undefined) throw new KernelBug(`${what} of a served process's descriptors outside of its calls`);
    return source;
  }
}

function realOnly(what: string): never {
  throw new KernelBug(`${what}: a served process's descriptors are the real kernel's`);
}
