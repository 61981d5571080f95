/** The bug library and the models: what each bug is found as, and what the code as it is holds. The figures are those of `npm run conformance -- bugs`. */
import { describe, expect, test } from "vitest";
import { find } from "../../conformance/bugs.ts";
import { SMALL } from "../../conformance/models.ts";
import { exploreAll, exploreOptimal, formatSchedule, taskProgram } from "../../src/explore/index.ts";
import { type Bug, bugs, type Explorable, leftOut } from "./bugs/index.ts";

/** Runs in which a bug must be found: a thousand would be a second. */
const SOON = 1000;

/** Fixed scenarios that several bugs share are exhausted once. */
const exhausted = new Map<string, number>();

function exhaust({ scenario, explore: e }: Explorable): number {
  const known = exhausted.get(scenario.name + scenario.threads.join());
  if (known !== undefined) return known;
  const counts = e.exploreOptimal(e.taskProgram(scenario), ({ schedule, outcome }) => {
    expect(outcome.violation, e.formatSchedule(schedule)).toBeUndefined();
    return undefined;
  });
  expect(counts.exhausted).toBe(true);
  exhausted.set(scenario.name + scenario.threads.join(), counts.executions);
  return counts.executions;
}

describe("a historical bug, put back", { timeout: 60_000 }, () => {
  test.each(bugs.map((b) => [b.id, b.what, b] as const))("%s: %s", async (_id, _what, bug: Bug) => {
    const broken = await bug.broken();
    const found = find(broken);
    expect(found?.violation).toMatchObject({ kind: bug.kind, message: expect.stringMatching(bug.says) });
    expect(found?.executions).toBeLessThan(SOON);
    const { explore: e, scenario } = broken;
    // The string is all that is needed to see it again.
    const again = e.replay(e.taskProgram(scenario), e.parseSchedule(e.formatSchedule(found?.schedule ?? [])));
    expect(again.outcome.violation).toEqual(found?.violation);
    expect(exhaust(bug.fixed())).toBeGreaterThan(0);
  });

  test("is there for every one of the history, or there is a reason why not", () => {
    const known = new Set([...bugs.map((b) => b.id.replace(/[a-z]$/, "")), ...Object.keys(leftOut)]);
    expect(Array.from({ length: 24 }, (_, i) => `H${i + 1}`).filter((id) => !known.has(id))).toEqual([]);
  });
});

describe("a model on the code as it is", { timeout: 60_000 }, () => {
  test.each(SMALL.map((m) => [m.id, m.what, m] as const))("%s, %s, is exhausted in the runs that are written down", (_id, _what, m) => {
    const states = new Set<string>();
    const counts = exploreOptimal(taskProgram(m.make()), ({ outcome }) => {
      expect(outcome.violation).toBeUndefined();
      states.add(outcome.state);
      return undefined;
    });
    expect(counts).toMatchObject({ executions: m.executions, exhausted: true });
    // What orders steps is seen: no interleaving with a preemption ends otherwise.
    exploreAll(taskProgram(m.make()), ({ schedule, outcome }) => void expect(states, formatSchedule(schedule)).toContain(outcome.state), 1);
  });
});
