/**
 * The tasks of a scheduler as a program to be explored.
 *
 * A step goes from one scheduling point to the next. Its footprint is made of
 * the locks it took, tried and released, of what it waited on and woke, and of
 * what the scene watches beside them (`Recorder.touch`, `Recorder.watch`). Data
 * that no lock guards and nobody watches is not seen: two orders of steps that
 * differ in nothing else are taken for one.
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
import type { InterconnectKind } from "../kernel/kernel.ts";
import { KernelBug } from "../lib/kernel_bug.ts";
import { RwSem, WwMutex } from "../sched/locks.ts";
import type { Sched } from "../sched/sched.ts";
import type { Named, Task } from "../sched/task.ts";
import { Waitable } from "../sched/wait.ts";
import type { Trace } from "../trace/trace.ts";
import {
  bitOf,
  byDefault,
  type Decide,
  type Execution,
  type Footprint,
  NO_FOOTPRINT,
  type Outcome,
  type Pending,
  type Program,
  type Violation,
} from "./program.ts";
import { Numbers, Recorder } from "./recorder.ts";
import { TIME } from "./schedule.ts";
import { sequentialResults } from "./sequential.ts";
import { waitCycle } from "./wait_for.ts";

export { Recorder } from "./recorder.ts";

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
  /**
   * Called after `end`: the tasks of another run, started as at first, if all is
   * as it was before the first run; undefined if it is not, or cannot be told.
   */
  renew?(): readonly Task[] | undefined;
  /** What the calls answered, in a word; for `Scenario.sequential`. Asked before `end`. */
  results?(): string;
  /** Where the machine tells its events, to show a run. */
  readonly trace?: Trace;
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
  /**
   * The calls must answer (`Scene.results`) as they do in one of the runs in
   * which each goes from its beginning to its end, or to where it waits,
   * undisturbed. A call ends where its task ends or lets others run
   * (`Sched.yield`).
   */
  readonly sequential?: boolean;
  /** Steps after which a run is taken not to end. Default 10,000. */
  readonly maxSteps?: number;
  /** Call `record` with the scheduler before the first lock is taken. */
  setUp(record: (sched: Sched) => Recorder, interconnect?: InterconnectKind): Scene;
}

/** Every run sets the scenario up anew. */
export interface TaskProgram extends Program {
  start(): TaskExecution;
}

export function taskProgram(scenario: Scenario): TaskProgram {
  const numbers = new Numbers();
  let allowed: ReadonlySet<string> | undefined;
  const answers = (): ReadonlySet<string> => {
    allowed ??= sequentialResults(() => new TaskExecution(scenario, newWorld(scenario, new Numbers())));
    return allowed;
  };
  /** The world of a run that ended well and could be put back to its start. */
  let spare: World | undefined;
  const keep = (world: World): void => {
    spare = world;
  };
  return {
    name: scenario.name,
    exact: false,
    start: () => {
      const world = spare ?? newWorld(scenario, numbers);
      spare = undefined;
      return new TaskExecution(scenario, world, scenario.sequential === true ? answers : undefined, keep);
    },
  };
}

/** What a run takes place in. */
interface World {
  readonly scene: Scene;
  readonly recorder: Recorder;
  readonly tasks: readonly Task[];
}

