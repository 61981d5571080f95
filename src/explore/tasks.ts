/**
 * The tasks of a scheduler as a program to be explored.
 *
 * A step goes from one scheduling point to the next. Its footprint is made of
 * the locks it took, tried and released, of what it waited on and woke, and of
 * what the scene watches beside them (`Recorder.touch`, `Recorder.watch`). Data
 * that no lock guards and nobody watches is not seen: two orders of steps that
 * differ in nothing else are taken for one.
 *
 * Objects keep their number from run to run. One that was met before the tasks
 * start is numbered in the order of meeting; all that are made later share a
 * number per name, as if they were one object: that can cost runs, and loses
 * none.
 *
 * Tasks that the scene does not name (work that the kernel queues, kernel
 * threads) are threads of the program from their birth on, and so is the passing
 * of time, whose step fires the next timer. What a call defers to its own end is
 * part of its thread.
 *
 * A task before a lock that it cannot have is not enabled. So a writer never
 * stands in the way of new readers here by waiting alone; what comes of that is
 * left to lockdep, which forbids a second read by the same task.
 */
import { KernelBug } from "../lib/kernel_bug.ts";
import type { LockLike } from "../sched/lockdep.ts";
import { RwSem, WwMutex } from "../sched/locks.ts";
import type { Sched, SchedObserver } from "../sched/sched.ts";
import type { Named, Task } from "../sched/task.ts";
import {
  byDefault,
  type Decide,
  type Execution,
  type Footprint,
  type Outcome,
  type Pending,
  type Program,
  type Violation,
} from "./program.ts";
import { childOf, NAMED, TIME } from "./schedule.ts";
import { waitCycle } from "./wait_for.ts";

/** Thrown by a scene, in a task or at the end: what must hold does not. */
export class InvariantBroken extends Error {
  constructor(message: string) {
    super(message);
    this.name = "InvariantBroken";
  }
}

/** A fresh instance of a scenario, set up and about to start. */
export interface Scene {
  /** Started (`Sched.start`), none of them stepped; thread n of the program is the n-th. */
  readonly tasks: readonly Task[];
  /** Called after the last step, when every task has ended: checks what must hold and names the final state. */
  end(): string;
}

export interface Scenario {
  readonly name: string;
  /** One sentence. */
  readonly summary: string;
  /** Names of the tasks, in order; at most 26. */
  readonly threads: readonly string[];
  /**
   * When timers fire: only when no task can run, as if every step took no time
   * (`idle`, the default); or at any moment, in their order, as if any step could
   * take any time (`any`).
   */
  readonly time?: "idle" | "any";
  /** Steps after which a run is taken not to end. Default 10,000. */
  readonly maxSteps?: number;
  /** Call `record` with the scheduler before the first lock is taken. */
  setUp(record: (sched: Sched) => Recorder): Scene;
}

/** Numbers that stay from run to run. */
class Numbers {
  readonly #byKey: Map<string, number> = new Map();

  of(key: string): number {
    let n = this.#byKey.get(key);
    if (n === undefined) {
      n = this.#byKey.size;
      this.#byKey.set(key, n);
    }
    return n;
  }
}

/** What a step chose. */
export interface Choice {
  readonly label: string;
  readonly n: number;
  readonly value: number;
}

const NONE: readonly number[] = [];
const TAKEN_FROM_TIME: readonly number[] = [TIME];

/** Collects the footprint of the step that runs, and settles its choices. */
export class Recorder implements SchedObserver {
  readonly sched: Sched;
  readonly #numbers: Numbers;
  readonly #known: Map<object, number> = new Map();
  #started = false;
  #accesses: number[] = [];
  #acquired = -1;
  #released: number[] = [];
  #woken: number[] = [];
  #cancelled = false;
  #decide: Decide = byDefault;
  #choices: Choice[] = [];
  /** The thread that steps; -1 for none. */
  #stepping = -1;
  /** Every task that is a thread, by its number, and back. */
  readonly #threads: Map<number, Task> = new Map();
  readonly #numberOfTask: Map<Task, number> = new Map();
  /** Threads that the scene has not named, in ascending order; those that were there before it are not to end. */
  readonly born: number[] = [];
  readonly #older: Set<number> = new Set();
  readonly #births: Map<number, number> = new Map();
  /** How each lock is held, to know how it is released. */
  readonly #modes: Map<Task, Map<LockLike, "write" | "read">> = new Map();

