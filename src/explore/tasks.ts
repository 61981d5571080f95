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
 * A task before a lock that it cannot have is not enabled. So a writer never
 * stands in the way of new readers here by waiting alone; what comes of that is
 * left to lockdep, which forbids a second read by the same task. Not expressed:
 * ww acquire contexts that back off, and the passing of time.
 */
import { KernelBug } from "../lib/kernel_bug.ts";
import type { LockLike } from "../sched/lockdep.ts";
import { RwSem } from "../sched/locks.ts";
import type { Sched, SchedObserver } from "../sched/sched.ts";
import type { Named, Task } from "../sched/task.ts";
import type { Execution, Footprint, Outcome, Program, Violation } from "./program.ts";
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
  /** Names of the tasks, in order. */
  readonly threads: readonly string[];
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

/** Collects the footprint of the step that runs. */
export class Recorder implements SchedObserver {
  readonly sched: Sched;
  readonly #numbers: Numbers;
  readonly #known: Map<object, number> = new Map();
  #started = false;
  #accesses: number[] = [];
  #acquired = -1;
  #released: number[] = [];
  #woken: Task[] = [];
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
  begin(): void {
    this.#started = true;
    this.sched.interleave = true;
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
    this.touch(`task ${task.name}`);
  }

  woken(task: Task): void {
    this.touch(`task ${task.name}`);
    this.#woken.push(task);
  }

  /** Steps a task and tells what the step did. */
  step(task: Task, threadOf: (t: Task) => number): Footprint {
    const { point } = task;
    this.#accesses = [];
    this.#acquired = -1;
    this.#released = [];
    this.#woken = [];
    const blocking = point?.op === "lock" || point?.op === "lock-read";
    if (point?.op === "wait") this.touch(`task ${task.name}`);
    if (blocking || point?.op === "trylock") this.#note(this.numberOf(point.on), point.op !== "lock-read");
    this.sched.step(task);
    return {
      accesses: this.#accesses,
      acquired: this.#acquired,
      blocking: blocking && this.#acquired >= 0,
      released: this.#released,
      woke: this.#woken.map(threadOf).filter((t) => t >= 0),
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
  return (point.on as Named & { readonly locked?: boolean }).locked === true;
}

export class TaskExecution implements Execution {
  readonly tasks: readonly Task[];
  readonly #scene: Scene;
  readonly #recorder: Recorder;
  #violation: Violation | undefined = undefined;

  constructor(scenario: Scenario, numbers: Numbers) {
    let recorder: Recorder | undefined;
    this.#scene = scenario.setUp((sched) => {
      recorder = new Recorder(sched, numbers);
      return recorder;
    });
    if (recorder === undefined) throw new TypeError(`${scenario.name} does not record its scheduler`);
    this.#recorder = recorder;
    this.tasks = this.#scene.tasks;
    recorder.begin();
  }

  get threads(): number {
    return this.tasks.length;
  }

  enabled(): readonly number[] {
    const out: number[] = [];
    if (this.#violation !== undefined) return out;
    for (let t = 0; t < this.tasks.length; t++) {
      const task = this.tasks[t] as Task;
      if (task.state === "runnable" && !lockedOut(task)) out.push(t);
    }
    return out;
  }

  step(thread: number): Footprint {
    const task = this.tasks[thread] as Task;
    const footprint = this.#recorder.step(task, (t) => this.tasks.indexOf(t));
    if (task.state === "failed") this.#violation = violationOf(task.error);
    return footprint;
  }

  pending(thread: number): Footprint | undefined {
    const task = this.tasks[thread] as Task;
    if (task.state !== "runnable" || task.point === undefined || !lockedOut(task)) return undefined;
    const lock = this.#recorder.numberOf(task.point.on);
    const access = lock * 2 + (task.point.op === "lock-read" ? 0 : 1);
    return { accesses: [access], acquired: lock, blocking: true, released: [], woke: [] };
  }

  finish(): Outcome {
    this.#recorder.sched.interleave = false;
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
    const waits = this.tasks.filter((t) => !t.finished);
    if (waits.length === 0) return undefined;
    const message = waitCycle(
      waits.map((t) => {
        const on = t.blockedOn ?? t.point?.on;
        const holders = this.tasks.filter((h) => h.held.some((x) => x.lock === on)).map((h) => h.name);
        return { waiter: t.name, on: on?.name ?? "nothing known", holders };
      }),
    );
    return { kind: "deadlock", message };
  }
}

/** Anything but a bug of the kernel or a broken invariant is a mistake of the scenario, and is thrown. */
function violationOf(e: unknown): Violation {
  if (e instanceof InvariantBroken) return { kind: "invariant", message: e.message };
  if (!(e instanceof KernelBug)) throw e;
  if (e.message.startsWith("lockdep")) return { kind: "lockdep", message: e.message };
  return { kind: e.message.includes("invariant") ? "invariant" : "bug", message: e.message };
}
