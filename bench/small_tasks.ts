/**
 * Three tasks over locks alone: what the explorer itself costs. A task's steps
 * are its start and its lock operations; every so many of them takes the lock
 * that all share, the others one of the task's own.
 */
import type { Recorder, Scenario, Scene } from "../src/explore/index.ts";
import { KernelBug } from "../src/lib/kernel_bug.ts";
import { LockClass } from "../src/sched/lockdep.ts";
import { Mutex } from "../src/sched/locks.ts";
import { Sched } from "../src/sched/sched.ts";
import type { Step, Task } from "../src/sched/task.ts";

const SHARED = new LockClass("shared");
const OWN = new LockClass("own");
const NAMES = ["a", "b", "c"] as const;

class World implements Scene {
  readonly sched: Sched = new Sched();
  readonly shared: Mutex;
  readonly tasks: Task[];
  readonly #steps: readonly number[];
  readonly #every: number;
  inside = 0;
  order = "";

  constructor(steps: readonly number[], every: number, record: (sched: Sched) => Recorder) {
    record(this.sched);
    this.#steps = steps;
    this.#every = every;
    this.shared = new Mutex(this.sched, SHARED);
    this.tasks = NAMES.map((name) => this.sched.thread(name, "scenario"));
    this.#start();
  }

  #start(): readonly Task[] {
    this.order = "";
    for (const [i, task] of this.tasks.entries()) this.sched.start(task, body(this, task.name, this.#steps[i] as number, this.#every));
    return this.tasks;
  }

  end(): string {
    return this.order;
  }

  /** Every lock is free when its task has ended: the next run needs no other world. */
  renew(): readonly Task[] | undefined {
    return this.inside === 0 && !this.shared.locked ? this.#start() : undefined;
  }
}

/** Of the module, not of a run: a generator function made anew has a shape of its own, which only a full collection frees. */
function* body(world: World, name: string, steps: number, every: number): Step<void> {
  const own = new Mutex(world.sched, OWN);
  const { shared } = world;
  // The first step is the start.
  for (let i = 1; i < steps; i++) {
    if (i % every !== 0) {
      yield* own.lock();
      own.unlock();
      continue;
    }
    yield* shared.lock();
    if (++world.inside !== 1) throw new KernelBug("two tasks hold one lock");
    world.order += name;
    world.inside--;
    shared.unlock();
  }
}

function scenario(name: string, steps: readonly number[], every: number): Scenario {
  return {
    name,
    summary: `three tasks of ${steps.join(", ")} steps; every ${every}th takes the lock that they share`,
    threads: NAMES,
    setUp: (record) => new World(steps, every, record),
  };
}

export const smallTasks: readonly Scenario[] = [scenario("20 steps", [7, 7, 6], 2), scenario("60 steps", [20, 20, 20], 5)];
