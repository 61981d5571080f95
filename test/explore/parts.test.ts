import { describe, expect, it } from "vitest";
import { randomProgram } from "../../conformance/dpor.ts";
import {
  exploreOptimal,
  explorePart,
  type Part,
  type Program,
  partAt,
  partsOf,
  type Run,
  scenarios,
  taskProgram,
  traceOf,
  WHOLE,
} from "../../src/explore/index.ts";
import { Rng } from "../../src/lib/rng.ts";

/** Cuts at random, at most `depth` times one below the other: the parts, by name. */
function cut(program: Program, rng: Rng, depth: number): Map<string, Part> {
  const parts = new Map<string, Part>();
  const go = (name: string, part: Part, left: number): void => {
    const below = left > 0 && rng.below(3) > 0 ? partsOf(program, part) : [];
    if (below.length === 0) parts.set(name, part);
    for (const [i, p] of below.entries()) go(name === "" ? String(i) : `${name}.${i}`, p, left - 1);
  };
  go("", WHOLE, depth);
  return parts;
}

describe("the parts of a search", () => {
  it("have every trace of the whole, and each once, over 60 random programs with choices, locks and deadlocks", () => {
    const rng = new Rng(7);
    let parts = 0;
    for (let n = 0; n < 60; n++) {
      const program = randomProgram(rng);
      const whole: string[] = [];
      const w = exploreOptimal(program, (run) => {
        whole.push(traceOf(program, run.schedule));
        return tooMany(whole);
      });
      if (!w.exhausted) continue;
      const together: string[] = [];
      for (const [name, part] of cut(program, rng, 4)) {
        parts++;
        // What a name stands for is found again from the name.
        expect(partAt(program, name).prefix).toEqual(part.prefix);
        expect(explorePart(program, part, (run) => void together.push(traceOf(program, run.schedule))).exhausted).toBe(true);
      }
      expect(together.sort()).toEqual(whole.sort());
    }
    expect(parts).toBeGreaterThan(300);
  });

  it("of a scenario over the whole kernel have its traces and end in its states, each part found by its name in a process of its own", () => {
    const scenario = scenarios.get("map-vs-revoke");
    if (scenario === undefined) throw new Error("no scenario");
    const numbers = taskProgram(scenario);
    const seen = (body: (see: (run: Run) => void) => void): { traces: string[]; states: string[] } => {
      const traces = new Set<string>();
      const states = new Set<string>();
      body(({ schedule, outcome }) => {
        traces.add(traceOf(numbers, schedule));
        states.add(outcome.state);
      });
      return { traces: [...traces].sort(), states: [...states].sort() };
    };
    const whole = seen((see) => void exploreOptimal(numbers, (run) => void see(run)));
    const together = seen((see) => {
      for (const name of cut(numbers, new Rng(3), 3).keys()) {
        const own = taskProgram(scenario);
        explorePart(own, partAt(own, name), (run) => void see(run));
      }
    });
    expect(together).toEqual(whole);
  });
});

/** Large ones are passed over. */
const tooMany = (traces: readonly string[]): boolean => traces.length > 500;
