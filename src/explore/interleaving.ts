/** A run of tasks, step by step, in columns: what each does and which locks it then holds. */
import { schedEvents } from "../kernel/kernel.ts";
import type { SchedPoint } from "../sched/task.ts";
import type { TraceListener } from "../trace/trace.ts";
import type { Outcome } from "./program.ts";
import type { Choice } from "./recorder.ts";
import { Follower } from "./replay.ts";
import { append, TIME } from "./schedule.ts";
import { type Scenario, taskProgram } from "./tasks.ts";

export interface ToldStep {
  readonly thread: number;
  /** Of the thread: its task's. */
  readonly name: string;
  /** What the step began with: "lock RESV". */
  readonly does: string;
  /** Locks held after it, the outermost first; before it, where it failed. */
  readonly holds: readonly string[];
  readonly choices: readonly Choice[];
}

export interface Told {
  readonly steps: readonly ToldStep[];
  readonly outcome: Outcome;
  /** Every step, those that the schedule did not write included. */
  readonly schedule: readonly number[];
}

/**
 * Runs a schedule, whole or in part, and notes each step. `listener` hears what
 * the machine tells of it, if the scene has a trace: locks and waits as well.
 */
export function tell(scenario: Scenario, schedule: readonly number[], listener?: TraceListener): Told {
  const run = taskProgram(scenario).start();
  if (listener !== undefined && run.trace !== undefined) {
    run.trace.listen(listener);
    run.recorder.forward = schedEvents(run.trace);
  }
  const steps: ToldStep[] = [];
  const whole: number[] = [];
  const follower = new Follower(schedule);
  for (let last: number | undefined; ; ) {
    const enabled = run.enabled();
    if (enabled.length === 0) return { steps, outcome: run.finish(), schedule: whole };
    const thread = follower.next(enabled, last);
    const task = run.taskOf(thread);
    const point = task?.point;
    const does = thread === TIME ? "a timer fires" : point === undefined || point.op === "start" ? "starts" : sayPoint(point);
    const held = task?.held.map((h) => h.lock.name) ?? [];
    run.step(thread, follower.decide);
    const { choices } = run.recorder;
    const chose = choices.map((c) => `, ${c.label} ${c.value}`).join("");
    const ended = task?.state === "done" ? ", ends" : task?.state === "failed" ? ", FAILS" : "";
    const name = task === undefined ? "time" : (scenario.threads[thread] ?? task.name);
    steps.push({
      thread,
      name,
      does: does + chose + ended,
      holds: task?.state === "failed" ? held : (task?.held.map((h) => h.lock.name) ?? []),
      choices,
    });
    append(
      whole,
      thread,
      choices.map((c) => c.value),
    );
    last = thread;
  }
}

const sayPoint = ({ op, on }: SchedPoint): string => (op === "yield" ? "goes on" : `${op} ${on.name}`);

/** Lines of text: a column per thread, then who holds what. */
export function formatInterleaving(scenario: Scenario, { steps, outcome }: Told): string[] {
  const names = new Map<number, string>(scenario.threads.entries());
  for (const s of steps) names.set(s.thread, s.name);
  const threads = [...names].sort(([a], [b]) => a - b);
  const width = threads.map(([t, name]) => Math.max(name.length, ...steps.map((s) => (s.thread === t ? s.does.length : 0))));
  const cells = (of: (t: number, name: string) => string): string =>
    threads.map(([t, name], i) => of(t, name).padEnd(width[i] as number)).join("  ");
  const holding = new Map<number, readonly string[]>();
  const lines = [`     ${cells((_, name) => name)}  locks held`];
  for (const [i, s] of steps.entries()) {
    holding.set(s.thread, s.holds);
    const held = threads.flatMap(([t, name]) => {
      const locks = holding.get(t) ?? [];
      return locks.length === 0 ? [] : [`${name}: ${locks.join(", ")}`];
    });
    lines.push(`${String(i + 1).padStart(3)}  ${cells((t) => (t === s.thread ? s.does : ""))}  ${held.join("; ")}`.trimEnd());
  }
  const { violation } = outcome;
  lines.push(violation === undefined ? `     ${outcome.state}` : `     ${violation.kind}: ${violation.message}`);
  return lines;
}
