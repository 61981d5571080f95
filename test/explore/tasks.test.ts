/** Tasks of the scheduler under exploration: what orders their steps, and what is found wrong with them. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  exploreAll,
  exploreOptimal,
  formatInterleaving,
  formatSchedule,
  InvariantBroken,
  type Outcome,
  parseSchedule,
  type Recorder,
  replay,
  type Scenario,
  taskProgram,
  tell,
} from "../../src/explore/index.ts";
import {
  Completion,
  LockClass,
  Mutex,
  Refcount,
  RwSem,
  type Sched,
  type Step,
  type Steps,
  WwAcquireCtx,
  WwMutex,
} from "../../src/sched/index.ts";
import { scenario } from "./world.ts";

/** What either strategy sees; they must agree on the states. */
function outcomes(s: Scenario): Map<string, Outcome> {
  const optimal = new Map<string, Outcome>();
  const all = new Map<string, Outcome>();
  exploreOptimal(taskProgram(s), ({ outcome }) => void optimal.set(outcome.state, outcome));
  exploreAll(taskProgram(s), ({ outcome }) => void all.set(outcome.state, outcome));
  expect([...optimal.keys()].sort()).toEqual([...all.keys()].sort());
  return optimal;
}

const violations = (s: Scenario): string[] =>
  [...outcomes(s).values()].flatMap((o) => (o.violation === undefined ? [] : [`${o.violation.kind}: ${o.violation.message}`]));

const A = new LockClass("A");
const B = new LockClass("B");

function abba(lockdep: boolean): Scenario {
  const make = (sched: Sched): { a: Mutex; b: Mutex } => {
    sched.lockdep.enabled = lockdep;
    return { a: new Mutex(sched, A), b: new Mutex(sched, B) };
  };
  const nest = (outer: Mutex, inner: Mutex): Step<void> =>
    (function* () {
      yield* outer.lock();
      yield* inner.lock();
      inner.unlock();
      outer.unlock();
    })();
  return scenario(make, [({ a, b }) => nest(a, b), ({ a, b }) => nest(b, a)]);
}

describe("found", () => {
  test("a deadlock, told as the cycle of who waits for whom", () => {
    expect(violations(abba(false))).toEqual(["deadlock: task 0 waits for B, held by task 1; task 1 waits for A, held by task 0"]);
  });

  test("a cycle of lock classes, in runs that do not deadlock", () => {
    const found = violations(abba(true));
    expect(found.some((v) => v.startsWith("lockdep: lockdep: possible deadlock"))).toBe(true);
  });

  test("a wait for what never comes", () => {
    const lost = scenario((s) => new Completion(s, "news"), [(c) => c.wait()]);
    expect(violations(lost)).toEqual(["deadlock: task 0 waits for news, which nobody will bring"]);
  });

  test("a completion that is forgotten between the event and the wait", () => {
    const s = scenario(
      (sched) => new Completion(sched, "news"),
      [
        (c) => c.wait(),
        function* (c) {
          c.complete();
        },
        function* (c) {
          c.reinit();
        },
      ],
    );
    expect([...outcomes(s).keys()].sort()).toEqual(["", "deadlock: task 0 waits for news, which nobody will bring"]);
  });

  test("a reference put twice, because the look at the flag is outside the lock", () => {
    const s = scenario(
      (sched, recorder) => {
        const w = { lock: new Mutex(sched, A), dead: false, refs: new Refcount("thing") };
        recorder.watch(w, "dead");
        return w;
      },
      [0, 1].map(
        () =>
          function* (w: { lock: Mutex; dead: boolean; refs: Refcount }): Step<void> {
            const { dead } = w;
            yield* w.lock.lock();
            try {
              if (!dead) w.refs.put();
              w.dead = true;
            } finally {
              w.lock.unlock();
            }
          },
      ),
    );
    expect(violations(s)).toEqual(["refcount: refcount thing: underflow"]);
  });

  test("what the scene says must hold and does not", () => {
    const s = scenario(
      () => ({}),
      [
        function* () {
          throw new InvariantBroken("no good");
        },
      ],
    );
    expect(violations(s)).toEqual(["invariant: no good"]);
  });
});

