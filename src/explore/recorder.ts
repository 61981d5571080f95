/**
 * What a step of a task did: its footprint, the choices it made, and what was
 * wrong with it.
 *
 * Objects keep their number from run to run. One that was met before the tasks
 * start is numbered in the order of meeting; all that are made later share a
 * number per name, as if they were one object: that can cost runs, and loses
 * none.
 *
 * Two detectors live here, for they see every access: data races on fields that
 * the scene watches for them, and the use of what the kernel has freed
 * (`Sched.freed`), whose fields tell on whoever touches them. Neither costs
 * anything where it is not used: a field is an accessor only once it is watched,
 * or its object freed.
 */
import type { LockLike } from "../sched/lockdep.ts";
import type { Sched, SchedObserver } from "../sched/sched.ts";
import type { Named, Task } from "../sched/task.ts";
import { HappensBefore } from "./happens_before.ts";
import { bitOf, byDefault, type Decide, type Footprint, type Violation } from "./program.ts";
import { childOf, NAMED, TIME } from "./schedule.ts";

/** Numbers that stay from run to run, of things by their names, kind by kind. */
export class Numbers {
  #next = 0;
  readonly #old: Map<string, number> = new Map();
  readonly #new: Map<string, number> = new Map();
  readonly #scene: Map<string, number> = new Map();
  readonly #threads: Map<number, number> = new Map();

  #of<K>(numbers: Map<K, number>, key: K): number {
    let n = numbers.get(key);
    if (n === undefined) {
      n = this.#next++;
      numbers.set(key, n);
    }
    return n;
  }

  /** The `nth` object that was met before the tasks started. */
  ofOld(nth: number, name: string): number {
    return this.#of(this.#old, `${nth} ${name}`);
  }

  /** All that are made later, and are called so. */
  ofNew(name: string): number {
    return this.#of(this.#new, name);
  }

  /** What a scene calls so. */
  ofScene(name: string): number {
    return this.#of(this.#scene, name);
  }

  ofThread(thread: number): number {
    return this.#of(this.#threads, thread);
  }
}

/** What a step chose. */
export interface Choice {
  readonly label: string;
  readonly n: number;
  readonly value: number;
}

const NONE: readonly number[] = [];
const NO_CHOICES: readonly Choice[] = [];
const TAKEN_FROM_TIME: readonly number[] = [TIME];

/** What is left of an object that was freed. */
interface Grave {
  readonly recorder: Recorder;
  /** Thread that has freed it. */
  readonly by: number;
  readonly values: Record<string, unknown>;
}

const GRAVES: WeakMap<object, Grave> = new WeakMap();
/** By field: one for all objects, so that objects of one class keep one shape. */
const accessors: Map<string, PropertyDescriptor> = new Map();

function graveOf(field: string): PropertyDescriptor {
  let d = accessors.get(field);
  if (d === undefined) {
    d = {
      get(this: object): unknown {
        const grave = GRAVES.get(this);
        grave?.recorder.exhumed(this, field, "reads", grave.by);
        return grave?.values[field];
      },
      set(this: object, value: unknown): void {
        const grave = GRAVES.get(this);
        grave?.recorder.exhumed(this, field, "writes", grave.by);
        if (grave !== undefined) grave.values[field] = value;
      },
      configurable: true,
      enumerable: true,
    };
    accessors.set(field, d);
  }
  return d;
}

