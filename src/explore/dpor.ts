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
 * A step may make choices. Two runs in which it chooses differently are two
 * traces, so every value is tried where the step is first come upon; each run
 * then turns its own races around, with the values it had.
 *
 * Where a step's footprint may change when it is moved (`Program.exact` false),
 * the moved step is taken to depend on everything: nothing is lost, and some
 * runs may be started in vain (`Counts.blocked`).
 *
 * Source: Abdulla, Aronis, Jonsson, Sagonas, "Source sets: a foundation for
 * optimal dynamic partial order reduction", JACM 64(4), 2017.
 */
import { type Part, type Sleeper, WHOLE } from "./parts.ts";
import {
  type Counts,
  type Decide,
  dependent,
  type Execution,
  type Footprint,
  NO_FOOTPRINT,
  newCounts,
  type OnRun,
  type Pending,
  type Program,
} from "./program.ts";
import { append, TIME } from "./schedule.ts";

/** A step with what it did where it was seen. */
interface Seen {
  readonly thread: number;
  readonly footprint: Footprint;
  /** What it chose; undefined when it may choose differently where it is moved to, so that every value is to be tried. */
  readonly values: readonly number[] | undefined;
  /** Of how many values each choice was one. */
  readonly arities: readonly number[];
}

/** A step yet to be taken: a node of a wakeup tree. */
interface Node extends Seen {
  children: Node[];
}

/** Steps by slot; what is not there is 0. */
type Clock = number[];

/** One step of the current run, and what remains to be tried in the state before it. */
interface Frame {
  thread: number;
  /** The thread's place in the clocks. */
  slot: number;
  footprint: Footprint;
  /** What the step chose, and of how many values each. */
  values: readonly number[];
  arities: readonly number[];
  /** Its choices are those of a plan; otherwise every value is tried here. */
  planned: boolean;
  /** How many steps of each thread come before or at this one; the own entry is its number within the thread. */
  clock: Clock;
  /** Index of the step that woke the thread for this one; -1 for none. */
  wokenBy: number;
  /** Steps before which this one is to be tried: those it races with, or the takers of the lock it waited for. */
  races: readonly number[];
  /** What need not be tried here. Grows with what has been tried. */
  readonly sleep: Sleeper[];
  /** To be tried here, in this order. */
  todo: Node[];
  /** Where the run in hand goes after this step. */
  below: readonly Node[];
  /** Threads that waited for a lock while time passed, with the last step of each. */
  waiting: readonly (Pending & { readonly own: number })[];
}

/** Depends on every step. */
const ANYTHING: Footprint = { ...NO_FOOTPRINT, barrier: true };
const NO_VALUES: readonly number[] = [];
const NOBODY: readonly never[] = [];

/** Explores every trace of a program. */
export function exploreOptimal(program: Program, onRun: OnRun): Counts {
  return new Optimal(program, onRun, WHOLE).explore();
}

/** Explores every trace of a part of a program's search. */
export function explorePart(program: Program, part: Part, onRun: OnRun): Counts {
  return new Optimal(program, onRun, part).explore();
}

class Optimal {
  readonly #program: Program;
  readonly #onRun: OnRun;
  readonly #part: Part;
  readonly #counts: Counts = newCounts();
  readonly #frames: Frame[] = [];
  /** Place of each thread in the clocks, in order of first sight. */
  readonly #slots: Map<number, number> = new Map();
  /** Last step of each slot in the run, -1 for none. */
  #last: number[] = [];
  #wokenBy: number[] = [];
  /** The step that is taken, and what it is to choose. */
  #taking: Frame | undefined = undefined;
  #plan: readonly number[] = NO_VALUES;
  /** The run in hand was given up because all that could go on sleeps. */
  #asleep = false;
  /** Scratch. */
  readonly #way: Seen[] = [];

