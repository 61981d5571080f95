/**
 * What is explored: a program of threads that take steps, started afresh for
 * every schedule, and what a step says of itself.
 *
 * A step's footprint is all that orders it against steps of other threads: the
 * shared objects it touched, and how. Two steps are dependent when both touch
 * one object and at least one writes it; runs that differ only in the order of
 * independent steps are one trace and are told apart by no one.
 *
 * A lock counts as written by whoever takes and by whoever releases it (as read,
 * when it was taken for reading). A thread that stands before a lock that it
 * cannot have is not enabled: waiting is no step.
 */

/** What one step did. */
export interface Footprint {
  /** Objects touched: number of the object × 2, plus 1 when it was written. */
  readonly accesses: readonly number[];
  /** A bit for each object, several of which share one: where two masks have none in common, no object is touched by both. */
  readonly mask: number;
  /** Number of the lock that the step took; -1 for none. */
  readonly acquired: number;
  /** The step could not have been taken while another held that lock. */
  readonly blocking: boolean;
  /** Numbers of the locks that it released. */
  readonly released: readonly number[];
  /** Threads that could not run before this step and can after it, other than by a lock's release. */
  readonly woke: readonly number[];
  /** Threads whose next step this one took away, other than by a lock. */
  readonly disabled: readonly number[];
  /** The step was possible only because nothing else was: it comes after all before it, and before all after it. */
  readonly barrier: boolean;
}

/**
 * Settles a choice that a step makes beside its order: which call comes next,
 * does this allocation fail. Of `n` values, 0 to `n` - 1, it gives one; 0 is
 * what happens when nobody cares.
 */
export type Decide = (n: number, label: string) => number;

/** The decision of a run that is left to itself. */
export const byDefault: Decide = () => 0;

/** The bit of an object in a footprint's mask. */
export const bitOf = (object: number): number => 1 << (object % 31);

/** The footprint of a step that does nothing, for others to be made of. */
export const NO_FOOTPRINT: Footprint = {
  accesses: [],
  mask: 0,
  acquired: -1,
  blocking: false,
  released: [],
  woke: [],
  disabled: [],
  barrier: false,
};

/** True when the order of the two steps can matter. */
export function dependent(a: Footprint, b: Footprint): boolean {
  if (a.barrier || b.barrier) return true;
  if ((a.mask & b.mask) === 0) return false;
  const p = a.accesses;
  const q = b.accesses;
  for (let i = 0; i < p.length; i++) {
    const x = p[i] as number;
    for (let k = 0; k < q.length; k++) {
      const y = q[k] as number;
      if (x === y ? (x & 1) === 1 : (x ^ y) === 1) return true;
    }
  }
  return false;
}

/**
 * One run, from the program's first state on. Threads are numbered from 0; a
 * thread that is born during the run has a number that depends on its birth
 * alone and not on the order of the run (see `schedule.ts`), so numbers may
 * have gaps.
 */
export interface Execution {
  /** Threads that can take a step now, in ascending order; empty at the end of the run. */
  enabled(): readonly number[];
  /**
   * Takes the next step of an enabled thread; `decide` settles its choices, in
   * the order in which the step makes them. What goes wrong in it ends the run,
   * and is told by `finish`.
   */
  step(thread: number, decide?: Decide): Footprint;
  /** Takes `n` steps of one thread, which were taken at this place of an earlier run in the same way. */
  retrace(thread: number, n: number, decide: Decide): void;
  /** Threads that wait for a lock, each with the footprint of the taking alone. */
  pending(): readonly Pending[];
  /** Called once, when nothing is enabled: what came of the run. */
  finish(): Outcome;
  /** Called instead, where the run is given up before its end. */
  abandon?(): void;
}

export interface Pending {
  readonly thread: number;
  readonly footprint: Footprint;
}

/** The end of a run. */
export interface Outcome {
  /** The final state, in a word that equals another's exactly when the states do. */
  readonly state: string;
  readonly violation?: Violation | undefined;
}

/**
 * Something that must not happen, and did: tasks that wait for each other, a
 * task that waits for what is there (`lost-wakeup`), a run without an end, a
 * cycle of lock classes, a field used in no order, a use of what was freed, a
 * reference counted wrongly, calls that answer what they answer in no order
 * (`results`), an invariant, and any other `KernelBug`.
 */
export interface Violation {
  readonly kind:
    | "deadlock"
    | "lost-wakeup"
    | "livelock"
    | "lockdep"
    | "race"
    | "use-after-free"
    | "refcount"
    | "results"
    | "invariant"
    | "bug";
  readonly message: string;
}

export interface Program {
  readonly name: string;
  /**
   * The objects that a thread's next step touches depend on the thread alone,
   * not on what others did since its last step. True of programs whose steps
   * are single operations.
   */
  readonly exact: boolean;
  start(): Execution;
}

/** A complete run, as the strategies report it. */
export interface Run {
  /** Thread of each step, and what it chose; see `schedule.ts`. */
  readonly schedule: readonly number[];
  readonly outcome: Outcome;
}

/** What a strategy counts. */
export interface Counts {
  /** Complete runs. */
  executions: number;
  /** Runs given up because all that they could go on with is covered elsewhere. */
  blocked: number;
  /** Steps of complete runs. */
  steps: number;
  violations: number;
  /** Nothing within the strategy's bound is left. */
  exhausted: boolean;
}

export const newCounts = (): Counts => ({ executions: 0, blocked: 0, steps: 0, violations: 0, exhausted: false });

/** Told of each run; true ends the search. */
export type OnRun = (run: Run, counts: Counts) => boolean | undefined;