  constructor(sched: Sched, numbers: Numbers) {
    this.sched = sched;
    this.#numbers = numbers;
    sched.observer = this;
  }

  /** Another task may care about the order of this step and others that touch `name`. */
  touch(name: string, write = true): void {
    this.#note(this.#numbers.of(`scene ${name}`), write);
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
    this.#choices.push({ label, n, value });
    return value;
  }

  /** What the last step chose. */
  get choices(): readonly Choice[] {
    return this.#choices;
  }

  /** From now on every use of a field is seen. */
  watch<T extends object>(target: T, field: keyof T & string): void {
    let value = target[field];
    const name = `${target.constructor.name}.${field}`;
    Object.defineProperty(target, field, {
      get: () => {
        this.touch(name, false);
        return value;
      },
      set: (v) => {
        this.touch(name);
        value = v;
      },
      configurable: true,
      enumerable: true,
    });
  }

  /** The tasks start: what is met from here on is new. */
  begin(tasks: readonly Task[]): void {
    if (tasks.length > NAMED) throw new RangeError(`${tasks.length} tasks: there are letters for ${NAMED}`);
    for (const [n, task] of tasks.entries()) this.#enter(n, task);
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
    const n = this.#numbers.of(this.#started ? `new ${on.name}` : `${this.#known.size} ${on.name}`);
    this.#known.set(on, n);
    return n;
  }

  #note(object: number, write: boolean): void {
    const a = object * 2 + (write ? 1 : 0);
    if (this.#started && !this.#accesses.includes(a)) this.#accesses.push(a);
  }

  acquired(task: Task, lock: LockLike, mode: "write" | "read"): void {
    const n = this.numberOf(lock);
    if (!this.#started) return;
    this.#note(n, mode === "write");
    this.#acquired = n;
    let modes = this.#modes.get(task);
    if (modes === undefined) {
      modes = new Map();
      this.#modes.set(task, modes);
    }
    modes.set(lock, mode);
  }

  released(task: Task, lock: LockLike): void {
    const n = this.numberOf(lock);
    this.#note(n, this.#modes.get(task)?.get(lock) !== "read");
    this.#released.push(n);
  }

  touched(on: Named): void {
    this.#note(this.numberOf(on), true);
  }

  blocked(task: Task): void {
    this.#touchThread(this.#numberOfTask.get(task));
  }

  woken(task: Task): void {
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
    if (thread !== undefined) this.#woken.push(thread);
  }

  #touchThread(thread: number | undefined): void {
    if (thread !== undefined) this.#note(this.#numbers.of(`thread ${thread}`), true);
  }

  /** Steps a thread and tells what the step did. `idle` when time passes only while nothing else can run. Throws what the firing of a timer threw. */
  step(thread: number, decide: Decide, idle: boolean): Footprint {
    const task = this.#threads.get(thread);
    const point = task?.point;
    this.#accesses = [];
    this.#acquired = -1;
    this.#released = [];
    this.#woken = [];
    this.#choices = [];
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
      acquired: this.#acquired,
      blocking: blocking && this.#acquired >= 0,
      released: this.#released,
      woke: this.#woken,
      disabled: this.#cancelled && !idle ? TAKEN_FROM_TIME : NONE,
      barrier: idle && thread === TIME,
    };
  }
}

/** Every run sets the scenario up anew. */
export interface TaskProgram extends Program {
  start(): TaskExecution;
}

export function taskProgram(scenario: Scenario): TaskProgram {
  const numbers = new Numbers();
  return {
    name: scenario.name,
    exact: false,
    start: () => new TaskExecution(scenario, numbers),
  };
}

/** Is there a lock at its point that the task cannot have now? */
export function lockedOut(task: Task): boolean {
  const { point } = task;
  if (point === undefined || (point.op !== "lock" && point.op !== "lock-read")) return false;
  if (point.op === "lock-read" && point.on instanceof RwSem) return point.on.heldForWriting;
  if (point.on instanceof WwMutex) return point.on.waits(point.ctx);
  return (point.on as Named & { readonly locked?: boolean }).locked === true;
}

const MAX_STEPS = 10_000;

export class TaskExecution implements Execution {
  readonly tasks: readonly Task[];
  readonly recorder: Recorder;
  readonly #scene: Scene;
  readonly #anyTime: boolean;
  readonly #maxSteps: number;
  #steps = 0;
  #violation: Violation | undefined = undefined;