  constructor(program: Program, onRun: OnRun, part: Part) {
    this.#program = program;
    this.#onRun = onRun;
    this.#part = part;
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
        if (this.#onRun({ schedule: this.#schedule(), outcome }, counts) === true) return counts;
        this.#races(run);
      } else {
        counts.blocked++;
        // Never so in a whole search that is exact; but what sleeps from a part's beginning may be woken by steps in another order.
        if (this.#asleep) this.#races(run);
        run.abandon?.();
      }
    } while (this.#backtrack());
    counts.exhausted = true;
    return counts;
  }

  #schedule(): number[] {
    const out: number[] = [];
    for (const f of this.#frames) append(out, f.thread, f.values);
    return out;
  }

  #slotOf(thread: number): number {
    let slot = this.#slots.get(thread);
    if (slot === undefined) {
      slot = this.#slots.size;
      this.#slots.set(thread, slot);
    }
    return slot;
  }

  /** Takes the steps that are decided, then on to the end. False when the rest is covered elsewhere. */
  #run(run: Execution): boolean {
    const frames = this.#frames;
    const decided = frames.length;
    this.#last = [];
    this.#wokenBy = [];
    this.#asleep = false;
    const turn = frames[decided - 1];
    if (turn === undefined) {
      this.#begin(run);
    } else {
      this.#retrace(run, decided - 1);
      if (!run.enabled().includes(turn.thread)) {
        // Again a plan that does not hold: nothing was done, and it need not sleep.
        turn.footprint = ANYTHING;
        return false;
      }
      this.#take(run, decided - 1);
    }
    for (;;) {
      const enabled = run.enabled();
      if (enabled.length === 0) return true;
      const before = frames[frames.length - 1];
      const atCut = frames.length === this.#part.prefix.length;
      const sleep = atCut ? [...this.#part.asleep] : before === undefined ? [] : stillAsleep(before);
      const below = before?.below ?? NO_NODES;
      const first = below[0];
      const todo = below.length > 1 ? below.slice(1) : [];
      // A plan made of footprints that have changed may not go on as planned; the state is explored all the same.
      const next = first !== undefined && enabled.includes(first.thread) ? first : undefined;
      const thread = next?.thread ?? pick(enabled, sleep, before?.thread);
      if (thread === undefined) {
        this.#asleep = true;
        return false;
      }
      this.#go(run, thread, next?.values ?? NO_VALUES, sleep, todo, next?.children ?? NO_NODES);
    }
  }

