/**
 * A search cut into parts that know nothing of each other.
 *
 * A part is a beginning of runs, and what sleeps after it: steps whose traces
 * belong to other parts. A part is cut by taking every step that can come next,
 * with every choice, in a fixed order; what comes earlier in that order sleeps
 * in what comes later, as long as it does not depend on the step taken. So the
 * parts of a part have, together, each of its traces once, and none has one of
 * another's. Within a part races are turned around as ever (`dpor.ts`); those
 * with a step of the beginning are other parts' business.
 *
 * A part's name is its place in the cutting, `0.2.1`: the third part of the
 * first part, of that the second. What it stands for follows from the program
 * alone, in every process: footprints are found again, and need not travel.
 *
 * Cutting takes every step where optimal DPOR takes only those that matter, so
 * some parts hold nothing but runs that are given up. That is the price of
 * independence, paid at the cuts.
 */
import { type Decide, dependent, type Execution, type Footprint, type Program } from "./program.ts";
import type { Planned } from "./schedule.ts";

/** A step that need not be tried: the runs that begin with it are another's. */
export interface Sleeper {
  readonly thread: number;
  readonly footprint: Footprint;
  readonly values: readonly number[];
  readonly arities: readonly number[];
  /** It sleeps from a cut: nobody turns its races around so as to come back to this part. */
  readonly cut?: boolean;
}

export interface Part {
  readonly prefix: readonly Planned[];
  /** After the prefix. */
  readonly asleep: readonly Sleeper[];
}

/** The whole search. */
export const WHOLE: Part = { prefix: [], asleep: [] };

/** Takes the steps of a part's beginning. */
export function begin(run: Execution, { prefix }: Part): void {
  for (const { thread, values } of prefix) {
    let i = 0;
    run.step(thread, () => values[i++] ?? 0);
  }
}

/** The parts of a part, in order; none when its runs end with its beginning. */
export function partsOf(program: Program, part: Part): Part[] {
  const parts: Part[] = [];
  const tried: Sleeper[] = [...part.asleep];
  for (const thread of nextOf(program, part)) {
    for (let plan: number[] | undefined = []; plan !== undefined; ) {
      const step = tryStep(program, part, thread, plan);
      plan = nextChoice(step);
      if (tried.some((s) => s.thread === thread && sameValues(s.values, step.values))) continue;
      parts.push({
        prefix: [...part.prefix, { thread, values: step.values }],
        asleep: tried.filter((s) => s.thread !== thread && !dependent(s.footprint, step.footprint)),
      });
      tried.push(step);
    }
  }
  return parts;
}

/** The part of that name. Throws RangeError when the cutting has none. */
export function partAt(program: Program, name: string): Part {
  let part = WHOLE;
  for (const index of name === "" ? [] : name.split(".")) {
    const next = partsOf(program, part)[Number(index)];
    if (next === undefined) throw new RangeError(`${program.name} has no part ${name}`);
    part = next;
  }
  return part;
}

function nextOf(program: Program, part: Part): readonly number[] {
  const run = program.start();
  begin(run, part);
  const enabled = [...run.enabled()];
  if (enabled.length === 0) run.finish();
  else run.abandon?.();
  return enabled;
}

function tryStep(program: Program, part: Part, thread: number, plan: readonly number[]): Sleeper {
  const run = program.start();
  begin(run, part);
  const values: number[] = [];
  const arities: number[] = [];
  const decide: Decide = (n) => {
    const v = plan[values.length] ?? 0;
    values.push(v);
    arities.push(n);
    return v;
  };
  const footprint = run.step(thread, decide);
  run.abandon?.();
  return { thread, footprint, values, arities, cut: true };
}

/** The choices that come after those of a step, in order; undefined when they were the last. */
function nextChoice({ values, arities }: Sleeper): number[] | undefined {
  for (let i = values.length - 1; i >= 0; i--) {
    const v = (values[i] as number) + 1;
    if (v < (arities[i] as number)) return [...values.slice(0, i), v];
  }
  return undefined;
}

const sameValues = (a: readonly number[], b: readonly number[]): boolean => a.length === b.length && a.every((v, i) => b[i] === v);
