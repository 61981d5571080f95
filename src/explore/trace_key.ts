/** The trace that a run belongs to, as a string: equal exactly for runs that differ in the order of independent steps only. */
import { dependent, type Footprint, type Program } from "./program.ts";

/** Runs a whole schedule and names its trace by what comes before each step of each thread. */
export function traceOf(program: Program, schedule: readonly number[]): string {
  const run = program.start();
  const steps: { thread: number; footprint: Footprint; past: number[] }[] = [];
  const done: number[] = [];
  for (const thread of schedule) {
    const footprint = run.step(thread);
    const past: number[] = [];
    for (const s of steps) {
      if (s.thread !== thread && !dependent(s.footprint, footprint)) continue;
      s.past.forEach((n, t) => {
        past[t] = Math.max(past[t] ?? 0, n);
      });
    }
    done[thread] = (done[thread] ?? 0) + 1;
    past[thread] = done[thread];
    steps.push({ thread, footprint, past });
  }
  return steps
    .map((s) => `${s.thread}: ${Array.from({ length: run.threads }, (_, t) => s.past[t] ?? 0).join(",")}`)
    .sort()
    .join("; ");
}