  /** Takes a step that was not taken before. */
  #go(run: Execution, thread: number, values: readonly number[], sleep: Sleeper[], todo: Node[], below: readonly Node[]): void {
    this.#frames.push({
      thread,
      slot: this.#slotOf(thread),
      footprint: NO_FOOTPRINT,
      values,
      arities: NO_VALUES,
      planned: values.length > 0,
      clock: NO_CLOCK,
      wokenBy: -1,
      races: [],
      sleep,
      todo,
      below,
      waiting: NOBODY,
    });
    this.#take(run, this.#frames.length - 1);
  }

  /** Takes the beginning of the part for the first time. */
  #begin(run: Execution): void {
    for (const { thread, values } of this.#part.prefix) this.#go(run, thread, values, [], [], NO_NODES);
  }

  /** Takes the steps before `end` as they were taken before. */
  #retrace(run: Execution, end: number): void {
    const frames = this.#frames;
    let at = 0;
    let value = 0;
    const decide: Decide = () => {
      while (value >= (frames[at] as Frame).values.length) {
        at++;
        value = 0;
      }
      return (frames[at] as Frame).values[value++] as number;
    };
    for (let i = 0; i < end; ) {
      const { thread } = frames[i] as Frame;
      const first = i;
      for (; i < end && (frames[i] as Frame).thread === thread; i++) {
        const f = frames[i] as Frame;
        this.#passed(f, i, f.footprint.woke);
      }
      at = first;
      value = 0;
      run.retrace(thread, i - first, decide);
    }
  }

  /** Takes step `i` for the first time, or for the first time with these choices. */
  #take(run: Execution, i: number): void {
    const f = this.#frames[i] as Frame;
    this.#plan = f.values;
    this.#taking = f;
    f.values = NO_VALUES;
    f.arities = NO_VALUES;
    // Who waits for a lock now could have had it before: time passes only when nobody can run.
    const waiting = f.thread === TIME ? run.pending() : NOBODY;
    f.footprint = run.step(f.thread, this.#decide);
    f.waiting = f.footprint.barrier ? waiting.map((p) => ({ ...p, own: this.#last[this.#slotOf(p.thread)] ?? -1 })) : NOBODY;
    if (f.values.length !== this.#plan.length) f.planned = false;
    f.wokenBy = this.#wokenBy[f.slot] ?? -1;
    this.#order(i, f);
    this.#passed(f, i, f.footprint.woke);
  }

  /** Settles a choice of the step that is taken: as it was planned, or with the first value that does not sleep. */
  readonly #decide: Decide = (n) => {
    const f = this.#taking as Frame;
    const wanted = f.planned ? this.#plan[f.values.length] : undefined;
    const v = wanted ?? firstAwake(f.sleep, f.thread, f.values, f.arities, n);
    if (!(v >= 0 && v < n)) throw new RangeError(`a choice of ${n} values is not what it was when it was planned`);
    f.values = [...f.values, v];
    f.arities = [...f.arities, n];
    return v;
  };

  #passed(f: Frame, i: number, woke: readonly number[]): void {
    this.#wokenBy[f.slot] = -1;
    this.#last[f.slot] = i;
    for (const w of woke) this.#wokenBy[this.#slotOf(w)] = i;
  }

  /** Plans the reversal of every race of the complete run: what depends on none of a race's first step may have grown. */
  #races(run: Execution): void {
    const frames = this.#frames;
    for (let j = 0; j < frames.length; j++) {
      const f = frames[j] as Frame;
      for (let k = 0; k < f.races.length; k++) this.#reverse(f.races[k] as number, f, j);
      for (const thread of f.footprint.disabled)
        this.#reverse(j, { thread, footprint: ANYTHING, values: undefined, arities: NO_VALUES }, frames.length);
      for (const { thread, footprint, own } of f.waiting) this.#pendingRaces(thread, footprint, own, j);
    }
    for (const { thread, footprint } of run.pending())
      this.#pendingRaces(thread, footprint, this.#last[this.#slotOf(thread)] ?? -1, frames.length);
  }

  /** What comes before step `j`, and what it races with: the dependent steps that nothing else puts before it. */
  #order(j: number, f: Frame): void {
    const frames = this.#frames;
    const { slot, footprint, wokenBy } = f;
    const own = this.#last[slot] ?? -1;
    const clock: Clock = own >= 0 ? (frames[own] as Frame).clock.slice() : [];
    while (clock.length < this.#slots.size) clock.push(0);
    let races: number[] | undefined;
    if (footprint.mask !== 0 || footprint.barrier) {
      for (let i = j - 1; i >= 0; i--) {
        const before = frames[i] as Frame;
        if (before.slot === slot || !dependent(before.footprint, footprint) || seen(clock, before)) continue;
        if (i !== wokenBy && !footprint.barrier && !before.footprint.barrier) {
          const first = this.#firstOf(i, before, j, f, own);
          if (first >= 0) {
            races ??= [];
            races.push(first);
          }
        }
        join(clock, before.clock);
      }
    }
    clock[slot] = (clock[slot] as number) + 1;
    f.clock = clock;
    f.races = races ?? NO_VALUES;
  }

  /** The step to turn around for the dependent step `i`: itself, the one that took the lock which `i` released, or none (-1). */
  #firstOf(i: number, before: Frame, j: number, { thread, footprint }: Frame, own: number): number {
    const lock = footprint.acquired;
    const waited = footprint.blocking && before.footprint.released.includes(lock) && conflictOn(lock, before.footprint, footprint);
    const first = waited ? this.#sectionStart(i, lock) : i;
    return first === i || !this.#orderedOtherwise(first, i, j, thread, footprint, own) ? first : -1;
  }

  /** For a thread that waited for a lock before step `end`: the taking by which it was kept out, in the place of its own. */
  #pendingRaces(thread: number, pending: Footprint, own: number, end: number): void {
    const frames = this.#frames;
    const settled = new Set<number>([thread]);
    for (let i = end - 1; i >= 0; i--) {
      const f = frames[i] as Frame;
      if (settled.has(f.thread) || (f.footprint.acquired !== pending.acquired && !f.footprint.released.includes(pending.acquired)))
        continue;
      settled.add(f.thread);
      // Released after it was taken: not a holder.
      if (f.footprint.acquired !== pending.acquired || f.footprint.released.includes(pending.acquired)) continue;
      if (!conflictOn(pending.acquired, f.footprint, pending)) continue;
      if (!this.#orderedOtherwise(i, end, end, thread, pending, own))
        this.#reverse(i, { thread, footprint: pending, values: undefined, arities: NO_VALUES }, end);
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
  #reverse(i: number, second: Seen, j: number): void {
    if (i < this.#part.prefix.length) return;
    const frames = this.#frames;
    const first = frames[i] as Frame;
    const way = this.#way;
    way.length = 0;
    const own = first.slot;
    const nth = first.clock[own] as number;
    for (let k = i + 1; k < frames.length; k++) {
      const f = frames[k] as Frame;
      if ((f.clock[own] ?? 0) < nth && k !== j) way.push(f);
    }
    way.push(this.#program.exact ? second : { thread: second.thread, footprint: ANYTHING, values: undefined, arities: NO_VALUES });
    const { sleep } = first;
    for (let k = 0; k < sleep.length; k++) {
      const s = sleep[k] as Sleeper;
      const at = isInitial(s, way);
      // Where it was tried here, its own races lead to this way. What sleeps from a cut covers only what begins with it.
      if (at === NOWHERE && s.cut === true) continue;
      // Where not every value sleeps, one that does covers only a way that chooses the same.
      if (at >= 0 ? way[at]?.values !== undefined || sleeps(sleep, s.thread) : at === NOWHERE && sleeps(sleep, s.thread)) return;
    }
    insert(first.todo, way, sleep.some((s) => s.cut === true) ? sleep.filter((s) => s.cut !== true) : sleep);
  }

  /** To the next step that is to be tried; false when there is none. */
  #backtrack(): boolean {
    const frames = this.#frames;
    for (;;) {
      const f = frames[frames.length - 1];
      if (f === undefined || frames.length <= this.#part.prefix.length) return false;
      f.sleep.push({ thread: f.thread, footprint: f.footprint, values: f.values, arities: f.arities });
      if (!f.planned && f.values.length > 0 && !sleeps(f.sleep, f.thread)) {
        // Another choice of the same step.
        f.below = NO_NODES;
        return true;
      }
      const next = f.todo.shift();
      if (next !== undefined) {
        f.thread = next.thread;
        f.slot = this.#slotOf(next.thread);
        f.values = next.values ?? NO_VALUES;
        f.planned = f.values.length > 0;
        f.below = next.children;
        return true;
      }
      frames.pop();
    }
  }
}

const NO_CLOCK: Clock = [];
const NO_NODES: readonly Node[] = [];

/** What sleeps before a step and is not woken by it. */
function stillAsleep({ thread, footprint, sleep }: Frame): Sleeper[] {
  const out: Sleeper[] = [];
  for (let i = 0; i < sleep.length; i++) {
    const s = sleep[i] as Sleeper;
    if (s.thread !== thread && !dependent(s.footprint, footprint)) out.push(s);
  }
  return out;
}

function join(into: Clock, from: Clock): void {
  for (let t = 0; t < from.length; t++) {
    const n = from[t] as number;
    if (n > (into[t] as number)) into[t] = n;
  }
}

/** Does the clock cover the step? */
const seen = (clock: Clock, f: Frame): boolean => (clock[f.slot] ?? 0) >= (f.clock[f.slot] as number);

function conflictOn(lock: number, a: Footprint, b: Footprint): boolean {
  const w = lock * 2 + 1;
  return a.accesses.includes(w) || b.accesses.includes(w);
}

/** The thread that ran last goes on if it may: fewer switches to read. */
function pick(enabled: readonly number[], sleep: readonly Sleeper[], last: number | undefined): number | undefined {
  if (last !== undefined && enabled.includes(last) && !sleeps(sleep, last)) return last;
  return enabled.find((t) => !sleeps(sleep, t));
}

/** Sums of fractions of small numbers, and what is lost in them. */
const ALL = 1 - 1e-9;

/** Does the thread's next step sleep, whatever it chooses? */
function sleeps(sleep: readonly Sleeper[], thread: number): boolean {
  let part = 0;
  for (const s of sleep) {
    if (s.thread !== thread) continue;
    if (s.arities.length === 0) return true;
    part += shareOf(s.arities, 0);
  }
  return part > ALL;
}

/** Of all ways to choose from the `from`th choice on, which part is one of them? */
function shareOf(arities: readonly number[], from: number): number {
  let share = 1;
  for (let i = from; i < arities.length; i++) share /= arities[i] as number;
  return share;
}

/** The least value, after what the step chose so far, with which it does not sleep. */
function firstAwake(sleep: readonly Sleeper[], thread: number, values: readonly number[], arities: readonly number[], n: number): number {
  const part = new Array<number>(n).fill(0);
  for (const s of sleep) {
    if (s.thread !== thread || s.values.length <= values.length || values.some((v, i) => s.values[i] !== v)) continue;
    const v = s.values[values.length] as number;
    part[v] = (part[v] as number) + shareOf(s.arities, arities.length + 1);
  }
  return Math.max(
    0,
    part.findIndex((p) => p <= ALL),
  );
}

const NOT = -2;
const NOWHERE = -1;

/**
 * Can the step be the first of something equivalent to the way? Where in the
 * way it is; `NOWHERE` when it is not in it and depends on nothing of it; `NOT`.
 */
function isInitial(s: Seen, way: readonly Seen[]): number {
  const { thread, footprint } = s;
  for (let k = 0; k < way.length; k++) {
    const step = way[k] as Seen;
    if (step.thread === thread) {
      if (!sameChoice(s.values, step.values)) return NOT;
      for (let b = 0; b < k; b++) if (dependent((way[b] as Seen).footprint, step.footprint)) return NOT;
      return k;
    }
  }
  for (let k = 0; k < way.length; k++) if (dependent((way[k] as Seen).footprint, footprint)) return NOT;
  return NOWHERE;
}

/** May the two be one step? What is left open is any choice. */
function sameChoice(a: readonly number[] | undefined, b: readonly number[] | undefined): boolean {
  if (a === undefined || b === undefined || a.length === 0) return true;
  return a.every((v, i) => b[i] === v);
}

/**
 * Puts the way into the tree unless what the tree has already leads to it, or
 * what sleeps beside it does.
 */
function insert(level: Node[], way: readonly Seen[], sleep: readonly Sleeper[]): void {
  for (const node of level) {
    const at = isInitial(node, way);
    if (at === NOT) continue;
    if (node.values !== undefined && node.values.length > 0) {
      if (at === NOWHERE) {
        if (!insertBesideChoices(level, node.thread, way, sleep)) continue;
        return;
      }
      if (way[at]?.values === undefined) continue;
    }
    if (node.children.length > 0) insert(node.children, at === NOWHERE ? way : way.filter((_, k) => k !== at), NO_SLEEP);
    return;
  }
  let to = level;
  for (const { thread, footprint, values, arities } of way) {
    const node: Node = { thread, footprint, values, arities, children: [] };
    to.push(node);
    to = node.children;
  }
}

const NO_SLEEP: readonly Sleeper[] = [];

/**
 * A step that is no part of the way leads to it where all its choices together
 * do. False, and nothing done, where some are missing, or touch what the way
 * touches.
 */
function insertBesideChoices(level: readonly Node[], thread: number, way: readonly Seen[], sleep: readonly Sleeper[]): boolean {
  const nodes = level.filter((n) => n.thread === thread);
  let part = 0;
  for (const s of [...nodes, ...sleep]) {
    if (s.thread !== thread) continue;
    if (isInitial(s, way) !== NOWHERE) return false;
    part += shareOf(s.arities, 0);
  }
  if (part <= ALL) return false;
  for (const n of nodes) if (n.children.length > 0) insert(n.children, way, NO_SLEEP);
  return true;
}