test("readers of a semaphore are not ordered against each other, and both are against the writer", () => {
  const s = scenario(
    (sched) => ({ sem: new RwSem(sched, A), order: [] as string[] }),
    [
      ...["r1", "r2"].map(
        (name) =>
          function* (w: { sem: RwSem; order: string[] }): Step<void> {
            yield* w.sem.downRead();
            w.order.push(name);
            w.sem.upRead();
          },
      ),
      function* (w) {
        yield* w.sem.downWrite();
        w.order.push("w");
        w.sem.upWrite();
      },
    ],
    ({ order }) => `${order.slice(0, order.indexOf("w")).sort().join(" ")} before the writer`,
  );
  expect(outcomes(s).size).toBe(4);
  expect(exploreOptimal(taskProgram(s), () => undefined)).toMatchObject({ executions: 4, exhausted: true });
});

test("a trylock that fails in one order succeeds in another", () => {
  const s = scenario(
    (sched) => ({ a: new Mutex(sched, A), b: new Mutex(sched, B), got: "?" }),
    [
      function* (w) {
        yield* w.a.lock();
        yield* w.b.lock();
        w.b.unlock();
        w.a.unlock();
      },
      function* (w) {
        const got = yield* w.a.tryLock();
        w.got = String(got);
        if (got) w.a.unlock();
      },
    ],
    ({ got }) => got,
  );
  expect([...outcomes(s).keys()].sort()).toEqual(["false", "true"]);
});

test("what a step chooses is part of the run: an allocation fails in one, and the thread's next call differs", () => {
  const s = scenario(
    (sched, recorder) => ({ recorder, lock: new Mutex(sched, A), log: [] as string[] }),
    [0, 1].map(
      (t) =>
        function* (w: { recorder: Recorder; lock: Mutex; log: string[] }): Step<void> {
          yield* w.lock.lock();
          const failed = w.recorder.choose(2, "allocation fails") === 1;
          w.log.push(`${t}${failed ? "-" : "+"}`);
          w.lock.unlock();
        },
    ),
    ({ log }) => log.join(" "),
  );
  const states = [...outcomes(s).keys()].sort();
  expect(states).toEqual(["0+ 1+", "0+ 1-", "0- 1+", "0- 1-", "1+ 0+", "1+ 0-", "1- 0+", "1- 0-"]);
  expect(exploreOptimal(taskProgram(s), () => undefined).executions).toBe(8);
  const told = tell(s, parseSchedule("b2.1a"));
  expect(told.outcome.state).toBe("1- 0+");
  expect(formatInterleaving(s, told).join("\n")).toContain("lock A, allocation fails 1, ends");
});

test("work that a task queues is a thread of its own, and runs before or after what follows", () => {
  const s = scenario(
    (sched) => ({ sched, lock: new Mutex(sched, A), log: [] as string[] }),
    [
      function* (w) {
        const add = (what: string): Steps<void> =>
          function* () {
            yield* w.lock.lock();
            w.log.push(what);
            w.lock.unlock();
          };
        w.sched.spawn("work", add("work"));
        yield* add("call")();
      },
      function* (w) {
        w.sched.spawn("other", function* () {
          yield* w.lock.lock();
          w.log.push("other");
          w.lock.unlock();
        });
      },
    ],
    ({ log }) => log.join(" "),
  );
  expect([...outcomes(s).keys()].sort()).toEqual([
    "call other work",
    "call work other",
    "other call work",
    "other work call",
    "work call other",
    "work other call",
  ]);
  const program = taskProgram(s);
  expect(exploreOptimal(program, () => undefined).executions).toBe(6);
  // A schedule means the same to a program that has met the threads in another order.
  const strings = new Map<string, string>();
  exploreAll(program, ({ schedule, outcome }) => void strings.set(formatSchedule(schedule), outcome.state));
  for (const [text, state] of strings) expect(replay(taskProgram(s), parseSchedule(text)).outcome.state).toBe(state);
  expect([...strings.keys()].some((t) => t.includes("aA") && t.includes("bA"))).toBe(true);
});

test("work that waits for ever is a deadlock, a thread that was there before is not", () => {
  const never = (sched: Sched): Step<void> => new Completion(sched, "news").wait();
  const queued = scenario(
    (sched) => sched,
    [
      function* (sched) {
        sched.spawn("work", () => never(sched));
      },
    ],
  );
  expect(violations(queued)).toEqual(["deadlock: work waits for news, which nobody will bring"]);
  const older = scenario(
    (sched) => void sched.spawn("worker", () => never(sched)),
    [
      function* () {
        // Nothing to do.
      },
    ],
  );
  expect(violations(older)).toEqual([]);
});