function newWorld(scenario: Scenario, numbers: Numbers): World {
  let recorder: Recorder | undefined;
  const scene = scenario.setUp((sched) => {
    recorder = new Recorder(sched, numbers);
    return recorder;
  });
  if (recorder === undefined) throw new TypeError(`${scenario.name} does not record its scheduler`);
  return { scene, recorder, tasks: scene.tasks };
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
const NOBODY: readonly never[] = [];

export class TaskExecution implements Execution {
  readonly tasks: readonly Task[];
  readonly recorder: Recorder;
  readonly #scene: Scene;
  readonly #anyTime: boolean;
  readonly #maxSteps: number;
  /** What the calls may answer; undefined where the scenario does not say. */
  readonly #answers: (() => ReadonlySet<string>) | undefined;
  readonly #keep: ((world: World) => void) | undefined;
  /** Who waited when the run ended. */
  #waited: readonly Pending[] | undefined = undefined;
  #steps = 0;
  #violation: Violation | undefined = undefined;

  constructor(scenario: Scenario, world: World, answers?: () => ReadonlySet<string>, keep?: (world: World) => void) {
    this.#answers = answers;
    this.#scene = world.scene;
    this.#keep = keep;
    this.recorder = world.recorder;
    this.tasks = world.tasks;
    this.#anyTime = scenario.time === "any";
    this.#maxSteps = scenario.maxSteps ?? MAX_STEPS;
    this.recorder.begin(this.tasks);
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
  #unfinished(): readonly number[] {
    const { recorder, tasks } = this;
    let out: number[] | undefined;
    const look = (thread: number, task: Task | undefined): void => {
      if (task === undefined || task.finished) return;
      out ??= [];
      out.push(thread);
    };
    for (let t = 0; t < tasks.length; t++) look(t, tasks[t]);
    for (const t of recorder.born) if (!recorder.isOlder(t)) look(t, recorder.taskOf(t));
    return out ?? NOBODY;
  }

  step(thread: number, decide: Decide = byDefault): Footprint {
    if (++this.#steps > this.#maxSteps) {
      this.#violation = { kind: "livelock", message: `the run has not ended after ${this.#maxSteps} steps` };
      return NO_FOOTPRINT;
    }
    const task = this.recorder.taskOf(thread);
    let footprint = NO_FOOTPRINT;
    try {
      footprint = this.recorder.step(thread, decide, !this.#anyTime);
    } catch (e) {
      if (task !== undefined) throw e;
      this.#violation = violationOf(e);
    }
    // What was seen first explains what was thrown after it.
    if (task?.state === "failed") this.#violation = violationOf(task.error);
    this.#violation = this.recorder.violation ?? this.#violation;
    return footprint;
  }

  retrace(thread: number, n: number, decide: Decide): void {
    this.#steps += n;
    this.recorder.retrace(thread, n, decide);
  }

  pending(): readonly Pending[] {
    if (this.#waited !== undefined) return this.#waited;
    let out: Pending[] | undefined;
    const look = (thread: number, task: Task | undefined): void => {
      if (task === undefined || task.state !== "runnable" || task.point === undefined || !lockedOut(task)) return;
      const lock = this.recorder.numberOf(task.point.on);
      const access = lock * 2 + (task.point.op === "lock-read" ? 0 : 1);
      out ??= [];
      out.push({ thread, footprint: { ...NO_FOOTPRINT, accesses: [access], mask: bitOf(lock), acquired: lock, blocking: true } });
    };
    for (let t = 0; t < this.tasks.length; t++) look(t, this.tasks[t]);
    for (const t of this.recorder.born) look(t, this.recorder.taskOf(t));
    return out ?? NOBODY;
  }

  finish(): Outcome {
    this.#waited = this.pending();
    this.recorder.pause();
    const violation = this.#violation ?? this.#stuck();
    if (violation !== undefined) return { state: `${violation.kind}: ${violation.message}`, violation };
    try {
      this.#checkResults();
      const state = this.#scene.end();
      this.#renew();
      return { state };
    } catch (e) {
      const broken = violationOf(e);
      return { state: `${broken.kind}: ${broken.message}`, violation: broken };
    }
  }

  #renew(): void {
    if (this.#keep === undefined || this.#scene.renew === undefined) return;
    const { recorder } = this;
    recorder.renew();
    const tasks = this.#scene.renew();
    if (tasks !== undefined) this.#keep({ scene: this.#scene, recorder, tasks });
  }

  /** Drives what is left to its end, so that the world may serve again. What goes wrong on the way is another run's to find. */
  abandon(): void {
    if (this.#keep === undefined || this.#scene.renew === undefined) return;
    for (let next = this.enabled()[0]; next !== undefined; next = this.enabled()[0]) this.step(next);
    if (this.#violation === undefined && this.#unfinished().length === 0) this.finish();
  }

  get trace(): Trace | undefined {
    return this.#scene.trace;
  }

  /** What the calls answered; undefined where the scene does not say. */
  results(): string | undefined {
    return this.#scene.results?.();
  }

  #checkResults(): void {
    if (this.#answers === undefined) return;
    const got = this.results();
    if (got === undefined) throw new TypeError("a scenario with sequential results whose scene has none");
    const allowed = this.#answers();
    if (!allowed.has(got))
      throw new WrongResults(`the calls answer ${got}; one after another they answer ${[...allowed].sort().join(" or ")}`);
  }

  #stuck(): Violation | undefined {
    const { recorder } = this;
    const waits = this.#unfinished();
    if (waits.length === 0) return undefined;
    for (const thread of waits) {
      const t = recorder.taskOf(thread) as Task;
      if (t.state === "blocked" && t.blockedOn instanceof Waitable && t.blockedOn.satisfied(t)) {
        return { kind: "lost-wakeup", message: `${t.name} waits for ${t.blockedOn.name}, which is there: nobody has woken it` };
      }
    }
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

const canRun = (task: Task): boolean => task.state === "runnable" && !lockedOut(task);

class WrongResults extends Error {}

/** Anything but a bug of the kernel or a broken invariant is a mistake of the scenario, and is thrown. */
function violationOf(e: unknown): Violation {
  if (e instanceof InvariantBroken) return { kind: "invariant", message: e.message };
  if (e instanceof WrongResults) return { kind: "results", message: e.message };
  if (!(e instanceof KernelBug)) throw e;
  const { message } = e;
  if (message.startsWith("lockdep")) return { kind: "lockdep", message };
  if (message.includes("invariant")) return { kind: "invariant", message };
  return { kind: REFERENCES.test(message) ? "refcount" : "bug", message };
}

/** How the kernel words a reference that is counted wrongly. */
const REFERENCES = /refcount|user count|wait count|put too often|used after they were freed|symbol_put|module_put/;
