/**
 * Mutex, rw-semaphore, and the ww-mutex that is a reservation.
 *
 * Acquiring is a generator (it may sleep), releasing is plain and belongs in a
 * `finally`. A released lock wakes every waiter and each looks again: who gets
 * it is the scheduler's choice, never the lock's, so an explorer sees all the
 * orders; under run to completion it is first come, first served.
 *
 * An rw-semaphore does not let a new reader pass a waiting writer, as Linux
 * does not: a task that reads twice can deadlock there, and does here.
 */
import { EALREADY, EDEADLK, type Errno } from "../lib/errno.ts";
import { KernelBug } from "../lib/kernel_bug.ts";
import type { LockClass, LockLike } from "./lockdep.ts";
import type { Sched } from "./sched.ts";
import type { PointOp, SchedPoint, Step, Task } from "./task.ts";

abstract class Lock implements LockLike {
  readonly lockClass: LockClass;
  protected readonly sched: Sched;
  /** Made on first contention: most locks never see any. */
  protected waiters: Task[] | undefined = undefined;
  /** Made when an explorer first stops here. */
  #points: Partial<Record<PointOp, SchedPoint>> | undefined = undefined;

  constructor(sched: Sched, lockClass: LockClass) {
    this.sched = sched;
    this.lockClass = lockClass;
  }

  get name(): string {
    return this.lockClass.name;
  }

  protected point(op: PointOp): SchedPoint {
    this.#points ??= {};
    let p = this.#points[op];
    if (p === undefined) {
      p = { op, on: this };
      this.#points[op] = p;
    }
    return p;
  }

  protected note(task: Task, mode: "write" | "read", trylock: boolean): void {
    task.held.push({ lock: this, mode, trylock });
    this.sched.observer?.acquired?.(task, this, mode);
  }

  protected forget(task: Task): void {
    const held = task.held;
    for (let i = held.length - 1; i >= 0; i--) {
      const h = held[i];
      if (h?.lock === this) {
        if (i === held.length - 1) held.pop();
        else held.splice(i, 1);
        this.sched.observer?.released?.(task, this, h.mode);
        return;
      }
    }
    throw new KernelBug(`${task.name} releases ${this.name}, which it does not hold`);
  }

  protected wait(task: Task): SchedPoint {
    this.waiters ??= [];
    if (!this.waiters.includes(task)) this.waiters.push(task);
    this.sched.block(this);
    return this.point("wait");
  }

  protected wakeAll(): void {
    const w = this.waiters;
    if (w === undefined || w.length === 0) return;
    for (const t of w) this.sched.wake(t);
  }

  protected left(task: Task): void {
    const w = this.waiters;
    if (w === undefined) return;
    const i = w.indexOf(task);
    if (i >= 0) w.splice(i, 1);
  }

  /** Throws `KernelBug` unless the running task holds this lock (in any mode). */
  assertHeld(): void {
    const task = this.sched.current;
    for (const h of task.held) if (h.lock === this) return;
    throw new KernelBug(`${this.name} is not held by ${task.name}`);
  }
}

export class Mutex extends Lock {
  #owner: Task | undefined = undefined;

