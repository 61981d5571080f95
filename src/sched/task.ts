/**
 * A task: one thread of execution, as a generator.
 *
 * A kernel function that may sleep is a generator, called with `yield*`; one
 * that cannot is plain. What a generator yields is a `SchedPoint`: what the
 * task is about to do, and to which object. The point is the whole contract
 * between the kernel and whoever drives it: the run-to-completion driver
 * ignores it, an explorer reads it to choose who goes next.
 */
import type { LockLike } from "./lockdep.ts";
import type { WwAcquireCtx } from "./locks.ts";

/** What the task does when it is stepped again. */
export type PointOp = "lock" | "trylock" | "lock-read" | "wait" | "yield" | "start";

/** A scheduling point. Objects are made once per lock and shared by every yield. */
export interface SchedPoint {
  readonly op: PointOp;
  /** Name of the object concerned: a lock, a completion, a queue. */
  readonly on: Named;
  /** The acquire context under which a ww lock is taken. */
  readonly ctx?: WwAcquireCtx;
}

export interface Named {
  readonly name: string;
}

/** The body of a function that may sleep. */
export type Step<T> = Generator<SchedPoint, T, void>;

/** A function that may sleep, not yet called. */
export type Steps<T> = () => Step<T>;

export type TaskState = "runnable" | "blocked" | "done" | "failed";

/** One acquisition in a task's list of held locks. */
export interface Held {
  readonly lock: LockLike;
  readonly mode: "write" | "read";
  readonly trylock: boolean;
}

export class Task {
  readonly id: number;
  readonly name: string;
  /** Whose thread this is (the kernel layer puts its Process here); undefined for a kernel thread. */
  readonly owner: unknown;
  state: TaskState = "done";
  /** In the scheduler's run queue. */
  queued = false;
  /** What it waits for while blocked. */
  blockedOn: Named | undefined = undefined;
  /** The point it last yielded; what `step` will do next. */
  point: SchedPoint | undefined = undefined;
  /** The running body; undefined between two calls of `Sched.execute`. */
  body: Step<unknown> | undefined = undefined;
  /** The body while it is the deferred work that runs, after the call itself returned. */
  workBody: Step<unknown> | undefined = undefined;
  /** What the body returned, once done. */
  result: unknown = undefined;
  /** What the body threw, once failed. */
  error: unknown = undefined;
  /** Locks held, in order of acquisition. */
  readonly held: Held[] = [];
  /** Deferred to the end of the body, as task_work is to the return to user space. */
  readonly taskWork: Steps<void>[] = [];
  /** A signal is pending: interruptible waits answer EINTR. */
  signalled = false;
  /** Fault injection: the how-manieth point from now on fails; 0: none. */
  failNth = 0;
  /** Fault injection may pick this task where it picks only some. */
  makeItFail = false;

  constructor(id: number, name: string, owner: unknown) {
    this.id = id;
    this.name = name;
    this.owner = owner;
  }

  get finished(): boolean {
    return this.state === "done" || this.state === "failed";
  }
}
