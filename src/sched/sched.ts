/**
 * The scheduler: which task runs, and until when.
 *
 * Mechanism only. `step` runs one task to its next scheduling point; everything
 * else is policy on top of it. The policy here is run to completion: `execute`
 * drives one task until its body returns, letting others run only when it
 * blocks, which is what a single-CPU kernel without preemption does. An
 * explorer sets `interleave`, so that every lock operation yields first, and
 * calls `step` in the order it wants.
 *
 * Time is virtual, in nanoseconds, and moves only when nothing can run and a
 * timer is pending (or when the owner calls `advance`), so a run replays
 * exactly.
 *
 * Invariants: `current` is defined exactly while a body runs; a task that
 * finishes holds no lock; a blocked task is in no run queue.
 */
import { KernelBug } from "../lib/kernel_bug.ts";
import { Lockdep, type LockLike } from "./lockdep.ts";
import { type Named, type SchedPoint, type Step, type Steps, Task } from "./task.ts";

/** Told of what tasks do; every member optional, so that silence costs one test. */
export interface SchedObserver {
  acquired?(task: Task, lock: LockLike, mode: "write" | "read"): void;
  released?(task: Task, lock: LockLike, mode: "write" | "read"): void;
  /** What tasks wait on was looked at or changed: whoever orders steps by what they share must know. Locks are not told here. */
  touched?(on: Named): void;
  blocked?(task: Task, on: Named): void;
  woken?(task: Task): void;
  started?(task: Task): void;
  finished?(task: Task): void;
  /** A timer will not fire. */
  cancelled?(): void;
  /** The memory of an object was given back: whoever uses it from now on has a reference that is none. */
  freed?(object: object): void;
}

/** Thrown by `execute` when the task waits for something that nothing left to run will bring. */
export class WouldBlock extends Error {
  readonly task: Task;
  constructor(task: Task) {
    super(`${task.name} waits for ${task.blockedOn?.name ?? "nothing known"}, and nothing that could end the wait can run`);
    this.name = "WouldBlock";
    this.task = task;
  }
}

export interface Timer {
  /** Virtual time at which it fires, ns. */
  readonly when: number;
  cancel(): void;
}

interface PendingTimer extends Timer {
  readonly seq: number;
  readonly fire: () => void;
  cancelled: boolean;
}

const START: SchedPoint = { op: "start", on: { name: "start" } };
const YIELD: SchedPoint = { op: "yield", on: { name: "cpu" } };

export class Sched {
  readonly lockdep: Lockdep = new Lockdep();
  /** Yield before every lock operation; set by an explorer before the tasks start. */
  interleave = false;
  observer: SchedObserver | undefined = undefined;
  /** Lock operations that the next step passes without stopping. */
  #pass = 0;
  /** Virtual time, ns since boot. */
  now = 0;
  /** The timers as a whole: told as touched when one is armed, cancelled or fires. */
  readonly clock: Named = { name: "clock" };
  #current: Task | undefined = undefined;
  #nextId = 1;
  #timerSeq = 0;
  /** Runnable tasks in the order they became so. */
  readonly #queue: Task[] = [];
  /** Sorted by (when, seq). */
  readonly #timers: PendingTimer[] = [];
  /** Tasks with a body, in order of start. */
  readonly #live: Set<Task> = new Set();

  /** The running task. Throws `KernelBug` outside of one: a lock was touched by nobody. */
  get current(): Task {
    const t = this.#current;
    if (t === undefined) throw new KernelBug("no task is running");
    return t;
  }

  get currentOrNone(): Task | undefined {
    return this.#current;
  }

