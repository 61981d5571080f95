/**
 * Small programs: threads that read and write shared integers, take locks and
 * choose, one operation a step. The programs of the literature are written so, and the
 * strategies are proven on them.
 *
 * A thread is a generator that yields its operations and is resumed with the
 * value that a read or a choice gave. A lock is free at first; who holds it knows it.
 */
import {
  bitOf,
  byDefault,
  type Decide,
  type Execution,
  type Footprint,
  NO_FOOTPRINT,
  type Outcome,
  type Pending,
  type Program,
} from "./program.ts";
import { waitCycle } from "./wait_for.ts";

export type Op =
  | { readonly op: "read"; readonly at: number }
  | { readonly op: "write"; readonly at: number; readonly value: number }
  /** One indivisible step: gives the old value, leaves what `to` makes of it. */
  | { readonly op: "update"; readonly at: number; readonly to: (old: number) => number }
  | { readonly op: "lock"; readonly at: number }
  | { readonly op: "unlock"; readonly at: number }
  /** One of `at` values, 0 to `at` - 1. */
  | { readonly op: "choose"; readonly at: number };

export type AbstractThread = () => Generator<Op, void, number>;

/** Variables and locks are numbered from 0, each kind on its own. */
export function abstractProgram(name: string, variables: number, locks: number, threads: readonly AbstractThread[]): Program {
  const shapes = makeFootprints(variables, locks);
  return { name, exact: true, start: () => new AbstractExecution(variables, locks, threads, shapes) };
}

export const read = (at: number): Op => ({ op: "read", at });
export const write = (at: number, value: number): Op => ({ op: "write", at, value });
export const update = (at: number, to: (old: number) => number): Op => ({ op: "update", at, to });
export const lock = (at: number): Op => ({ op: "lock", at });
export const unlock = (at: number): Op => ({ op: "unlock", at });
/** One of `n` values. */
export const choose = (n: number): Op => ({ op: "choose", at: n });

interface Footprints {
  readonly read: readonly Footprint[];
  readonly write: readonly Footprint[];
  readonly lock: readonly Footprint[];
  readonly unlock: readonly Footprint[];
}

/** Locks are numbered after the variables. */
function makeFootprints(variables: number, locks: number): Footprints {
  const make = (n: number, of: (i: number) => Partial<Footprint>): Footprint[] =>
    Array.from({ length: n }, (_, i) => ({ ...NO_FOOTPRINT, ...of(i) }));
  return {
    read: make(variables, (i) => ({ accesses: [i * 2], mask: bitOf(i) })),
    write: make(variables, (i) => ({ accesses: [i * 2 + 1], mask: bitOf(i) })),
    lock: make(locks, (i) => ({
      accesses: [(variables + i) * 2 + 1],
      mask: bitOf(variables + i),
      acquired: variables + i,
      blocking: true,
    })),
    unlock: make(locks, (i) => ({ accesses: [(variables + i) * 2 + 1], mask: bitOf(variables + i), released: [variables + i] })),
  };
}

class AbstractExecution implements Execution {
  readonly #threads: number;
  readonly #values: number[];
  readonly #owners: number[];
  readonly #bodies: Generator<Op, void, number>[];
  /** The next operation of each thread; undefined when it has ended. */
  readonly #next: (Op | undefined)[];
  readonly #shapes: Footprints;

  constructor(variables: number, locks: number, threads: readonly AbstractThread[], shapes: Footprints) {
    this.#threads = threads.length;
    this.#values = new Array<number>(variables).fill(0);
    this.#owners = new Array<number>(locks).fill(-1);
    this.#bodies = threads.map((t) => t());
    this.#next = this.#bodies.map((b) => b.next().value ?? undefined);
    this.#shapes = shapes;
  }

  enabled(): readonly number[] {
    const out: number[] = [];
    for (let t = 0; t < this.#threads; t++) if (this.#next[t] !== undefined && !this.#waits(t)) out.push(t);
    return out;
  }

  #waits(thread: number): boolean {
    const op = this.#next[thread];
    return op?.op === "lock" && this.#owners[op.at] !== -1;
  }

  step(thread: number, decide: Decide = byDefault): Footprint {
    const op = this.#next[thread];
    if (op === undefined || this.#waits(thread)) throw new RangeError(`thread ${thread} cannot run`);
    const [footprint, value] = this.#apply(thread, op, decide);
    this.#next[thread] = this.#bodies[thread]?.next(value).value ?? undefined;
    return footprint;
  }

  #apply(thread: number, op: Op, decide: Decide): [Footprint, number] {
    const { at } = op;
    const old = this.#values[at] ?? 0;
    switch (op.op) {
      case "read":
        return [this.#shapes.read[at] as Footprint, old];
      case "write":
        this.#values[at] = op.value;
        return [this.#shapes.write[at] as Footprint, 0];
      case "update":
        this.#values[at] = op.to(old);
        return [this.#shapes.write[at] as Footprint, old];
      case "lock":
        this.#owners[at] = thread;
        return [this.#shapes.lock[at] as Footprint, 0];
      case "unlock":
        if (this.#owners[at] !== thread) throw new RangeError(`thread ${thread} releases a lock that it does not hold`);
        this.#owners[at] = -1;
        return [this.#shapes.unlock[at] as Footprint, 0];
      case "choose":
        return [NO_FOOTPRINT, decide(at, "choice")];
    }
  }

  retrace(thread: number, n: number, decide: Decide): void {
    for (let i = 0; i < n; i++) this.step(thread, decide);
  }

  pending(): readonly Pending[] {
    return this.#next.flatMap((op, thread) =>
      op?.op === "lock" && this.#waits(thread) ? [{ thread, footprint: this.#shapes.lock[op.at] as Footprint }] : [],
    );
  }

  finish(): Outcome {
    const waits = this.#next.flatMap((op, t) => (op === undefined ? [] : [{ thread: t, on: op.at }]));
    const state = `${this.#values.join(" ")}${waits.map((w) => `, ${w.thread} waits for ${w.on}`).join("")}`;
    if (waits.length === 0) return { state };
    const cycle = waitCycle(
      waits.map((w) => ({ waiter: `thread ${w.thread}`, on: `lock ${w.on}`, holders: [`thread ${this.#owners[w.on]}`] })),
    );
    return { state, violation: { kind: "deadlock", message: cycle } };
  }
}
