/**
 * Running a schedule again, and making it short.
 *
 * A schedule may say more or less than the run needs: a thread that cannot run
 * is passed over, a choice that is not there is 0, one beyond what there is to
 * choose from is the last, and where the schedule ends the run goes on by
 * itself. So any part of a schedule is one too, and shrinking is trying parts.
 */
import type { Decide, Program, Run, Violation } from "./program.ts";
import { formatSchedule, goesOn, type Planned, scheduleOf, stepsOf } from "./schedule.ts";
import { drive } from "./search.ts";

/** Walks along a schedule: who steps next, and what the step chooses. */
export class Follower {
  readonly #steps: readonly Planned[];
  #at = 0;
  #values: readonly number[] = [];
  #chosen = 0;

  constructor(schedule: readonly number[]) {
    this.#steps = stepsOf(schedule);
  }

  next(enabled: readonly number[], last: number | undefined): number {
    this.#chosen = 0;
    while (this.#at < this.#steps.length) {
      const { thread, values } = this.#steps[this.#at++] as Planned;
      this.#values = values;
      if (enabled.includes(thread)) return thread;
    }
    this.#values = [];
    return goesOn(enabled, last);
  }

  readonly decide: Decide = (n) => Math.min(this.#values[this.#chosen++] ?? 0, n - 1);
}

/** Runs the program under a schedule, whole or in part. */
export function replay(program: Program, schedule: readonly number[]): Run {
  const follower = new Follower(schedule);
  return drive(program.start(), (enabled, last) => follower.next(enabled, last), follower.decide);
}

/** The stretches of one thread between two switches. */
const segmentsOf = (steps: readonly Planned[]): Planned[][] => {
  const out: Planned[][] = [];
  for (const s of steps) {
    const last = out.at(-1);
    if (last !== undefined && last[0]?.thread === s.thread) last.push(s);
    else out.push([s]);
  }
  return out;
};

export interface Shrunk {
  /** Only what is needed: the rest of the run follows by itself. */
  readonly schedule: readonly number[];
  readonly run: Run;
  /** Runs it took. */
  readonly tries: number;
}

/**
 * A shorter schedule with a violation of the same kind: first the shortest
 * beginning that suffices, then without segments, with shorter ones, and with
 * choices left out. The result cannot be shortened by any one of these.
 */
export function shrink(program: Program, schedule: readonly number[], violation: Violation, maxTries = 2000): Shrunk {
  let best: readonly Planned[] = stepsOf(schedule);
  let run = replay(program, schedule);
  let tries = 1;
  const accept = (candidate: readonly Planned[]): boolean => {
    if (tries >= maxTries || cost(candidate) >= cost(best)) return false;
    tries++;
    const r = replay(program, scheduleOf(candidate));
    if (r.outcome.violation?.kind !== violation.kind) return false;
    best = candidate;
    run = r;
    return true;
  };
  for (let changed = true; changed; ) {
    changed = false;
    for (let n = 0; n < best.length; n++) if (accept(best.slice(0, n))) changed = true;
    for (let i = segmentsOf(best).length - 1; i >= 0; i--) if (accept(segmentsOf(best).toSpliced(i, 1).flat())) changed = true;
    for (let i = segmentsOf(best).length - 1; i >= 0; i--) {
      const segment = segmentsOf(best)[i];
      if (segment === undefined) continue;
      for (let n = 1; n < segment.length; n++) {
        if (accept(segmentsOf(best).with(i, segment.slice(0, n)).flat())) {
          changed = true;
          break;
        }
      }
    }
    for (let i = 0; i < best.length; i++) {
      for (let v = 0; v < (best[i]?.values.length ?? 0); v++) {
        const step = best[i] as Planned;
        if (accept(best.with(i, { thread: step.thread, values: step.values.with(v, 0) }))) changed = true;
      }
    }
  }
  return { schedule: scheduleOf(best), run, tries };
}

/** Switches weigh most, then the length of the text. */
function cost(steps: readonly Planned[]): number {
  const schedule = scheduleOf(steps);
  return segmentsOf(steps).length * 1000 + formatSchedule(schedule).length * 10 + schedule.length / 1000;
}