  /** A thread with no body yet, for `execute`. */
  thread(name: string, owner?: unknown): Task {
    return new Task(this.#nextId++, name, owner);
  }

  /** Starts a task; it runs when the driver gets to it. */
  spawn(name: string, body: Steps<unknown>, owner?: unknown): Task {
    const task = this.thread(name, owner);
    this.start(task, body());
    this.#enqueue(task);
    return task;
  }

  /** Gives an idle thread a body without queueing it: the caller drives it with `step`. */
  start(task: Task, body: Step<unknown>): void {
    if (task.body !== undefined) throw new KernelBug(`${task.name} is already running a call`);
    task.body = body;
    task.state = "runnable";
    task.point = START;
    task.result = undefined;
    task.error = undefined;
    this.#live.add(task);
    this.observer?.started?.(task);
  }

  /** Runs `task` to its next scheduling point, or to its end. */
  step(task: Task): void {
    const body = task.body;
    if (body === undefined || task.state !== "runnable") throw new KernelBug(`${task.name} cannot run: it is ${task.state}`);
    const outer = this.#current;
    this.#current = task;
    try {
      const r = body.next();
      if (r.done !== true) {
        task.point = r.value;
        return;
      }
      if (body !== task.workBody) task.result = r.value;
      if (task.held.length > 0) {
        throw new KernelBug(`${task.name} returns with ${task.held.map((h) => h.lock.name).join(", ")} held`);
      }
      if (task.taskWork.length > 0) {
        task.workBody = runWork(task);
        task.body = task.workBody;
        return;
      }
      this.#finish(task, "done");
    } catch (e) {
      task.error = e;
      this.#finish(task, "failed");
    } finally {
      this.#current = outer;
    }
  }

  /**
   * As many steps of one task, for an explorer that knows that nobody else is to
   * run between them: it stops before the last lock operation only.
   */
  steps(task: Task, n: number): void {
    let left = n;
    while (left > 0) {
      this.#pass = left - 1;
      this.step(task);
      left = this.#pass;
    }
  }

  /** Before a lock operation with `interleave` set: does the task stop here? */
  stops(): boolean {
    if (this.#pass === 0) return true;
    this.#pass--;
    return false;
  }

  /**
   * Runs a call on an idle thread to its end, and its task work after it.
   * Throws what the body threw; `WouldBlock` when it can never go on as things
   * stand (the task stays parked: `settle` may finish it later).
   */
  execute<T>(task: Task, body: Step<T>): T {
    this.start(task, body);
    return this.finish(task) as T;
  }

  /** Drives a started task to its end; see `execute`. */
  finish(task: Task): unknown {
    while (!task.finished) {
      if (task.state === "runnable" && !task.queued) this.step(task);
      else if (!this.#stepNext()) throw new WouldBlock(task);
    }
    if (task.state === "failed") throw task.error;
    return task.result;
  }

  /** Runs whatever can run, timers included, until nothing can. Throws what a task threw. */
  settle(): void {
    while (this.#stepNext());
  }

  /** Moves virtual time forward by `ns`, firing what falls due and running what that wakes. */
  advance(ns: number): void {
    const until = this.now + ns;
    for (;;) {
      while (this.#queue.length > 0) this.#stepNext();
      const t = this.#timers[0];
      if (t === undefined || t.when > until) break;
      this.fireNext();
    }
    this.now = until;
  }

  /** Marks the running task blocked; the caller must yield right after. */
  block(on: Named): void {
    const task = this.current;
    task.state = "blocked";
    task.blockedOn = on;
    this.observer?.blocked?.(task, on);
  }

  /** Makes a blocked task runnable; no effect on another. */
  wake(task: Task): void {
    if (task.state !== "blocked") return;
    task.state = "runnable";
    task.blockedOn = undefined;
    this.#enqueue(task);
    this.observer?.woken?.(task);
  }

  /**
   * Sends `task` a signal: an interruptible wait ends with EINTR, any other
   * looks at its condition and goes on waiting. The signal is taken when the
   * call returns.
   */
  interrupt(task: Task): void {
    task.signalled = true;
    this.wake(task);
  }

  /** Says that an object's memory is given back, as kfree does. Nothing may use it from here on. */
  freed(object: object): void {
    this.observer?.freed?.(object);
  }

  /** Lets others run. */
  *yield(): Step<void> {
    this.#enqueue(this.current);
    yield YIELD;
  }

  /** Calls `fire` after `ns` of virtual time, in no task. */
  timer(ns: number, fire: () => void): Timer {
    const t: PendingTimer = {
      when: this.now + ns,
      seq: this.#timerSeq++,
      fire,
      cancelled: false,
      cancel: () => {
        t.cancelled = true;
        const i = this.#timers.indexOf(t);
        if (i < 0) return;
        this.#timers.splice(i, 1);
        this.observer?.touched?.(this.clock);
        this.observer?.cancelled?.();
      },
    };
    let i = this.#timers.length;
    while (i > 0 && (this.#timers[i - 1] as PendingTimer).when > t.when) i--;
    this.#timers.splice(i, 0, t);
    this.observer?.touched?.(this.clock);
    return t;
  }

  /** Sleeps for `ns` of virtual time, uninterruptibly. */
  *sleep(ns: number): Step<void> {
    const task = this.current;
    let over = false;
    const on = { name: `sleep ${ns} ns` };
    this.timer(ns, () => {
      over = true;
      this.wake(task);
    });
    while (!over) {
      this.block(on);
      yield { op: "wait", on };
    }
  }

  /** Tasks that have started and not finished. */
  liveTasks(): readonly Task[] {
    return [...this.#live];
  }

  /** Virtual time at which the next timer fires; undefined without one. */
  get nextTimer(): number | undefined {
    return this.#timers[0]?.when;
  }

  /** Lets the time of the next timer come, and fires it; false without one. For who drives by hand. */
  fireNext(): boolean {
    const t = this.#timers.shift();
    if (t === undefined) return false;
    this.observer?.touched?.(this.clock);
    this.now = Math.max(this.now, t.when);
    t.fire();
    return true;
  }

  get pendingTimers(): number {
    return this.#timers.length;
  }

  #stepNext(): boolean {
    for (;;) {
      const task = this.#queue.shift();
      if (task === undefined) return this.fireNext();
      task.queued = false;
      // Like any other it runs until it blocks, lets others run, or ends.
      while (task.state === "runnable" && !task.queued) this.step(task);
      if (isFailed(task) && task.owner === undefined) throw task.error;
      return true;
    }
  }

  #enqueue(task: Task): void {
    if (task.queued) return;
    task.queued = true;
    this.#queue.push(task);
  }

  #finish(task: Task, state: "done" | "failed"): void {
    task.state = state;
    task.body = undefined;
    task.workBody = undefined;
    task.point = undefined;
    task.signalled = false;
    this.#live.delete(task);
    this.observer?.finished?.(task);
  }
}

const isFailed = (task: Task): boolean => task.state === "failed";

/** What was deferred last runs first, and what that defers comes after all of it: as Linux runs task work. */
function* runWork(task: Task): Step<void> {
  for (let work = task.taskWork.splice(0); work.length > 0; work = task.taskWork.splice(0)) {
    for (const w of work.reverse()) yield* w();
  }
}
