/**
 * Optimal dynamic partial-order reduction: each trace once.
 *
 * After a complete run every pair of steps that are ordered by nothing but
 * their own dependence (a race) is turned around: the steps that do not depend
 * on the first, followed by the second, are a way to another trace, and are
 * put into the wakeup tree of the state before the first. What has been tried
 * at a state sleeps below it until a dependent step wakes it.
 *
 * Locks disable. When the second of a race waited for a lock, what can be
 * turned around is not the release that let it go on but the whole section, so
 * the race is with the step that took the lock. A thread that still waits when
 * the run ends (a deadlock) races with the takers of its lock in the same way.
 * A step that woke a thread cannot come after what the thread did then.
 *
 * Where a step's footprint may change when it is moved (`Program.exact` false),
 * the moved step is taken to depend on everything: nothing is lost, and some
 * runs may be started in vain (`Counts.blocked`).
 *
 * Source: Abdulla, Aronis, Jonsson, Sagonas, "Source sets: a foundation for
 * optimal dynamic partial order reduction", JACM 64(4), 2017.
 */
import { type Counts, dependent, type Execution, type Footprint, newCounts, type OnRun, type Program } from "./program.ts";

/** A step yet to be taken: a node of a wakeup tree, with what it did where it was seen. */
interface Node {
  readonly thread: number;
  readonly footprint: Footprint;
  children: Node[];
}

interface Sleeper {
  readonly thread: number;
  readonly footprint: Footprint;
}

/** One step of the current run, and what remains to be tried in the state before it. */
interface Frame {
  thread: number;
  footprint: Footprint;
  /** How many steps of each thread come before or at this one; the own entry is its number within the thread. */
  clock: Uint16Array;
  /** Index of the step that woke the thread for this one; -1 for none. */
  wokenBy: number;
  /** Steps before which this one is to be tried: those it races with, or the takers of the lock it waited for. */
  races: readonly number[];
  /** What need not be tried here. Grows with what has been tried. */
  readonly sleep: Sleeper[];
  /** To be tried here, in this order. */
  todo: Node[];
  /** Where the run in hand goes after this step. */
  below: Node[];
}

const UNSEEN: Footprint = { accesses: [], acquired: -1, blocking: false, released: [], woke: [] };
/** Depends on every step; compared by identity. */
const ANYTHING: Footprint = { ...UNSEEN };

const depends = (a: Footprint, b: Footprint): boolean => a === ANYTHING || b === ANYTHING || dependent(a, b);

/** Explores every trace of a program. */
export function exploreOptimal(program: Program, onRun: OnRun): Counts {
  return new Optimal(program, onRun).explore();
}

class Optimal {
  readonly #program: Program;
  readonly #onRun: OnRun;
  readonly #counts: Counts = newCounts();
  readonly #frames: Frame[] = [];
  /** Last step of each thread in the run, -1 for none. */
  #last: number[] = [];
  #wokenBy: number[] = [];
  /** Scratch. */
  readonly #way: Sleeper[] = [];

  constructor(program: Program, onRun: OnRun) {
    this.#program = program;
    this.#onRun = onRun;
  }

  explore(): Counts {
    const counts = this.#counts;
    do {
      const run = this.#program.start();
      if (this.#run(run)) {
        counts.executions++;
        counts.steps += this.#frames.length;
        const outcome = run.finish();
        if (outcome.violation !== undefined) counts.violations++;
        if (this.#onRun({ schedule: this.#frames.map((f) => f.thread), outcome }, counts) === true) return counts;
        this.#races(run);
      } else {
        counts.blocked++;
      }
    } while (this.#backtrack());
    counts.exhausted = true;
    return counts;
  }

  /** Takes the steps that are decided, then on to the end. False when the rest is covered elsewhere. */
  #run(run: Execution): boolean {
    const frames = this.#frames;
    const decided = frames.length;
    this.#last = [];
    this.#wokenBy = [];
    for (let i = 0; i < decided - 1; i++) this.#take(run, i, true);
    const turn = frames[decided - 1];
    if (turn !== undefined) {
      if (!run.enabled().includes(turn.thread)) {
        // Again a plan that does not hold: nothing was done, and it need not sleep.
        turn.footprint = ANYTHING;
        return false;
      }
      this.#take(run, decided - 1, false);
    }
    for (;;) {
      const enabled = run.enabled();
      if (enabled.length === 0) return true;
      const before = frames[frames.length - 1];
      const sleep = before === undefined ? [] : before.sleep.filter((s) => !depends(s.footprint, before.footprint));
      const [planned, ...todo] = before?.below ?? [];
      // A plan made of footprints that have changed may not go on as planned; the state is explored all the same.
      const next = planned !== undefined && enabled.includes(planned.thread) ? planned : undefined;
      const thread = next?.thread ?? pick(enabled, sleep, before?.thread);
      if (thread === undefined) return false;
      frames.push({
        thread,
        footprint: UNSEEN,
        clock: NO_CLOCK,
        wokenBy: -1,
        races: [],
        sleep,
        todo,
        below: next?.children ?? [],
      });
      this.#take(run, frames.length - 1, false);
    }
  }

  /** Takes step `i`; `known` when it was taken in the same way before. */
  #take(run: Execution, i: number, known: boolean): void {
    const f = this.#frames[i] as Frame;
    const t = f.thread;
    const footprint = run.step(t);
    if (!known) {
      f.footprint = footprint;
      f.wokenBy = this.#wokenBy[t] ?? -1;
      f.clock = this.#clockOf(i, run.threads);
      f.races = this.#racesOf(i, f);
    }
    this.#wokenBy[t] = -1;
    this.#last[t] = i;
    for (const w of footprint.woke) this.#wokenBy[w] = i;
  }

