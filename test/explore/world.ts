/** A scenario of a test: a world of its making, and the bodies of its tasks. */
import type { Recorder, Scenario } from "../../src/explore/index.ts";
import { Sched, type Step, type Steps } from "../../src/sched/index.ts";

export function scenario<W>(
  make: (sched: Sched, recorder: Recorder) => W,
  bodies: readonly ((w: W) => Step<void>)[],
  end?: (w: W) => string,
  results?: (w: W) => string,
): Scenario {
  const threads = bodies.map((_, i) => `task ${i}`);
  return {
    name: "test",
    summary: "a test",
    threads,
    setUp(record) {
      const sched = new Sched();
      const w = make(sched, record(sched));
      const tasks = bodies.map((b, i) => {
        const t = sched.thread(threads[i] as string, "the test");
        const body: Steps<void> = () => b(w);
        sched.start(t, body());
        return t;
      });
      return { tasks, end: () => end?.(w) ?? "", ...(results === undefined ? {} : { results: () => results(w) }) };
    },
  };
}
