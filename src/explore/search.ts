/**
 * Strategies beside the optimal one: every interleaving, perhaps within a number
 * of preemptions; and runs drawn at random, evenly at each step or by priorities
 * (PCT).
 *
 * PCT draws a priority for each thread and `depth - 1` steps at which the thread
 * that runs falls below all others; a bug that needs `depth` ordered events
 * among n threads and k steps is hit by one run with probability at least
 * 1 / (n · k^(depth-1)).
 *
 * Source: Musuvathi, Qadeer, "Iterative context bounding for systematic testing
 * of multithreaded programs", PLDI 2007; Burckhardt, Kothari, Musuvathi,
 * Nagarakatte, "A randomized scheduler with probabilistic guarantees of finding
 * bugs", ASPLOS 2010.
 */
import type { Rng } from "../lib/rng.ts";
import { type Counts, type Execution, newCounts, type OnRun, type Program, type Run } from "./program.ts";
import { goesOn, isPreemption } from "./schedule.ts";

/** Chooses the thread of step `depth`; `enabled` is not empty. */
export type Choose = (enabled: readonly number[], last: number | undefined, depth: number) => number;

/** Drives one run to its end. */
export function drive(run: Execution, choose: Choose): Run {
  const schedule: number[] = [];
  for (;;) {
    const enabled = run.enabled();
    if (enabled.length === 0) return { schedule, outcome: run.finish() };
    const t = choose(enabled, schedule[schedule.length - 1], schedule.length);
    run.step(t);
    schedule.push(t);
  }
}

function count(counts: Counts, run: Run): void {
  counts.executions++;
  counts.steps += run.schedule.length;
  if (run.outcome.violation !== undefined) counts.violations++;
}

/** Every interleaving that preempts a running thread at most `preemptions` times; all of them by default. */
export function exploreAll(program: Program, onRun: OnRun, preemptions: number = Number.POSITIVE_INFINITY): Counts {
  const counts = newCounts();
  /** For each step of the run in hand, the threads not yet tried there; the current one is last. */
  const open: number[][] = [];
  do {
    let spent = 0;
    const run = drive(program.start(), (enabled, last, depth) => {
      const known = open[depth];
      if (known === undefined) {
        const first = goesOn(enabled, last);
        const others = enabled.filter((t) => t !== first && (spent < preemptions || !isPreemption(enabled, last, t)));
        open.push([...others, first]);
      }
      const t = open[depth]?.at(-1) as number;
      if (isPreemption(enabled, last, t)) spent++;
      return t;
    });
    count(counts, run);
    if (onRun(run, counts) === true) return counts;
    for (let at = open.at(-1); at !== undefined; at = open.at(-1)) {
      at.pop();
      if (at.length > 0) break;
      open.pop();
    }
  } while (open.length > 0);
  counts.exhausted = true;
  return counts;
}

/** `runs` runs, every step's thread drawn evenly. */
export function exploreRandom(program: Program, onRun: OnRun, rng: Rng, runs: number): Counts {
  return repeat(program, onRun, runs, () => (enabled) => rng.pick(enabled));
}

/** `runs` runs under priorities; `steps` is the length that a run is expected to have. */
export function explorePct(program: Program, onRun: OnRun, rng: Rng, runs: number, depth: number, steps: number): Counts {
  return repeat(program, onRun, runs, () => {
    const priority: number[] = [];
    const changes = new Set<number>();
    for (let i = 1; i < depth; i++) changes.add(rng.below(Math.max(1, steps)));
    let lowest = 0;
    const of = (t: number): number => {
      while (priority.length <= t) priority.push(1 + rng.u32());
      return priority[t] as number;
    };
    return (enabled, last, at) => {
      if (changes.has(at) && last !== undefined) priority[last] = --lowest;
      return enabled.reduce((a, b) => (of(b) > of(a) ? b : a));
    };
  });
}

function repeat(program: Program, onRun: OnRun, runs: number, chooser: () => Choose): Counts {
  const counts = newCounts();
  for (let i = 0; i < runs; i++) {
    const run = drive(program.start(), chooser());
    count(counts, run);
    if (onRun(run, counts) === true) break;
  }
  return counts;
}