/** Collects the footprint of the step that runs, and settles its choices. */
export class Recorder implements SchedObserver {
  readonly sched: Sched;
  readonly #numbers: Numbers;
  /** What was met before the tasks started. */
  readonly #known: Map<object, number> = new Map();
  /** What else was met between two runs in one world. */
  readonly #between: Set<object> = new Set();
  #paused = false;
  #started = false;
  #accesses: number[] = [];
  #mask = 0;
  #acquired = -1;
  #released: readonly number[] = NONE;
  #woken: readonly number[] = NONE;
  #cancelled = false;
  /** The step is known: nobody asks what it did. */
  #quiet = false;
  #decide: Decide = byDefault;
  #choices: readonly Choice[] = NO_CHOICES;
  /** The thread that steps; -1 for none. */
  #stepping = -1;
  /** Every task that is a thread, by its number, and back. */
  readonly #threads: Map<number, Task> = new Map();
  readonly #numberOfTask: Map<Task, number> = new Map();
  /** Threads that the scene has not named, in ascending order; those that were there before it are not to end. */
  readonly born: number[] = [];
  readonly #older: Set<number> = new Set();
  readonly #births: Map<number, number> = new Map();
  #watched = 0;
  /** Only where a scene looks for races. */
  #order: HappensBefore | undefined = undefined;
  #violation: Violation | undefined = undefined;
  /** Told of everything too, for a trace. */
  forward: SchedObserver | undefined = undefined;

  constructor(sched: Sched, numbers: Numbers) {
    this.sched = sched;
    this.#numbers = numbers;
    sched.observer = this;
  }