  /** Takes it; `nested` declares that it may nest in another of its class. */
  *lock(nested = false): Step<void> {
    const s = this.sched;
    if (s.interleave && s.stops()) yield this.point("lock");
    const task = s.current;
    s.lockdep.acquire(task, this, nested);
    while (this.#owner !== undefined) yield this.wait(task);
    if (this.waiters !== undefined) this.left(task);
    this.#owner = task;
    this.note(task, "write", false);
  }

  /** Takes it if that needs no wait. */
  *tryLock(): Step<boolean> {
    if (this.sched.interleave && this.sched.stops()) yield this.point("trylock");
    if (this.#owner !== undefined) return false;
    const task = this.sched.current;
    this.#owner = task;
    this.note(task, "write", true);
    return true;
  }

  unlock(): void {
    const task = this.sched.current;
    if (this.#owner !== task) throw new KernelBug(`${task.name} releases ${this.name}, held by ${this.#owner?.name ?? "nobody"}`);
    this.#owner = undefined;
    this.forget(task);
    this.wakeAll();
  }

  get locked(): boolean {
    return this.#owner !== undefined;
  }

  get owner(): Task | undefined {
    return this.#owner;
  }
}

export class RwSem extends Lock {
  #writer: Task | undefined = undefined;
  #readers = 0;
  /** Writers that wait: a new reader stays behind them. */
  #writersWaiting = 0;

  *downRead(): Step<void> {
    const s = this.sched;
    if (s.interleave && s.stops()) yield this.point("lock-read");
    const task = s.current;
    s.lockdep.acquire(task, this, false);
    while (this.#writer !== undefined || this.#writersWaiting > 0) yield this.wait(task);
    if (this.waiters !== undefined) this.left(task);
    this.#readers++;
    this.note(task, "read", false);
  }

  *downWrite(nested = false): Step<void> {
    const s = this.sched;
    if (s.interleave && s.stops()) yield this.point("lock");
    const task = s.current;
    s.lockdep.acquire(task, this, nested);
    if (this.#writer !== undefined || this.#readers > 0) {
      this.#writersWaiting++;
      try {
        while (this.#writer !== undefined || this.#readers > 0) yield this.wait(task);
      } finally {
        this.#writersWaiting--;
      }
    }
    if (this.waiters !== undefined) this.left(task);
    this.#writer = task;
    this.note(task, "write", false);
  }

  *tryDownRead(): Step<boolean> {
    if (this.sched.interleave && this.sched.stops()) yield this.point("trylock");
    if (this.#writer !== undefined || this.#writersWaiting > 0) return false;
    this.#readers++;
    this.note(this.sched.current, "read", true);
    return true;
  }

  *tryDownWrite(): Step<boolean> {
    if (this.sched.interleave && this.sched.stops()) yield this.point("trylock");
    if (this.#writer !== undefined || this.#readers > 0) return false;
    const task = this.sched.current;
    this.#writer = task;
    this.note(task, "write", true);
    return true;
  }

  upRead(): void {
    if (this.#readers === 0) throw new KernelBug(`${this.name}: upRead with no reader`);
    this.forget(this.sched.current);
    this.#readers--;
    if (this.#readers === 0) this.wakeAll();
  }

  upWrite(): void {
    const task = this.sched.current;
    if (this.#writer !== task) throw new KernelBug(`${task.name} releases ${this.name}, which it does not hold for writing`);
    this.#writer = undefined;
    this.forget(task);
    this.wakeAll();
  }

  /** From writer to reader without a gap in which another writer could come. */
  downgradeWrite(): void {
    const task = this.sched.current;
    if (this.#writer !== task) throw new KernelBug(`${task.name} downgrades ${this.name}, which it does not hold for writing`);
    const i = task.held.findIndex((h) => h.lock === this);
    const h = task.held[i];
    if (h !== undefined) task.held[i] = { lock: this, mode: "read", trylock: h.trylock };
    this.sched.observer?.touched?.(this);
    this.#writer = undefined;
    this.#readers++;
    this.wakeAll();
  }

  assertHeldWrite(): void {
    const task = this.sched.current;
    if (this.#writer !== task) throw new KernelBug(`${this.name} is not held for writing by ${task.name}`);
  }

  get locked(): boolean {
    return this.#writer !== undefined || this.#readers > 0;
  }

  get heldForWriting(): boolean {
    return this.#writer !== undefined;
  }
}

/** An acquire context: the locks taken under one are released together, and its age settles conflicts. */
export class WwAcquireCtx {
  /** Smaller is older, and older wins. */
  readonly stamp: number;
  /** Locks held under it. */
  acquired = 0;
  constructor(stamp: number) {
    this.stamp = stamp;
  }
}

/**
 * A mutex of a wait/die class: a younger context that has locks already and
 * meets one held by an older context gets EDEADLK, releases all it has and
 * starts again with the contended lock, for which it waits. Without a context
 * it is a plain mutex. Source: Documentation/locking/ww-mutex-design.
 */
export class WwMutex extends Lock {
  #owner: Task | undefined = undefined;
  #ctx: WwAcquireCtx | undefined = undefined;

  /** EALREADY when this context holds it; EDEADLK when this context must back off. */
  *lock(ctx?: WwAcquireCtx): Step<Errno | undefined> {
    const s = this.sched;
    if (s.interleave && s.stops()) yield ctx === undefined ? this.point("lock") : { op: "lock", on: this, ctx };
    const task = s.current;
    if (ctx !== undefined && this.#ctx === ctx) return EALREADY;
    s.lockdep.acquire(task, this, ctx !== undefined);
    while (this.#owner !== undefined) {
      if (this.#mustBackOff(ctx)) {
        this.left(task);
        return EDEADLK;
      }
      yield this.wait(task);
    }
    if (this.waiters !== undefined) this.left(task);
    this.#owner = task;
    this.#ctx = ctx;
    if (ctx !== undefined) ctx.acquired++;
    this.note(task, "write", false);
    return undefined;
  }

  *tryLock(): Step<boolean> {
    if (this.sched.interleave && this.sched.stops()) yield this.point("trylock");
    if (this.#owner !== undefined) return false;
    const task = this.sched.current;
    this.#owner = task;
    this.note(task, "write", true);
    return true;
  }

  unlock(): void {
    const task = this.sched.current;
    if (this.#owner !== task) throw new KernelBug(`${task.name} releases ${this.name}, held by ${this.#owner?.name ?? "nobody"}`);
    this.#owner = undefined;
    if (this.#ctx !== undefined) this.#ctx.acquired--;
    this.#ctx = undefined;
    this.forget(task);
    this.wakeAll();
  }

  get locked(): boolean {
    return this.#owner !== undefined;
  }

  /** Would a `lock` under this context wait now, rather than be answered? */
  waits(ctx: WwAcquireCtx | undefined): boolean {
    return this.#owner !== undefined && !(ctx !== undefined && this.#ctx === ctx) && !this.#mustBackOff(ctx);
  }

  /** A younger context that has locks already gives way to the older one that holds this. */
  #mustBackOff(ctx: WwAcquireCtx | undefined): boolean {
    return ctx !== undefined && ctx.acquired > 0 && this.#ctx !== undefined && ctx.stamp > this.#ctx.stamp;
  }
}
