/**
 * The reservation of a buffer: its lock, and the fences of the work that still
 * uses it.
 *
 * The lock (a ww-mutex) guards the fence list, the list of attachments, and
 * whatever the exporter says it guards: for VFIO, the decision "revoked or
 * not". Every fence carries a usage, and the usages nest: who waits for one
 * waits for all before it, so BOOKKEEP is everything there is.
 *
 * A fence is added in a slot reserved before, under the same holding of the
 * lock, so that adding cannot fail. A slot of a signalled fence, or of an
 * earlier one of the same timeline, is used again.
 *
 * Lock order: outside of it the exporter's own locks (VFIO's memory lock);
 * inside, the importer's (the pages mutex of iommufd).
 *
 * Source: drivers/dma-buf/dma-resv.c, include/linux/dma-resv.h.
 */
import { EINTR, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { type WwAcquireCtx, WwMutex } from "../../sched/locks.ts";
import type { Sched } from "../../sched/sched.ts";
import type { Step } from "../../sched/task.ts";
import { type DmaFence, DmaFenceArray, type FenceContexts } from "./fence.ts";

const reservationClass = new LockClass("RESV");

/** How a fence's work uses the buffer; a smaller one is included in every larger. */
export const Usage = {
  /** Memory management of the kernel: nobody may touch the buffer before. */
  kernel: 0,
  /** Implicitly synchronised writers. */
  write: 1,
  /** Implicitly synchronised readers. */
  read: 2,
  /** Work nobody waits for implicitly (a preemption, a TLB flush), yet work. */
  bookkeep: 3,
} as const;
export type Usage = (typeof Usage)[keyof typeof Usage];

/** What a newcomer must wait for: a writer for readers too, a reader for writers. */
export const usageRw = (write: boolean): Usage => (write ? Usage.read : Usage.write);

interface Entry {
  fence: DmaFence;
  usage: Usage;
}

export class Resv {
  readonly #lock: WwMutex;
  #entries: Entry[] = [];
  /** Entries that fit without a new reservation; falls back at unlock. */
  #slots = 0;

  constructor(sched: Sched) {
    this.#lock = new WwMutex(sched, reservationClass);
  }

  /** Takes the lock. EDEADLK and EALREADY only with a context. */
  lock(ctx?: WwAcquireCtx): Step<Errno | undefined> {
    return this.#lock.lock(ctx);
  }

  tryLock(): Step<boolean> {
    return this.#lock.tryLock();
  }

  unlock(): void {
    this.#slots = this.#entries.length;
    this.#lock.unlock();
  }

  get locked(): boolean {
    return this.#lock.locked;
  }

  /** Throws `KernelBug` unless the running task holds the lock. */
  assertHeld(): void {
    this.#lock.assertHeld();
  }

  /** Makes room for `n` fences until the lock is dropped. Lock held. */
  reserveFences(n: number): void {
    this.assertHeld();
    if (n <= 0) throw new KernelBug("a reservation of no fences");
    this.#entries = this.#entries.filter((e) => !e.fence.signalled);
    this.#slots = Math.max(this.#slots, this.#entries.length + n);
  }

  /** Adds a fence, in a slot reserved under this holding of the lock. */
  addFence(fence: DmaFence, usage: Usage): void {
    this.assertHeld();
    if (fence instanceof DmaFenceArray) throw new KernelBug("a fence array in a reservation: add its fences one by one");
    for (const e of this.#entries) {
      const superseded = e.fence.context === fence.context && e.usage >= usage && fence.isLaterOrSame(e.fence);
      if (superseded || e.fence.signalled) {
        e.fence = fence;
        e.usage = usage;
        return;
      }
    }
    if (this.#entries.length >= this.#slots) throw new KernelBug("a fence is added without a reserved slot");
    this.#entries.push({ fence, usage });
  }

  /** Puts `replacement` in the place of every fence of `context`. Lock held. */
  replaceFences(context: bigint, replacement: DmaFence, usage: Usage): void {
    this.assertHeld();
    for (const e of this.#entries) {
      if (e.fence.context !== context) continue;
      e.fence = replacement;
      e.usage = usage;
    }
  }

  /** The pending fences of `usage` and of those it includes. No lock needed. */
  pending(usage: Usage): DmaFence[] {
    return this.#entries.filter((e) => e.usage <= usage && !e.fence.signalled).map((e) => e.fence);
  }

  /** True when nothing of `usage` is pending. */
  testSignalled(usage: Usage): boolean {
    return this.pending(usage).length === 0;
  }

  /** One fence for all the pending ones; undefined when none is. */
  singleton(sched: Sched, contexts: FenceContexts, usage: Usage): DmaFence | undefined {
    const fences = this.pending(usage);
    return fences.length <= 1 ? fences[0] : new DmaFenceArray(sched, contexts.alloc(), fences);
  }

  /**
   * Waits until nothing of `usage` is pending, for at most `timeout` ns
   * (`Infinity`: for ever). Answers what is left of the time (at least 1), 0
   * when it ran out, EINTR. Fences that arrive meanwhile are waited for too;
   * whoever holds the lock keeps them out.
   */
  *waitTimeout(usage: Usage, intr: boolean, timeout: number): Step<number | Errno> {
    let left = timeout === 0 ? 1 : timeout;
    for (;;) {
      const fence = this.pending(usage)[0];
      if (fence === undefined) return left;
      const r = yield* fence.waitTimeout(intr, timeout === 0 ? 0 : left);
      if (r === EINTR || r === 0) return r;
      if (timeout !== 0) left = r as number;
    }
  }
}
