/** The whole kernel through every schedule of a map, a revoke and an unmap; and with the recheck under the reservation taken out. */
import { describe, expect, test } from "vitest";
import {
  exploreAll,
  exploreOptimal,
  exploreRandom,
  formatInterleaving,
  formatSchedule,
  mapVsRevoke,
  parseSchedule,
  type Run,
  replay,
  type Scenario,
  shrink,
  taskProgram,
  tell,
} from "../../src/explore/index.ts";
import type { PrivateMap } from "../../src/kernel/dma_buf/interconnect.ts";
import type { PhysVec } from "../../src/kernel/dma_buf/mapping.ts";
import type { VfioPciDmaBuf } from "../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
import { Rng } from "../../src/lib/rng.ts";
import { LockClass, Mutex, Sched, type Step, type Task } from "../../src/sched/index.ts";

function statesOf(explore: (onRun: (run: Run) => undefined) => unknown): string[] {
  const states = new Set<string>();
  explore((run) => void states.add(run.outcome.state));
  return [...states].sort();
}

/** Hands the address out without a look at the flag. */
const careless: PrivateMap = (att) => ({ ...((att.dmabuf.priv as VfioPciDmaBuf).physVec[0] as PhysVec) });

/** H6: the exporter does not look again under the reservation whether it is revoked. */
const withoutRecheck = (unmapper: boolean): Scenario =>
  mapVsRevoke({
    unmapper,
    alter: (k) => k.modules.exportSymbol("vfio_pci_core", "vfio_pci_dma_buf_iommufd_map", careless, ["iommufd"]),
  });

describe("map against revoke", { timeout: 60_000 }, () => {
  test("holds I1 to I4 and I7 in every trace, with a thread that unmaps", () => {
    const counts = exploreOptimal(taskProgram(mapVsRevoke()), (run) => {
      expect(run.outcome.violation, formatSchedule(run.schedule)).toBeUndefined();
      return undefined;
    });
    expect(counts).toMatchObject({ violations: 0, exhausted: true });
    expect(counts.executions).toBeGreaterThan(100);
  });

  test("ends in the states that interleavings with two preemptions end in, and in no others", () => {
    const program = taskProgram(mapVsRevoke({ unmapper: false }));
    const states = statesOf((f) => exploreOptimal(program, f));
    expect(states).toEqual([
      "map = 0, toggle = off on; reached 0",
      "map = 0, toggle = off on; reached 1",
      "map = ENODEV, toggle = off on; reached 0",
    ]);
    expect(statesOf((f) => exploreAll(program, f, 2))).toEqual(states);
  });

  test("would map a revoked buffer if the exporter did not look again under the reservation (H6)", () => {
    const scenario = withoutRecheck(true);
    const program = taskProgram(scenario);
    let found: Run | undefined;
    const counts = exploreOptimal(program, (run) => {
      if (run.outcome.violation === undefined) return undefined;
      found = run;
      return true;
    });
    const { schedule, outcome } = found as unknown as Run;
    expect(outcome.violation).toMatchObject({ kind: "invariant", message: expect.stringContaining("I1") });
    expect(counts.executions).toBeLessThan(200);
    const small = shrink(program, schedule, outcome.violation as never);
    const text = formatSchedule(small.schedule);
    expect(text.length).toBeLessThanOrEqual(6);
    // The string is all that is needed.
    const again = replay(taskProgram(scenario), parseSchedule(text));
    expect(again.outcome.violation).toEqual(small.run.outcome.violation);
    const lines = formatInterleaving(scenario, tell(scenario, parseSchedule(text)));
    expect(lines[0]).toMatch(/^ +map +toggle +unmap +locks held$/);
    expect(lines.at(-1)).toContain("I1");
    expect(lines.join("\n")).toMatch(/lock RESV/);
    expect(lines.join("\n")).toMatch(/toggle: .*RESV/);
  });
});

describe("a machine that is as it was before the run serves for the next", { timeout: 60_000 }, () => {
  /** What is explored, and how many machines it takes. */
  const explored = (reuse: boolean): { machines: number; counts: unknown; states: string[] } => {
    const scenario = mapVsRevoke({ unmapper: false });
    let machines = 0;
    const program = taskProgram({
      ...scenario,
      setUp(record) {
        machines++;
        const scene = scenario.setUp(record);
        return { tasks: scene.tasks, end: () => scene.end(), ...(reuse && { renew: () => scene.renew?.() }) };
      },
    });
    const states: string[] = [];
    const counts = exploreOptimal(program, ({ schedule, outcome }) => void states.push(`${formatSchedule(schedule)} ${outcome.state}`));
    return { machines, counts, states };
  };

  test("and the runs are those of machines booted anew", () => {
    const [anew, again] = [explored(false), explored(true)];
    expect(again.counts).toEqual(anew.counts);
    expect(again.states).toEqual(anew.states);
    expect(anew.machines).toBe(anew.states.length + (anew.counts as { blocked: number }).blocked);
    expect(again.machines).toBe(1);
  });

  test("and a scene whose undo makes a lock anew is refused", () => {
    const CLASS = new LockClass("thing");
    const anew = (again: boolean): Scenario => ({
      name: "anew",
      summary: "a test",
      threads: ["a"],
      setUp(record) {
        const sched = new Sched();
        record(sched);
        const world = { lock: new Mutex(sched, CLASS) };
        const task = sched.thread("a");
        const uses = function* (): Step<void> {
          yield* world.lock.lock();
          world.lock.unlock();
        };
        sched.execute(task, uses());
        const start = (): Task[] => {
          sched.start(task, uses());
          return [task];
        };
        const end = (): string => {
          if (again) world.lock = new Mutex(sched, CLASS);
          sched.execute(task, uses());
          return "";
        };
        return { tasks: start(), end, renew: start };
      },
    });
    const twice = (s: Scenario): unknown => exploreRandom(taskProgram(s), () => undefined, new Rng(1), 2);
    expect(twice(anew(false))).toMatchObject({ executions: 2, violations: 0 });
    expect(() => twice(anew(true))).toThrow("thing was made anew by an undo");
  });
});
