/**
 * A process's descriptors.
 *
 * The lowest free number is given out, below the soft RLIMIT_NOFILE. A call
 * that makes a file reserves the number first and installs the file when
 * nothing can fail any more: a reserved number is taken, and refers to nothing.
 *
 * A descriptor holds one reference to its file. Source: fs/file.c.
 */
import { EBADF, EINVAL, EMFILE, ENOMEM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { O_CLOEXEC } from "../../uapi/index.ts";
import type { FaultInjection } from "../fault_inject.ts";
import type { File } from "./file.ts";

const RESERVED = "reserved";
/** Descriptors that every process has room for. */
const FIRST_ROOM = 64;

/** A process's descriptors: these here, or those of a real process that is served. */
export interface FdTable extends Iterable<[fd: number, file: File]> {
  /** The owner's limits; only `nofile` is read. */
  readonly rlimits: { nofile: number };
  /** Soft RLIMIT_NOFILE: descriptors are below it. */
  readonly limit: number;
  /** Descriptors that refer to a file. */
  readonly size: number;
  /** Reserves the lowest free number from `from`; EMFILE, ENOMEM. `flags`: O_CLOEXEC or 0. */
  getUnused(flags: number, from?: number): number | Errno;
  /** Makes a reserved number refer to `file`, whose reference it takes over. */
  install(fd: number, file: File): void;
  /** Gives a reserved number back. */
  putUnused(fd: number): void;
  /** The file, with no reference taken: it lives while the descriptor does. EBADF; O_PATH files count as absent. */
  get(fd: number): File | Errno;
  /** The same, and O_PATH files too. */
  getRaw(fd: number): File | Errno;
  /** The file with a reference for the caller (fget). */
  fget(fd: number): File | Errno;
  /** Takes the file out; its reference is the caller's to put. EBADF. */
  take(fd: number): File | Errno;
  /** Makes `fd` refer to `file` (a reference is taken); what it referred to is returned for the caller to put. EBADF, ENOMEM. */
  replace(fd: number, file: File, flags: number): File | undefined | Errno;
  /** Copies a descriptor to the lowest free one from `from`. EINVAL when `from` is past the limit, EMFILE. */
  dup(file: File, from: number, flags: number): number | Errno;
  cloexec(fd: number): boolean;
  setCloexec(fd: number, on: boolean): void;
  /** Takes out every file (those with O_CLOEXEC, when `cloexecOnly`), in order of number. */
  takeAll(cloexecOnly?: boolean): File[];
  /** A child's table: the same files under the same numbers. */
  fork(rlimits: { nofile: number }): FdTable;
}

/** The descriptors of a simulated process. */
export class SimulatedFdTable implements FdTable {
  readonly rlimits: { nofile: number };
  readonly #slots: (File | typeof RESERVED | undefined)[] = [];
  readonly #cloexec: Set<number> = new Set();
  /** No number below this is free. */
  #hint = 0;
  #open = 0;
  /** Numbers there is room for; doubles when the next one is needed. */
  #room = FIRST_ROOM;
  readonly #fault: FaultInjection | undefined;

  constructor(rlimits: { nofile: number }, fault?: FaultInjection) {
    this.rlimits = rlimits;
    this.#fault = fault;
  }

  get limit(): number {
    return this.rlimits.nofile;
  }

  get size(): number {
    return this.#open;
  }

  getUnused(flags: number, from = 0): number | Errno {
    let fd = Math.max(from, this.#hint);
    while (this.#slots[fd] !== undefined) fd++;
    if (fd >= this.limit) return EMFILE;
    if (!this.#grow(fd)) return ENOMEM;
    this.#slots[fd] = RESERVED;
    if (from <= this.#hint) this.#hint = fd + 1;
    this.#setCloexec(fd, (flags & O_CLOEXEC) !== 0);
    return fd;
  }

  /** Sees to it that there is room for `fd`. */
  #grow(fd: number): boolean {
    if (fd < this.#room) return true;
    if (this.#fault?.slab("fdtable") === true || this.#fault?.slab("array of files", 8 * fd) === true) return false;
    while (fd >= this.#room) this.#room *= 2;
    return true;
  }

  install(fd: number, file: File): void {
    if (this.#slots[fd] !== RESERVED) throw new KernelBug(`fd ${fd} is not reserved`);
    this.#slots[fd] = file;
    this.#open++;
    const { trace } = file.kernel;
    if (trace.on) trace.emit({ type: "fs.install", fd, path: file.path, pid: file.kernel.fs.currentPid });
  }

  putUnused(fd: number): void {
    if (this.#slots[fd] !== RESERVED) throw new KernelBug(`fd ${fd} is not reserved`);
    this.#free(fd);
  }

  get(fd: number): File | Errno {
    const f = this.getRaw(fd);
    return f instanceof Errno || f.isPath ? EBADF : f;
  }

  getRaw(fd: number): File | Errno {
    const f = this.#slots[fd];
    return f === undefined || f === RESERVED ? EBADF : f;
  }

  fget(fd: number): File | Errno {
    const f = this.get(fd);
    return f instanceof Errno ? f : f.get();
  }

  take(fd: number): File | Errno {
    const f = this.getRaw(fd);
    if (f instanceof Errno) return f;
    this.#open--;
    this.#free(fd);
    const { trace } = f.kernel;
    if (trace.on) trace.emit({ type: "fs.close", fd, path: f.path, pid: f.kernel.fs.currentPid });
    return f;
  }

  replace(fd: number, file: File, flags: number): File | undefined | Errno {
    if (fd < 0 || fd >= this.limit) return EBADF;
    if (!this.#grow(fd)) return ENOMEM;
    const old = this.#slots[fd];
    this.#slots[fd] = file.get();
    this.#setCloexec(fd, (flags & O_CLOEXEC) !== 0);
    if (old === undefined || old === RESERVED) this.#open++;
    return old === RESERVED ? undefined : old;
  }

  dup(file: File, from: number, flags: number): number | Errno {
    if (from < 0 || from >= this.limit) return EINVAL;
    const fd = this.getUnused(flags, from);
    if (fd instanceof Errno) return fd;
    this.install(fd, file.get());
    return fd;
  }

  cloexec(fd: number): boolean {
    return this.#cloexec.has(fd);
  }

  setCloexec(fd: number, on: boolean): void {
    this.#setCloexec(fd, on);
  }

  takeAll(cloexecOnly = false): File[] {
    const out: File[] = [];
    for (let fd = 0; fd < this.#slots.length; fd++) {
      if (cloexecOnly && !this.#cloexec.has(fd)) continue;
      const f = this.take(fd);
      if (!(f instanceof Errno)) out.push(f);
    }
    return out;
  }

  /** Open descriptors, in order. */
  *[Symbol.iterator](): Generator<[fd: number, file: File], void, void> {
    for (let fd = 0; fd < this.#slots.length; fd++) {
      const f = this.#slots[fd];
      if (f !== undefined && f !== RESERVED) yield [fd, f];
    }
  }

  fork(rlimits: { nofile: number }): SimulatedFdTable {
    const t = new SimulatedFdTable(rlimits, this.#fault);
    for (const [fd, file] of this) {
      t.#slots[fd] = file.get();
      t.#open++;
      if (this.#cloexec.has(fd)) t.#cloexec.add(fd);
    }
    return t;
  }

  #setCloexec(fd: number, on: boolean): void {
    if (on) this.#cloexec.add(fd);
    else this.#cloexec.delete(fd);
  }

  #free(fd: number): void {
    this.#slots[fd] = undefined;
    this.#cloexec.delete(fd);
    if (fd < this.#hint) this.#hint = fd;
  }
}