describe("time", () => {
  /** One task waits for news at most a second, another brings it after a lock. */
  const race = (time: "idle" | "any", brings: boolean): Scenario => ({
    ...scenario(
      (sched) => ({ sched, lock: new Mutex(sched, A), news: new Completion(sched, "news"), log: [] as string[] }),
      [
        function* (w) {
          w.log.push((yield* w.news.waitTimeout(1e9)) ? "in time" : "too late");
        },
        function* (w) {
          yield* w.lock.lock();
          w.lock.unlock();
          if (brings) w.news.complete();
        },
      ],
      ({ log }) => log.join(" "),
    ),
    time,
  });

  test("passes when no task can run", () => {
    expect([...outcomes(race("idle", true)).keys()]).toEqual(["in time"]);
    expect([...outcomes(race("idle", false)).keys()]).toEqual(["too late"]);
  });

  test("passes at any moment where the scenario says so", () => {
    expect([...outcomes(race("any", true)).keys()].sort()).toEqual(["in time", "too late"]);
  });

  test("fires timers in their order, and wakes sleepers", () => {
    for (const time of ["idle", "any"] as const) {
      const s: Scenario = {
        ...scenario(
          (sched) => ({ sched, log: [] as string[] }),
          [2, 1].map(
            (s) =>
              function* (w: { sched: Sched; log: string[] }): Step<void> {
                yield* w.sched.sleep(s * 1e9);
                w.log.push(`${s} s`);
              },
          ),
          ({ log }) => log.join(" "),
        ),
        time,
      };
      const states = [...outcomes(s).keys()].sort();
      // Where steps take time, the task that was woken first may still be the second to go on.
      expect(states).toEqual(time === "idle" ? ["1 s 2 s"] : ["1 s 2 s", "2 s 1 s"]);
    }
  });
});

test("a run that does not end is told as such", () => {
  const s: Scenario = {
    ...scenario(
      (sched) => sched,
      [
        function* (sched) {
          for (;;) yield* sched.yield();
        },
      ],
    ),
    maxSteps: 50,
  };
  expect(violations(s)).toEqual(["livelock: the run has not ended after 50 steps"]);
});

test("who waits for a lock while time passes could have had it before", () => {
  const s = scenario(
    (sched) => ({ sched, a: new Mutex(sched, A), order: [] as string[] }),
    [
      function* (w) {
        yield* w.a.lock();
        yield* w.sched.sleep(10);
        w.order.push("slow");
        w.a.unlock();
      },
      function* (w) {
        yield* w.a.lock();
        w.order.push("quick");
        w.a.unlock();
      },
    ],
    ({ order }) => order.join(" "),
  );
  expect([...outcomes(s).keys()].sort()).toEqual(["quick slow", "slow quick"]);
});

interface Things {
  readonly sched: Sched;
  readonly recorder: Recorder;
  readonly mutexes: readonly Mutex[];
  readonly sem: RwSem;
  readonly news: Completion;
  /** What happened under each lock, and what tasks saw. */
  readonly log: string[][];
}

type Doing = "mutex" | "nested" | "read" | "write" | "try" | "complete" | "wait" | "choose" | "chosen" | "spawn" | "sleep" | "timeout";

