/** Each detector: a program that it must catch, and one that is right and that it must leave alone. */
import { describe, expect, test } from "vitest";
import {
  exploreAll,
  exploreOptimal,
  InvariantBroken,
  type Recorder,
  type Scenario,
  taskProgram,
  type Violation,
} from "../../src/explore/index.ts";
import { Completion, LockClass, Mutex, Refcount, RwSem, type Sched, type Step, WaitQueue } from "../../src/sched/index.ts";
import { scenario } from "./world.ts";

/** What is found, each once; both strategies must agree on the kinds. */
function found(s: Scenario): Violation[] {
  const of = (explore: typeof exploreOptimal): Violation[] => {
    const all = new Map<string, Violation>();
    explore(taskProgram(s), ({ outcome: { violation } }) => {
      if (violation !== undefined) all.set(`${violation.kind} ${violation.message}`, violation);
      return undefined;
    });
    return [...all.values()];
  };
  const optimal = of(exploreOptimal);
  const kinds = (v: Violation[]): string[] => [...new Set(v.map((x) => x.kind))].sort();
  expect(kinds(optimal)).toEqual(kinds(of(exploreAll)));
  return optimal;
}

const A = new LockClass("A");

interface Counter {
  readonly lock: Mutex;
  readonly sem: RwSem;
  readonly news: Completion;
  readonly cell: { n: number };
}

class Cell {
  n = 0;
}

function counter(sched: Sched, recorder: Recorder): Counter {
  const cell = new Cell();
  recorder.watch(cell, "n", { races: true });
  return { lock: new Mutex(sched, A), sem: new RwSem(sched, new LockClass("S")), news: new Completion(sched, "news"), cell };
}

describe("two locks", () => {
  const B = new LockClass("B");
  const nests = (outer: "a" | "b", inner: "a" | "b") =>
    function* (w: { a: Mutex; b: Mutex }): Step<void> {
      yield* w[outer].lock();
      yield* w[inner].lock();
      w[inner].unlock();
      w[outer].unlock();
    };
  const world =
    (lockdep: boolean) =>
    (sched: Sched): { a: Mutex; b: Mutex } => {
      sched.lockdep.enabled = lockdep;
      return { a: new Mutex(sched, A), b: new Mutex(sched, B) };
    };

  test("in either order: a cycle of classes in every run, and a deadlock in some", () => {
    expect(found(scenario(world(true), [nests("a", "b"), nests("b", "a")])).map((v) => v.kind)).toContain("lockdep");
    expect(found(scenario(world(false), [nests("a", "b"), nests("b", "a")]))).toEqual([
      { kind: "deadlock", message: "task 0 waits for B, held by task 1; task 1 waits for A, held by task 0" },
    ]);
  });

  test("in one order: neither", () => {
    for (const lockdep of [true, false]) expect(found(scenario(world(lockdep), [nests("a", "b"), nests("a", "b")]))).toEqual([]);
  });
});

describe("an invariant", () => {
  const checks = (locked: boolean) =>
    function* ({ lock, cell }: Counter): Step<void> {
      if (locked) yield* lock.lock();
      cell.n++;
      if (cell.n !== 1) throw new InvariantBroken("two are inside");
      if (!locked) yield* lock.lock();
      cell.n--;
      lock.unlock();
    };
  const world = (sched: Sched, recorder: Recorder): Counter => {
    const cell = new Cell();
    recorder.watch(cell, "n");
    return { lock: new Mutex(sched, A), sem: new RwSem(sched, new LockClass("S")), news: new Completion(sched, "news"), cell };
  };

  test("that a scene states is told where it breaks, and is not where it holds", () => {
    expect(found(scenario(world, [checks(false), checks(false)]))).toEqual([{ kind: "invariant", message: "two are inside" }]);
    expect(found(scenario(world, [checks(true), checks(true)]))).toEqual([]);
  });
});

describe("a data race", () => {
  const locked = function* ({ lock, cell }: Counter): Step<void> {
    yield* lock.lock();
    cell.n++;
    lock.unlock();
  };
  const bare = function* ({ cell }: Counter): Step<void> {
    cell.n++;
  };

  test("is an access that no lock orders against a write", () => {
    const [first, ...rest] = found(scenario(counter, [locked, bare]));
    expect(first?.kind).toBe("race");
    expect(first?.message).toMatch(
      /^data race on Cell\.n: task . (reads|writes) it with (A|no lock), task . (reads|writes) it with (A|no lock), and nothing/,
    );
    expect(rest.every((v) => v.kind === "race")).toBe(true);
  });

  test("is not one where both hold the lock", () => {
    expect(found(scenario(counter, [locked, locked, locked]))).toEqual([]);
  });

  test("is seen between a writer and readers of a semaphore only where the writer holds it as a reader", () => {
    const reads = function* ({ sem, cell }: Counter): Step<void> {
      yield* sem.downRead();
      void cell.n;
      sem.upRead();
    };
    const writes = (write: boolean) =>
      function* ({ sem, cell }: Counter): Step<void> {
        yield* write ? sem.downWrite() : sem.downRead();
        cell.n = 1;
        if (write) sem.upWrite();
        else sem.upRead();
      };
    expect(found(scenario(counter, [reads, writes(true), reads]))).toEqual([]);
    expect(found(scenario(counter, [reads, writes(false)])).map((v) => v.kind)).toContain("race");
  });

  test("is not one after an event that was waited for, nor between a task and what it has started", () => {
    const told = scenario(counter, [
      function* ({ cell, news }) {
        cell.n = 1;
        news.complete();
      },
      function* ({ cell, news }) {
        yield* news.wait();
        cell.n = 2;
      },
    ]);
    expect(found(told)).toEqual([]);
    const born = scenario(
      (sched, recorder) => ({ sched, ...counter(sched, recorder) }),
      [
        function* ({ sched, cell, news }) {
          cell.n = 1;
          sched.spawn("work", function* () {
            cell.n = 2;
            news.complete();
          });
          yield* news.wait();
          cell.n = 3;
        },
      ],
    );
    expect(found(born)).toEqual([]);
  });

  test("is not looked for in a field that is only watched", () => {
    const flags = scenario(
      (_, recorder) => {
        const cell = new Cell();
        recorder.watch(cell, "n");
        return cell;
      },
      [0, 1].map(
        () =>
          function* (cell: Cell): Step<void> {
            cell.n++;
          },
      ),
    );
    expect(found(flags)).toEqual([]);
  });
});

