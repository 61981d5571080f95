/** A run of tasks, step by step, in columns: what each does and which locks it then holds. */
import type { Outcome } from "./program.ts";
import { goesOn } from "./schedule.ts";
import { type Scenario, taskProgram } from "./tasks.ts";

export interface ToldStep {
  readonly thread: number;
  /** What the step began with: "lock RESV". */
  readonly does: string;
  /** Locks held after it, the outermost first. */
  readonly holds: readonly string[];
}

export interface Told {
  readonly steps: readonly ToldStep[];
  readonly outcome: Outcome;
  /** Every step, those that the schedule did not write included. */
  readonly schedule: readonly number[];
}

/** Runs a schedule, whole or in part, and notes each step. */
export function tell(scenario: Scenario, schedule: readonly number[]): Told {
  const run = taskProgram(scenario).start();
  const steps: ToldStep[] = [];
  for (let at = 0, last: number | undefined; ; ) {
    const enabled = run.enabled();
    if (enabled.length === 0) return { steps, outcome: run.finish(), schedule: steps.map((s) => s.thread) };
    while (at < schedule.length && !enabled.includes(schedule[at] as number)) at++;
    const thread = schedule[at++] ?? goesOn(enabled, last);
    const task = run.tasks[thread];
    const point = task?.point;
    const does = point === undefined || point.op === "start" ? "starts" : point.op === "yield" ? "goes on" : `${point.op} ${point.on.name}`;
    run.step(thread);
    const ended = task?.state === "done" ? ", ends" : task?.state === "failed" ? ", FAILS" : "";
    steps.push({ thread, does: does + ended, holds: task?.held.map((h) => h.lock.name) ?? [] });
    last = thread;
  }
}

/** Lines of text: a column per thread, then who holds what. */
export function formatInterleaving(scenario: Scenario, { steps, outcome }: Told): string[] {
  const width = scenario.threads.map((name, t) => Math.max(name.length, ...steps.map((s) => (s.thread === t ? s.does.length : 0))));
  const cells = (of: (t: number) => string): string => scenario.threads.map((_, t) => of(t).padEnd(width[t] as number)).join("  ");
  const holding = new Map<number, readonly string[]>();
  const lines = [`     ${cells((t) => scenario.threads[t] as string)}  locks held`];
  for (const [i, s] of steps.entries()) {
    holding.set(s.thread, s.holds);
    const held = scenario.threads.flatMap((name, t) => {
      const locks = holding.get(t) ?? [];
      return locks.length === 0 ? [] : [`${name}: ${locks.join(", ")}`];
    });
    lines.push(`${String(i + 1).padStart(3)}  ${cells((t) => (t === s.thread ? s.does : ""))}  ${held.join("; ")}`.trimEnd());
  }
  const { violation } = outcome;
  lines.push(violation === undefined ? `     ${outcome.state}` : `     ${violation.kind}: ${violation.message}`);
  return lines;
}
