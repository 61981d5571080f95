/** The trace that a run belongs to, as a string: equal exactly for runs that differ in the order of independent steps only. */
import { dependent, type Footprint, type Program } from "./program.ts";
import { stepsOf } from "./schedule.ts";

/** Runs a whole schedule and names its trace by what each step chose and by what comes before it of each thread. */
export function traceOf(program: Program, schedule: readonly number[]): string {
  const run = program.start();
  const steps: { thread: number; chose: string; footprint: Footprint; past: Map<number, number> }[] = [];
  const done = new Map<number, number>();
  for (const { thread, values } of stepsOf(schedule)) {
    const chosen: number[] = [];
    const footprint = run.step(thread, () => {
      const v = values[chosen.length] ?? 0;
      chosen.push(v);
      return v;
    });
    const past = new Map<number, number>();
    for (const s of steps) {
      if (s.thread !== thread && !dependent(s.footprint, footprint)) continue;
      for (const [t, n] of s.past) past.set(t, Math.max(past.get(t) ?? 0, n));
    }
    const n = (done.get(thread) ?? 0) + 1;
    done.set(thread, n);
    past.set(thread, n);
    steps.push({ thread, chose: chosen.join("."), footprint, past });
  }
  const pastOf = (past: Map<number, number>): string =>
    [...past]
      .sort(([a], [b]) => a - b)
      .map(([t, n]) => `${t}:${n}`)
      .join(",");
  return steps
    .map((s) => `${s.thread}${s.chose === "" ? "" : `.${s.chose}`} after ${pastOf(s.past)}`)
    .sort()
    .join("; ");
}