  #clockOf(i: number, threads: number): Uint16Array {
    const frames = this.#frames;
    const { thread, footprint } = frames[i] as Frame;
    const clock = new Uint16Array(threads);
    const own = this.#last[thread] ?? -1;
    if (own >= 0) join(clock, (frames[own] as Frame).clock);
    for (let k = i - 1; k >= 0; k--) {
      const f = frames[k] as Frame;
      if (f.thread === thread || seen(clock, f) || !dependent(f.footprint, footprint)) continue;
      join(clock, f.clock);
    }
    clock[thread] = (clock[thread] as number) + 1;
    return clock;
  }

  /** Plans the reversal of every race of the complete run: what depends on none of a race's first step may have grown. */
  #races(run: Execution): void {
    const frames = this.#frames;
    for (let j = 0; j < frames.length; j++) {
      const f = frames[j] as Frame;
      for (let k = 0; k < f.races.length; k++) this.#reverse(f.races[k] as number, f, j);
    }
    for (let t = 0; t < run.threads; t++) {
      const p = run.pending(t);
      if (p !== undefined) this.#pendingRaces(t, p, this.#last[t] ?? -1);
    }
  }

  #racesOf(j: number, { thread, footprint, wokenBy, clock }: Frame): number[] {
    const frames = this.#frames;
    const found: number[] = [];
    const own = this.#last[thread] ?? -1;
    const known = new Uint16Array(clock.length);
    if (own >= 0) join(known, (frames[own] as Frame).clock);
    for (let i = j - 1; i >= 0; i--) {
      const f = frames[i] as Frame;
      if (f.thread === thread || seen(known, f) || !dependent(f.footprint, footprint)) continue;
      if (i !== wokenBy) {
        const lock = footprint.acquired;
        const waited = footprint.blocking && f.footprint.released.includes(lock) && conflictOn(lock, f.footprint, footprint);
        const first = waited ? this.#sectionStart(i, lock) : i;
        if (first === i || !this.#orderedOtherwise(first, i, j, thread, footprint, own)) found.push(first);
      }
      join(known, f.clock);
    }
    return found;
  }

  #pendingRaces(thread: number, pending: Footprint, own: number): void {
    const frames = this.#frames;
    const end = frames.length;
    const settled = new Set<number>([thread]);
    for (let i = end - 1; i >= 0; i--) {
      const f = frames[i] as Frame;
      if (settled.has(f.thread) || (f.footprint.acquired !== pending.acquired && !f.footprint.released.includes(pending.acquired)))
        continue;
      settled.add(f.thread);
      // Released after it was taken: not a holder.
      if (f.footprint.acquired !== pending.acquired || f.footprint.released.includes(pending.acquired)) continue;
      if (!conflictOn(pending.acquired, f.footprint, pending)) continue;
      if (!this.#orderedOtherwise(i, end, end, thread, pending, own)) this.#reverse(i, { thread, footprint: pending }, end);
    }
  }

  /** The step of the same thread that took what step `i` released. */
  #sectionStart(i: number, lock: number): number {
    const frames = this.#frames;
    const { thread } = frames[i] as Frame;
    for (let k = i; k >= 0; k--) {
      const f = frames[k] as Frame;
      if (f.thread === thread && f.footprint.acquired === lock) return k;
    }
    return i;
  }

  /** Is step `first` before step `j` for another reason than its own section, which ends at `end`? */
  #orderedOtherwise(first: number, end: number, j: number, thread: number, footprint: Footprint, own: number): boolean {
    const frames = this.#frames;
    const a = frames[first] as Frame;
    if (own >= 0 && seen((frames[own] as Frame).clock, a)) return true;
    for (let k = first + 1; k < j; k++) {
      const f = frames[k] as Frame;
      if (f.thread === thread || (f.thread === a.thread && k <= end)) continue;
      if (seen(f.clock, a) && dependent(f.footprint, footprint)) return true;
    }
    return false;
  }

  /** Plans, for the state before step `i`, all that does not depend on it, and then `second`, which is or would be step `j`. */
  #reverse(i: number, second: Sleeper, j: number): void {
    const frames = this.#frames;
    const first = frames[i] as Frame;
    const way = this.#way;
    way.length = 0;
    const own = first.thread;
    const nth = first.clock[own] as number;
    for (let k = i + 1; k < frames.length; k++) {
      const f = frames[k] as Frame;
      if ((f.clock[own] ?? 0) < nth && k !== j) way.push(f);
    }
    way.push(this.#program.exact ? second : { thread: second.thread, footprint: ANYTHING });
    const { sleep } = first;
    for (let k = 0; k < sleep.length; k++) if (isInitial(sleep[k] as Sleeper, way) >= NOWHERE) return;
    insert(first.todo, way);
  }

  /** To the next step that is to be tried; false when there is none. */
  #backtrack(): boolean {
    const frames = this.#frames;
    for (;;) {
      const f = frames[frames.length - 1];
      if (f === undefined) return false;
      f.sleep.push({ thread: f.thread, footprint: f.footprint });
      const next = f.todo.shift();
      if (next !== undefined) {
        f.thread = next.thread;
        f.below = next.children;
        return true;
      }
      frames.pop();
    }
  }
}

