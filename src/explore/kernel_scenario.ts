/** The short way to a scenario: a kernel without a machine, a world on it, and tasks that are kernel threads. */
import { Kernel } from "../kernel/kernel.ts";
import type { Step, Task } from "../sched/task.ts";
import type { Recorder } from "./recorder.ts";
import type { Scenario } from "./tasks.ts";

export interface KernelScenario<W> {
  readonly name: string;
  /** One sentence. */
  readonly summary: string;
  /** Called for each run: what the tasks share. */
  world(kernel: Kernel, recorder: Recorder): W;
  /** The tasks by name, in order. */
  readonly tasks: Readonly<Record<string, (world: W) => Step<void>>>;
  /** When all have ended: throws for what must not be, and names the final state. */
  end?(world: W): string;
}

export function kernelScenario<W>({ name, summary, world, tasks, end }: KernelScenario<W>): Scenario {
  return {
    name,
    summary,
    threads: Object.keys(tasks),
    setUp(record) {
      const kernel = new Kernel();
      const w = world(kernel, record(kernel.sched));
      const started = Object.entries(tasks).map(([task, body]): Task => {
        const t = kernel.sched.thread(task);
        kernel.sched.start(t, body(w));
        return t;
      });
      return { tasks: started, trace: kernel.trace, end: () => end?.(w) ?? "" };
    },
  };
}
