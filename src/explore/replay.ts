/**
 * Running a schedule again, and making it short.
 *
 * A schedule may say more or less than the run needs: a thread that cannot run
 * is passed over, and where it ends the run goes on by itself. So any part of a
 * schedule is one too, and shrinking is trying parts.
 */
import type { Program, Run, Violation } from "./program.ts";
import { formatSchedule, goesOn } from "./schedule.ts";
import { drive } from "./search.ts";

/** Runs the program under a schedule, whole or in part; `onStep` is told of each step before it is taken. */
export function replay(program: Program, schedule: readonly number[]): Run {
  let at = 0;
  return drive(program.start(), (enabled, last) => {
    while (at < schedule.length) {
      const t = schedule[at++] as number;
      if (enabled.includes(t)) return t;
    }
    return goesOn(enabled, last);
  });
}

/** The switches between threads of a schedule. */
const segmentsOf = (schedule: readonly number[]): number[][] => {
  const out: number[][] = [];
  for (const t of schedule) {
    const last = out.at(-1);
    if (last !== undefined && last[0] === t) last.push(t);
    else out.push([t]);
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
 * beginning that suffices, then without segments, then with shorter ones. The
 * result cannot be shortened by any one of these.
 */
export function shrink(program: Program, schedule: readonly number[], violation: Violation, maxTries = 2000): Shrunk {
  let best = [...schedule];
  let run = replay(program, best);
  let tries = 1;
  const accept = (candidate: number[]): boolean => {
    if (tries >= maxTries || cost(candidate) >= cost(best)) return false;
    tries++;
    const r = replay(program, candidate);
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
  }
  return { schedule: best, run, tries };
}

/** Switches weigh most, then the length of the text. */
const cost = (schedule: readonly number[]): number =>
  segmentsOf(schedule).length * 1000 + formatSchedule(schedule).length * 10 + schedule.length / 1000;