function* act(w: Things, task: number, doing: Doing): Step<void> {
  const [m, n] = w.mutexes as [Mutex, Mutex];
  const note = (of: number, what: string): void => void w.log[of]?.push(`${task}${what}`);
  switch (doing) {
    case "mutex":
      yield* m.lock();
      note(0, "m");
      m.unlock();
      break;
    case "nested":
      yield* m.lock();
      note(0, "n");
      yield* n.lock();
      note(1, "n");
      n.unlock();
      m.unlock();
      break;
    case "read":
      yield* w.sem.downRead();
      note(3 + task, `r${w.log[2]?.length}`);
      yield* n.lock();
      note(1, "r");
      n.unlock();
      w.sem.upRead();
      break;
    case "write":
      yield* w.sem.downWrite();
      note(2, "w");
      w.sem.upWrite();
      break;
    case "try": {
      const got = yield* m.tryLock();
      note(3 + task, String(got));
      if (!got) break;
      yield* n.lock();
      note(1, "t");
      n.unlock();
      m.unlock();
      break;
    }
    case "complete":
      w.news.complete();
      break;
    case "choose":
      // What is chosen decides what the step touches.
      if (w.recorder.choose(2) === 1) {
        yield* m.lock();
        note(0, "c");
        m.unlock();
      }
      break;
    case "chosen":
      yield* m.lock();
      note(0, String(w.recorder.choose(2)));
      m.unlock();
      break;
    case "spawn":
      w.sched.spawn("work", () => act(w, task + 3, "mutex"));
      break;
    case "sleep":
      yield* w.sched.sleep(1000);
      break;
    case "timeout":
      note(3 + task, String(yield* w.news.waitTimeout(500)));
      break;
    case "wait":
      yield* w.news.wait();
      yield* n.lock();
      note(1, "c");
      n.unlock();
  }
}

test.each<[string, readonly Doing[], "idle" | "any"]>([
  ["locks, trylocks, readers and completions", ["mutex", "nested", "read", "write", "try", "complete", "wait"], "idle"],
  ["locks, choices and tasks of their own", ["mutex", "choose", "chosen", "spawn", "try"], "idle"],
  ["locks and waits that end when nobody can run", ["mutex", "nested", "complete", "sleep", "timeout"], "idle"],
  ["locks and waits that end at any moment", ["mutex", "complete", "sleep", "timeout", "spawn"], "any"],
])("no final state of random tasks with %s is lost", { timeout: 60_000 }, (_, kinds, time) => {
  const programs = fc.array(fc.array(fc.constantFrom(...kinds), { minLength: 1, maxLength: 2 }), { minLength: 2, maxLength: 3 });
  let compared = 0;
  fc.assert(
    fc.property(programs, (program) => {
      const s: Scenario = {
        ...scenario<Things>(
          (sched, recorder) => ({
            sched,
            recorder,
            mutexes: [new Mutex(sched, A), new Mutex(sched, B)],
            sem: new RwSem(sched, new LockClass("S")),
            news: new Completion(sched, "news"),
            log: [[], [], [], [], [], []],
          }),
          program.map(
            (ops, task) =>
              function* (w: Things): Step<void> {
                for (const op of ops) yield* act(w, task, op);
              },
          ),
          (w) => w.log.join(" | "),
        ),
        time,
      };
      const all = new Set<string>();
      const brute = exploreAll(taskProgram(s), ({ outcome }, { executions }) => {
        all.add(outcome.state);
        return executions >= 2000;
      });
      if (!brute.exhausted) return;
      compared++;
      const optimal = new Set<string>();
      exploreOptimal(taskProgram(s), ({ outcome }) => void optimal.add(outcome.state));
      expect([...optimal].sort()).toEqual([...all].sort());
    }),
    { numRuns: 120, seed: 11 },
  );
  expect(compared).toBeGreaterThan(40);
});

test("two contexts that take two ww locks in either order both get them: the younger gives way", () => {
  const reservation = new LockClass("W");
  const takes = (first: 0 | 1) =>
    function* (w: { locks: readonly WwMutex[]; log: string[] }): Step<void> {
      const ctx = new WwAcquireCtx(first);
      const [a, b] = [w.locks[first] as WwMutex, w.locks[1 - first] as WwMutex];
      yield* a.lock(ctx);
      if ((yield* b.lock(ctx)) !== undefined) {
        a.unlock();
        w.log.push(`${first} gives way`);
        yield* b.lock(ctx);
        yield* a.lock(ctx);
      }
      w.log.push(`${first} has both`);
      b.unlock();
      a.unlock();
    };
  const s = scenario(
    (sched) => ({ locks: [new WwMutex(sched, reservation), new WwMutex(sched, reservation)], log: [] as string[] }),
    [takes(0), takes(1)],
    ({ log }) => log.join(", "),
  );
  const states = [...outcomes(s).keys()].sort();
  expect(states).toContain("1 gives way, 0 has both, 1 has both");
  expect(states.filter((t) => t.includes("0 gives way") || t.includes("deadlock"))).toEqual([]);
});
