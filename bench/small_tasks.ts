/**
 * Three tasks of twenty steps each over locks alone: what the explorer itself
 * costs. Every fifth step takes the lock that all share, the others one of the
 * task's own; a task's steps are its lock operations.
 */

import type { Scenario, Scene } from "../src/explore/index.ts";
import { KernelBug } from "../src/lib/kernel_bug.ts";
import { LockClass } from "../src/sched/lockdep.ts";
import { Mutex } from "../src/sched/locks.ts";
import { Sched } from "../src/sched/sched.ts";
import type { Step, Task } from "../src/sched/task.ts";

const SHARED = new LockClass("shared");
const OWN = new LockClass("own");
const NAMES = ["a", "b", "c"] as const;
const STEPS = 20;
const EVERY = 5;

class World implements Scene {
  readonly sched: Sched = new Sched();
  readonly shared: Mutex = new Mutex(this.sched, SHARED);
  readonly tasks: Task[] = [];
  inside = 0;
  order = "";

  end(): string {
    return this.order;
  }

  start(): readonly Task[] {
    this.order = "";
    for (const [i, task] of this.tasks.entries()) this.sched.start(task, body(this, NAMES[i] as string));
    return this.tasks;
  }

  /** Every lock is free when its task has ended: the next run needs no other world. */
  renew(): readonly Task[] | undefined {
    return this.inside === 0 && !this.shared.locked ? this.start() : undefined;
  }
}

/** Of the module, not of a run: a generator function made anew has a shape of its own, which only a full collection frees. */
function* body(world: World, name: string): Step<void> {
  const own = new Mutex(world.sched, OWN);
  const { shared } = world;
  // The first step is the start.
  for (let i = 1; i < STEPS; i++) {
    if (i % EVERY !== 0) {
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

export const smallTasks: Scenario = {
  name: "small-tasks",
  summary: "three tasks of twenty lock operations each, every fifth on the lock that they share",
  threads: NAMES,
  setUp(record): Scene {
    const world = new World();
    record(world.sched);
    for (const name of NAMES) world.tasks.push(world.sched.thread(name, "scenario"));
    world.start();
    return world;
  },
};
