/** The strategies on small programs: what they count, what they find, and that what they find can be run again. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { compare, randomProgram } from "../../conformance/dpor.ts";
import { filesystem, indexer, lastzero, readers } from "../../conformance/dpor_programs.ts";
import {
  type AbstractThread,
  abstractProgram,
  childOf,
  choose,
  exploreAll,
  exploreOptimal,
  explorePct,
  exploreRandom,
  formatSchedule,
  lock,
  parseSchedule,
  type Run,
  read,
  replay,
  scheduleOf,
  shrink,
  stepsOf,
  TIME,
  unlock,
  waitCycle,
  write,
} from "../../src/explore/index.ts";
import { Rng } from "../../src/lib/rng.ts";

const ignore = (): undefined => undefined;

/** Takes two locks in the order given, a few times round nothing first. */
const nested = (outer: number, inner: number, before: number): AbstractThread =>
  function* () {
    for (let i = 0; i < before; i++) yield read(0);
    yield lock(outer);
    yield lock(inner);
    yield write(0, outer);
    yield unlock(inner);
    yield unlock(outer);
  };

const abba = abstractProgram("abba", 1, 2, [nested(0, 1, 3), nested(1, 0, 2)]);

describe("optimal DPOR", () => {
  test.each([
    [readers(8), 256],
    [lastzero(5), 64],
    [indexer(12), 8],
    [filesystem(14), 2],
    [filesystem(16), 8],
  ])("runs each trace of a program of the literature once, and none in vain", (program, traces) => {
    expect(exploreOptimal(program, ignore)).toMatchObject({ executions: traces, blocked: 0, exhausted: true });
  });

  test("finds the traces and the final states of every interleaving of random programs, deadlocks included, each trace once", () => {
    fc.assert(
      fc.property(fc.integer(), (seed) => {
        expect(compare(randomProgram(new Rng(seed)), 2000)?.differences ?? []).toEqual([]);
      }),
      { numRuns: 60, seed: 7 },
    );
  });

  test("loses nothing of programs whose footprints it does not trust", () => {
    fc.assert(
      fc.property(fc.integer(), (seed) => {
        const program = randomProgram(new Rng(seed));
        const states = new Set<string>();
        const all = exploreAll(program, ({ outcome }, { executions }) => {
          states.add(outcome.state);
          return executions >= 2000;
        });
        if (!all.exhausted) return;
        exploreOptimal({ ...program, exact: false }, ({ outcome }) => {
          states.delete(outcome.state);
          return undefined;
        });
        expect([...states]).toEqual([]);
      }),
      { numRuns: 60, seed: 8 },
    );
  });
});

function firstViolation(explore: (onRun: (run: Run) => boolean) => unknown): Run | undefined {
  let found: Run | undefined;
  explore((run) => {
    if (run.outcome.violation === undefined) return false;
    found = run;
    return true;
  });
  return found;
}

describe("a deadlock", () => {
  const violation = {
    kind: "deadlock",
    message: "thread 0 waits for lock 1, held by thread 1; thread 1 waits for lock 0, held by thread 0",
  };

  test.each([
    ["all interleavings", (f: (r: Run) => boolean) => exploreAll(abba, f)],
    ["one preemption", (f: (r: Run) => boolean) => exploreAll(abba, f, 1)],
    ["optimal DPOR", (f: (r: Run) => boolean) => exploreOptimal(abba, f)],
    ["PCT", (f: (r: Run) => boolean) => explorePct(abba, f, new Rng(1), 500, 2, 15)],
    ["random", (f: (r: Run) => boolean) => exploreRandom(abba, f, new Rng(1), 500)],
  ])("is found by %s, told as a cycle, and shrunk to its one switch", (_, explore) => {
    const run = firstViolation(explore);
    expect(run?.outcome.violation).toEqual(violation);
    const { schedule } = run as Run;
    expect(replay(abba, parseSchedule(formatSchedule(schedule))).outcome).toEqual(run?.outcome);
    const small = shrink(abba, schedule, violation as never);
    expect(small.run.outcome.violation).toEqual(violation);
    expect(new Set(small.schedule).size).toBeLessThanOrEqual(2);
    expect(formatSchedule(small.schedule)).toMatch(/^(a4b|b3a|a4|b3)$/);
  });

  test("needs a preemption", () => {
    expect(exploreAll(abba, ignore, 0)).toMatchObject({ executions: 2, violations: 0, exhausted: true });
  });

  test("without a cycle names everybody who waits", () => {
    expect(waitCycle([{ waiter: "a", on: "X", holders: [] }])).toBe("a waits for X, which nobody will bring");
  });
});

