/**
 * The bug library: each historical bug, put back, is found by the exhaustive
 * strategy, and with the fix the scenario is exhausted; then the suspected
 * weaknesses that a schedule reproduces (docs/findings.md), and the models M1 to
 * M6 on the code as it is, with the runs that exhaust them, and whether
 * interleavings with few preemptions end in states that those runs do not.
 *
 * The time to find is CPU time of this process, so that what else the machine
 * does counts little; what an edited kernel costs to bundle is not part of it.
 * Runs to find do not vary: the search is the same every time.
 *
 * Options: `--rounds N` (5), `--quick` (one round, and the small models only).
 */
import type { Violation } from "../src/explore/index.ts";
import * as explore from "../src/explore/index.ts";
import { type Reproduced, reproduced } from "../test/explore/bugs/findings.ts";
import { type Bug, bugs, type Explorable, leftOut } from "../test/explore/bugs/index.ts";
import { LARGE, type Model, SMALL } from "./models.ts";

const TARGET_S = 2;

export interface Found {
  readonly executions: number;
  readonly schedule: readonly number[];
  readonly violation: Violation;
}

/** The first violation that optimal DPOR meets. */
export function find({ scenario, explore: e }: Explorable): Found | undefined {
  let found: Found | undefined;
  e.exploreOptimal(e.taskProgram(scenario), ({ schedule, outcome: { violation } }, { executions, blocked }) => {
    if (violation !== undefined) found = { executions: executions + blocked, schedule, violation };
    return violation !== undefined;
  });
  return found;
}

const cpu = (): number => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] as number;
const print = (s: string): void => void process.stdout.write(`${s}\n`);

/** False when it is missed, or the fixed scenario is not exhausted. */
async function judge(bug: Bug, rounds: number): Promise<boolean> {
  const broken = await bug.broken();
  const times: number[] = [];
  let found: Found | undefined;
  for (let i = 0; i < rounds; i++) {
    const from = cpu();
    found = find(broken);
    times.push(cpu() - from);
  }
  const head = `${bug.id.padEnd(5)}`;
  if (found === undefined || found.violation.kind !== bug.kind || !bug.says.test(found.violation.message)) {
    print(`${head}MISSED   ${bug.what}${found === undefined ? "" : `: found instead ${found.violation.kind}: ${found.violation.message}`}`);
    return false;
  }
  const e = broken.explore;
  const small = e.shrink(e.taskProgram(broken.scenario), found.schedule, found.violation);
  const fixed = bug.fixed();
  const counts = fixed.explore.exploreOptimal(fixed.explore.taskProgram(fixed.scenario), ({ outcome }) => outcome.violation !== undefined);
  const s = median(times);
  const text = e.formatSchedule(small.schedule);
  const good = counts.exhausted && s < TARGET_S;
  print(
    `${head}${good ? "found  " : "FAILED "} ${s.toFixed(3).padStart(6)} s, run ${String(found.executions).padStart(3)}; ${broken.scenario.name}:${text === "" ? "(any)" : text}, ${small.run.schedule.length} steps, ${text === "" ? 0 : text.length} characters; ${bug.kind}; fixed: ${counts.executions} runs${counts.exhausted ? ", exhausted" : ", NOT EXHAUSTED"}  ${bug.what}`,
  );
  return good;
}

/** False when a weakness that is written down as reproduced is not. */
function reproduce({ id, what, make, schedule, kind, says }: Reproduced): boolean {
  const { violation } = explore.replay(explore.taskProgram(make()), explore.parseSchedule(schedule)).outcome;
  const good = violation?.kind === kind && says.test(violation.message);
  print(
    `${id.padEnd(5)}${good ? "reproduced" : "NOT REPRODUCED"} by ${make().name}:${schedule === "" ? "(any)" : schedule}; ${kind}  ${what}`,
  );
  return good;
}

/** False unless it is exhausted in as many runs as are written down. */
function exhaust({ id, what, make, executions }: Model): boolean {
  const scenario = make();
  const from = cpu();
  let violation: Violation | undefined;
  const counts = explore.exploreOptimal(explore.taskProgram(scenario), ({ outcome }) => {
    violation = outcome.violation;
    return violation !== undefined;
  });
  const good = counts.exhausted && counts.executions === executions;
  const said = counts.exhausted ? "exhausted" : `VIOLATION ${violation?.kind}: ${violation?.message}`;
  print(
    `${id} ${scenario.name.padEnd(17)} ${what.padEnd(28)} ${String(counts.executions).padStart(6)} runs, ${counts.blocked} in vain, ${String(counts.steps).padStart(7)} steps, ${(cpu() - from).toFixed(1).padStart(5)} s, ${said}${good ? "" : `  DIFFERS from ${executions}`}`,
  );
  return good;
}

/**
 * False when interleavings with few preemptions end in a state that the traces do
 * not: then something orders steps that the recorder does not see.
 */
function missesNothing({ id, what, make }: Model, preemptions: number): boolean {
  const states = new Set<string>();
  explore.exploreOptimal(explore.taskProgram(make()), ({ outcome }) => void states.add(outcome.state));
  const missed = new Set<string>();
  const counts = explore.exploreAll(
    explore.taskProgram(make()),
    ({ schedule, outcome }) => {
      if (!states.has(outcome.state)) missed.add(`${explore.formatSchedule(schedule)} ends in ${outcome.state}`);
      return undefined;
    },
    preemptions,
  );
  print(
    `${id} ${what}: ${counts.executions} interleavings with at most ${preemptions} preemptions end in ${states.size} states of the traces${missed.size === 0 ? "" : `, but ${[...missed].join("; ")}`}`,
  );
  return missed.size === 0;
}

export async function run(args: string[]): Promise<number> {
  const quick = args.includes("--quick");
  const at = args.indexOf("--rounds");
  const rounds = quick ? 1 : at < 0 ? 5 : Math.max(1, Number(args[at + 1]) || 1);
  let bad = 0;
  for (const bug of bugs) if (!(await judge(bug, rounds))) bad++;
  for (const [id, why] of Object.entries(leftOut)) print(`${id.padEnd(5)}left out: ${why}`);
  for (const finding of reproduced) if (!reproduce(finding)) bad++;
  for (const model of quick ? SMALL : [...SMALL, ...LARGE]) if (!exhaust(model)) bad++;
  if (!quick) for (const model of SMALL) if (!missesNothing(model, 2)) bad++;
  print(
    `${bugs.length} bugs, ${Object.keys(leftOut).length} left out${bad === 0 ? "; all found, all models exhausted" : `; ${bad} FAILED`}`,
  );
  return bad === 0 ? 0 : 1;
}