  constructor(scenario: Scenario, numbers: Numbers) {
    let recorder: Recorder | undefined;
    this.#scene = scenario.setUp((sched) => {
      recorder = new Recorder(sched, numbers);
      return recorder;
    });
    if (recorder === undefined) throw new TypeError(`${scenario.name} does not record its scheduler`);
    this.recorder = recorder;
    this.tasks = this.#scene.tasks;
    this.#anyTime = scenario.time === "any";
    this.#maxSteps = scenario.maxSteps ?? MAX_STEPS;
    recorder.begin(this.tasks);
  }

  /** The task of a thread; undefined for the passing of time. */
  taskOf(thread: number): Task | undefined {
    return this.recorder.taskOf(thread);
  }

  enabled(): readonly number[] {
    const out: number[] = [];
    if (this.#violation !== undefined) return out;
    for (let t = 0; t < this.tasks.length; t++) if (canRun(this.tasks[t] as Task)) out.push(t);
    const { born, sched } = this.recorder;
    if (this.#anyTime && sched.pendingTimers > 0 && this.#unfinished().length > 0) out.push(TIME);
    for (const t of born) if (canRun(this.recorder.taskOf(t) as Task)) out.push(t);
    if (out.length === 0 && sched.pendingTimers > 0 && this.#unfinished().length > 0) out.push(TIME);
    return out;
  }

  /** Threads that have to end and have not. */
  #unfinished(): number[] {
    const { recorder } = this;
    return [...this.tasks.keys(), ...recorder.born.filter((t) => !recorder.isOlder(t))].filter(
      (t) => recorder.taskOf(t)?.finished === false,
    );
  }

  step(thread: number, decide: Decide = byDefault): Footprint {
    if (++this.#steps > this.#maxSteps) {
      this.#violation = { kind: "livelock", message: `the run has not ended after ${this.#maxSteps} steps` };
      return NOTHING;
    }
    const task = this.recorder.taskOf(thread);
    let footprint = NOTHING;
    try {
      footprint = this.recorder.step(thread, decide, !this.#anyTime);
    } catch (e) {
      if (task !== undefined) throw e;
      this.#violation = violationOf(e);
    }
    if (task?.state === "failed") this.#violation = violationOf(task.error);
    return footprint;
  }

  pending(): readonly Pending[] {
    const out: Pending[] = [];
    for (const thread of [...this.tasks.keys(), ...this.recorder.born]) {
      const task = this.recorder.taskOf(thread);
      if (task === undefined || task.state !== "runnable" || task.point === undefined || !lockedOut(task)) continue;
      const lock = this.recorder.numberOf(task.point.on);
      const access = lock * 2 + (task.point.op === "lock-read" ? 0 : 1);
      out.push({ thread, footprint: { ...NOTHING, accesses: [access], acquired: lock, blocking: true } });
    }
    return out;
  }

  finish(): Outcome {
    this.recorder.sched.interleave = false;
    const violation = this.#violation ?? this.#stuck();
    if (violation !== undefined) return { state: `${violation.kind}: ${violation.message}`, violation };
    try {
      return { state: this.#scene.end() };
    } catch (e) {
      const broken = violationOf(e);
      return { state: `${broken.kind}: ${broken.message}`, violation: broken };
    }
  }

  #stuck(): Violation | undefined {
    const { recorder } = this;
    const waits = this.#unfinished();
    if (waits.length === 0) return undefined;
    const all = [...this.tasks.keys(), ...recorder.born].map((t) => recorder.taskOf(t) as Task);
    const message = waitCycle(
      waits.map((thread) => {
        const t = recorder.taskOf(thread) as Task;
        const on = t.blockedOn ?? t.point?.on;
        const holders = all.filter((h) => h.held.some((x) => x.lock === on)).map((h) => h.name);
        return { waiter: t.name, on: on?.name ?? "nothing known", holders };
      }),
    );
    return { kind: "deadlock", message };
  }
}

const NOTHING: Footprint = { accesses: [], acquired: -1, blocking: false, released: [], woke: [], disabled: [], barrier: false };

const canRun = (task: Task): boolean => task.state === "runnable" && !lockedOut(task);

/** Anything but a bug of the kernel or a broken invariant is a mistake of the scenario, and is thrown. */
function violationOf(e: unknown): Violation {
  if (e instanceof InvariantBroken) return { kind: "invariant", message: e.message };
  if (!(e instanceof KernelBug)) throw e;
  if (e.message.startsWith("lockdep")) return { kind: "lockdep", message: e.message };
  return { kind: e.message.includes("invariant") ? "invariant" : "bug", message: e.message };
}
