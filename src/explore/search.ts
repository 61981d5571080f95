/**
 * Strategies beside the optimal one: every interleaving and every choice,
 * perhaps within a number of preemptions; and runs drawn at random, evenly at
 * each step or by priorities (PCT), with choices drawn evenly.
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
import { byDefault, type Counts, type Decide, type Execution, newCounts, type OnRun, type Program, type Run } from "./program.ts";
import { append, goesOn, isPreemption } from "./schedule.ts";

/** Chooses the thread of step `depth`; `enabled` is not empty. */
export type Choose = (enabled: readonly number[], last: number | undefined, depth: number) => number;

/** Drives one run to its end; `decide` settles the choices of the step that `choose` has just named. */
export function drive(run: Execution, choose: Choose, decide: Decide = byDefault): DrivenRun {
  const schedule: number[] = [];
  let values: number[] = [];
  const note: Decide = (n, label) => {
    const v = decide(n, label);
    values.push(v);
    return v;
  };
  let last: number | undefined;
  for (let depth = 0; ; depth++) {
    const enabled = run.enabled();
    if (enabled.length === 0) return { schedule, steps: depth, outcome: run.finish() };
    last = choose(enabled, last, depth);
    if (values.length > 0) values = [];
    run.step(last, note);
    append(schedule, last, values);
  }
}

export interface DrivenRun extends Run {
  /** How many. */
  readonly steps: number;
}

function count(counts: Counts, run: DrivenRun): void {
  counts.executions++;
  counts.steps += run.steps;
  if (run.outcome.violation !== undefined) counts.violations++;
}

/** Every interleaving that preempts a running thread at most `preemptions` times; all of them by default. */
export function exploreAll(program: Program, onRun: OnRun, preemptions: number = Number.POSITIVE_INFINITY): Counts {
  return exploreAllowing(program, onRun, (enabled, last, spent) =>
    spent < preemptions ? enabled : enabled.filter((t) => !isPreemption(enabled, last, t)),
  );
}

/** Of the threads that can go on, those that may, after that many preemptions; never none. */
export type Allow = (enabled: readonly number[], last: number | undefined, preemptions: number) => readonly number[];

/** Every interleaving of allowed steps, with every choice. */
export function exploreAllowing(program: Program, onRun: OnRun, allow: Allow): Counts {
  const counts = newCounts();
  /** For each step and each choice of the run in hand, in order, what is not yet tried there; the current one is last. */
  const open: number[][] = [];
  do {
    let spent = 0;
    let at = 0;
    const take = (options: () => number[]): number => {
      if (open.length === at) open.push(options());
      return open[at++]?.at(-1) as number;
    };
    const run = drive(
      program.start(),
      (enabled, last) => {
        const t = take(() => {
          const allowed = allow(enabled, last, spent);
          const first = goesOn(allowed, last);
          return [...allowed.filter((o) => o !== first), first];
        });
        if (isPreemption(enabled, last, t)) spent++;
        return t;
      },
      (n) => take(() => Array.from({ length: n }, (_, v) => n - 1 - v)),
    );
    count(counts, run);
    if (onRun(run, counts) === true) return counts;
    for (let last = open.at(-1); last !== undefined; last = open.at(-1)) {
      last.pop();
      if (last.length > 0) break;
      open.pop();
    }
  } while (open.length > 0);
  counts.exhausted = true;
  return counts;
}

/** `runs` runs, every step's thread drawn evenly. */
export function exploreRandom(program: Program, onRun: OnRun, rng: Rng, runs: number): Counts {
  return repeat(program, onRun, rng, runs, () => (enabled) => rng.pick(enabled));
}

/** `runs` runs under priorities; `steps` is the length that a run is expected to have. */
export function explorePct(program: Program, onRun: OnRun, rng: Rng, runs: number, depth: number, steps: number): Counts {
  return repeat(program, onRun, rng, runs, () => {
    const priority = new Map<number, number>();
    const changes = new Set<number>();
    for (let i = 1; i < depth; i++) changes.add(rng.below(Math.max(1, steps)));
    let lowest = 0;
    const of = (t: number): number => {
      let p = priority.get(t);
      if (p === undefined) {
        p = 1 + rng.u32();
        priority.set(t, p);
      }
      return p;
    };
    return (enabled, last, at) => {
      if (changes.has(at) && last !== undefined) priority.set(last, --lowest);
      return enabled.reduce((a, b) => (of(b) > of(a) ? b : a));
    };
  });
}

function repeat(program: Program, onRun: OnRun, rng: Rng, runs: number, chooser: () => Choose): Counts {
  const counts = newCounts();
  const decide: Decide = (n) => rng.below(n);
  for (let i = 0; i < runs; i++) {
    const run = drive(program.start(), chooser(), decide);
    count(counts, run);
    if (onRun(run, counts) === true) break;
  }
  return counts;
}