test("n steps of each of two threads have (2n)! / n!² interleavings", () => {
  const reader: AbstractThread = function* () {
    for (let i = 0; i < 4; i++) yield read(0);
  };
  const program = abstractProgram("two readers", 1, 0, [reader, reader]);
  expect(exploreAll(program, ignore).executions).toBe(70);
  expect(exploreOptimal(program, ignore).executions).toBe(1);
  expect(exploreAll(program, ignore, 0).executions).toBe(2);
});

describe("a schedule", () => {
  const thread = fc.oneof(
    fc.nat(25),
    fc.constant(TIME),
    fc.tuple(fc.nat(26), fc.nat(25)).map(([p, n]) => childOf(p, n)),
    fc.tuple(fc.nat(26), fc.nat(3), fc.nat(25)).map(([p, n, m]) => childOf(childOf(p, n), m)),
  );
  const step = fc.record({ thread, values: fc.array(fc.nat(3), { maxLength: 3 }) });

  test("reads as it was written, whoever steps and whatever is chosen", () => {
    fc.assert(
      fc.property(fc.array(step), (steps) => {
        const s = scheduleOf(steps);
        expect(parseSchedule(formatSchedule(s))).toEqual(s);
        expect(scheduleOf(stepsOf(s))).toEqual(s);
      }),
    );
  });

  test("is short, and leaves out choices of 0 at the end of a step", () => {
    expect(formatSchedule([0, 0, 0, 1, 2, 2])).toBe("a3bc2");
    expect(
      formatSchedule(
        scheduleOf([
          { thread: 0, values: [] },
          { thread: 0, values: [0, 2, 0] },
          { thread: TIME, values: [0] },
          { thread: childOf(1, 2), values: [1] },
        ]),
      ),
    ).toBe("a2.0.2@bC.1");
  });

  test("that is none is refused", () => {
    for (const bad of ["3a", "A", "a-1", "a 2", ".1", "a.", "a1.b"]) expect(() => parseSchedule(bad), bad).toThrow(RangeError);
  });
});

describe("a choice", () => {
  /** Each of two threads writes what it chose, the second only where that is not 0. */
  const program = abstractProgram("choices", 1, 0, [
    function* () {
      const v = yield choose(3);
      yield write(0, v);
    },
    function* () {
      const v = yield choose(2);
      if (v > 0) yield write(0, 10);
    },
  ]);

  test("is made in every way, each order of what follows once", () => {
    const runs: string[] = [];
    expect(exploreOptimal(program, ({ schedule }) => void runs.push(formatSchedule(schedule)))).toMatchObject({
      executions: 3 + 3 * 2,
      blocked: 0,
      exhausted: true,
    });
    expect(new Set(runs).size).toBe(9);
    // Interleavings of two steps with one, and of two with two, for each of the first thread's values.
    expect(exploreAll(program, ignore).executions).toBe(3 * 3 + 3 * 6);
  });

  test("is drawn by the strategies that draw", () => {
    for (const explore of [
      (f: (r: Run) => undefined) => exploreRandom(program, f, new Rng(3), 300),
      (f: (r: Run) => undefined) => explorePct(program, f, new Rng(3), 300, 2, 4),
    ]) {
      const states = new Set<string>();
      explore(({ outcome }) => void states.add(outcome.state));
      expect([...states].sort()).toEqual(["0", "1", "10", "2"]);
    }
  });

  test("is part of the schedule: it is replayed, and left out where it does not matter", () => {
    const boom = abstractProgram("boom", 1, 2, [
      function* () {
        yield choose(4);
        if ((yield choose(5)) === 3) yield lock(0);
      },
      function* () {
        yield choose(2);
        yield lock(0);
      },
    ]);
    const run = firstViolation((f) => exploreOptimal(boom, f)) as Run;
    expect(replay(boom, parseSchedule(formatSchedule(run.schedule))).outcome).toEqual(run.outcome);
    const random = firstViolation((f) => exploreRandom(boom, f, new Rng(5), 500)) as Run;
    const small = shrink(boom, random.schedule, random.outcome.violation as never);
    expect(formatSchedule(small.schedule)).toMatch(/^a2\.3$/);
  });
});
