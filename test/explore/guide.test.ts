/** The guide's example, as it stands there. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import {
  exploreAll,
  exploreOptimal,
  formatInterleaving,
  formatSchedule,
  type Run,
  shrink,
  taskProgram,
  tell,
} from "../../src/explore/index.ts";
import { movingPool } from "./example/moving_pool.ts";

const GUIDE = readFileSync(new URL("../../docs/explore.md", import.meta.url), "utf8");
const SOURCE = readFileSync(new URL("example/moving_pool.ts", import.meta.url), "utf8");
const blocks = [...GUIDE.matchAll(/```\w*\n([\s\S]*?)\n```/g)].map((m) => m[1]);

describe("the guide's scenario", () => {
  test("stands in the guide word for word, and is as long as the guide says", () => {
    const shown = SOURCE.replace(/"\.\.\/\.\.\/\.\.\/src\/(\w+)\/index\.ts"/g, '"barlink/$1"').trim();
    expect(blocks[0]).toBe(shown);
    expect(GUIDE).toContain(`## A scenario in ${shown.split("\n").length} lines`);
  });

  test("finds that the device reads where the memory was, in the schedule that the guide shows", () => {
    const scenario = movingPool(false);
    const program = taskProgram(scenario);
    let found: Run | undefined;
    exploreOptimal(program, (run) => {
      if (run.outcome.violation !== undefined) found = run;
      return found !== undefined;
    });
    const { schedule, outcome } = found as Run;
    const small = shrink(program, schedule, outcome.violation as never);
    const lines = [formatSchedule(small.schedule), ...formatInterleaving(scenario, tell(scenario, small.schedule))];
    expect(blocks[2]).toBe(lines.join("\n"));
  });

  test("finds nothing where the importer keeps the reservation, in any interleaving", () => {
    const program = taskProgram(movingPool(true));
    const optimal = exploreOptimal(program, () => undefined);
    expect(optimal).toMatchObject({ violations: 0, exhausted: true });
    expect(GUIDE).toContain(`it prints \`all ${optimal.executions} traces\``);
    expect(exploreAll(program, () => undefined)).toMatchObject({ violations: 0, exhausted: true });
  });
});