describe("a use after free", () => {
  class Thing {
    name = "thing";
    readonly refs: Refcount = new Refcount("thing");
  }
  const user = (careful: boolean) =>
    function* ({ sched, lock, thing }: { sched: Sched; lock: Mutex; thing: Thing }): Step<void> {
      const { refs } = thing;
      if (refs.put()) sched.freed(thing);
      yield* lock.lock();
      if (!careful) thing.name = "mine";
      lock.unlock();
    };
  const world = (sched: Sched): { sched: Sched; lock: Mutex; thing: Thing } => {
    const thing = new Thing();
    thing.refs.get();
    return { sched, lock: new Mutex(sched, A), thing };
  };

  test("is told with who uses what, and who has freed it", () => {
    const all = found(scenario(world, [user(false), user(true)]));
    expect(all.map((v) => v.kind)).toContain("use-after-free");
    expect(all.map((v) => v.message)).toContain("task 0 writes Thing.name, which task 1 has freed");
  });

  test("is none where everybody has let go", () => {
    expect(found(scenario(world, [user(true), user(true)]))).toEqual([]);
  });
});

describe("a reference", () => {
  const world = (): { refs: Refcount } => ({ refs: new Refcount("thing") });
  const put = function* ({ refs }: { refs: Refcount }): Step<void> {
    refs.put();
  };

  test("that is put once more than it was taken is told as such", () => {
    expect(found(scenario(world, [put, put]))).toEqual([{ kind: "refcount", message: "refcount thing: underflow" }]);
  });

  test("that is put as often as it was taken is not", () => {
    expect(found(scenario(world, [put]))).toEqual([]);
  });
});

describe("a wake-up that is lost", () => {
  /** Sets the flag and wakes whoever waits; or sets it only. */
  const world = (sched: Sched): { queue: WaitQueue; state: { ready: boolean } } => ({
    queue: new WaitQueue(sched, "queue"),
    state: { ready: false },
  });
  const waits = function* ({ queue, state }: ReturnType<typeof world>): Step<void> {
    yield* queue.waitEvent(() => state.ready);
  };
  const sets = (wakes: boolean) =>
    function* ({ queue, state }: ReturnType<typeof world>): Step<void> {
      state.ready = true;
      if (wakes) queue.wakeUp();
    };

  test("is told apart from a deadlock: what is waited for is there", () => {
    const s = scenario((sched) => ({ ...world(sched), lock: new Mutex(sched, A) }), [waits, sets(false)]);
    const lost = new Set<string>();
    exploreAll(taskProgram(s), ({ outcome }) => void lost.add(`${outcome.violation?.kind}: ${outcome.violation?.message}`));
    expect(lost).toContain("lost-wakeup: task 0 waits for queue, which is there: nobody has woken it");
  });

  test("is none where the one who sets the flag wakes", () => {
    expect(found(scenario(world, [waits, sets(true)]))).toEqual([]);
  });
});

describe("a run without an end", () => {
  const spins = (sched: Sched, until: () => boolean): Step<void> =>
    (function* () {
      while (!until()) yield* sched.yield();
    })();

  test("is told after as many steps as the scenario allows", () => {
    const s: Scenario = { ...scenario((sched) => sched, [(sched) => spins(sched, () => false)]), maxSteps: 40 };
    expect(found(s)).toEqual([{ kind: "livelock", message: "the run has not ended after 40 steps" }]);
  });

  test("is none where it ends within them", () => {
    let n = 0;
    const s: Scenario = { ...scenario((sched) => sched, [(sched) => spins(sched, () => ++n % 30 === 0)]), maxSteps: 40 };
    expect(found(s)).toEqual([]);
  });
});

describe("what calls answer", () => {
  interface Account {
    readonly lock: Mutex;
    balance: number;
    readonly got: string[];
  }
  const world = (sched: Sched, recorder: Recorder): Account => {
    const account: Account = { lock: new Mutex(sched, A), balance: 1, got: [] };
    recorder.watch(account, "balance");
    return account;
  };
  /** Takes one if there is one; looks outside of the lock, or inside. */
  const takes = (thread: number, inside: boolean) =>
    function* (w: Account): Step<void> {
      const before = w.balance;
      yield* w.lock.lock();
      const there = inside ? w.balance : before;
      if (there > 0) w.balance--;
      w.got[thread] = there > 0 ? "one" : "none";
      w.lock.unlock();
    };
  const bank = (inside: boolean): Scenario => ({
    ...scenario(
      world,
      [0, 1].map((t) => takes(t, inside)),
      undefined,
      (w) => w.got.join(" "),
    ),
    sequential: true,
  });

  test("must be what they answer in some order, one after another", () => {
    expect(found(bank(false))).toEqual([
      { kind: "results", message: "the calls answer one one; one after another they answer none one or one none" },
    ]);
  });

  test("is right where each looks under the lock", () => {
    expect(found(bank(true))).toEqual([]);
  });
});
