/** Waiting for an event: completion and wait queue. */
import { EINTR, type Errno } from "../lib/errno.ts";
import type { Sched } from "./sched.ts";
import type { Named, SchedPoint, Step, Task } from "./task.ts";

export abstract class Waitable implements Named {
  readonly name: string;
  protected readonly sched: Sched;
  readonly #waiters: Task[] = [];
  readonly #point: SchedPoint = { op: "wait", on: this };

  constructor(sched: Sched, name: string) {
    this.sched = sched;
    this.name = name;
  }

  /** Tells the observer, in every place where the outcome depends on who came first. */
  protected touch(): void {
    this.sched.observer?.touched?.(this);
  }

  protected park(): SchedPoint {
    this.touch();
    const task = this.sched.current;
    if (!this.#waiters.includes(task)) this.#waiters.push(task);
    this.sched.block(this);
    return this.#point;
  }

  protected unpark(): void {
    this.touch();
    const i = this.#waiters.indexOf(this.sched.current);
    if (i >= 0) this.#waiters.splice(i, 1);
  }

  /** Is what the blocked task waits for there, so that a wake-up is all that is missing? Asked by who drives the tasks. */
  abstract satisfied(task: Task): boolean;

  protected wakeWaiters(): void {
    this.touch();
    for (const t of this.#waiters) this.sched.wake(t);
  }
}

/** A count of events not yet waited for. */
export class Completion extends Waitable {
  #done = 0;

  /** One event. */
  complete(): void {
    this.#done++;
    this.wakeWaiters();
  }

  /** From now on every wait returns at once, until `reinit`. */
  completeAll(): void {
    this.#done = Number.POSITIVE_INFINITY;
    this.wakeWaiters();
  }

  /** Forgets the events so far. */
  reinit(): void {
    this.touch();
    this.#done = 0;
  }

  get done(): boolean {
    this.touch();
    return this.#done > 0;
  }

  satisfied(): boolean {
    return this.#done > 0;
  }

  /** Waits, uninterruptibly and without bound, for one event and consumes it. */
  *wait(): Step<void> {
    while (this.#done === 0) yield this.park();
    this.unpark();
    this.#done--;
  }

  /** The same for at most `ns` of virtual time; false when it was over first. */
  *waitTimeout(ns: number): Step<boolean> {
    let over = false;
    const timer = this.sched.timer(ns, () => {
      over = true;
      this.wakeWaiters();
    });
    while (this.#done === 0 && !over) yield this.park();
    timer.cancel();
    this.unpark();
    if (this.#done === 0) return false;
    this.#done--;
    return true;
  }

  /** The same, where a signal ends the wait too: EINTR. */
  *waitTimeoutInterruptible(ns: number): Step<boolean | Errno> {
    const task = this.sched.current;
    let over = false;
    const timer = this.sched.timer(ns, () => {
      over = true;
      this.wakeWaiters();
    });
    while (this.#done === 0 && !over && !task.signalled) yield this.park();
    timer.cancel();
    this.unpark();
    if (this.#done > 0) {
      this.#done--;
      return true;
    }
    return over ? false : EINTR;
  }
}

/** Tasks that wait for a condition which others may make true. */
export class WaitQueue extends Waitable {
  /** What each parked task waits for. */
  #conditions: Map<Task, () => boolean> | undefined = undefined;

  satisfied(task: Task): boolean {
    return this.#conditions?.get(task)?.() === true;
  }

  #parkFor(condition: () => boolean): SchedPoint {
    this.#conditions ??= new Map();
    this.#conditions.set(this.sched.current, condition);
    return this.park();
  }

  protected override unpark(): void {
    super.unpark();
    this.#conditions?.delete(this.sched.current);
  }

  /** Waits, uninterruptibly, until `condition` holds. */
  *waitEvent(condition: () => boolean): Step<void> {
    while (!condition()) yield this.#parkFor(condition);
    this.unpark();
  }

  /** The same; EINTR when a signal is pending and the condition does not hold. */
  *waitEventInterruptible(condition: () => boolean): Step<Errno | undefined> {
    const task = this.sched.current;
    while (!condition()) {
      if (task.signalled) {
        this.unpark();
        return EINTR;
      }
      yield this.#parkFor(condition);
    }
    this.unpark();
    return undefined;
  }

  /** Every waiter looks at its condition again. */
  wakeUp(): void {
    this.wakeWaiters();
  }
}