  /** Another task may care about the order of this step and others that touch `name`. */
  touch(name: string, write = true): void {
    if (this.#quiet || this.#stepping < 0) return;
    this.#note(this.#numbers.ofScene(name), write);
  }

  /**
   * One of `n` values, 0 to `n` - 1: every strategy tries them all. Callable
   * anywhere below a step: which call comes next, does this allocation fail.
   * Before the tasks start, and when they have ended, it is 0.
   */
  choose(n: number, label = "choice"): number {
    if (!(Number.isSafeInteger(n) && n > 0)) throw new RangeError(`${label}: a choice of ${n} values`);
    if (n === 1 || this.#stepping < 0) return 0;
    const value = this.#decide(n, label);
    if (!this.#quiet) this.#choices = [...this.#choices, { label, n, value }];
    return value;
  }

  /** What the last step chose. */
  get choices(): readonly Choice[] {
    return this.#choices;
  }

  /**
   * From now on every use of a field is seen, and orders steps. With `races`
   * the field is one that something must guard: two uses that nothing orders,
   * one of them a write, are a violation.
   */
  watch<T extends object>(target: T, field: keyof T & string, { races = false }: { readonly races?: boolean } = {}): void {
    let value = target[field];
    const name = `${target.constructor.name}.${field}`;
    const location = `${name} ${this.#watched++}`;
    if (races) this.#order ??= new HappensBefore();
    const used = (write: boolean): void => {
      this.touch(name, write);
      if (races) this.#use(name, location, write);
    };
    Object.defineProperty(target, field, {
      get: () => {
        used(false);
        return value;
      },
      set: (v) => {
        used(true);
        value = v;
      },
      configurable: true,
      enumerable: true,
    });
  }

  #use(name: string, location: string, write: boolean): void {
    if (this.#stepping < 0) return;
    const held = this.sched.currentOrNone?.held.map((h) => h.lock.name) ?? [];
    const other = this.#order?.access(location, { thread: this.#stepping, write, held });
    if (other === undefined) return;
    const say = (a: { thread: number; write: boolean; held: readonly string[] }): string =>
      `${this.nameOf(a.thread)} ${a.write ? "writes" : "reads"} it ${a.held.length === 0 ? "with no lock" : `with ${a.held.join(", ")}`}`;
    this.report("race", `data race on ${name}: ${say(other)}, ${say({ thread: this.#stepping, write, held })}, and nothing orders them`);
  }

  /** Something is wrong with the step that runs, which goes on; the run ends after it. The first report counts. */
  report(kind: Violation["kind"], message: string): void {
    this.#violation ??= { kind, message };
  }

  get violation(): Violation | undefined {
    return this.#violation;
  }

  /** As the reader of a violation knows the thread. */
  nameOf(thread: number): string {
    return this.#threads.get(thread)?.name ?? "a timer";
  }

  /** Every use of a field of the object is a violation from now on. */
  freed(object: object): void {
    this.forward?.freed?.(object);
    if (this.#stepping < 0) return;
    const values: Record<string, unknown> = {};
    for (const field of Object.keys(object)) {
      values[field] = (object as Record<string, unknown>)[field];
      Object.defineProperty(object, field, graveOf(field));
    }
    GRAVES.set(object, { recorder: this, by: this.#stepping, values });
  }

  /** Somebody uses a field of what thread `by` has freed. */
  exhumed(object: object, field: string, how: string, by: number): void {
    if (this.#stepping < 0) return;
    const name = `${object.constructor.name}.${field}`;
    this.report("use-after-free", `${this.nameOf(this.#stepping)} ${how} ${name}, which ${this.nameOf(by)} has freed`);
  }

  /** The last step was taken: what is met from here on belongs to no run. */
  pause(): void {
    this.sched.interleave = false;
    this.#paused = true;
    this.#between.clear();
  }

  /** The run is over, and the tasks of the next are about to start in the same world: what the run was is forgotten. */
  renew(): void {
    if (this.born.length > 0) {
      this.#threads.clear();
      this.#numberOfTask.clear();
      this.born.length = 0;
      this.#older.clear();
      this.#births.clear();
    }
    this.#violation = undefined;
    if (this.#order !== undefined) this.#order = new HappensBefore();
    this.sched.lockdep.rewind();
  }

  /** The tasks start: what is met from here on is new. */
  begin(tasks: readonly Task[]): void {
    if (!this.#started) this.sched.lockdep.mark();
    this.#paused = false;
    if (tasks.length > NAMED) throw new RangeError(`${tasks.length} tasks: there are letters for ${NAMED}`);
    for (let n = 0; n < tasks.length; n++) if (this.#threads.get(n) !== tasks[n]) this.#enter(n, tasks[n] as Task);
    for (const task of this.sched.liveTasks()) {
      if (this.#numberOfTask.has(task)) continue;
      this.#older.add(this.#bear(task, TIME));
    }
    this.#started = true;
    this.sched.interleave = true;
  }

  #enter(thread: number, task: Task): void {
    this.#threads.set(thread, task);
    this.#numberOfTask.set(task, thread);
  }

  #bear(task: Task, parent: number): number {
    const nth = this.#births.get(parent) ?? 0;
    this.#births.set(parent, nth + 1);
    const thread = childOf(parent, nth);
    this.#enter(thread, task);
    let i = this.born.length;
    while (i > 0 && (this.born[i - 1] as number) > thread) i--;
    this.born.splice(i, 0, thread);
    return thread;
  }

  /** Undefined for the passing of time, and for a number that is no thread's. */
  taskOf(thread: number): Task | undefined {
    return this.#threads.get(thread);
  }

  /** Was the thread there before the scene, so that it need not end with it? */
  isOlder(thread: number): boolean {
    return this.#older.has(thread);
  }

  numberOf(on: Named): number {
    const known = this.#known.get(on);
    if (known !== undefined) return known;
    if (this.#started) {
      // A number must mean the same in every run: what an undo makes anew would be old in the first and new in the next.
      if (this.#paused) this.#between.add(on);
      else if (this.#between.has(on)) throw new TypeError(`${on.name} was made anew by an undo: such a scene cannot be renewed`);
      return this.#numbers.ofNew(on.name);
    }
    const n = this.#numbers.ofOld(this.#known.size, on.name);
    this.#known.set(on, n);
    return n;
  }

  #note(object: number, write: boolean): void {
    const a = object * 2 + (write ? 1 : 0);
    if (this.#stepping < 0 || this.#accesses.includes(a)) return;
    this.#accesses.push(a);
    this.#mask |= bitOf(object);
  }

  acquired(task: Task, lock: LockLike, mode: "write" | "read"): void {
    this.forward?.acquired?.(task, lock, mode);
    if (this.#quiet) {
      this.#order?.acquired(this.#stepping, lock, mode);
      return;
    }
    const n = this.numberOf(lock);
    if (this.#stepping < 0) return;
    this.#note(n, mode === "write");
    this.#acquired = n;
    this.#order?.acquired(this.#stepping, lock, mode);
  }

  released(task: Task, lock: LockLike, mode: "write" | "read"): void {
    this.forward?.released?.(task, lock, mode);
    if (this.#quiet) {
      this.#order?.released(this.#stepping, lock, mode);
      return;
    }
    const n = this.numberOf(lock);
    if (this.#stepping < 0) return;
    this.#note(n, mode === "write");
    this.#released = [...this.#released, n];
    this.#order?.released(this.#stepping, lock, mode);
  }

  touched(on: Named): void {
    if (!this.#quiet) this.#note(this.numberOf(on), true);
    if (this.#stepping >= 0) this.#order?.met(this.#stepping, on);
  }

  blocked(task: Task, on: Named): void {
    this.forward?.blocked?.(task, on);
    this.#touchThread(this.#numberOfTask.get(task));
  }

  woken(task: Task): void {
    this.forward?.woken?.(task);
    this.#wake(this.#numberOfTask.get(task));
  }

  started(task: Task): void {
    if (this.#stepping < 0 || this.#numberOfTask.has(task)) return;
    this.#wake(this.#bear(task, this.#stepping));
  }

  cancelled(): void {
    this.#cancelled = true;
  }

  #wake(thread: number | undefined): void {
    this.#touchThread(thread);
    if (thread === undefined || this.#stepping < 0) return;
    if (!this.#quiet) this.#woken = [...this.#woken, thread];
    this.#order?.woke(this.#stepping, thread);
  }

  #touchThread(thread: number | undefined): void {
    if (thread !== undefined && !this.#quiet) this.#note(this.#numbers.ofThread(thread), true);
  }

  /** Takes `n` steps of a thread that are known: nothing is noted of them. */
  retrace(thread: number, n: number, decide: Decide): void {
    const task = this.#threads.get(thread);
    this.#decide = decide;
    this.#stepping = thread;
    this.#quiet = true;
    try {
      if (task !== undefined) this.sched.steps(task, n);
      else for (let i = 0; i < n; i++) this.sched.fireNext();
    } finally {
      this.#stepping = -1;
      this.#quiet = false;
    }
  }

  /** Steps a thread and tells what the step did. `idle` when time passes only while nothing else can run. Throws what the firing of a timer threw. */
  step(thread: number, decide: Decide, idle: boolean): Footprint {
    const task = this.#threads.get(thread);
    const point = task?.point;
    this.#accesses = [];
    this.#mask = 0;
    this.#acquired = -1;
    this.#released = NONE;
    this.#woken = NONE;
    this.#choices = NO_CHOICES;
    this.#cancelled = false;
    this.#decide = decide;
    this.#stepping = thread;
    const blocking = point?.op === "lock" || point?.op === "lock-read";
    if (point?.op === "wait" || (point?.op === "start" && thread > TIME)) this.#touchThread(thread);
    if (point !== undefined && (blocking || point.op === "trylock")) this.#note(this.numberOf(point.on), point.op !== "lock-read");
    try {
      if (task !== undefined) this.sched.step(task);
      else this.sched.fireNext();
    } finally {
      this.#stepping = -1;
    }
    return {
      accesses: this.#accesses,
      mask: this.#mask,
      acquired: this.#acquired,
      blocking: blocking && this.#acquired >= 0,
      released: this.#released,
      woke: this.#woken,
      disabled: this.#cancelled && !idle ? TAKEN_FROM_TIME : NONE,
      barrier: idle && thread === TIME,
    };
  }
}
