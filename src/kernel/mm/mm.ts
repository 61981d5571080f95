/**
 * A process's memory as the rest of the kernel holds it.
 *
 * Two counts, as Linux has them: users keep the address space alive, references
 * keep only this object. Who pins memory for long (an I/O address space) holds a
 * reference, and must take a user before it touches the memory: the process may
 * be gone.
 *
 * Lock: `mmapLock` guards the mappings. It nests outside of every lock that a
 * fault handler takes.
 *
 * Source: struct mm_struct, mmgrab, mmget_not_zero.
 */
import { LockClass } from "../../sched/lockdep.ts";
import { RwSem } from "../../sched/locks.ts";
import { Refcount } from "../../sched/refcount.ts";
import type { Kernel } from "../kernel.ts";
import type { UserMemory } from "./user_memory.ts";

const MMAP_LOCK: LockClass = new LockClass("mm.mmap_lock");

export class Mm {
  readonly kernel: Kernel;
  readonly memory: UserMemory;
  /** Pages charged to this mm against RLIMIT_MEMLOCK. Under mmapLock. */
  lockedVm = 0;
  /** Pages pinned on its behalf, charged or not. */
  pinnedVm = 0;
  readonly mmapLock: RwSem;
  readonly #users: Refcount = new Refcount("mm.users");
  readonly #refs: Refcount = new Refcount("mm.count");

  constructor(kernel: Kernel, memory: UserMemory) {
    this.kernel = kernel;
    this.memory = memory;
    this.mmapLock = new RwSem(kernel.sched, MMAP_LOCK);
    memory.attach?.(this);
    kernel.fs.liveMms++;
  }

  /** Keeps the object, not the memory (mmgrab). */
  grab(): this {
    this.#refs.get();
    return this;
  }

  /** Undoes `grab` (mmdrop). */
  drop(): void {
    if (this.#refs.put()) this.kernel.fs.liveMms--;
  }

  /** Keeps the memory too; false when the last user is gone (mmget_not_zero). */
  getNotZero(): boolean {
    return this.#users.getNotZero();
  }

  /** Drops a user; the last one tears the address space down (mmput). Files it mapped are put. */
  put(): void {
    if (!this.#users.put()) return;
    this.memory.destroy?.();
    this.drop();
  }

  /** False once the address space is torn down. */
  get alive(): boolean {
    return this.#users.count > 0;
  }
}