const NO_CLOCK = new Uint16Array(0);

function join(into: Uint16Array, from: Uint16Array): void {
  for (let t = 0; t < from.length; t++) {
    const n = from[t] as number;
    if (n > (into[t] as number)) into[t] = n;
  }
}

/** Does the clock cover the step? */
const seen = (clock: Uint16Array, f: Frame): boolean => (clock[f.thread] ?? 0) >= (f.clock[f.thread] as number);

function conflictOn(lock: number, a: Footprint, b: Footprint): boolean {
  const w = lock * 2 + 1;
  return a.accesses.includes(w) || b.accesses.includes(w);
}

/** The thread that ran last goes on if it may: fewer switches to read. */
function pick(enabled: readonly number[], sleep: readonly Sleeper[], last: number | undefined): number | undefined {
  const awake = (t: number): boolean => !sleep.some((s) => s.thread === t);
  if (last !== undefined && enabled.includes(last) && awake(last)) return last;
  return enabled.find(awake);
}

const NOT = -2;
const NOWHERE = -1;

/**
 * Can the step be the first of something equivalent to the way? Where in the
 * way it is; `NOWHERE` when it is not in it and depends on nothing of it; `NOT`.
 */
function isInitial(s: Sleeper, way: readonly Sleeper[]): number {
  const { thread, footprint } = s;
  for (let k = 0; k < way.length; k++) {
    const step = way[k] as Sleeper;
    if (step.thread === thread) {
      for (let b = 0; b < k; b++) if (depends((way[b] as Sleeper).footprint, step.footprint)) return NOT;
      return k;
    }
  }
  for (let k = 0; k < way.length; k++) if (depends((way[k] as Sleeper).footprint, footprint)) return NOT;
  return NOWHERE;
}

/** Puts the way into the tree unless what the tree has already leads to it. */
function insert(roots: Node[], way: readonly Sleeper[]): void {
  let level = roots;
  let rest = way;
  descend: for (;;) {
    for (const node of level) {
      const at = isInitial(node, rest);
      if (at === NOT) continue;
      if (node.children.length === 0) return;
      rest = at === NOWHERE ? rest : rest.filter((_, k) => k !== at);
      level = node.children;
      continue descend;
    }
    for (const { thread, footprint } of rest) {
      const node: Node = { thread, footprint, children: [] };
      level.push(node);
      level = node.children;
    }
    return;
  }
}
