/** `barlink explore` and `barlink replay`: schedules of the kernel's code, found and run again. */
import { writeFileSync } from "node:fs";
import {
  type Counts,
  exploreAll,
  exploreOptimal,
  explorePct,
  exploreRandom,
  formatInterleaving,
  formatSchedule,
  NAMED,
  parseSchedule,
  type Run,
  type Scenario,
  scenarios,
  shrink,
  type Told,
  taskProgram,
  tell,
} from "../explore/index.ts";
import { Rng } from "../lib/rng.ts";
import { type PerfettoEvent, PerfettoWriter } from "../trace/index.ts";
import { UsageError } from "./usage_error.ts";

export interface ExploreCommand {
  readonly strategy: string;
  readonly preemptions?: string;
  readonly runs: string;
  readonly seed: string;
  readonly depth: string;
  readonly trace?: string;
}

const STRATEGIES = ["optimal", "all", "pct", "random"] as const;
const PROGRESS_MS = 500;

function scenarioOf(name: string): Scenario {
  const scenario = scenarios.get(name);
  if (scenario === undefined) throw new UsageError(`no scenario "${name}"; there is ${[...scenarios.keys()].join(", ")}`);
  return scenario;
}

function natural(option: string, text: string): number {
  if (!/^[0-9]{1,9}$/.test(text)) throw new UsageError(`--${option} takes a number, not "${text}"`);
  return Number(text);
}

/** Lists the scenarios. */
export function listScenarios(): void {
  for (const s of scenarios.values()) process.stdout.write(`${s.name.padEnd(20)} ${s.summary}; threads ${s.threads.join(", ")}\n`);
}

/** 1 when something that must not happen did. */
export function explore(name: string, options: ExploreCommand): number {
  return exploreScenario(scenarioOf(name), options);
}

/** The same for any scenario. */
export function exploreScenario(scenario: Scenario, options: ExploreCommand): number {
  const program = taskProgram(scenario);
  const states = new Map<string, number>();
  const progress = new Progress();
  let found: Run | undefined;
  const onRun = (run: Run, counts: Counts): boolean => {
    states.set(run.outcome.state, (states.get(run.outcome.state) ?? 0) + 1);
    progress.tell(counts, run.schedule.length);
    if (run.outcome.violation !== undefined) found = run;
    return found !== undefined;
  };
  const rng = new Rng(natural("seed", options.seed));
  const runs = natural("runs", options.runs);
  const bound = options.preemptions === undefined ? undefined : natural("preemptions", options.preemptions);
  if (bound !== undefined && options.strategy !== "all") throw new UsageError("--preemptions bounds the strategy all, and no other");
  const search: Readonly<Record<(typeof STRATEGIES)[number], () => Counts>> = {
    optimal: () => exploreOptimal(program, onRun),
    all: () => exploreAll(program, onRun, bound),
    pct: () => explorePct(program, onRun, rng, runs, natural("depth", options.depth), 30),
    random: () => exploreRandom(program, onRun, rng, runs),
  };
  const go = Object.entries(search).find(([s]) => s === options.strategy)?.[1];
  if (go === undefined) throw new UsageError(`no strategy "${options.strategy}"; one of ${STRATEGIES.join(", ")}`);
  const counts = go();
  progress.end();
  const print = (s: string): void => void process.stdout.write(`${s}\n`);
  print(`${scenario.name}: ${scenario.summary}`);
  print(`strategy ${options.strategy}${bound === undefined ? "" : `, at most ${bound} preemptions`}: ${progress.summary(counts)}`);
  for (const [state, n] of [...states].sort()) print(`  ${String(n).padStart(7)}  ${state}`);
  if (found === undefined) {
    print(said(options.strategy, bound, counts));
    return 0;
  }
  tellViolation(scenario, found, options.trace, print);
  return 1;
}

function said(strategy: string, bound: number | undefined, counts: Counts): string {
  if (!counts.exhausted) return `nothing was found in ${counts.executions} runs, which are not all`;
  if (bound !== undefined) return `exhausted within ${bound} preemptions: no violation`;
  return strategy === "optimal"
    ? "exhausted: no violation in any order of steps that share a lock, a wait or a watched field"
    : "exhausted: no violation in any interleaving";
}

/** The shortest schedule found, in columns, and how to run it again. */
function tellViolation(scenario: Scenario, { schedule, outcome }: Run, trace: string | undefined, print: (s: string) => void): void {
  if (outcome.violation === undefined) return;
  const program = taskProgram(scenario);
  const small = shrink(program, schedule, outcome.violation);
  print(`\nVIOLATION, shrunk from ${formatSchedule(schedule)} in ${small.tries} runs:`);
  for (const line of formatInterleaving(scenario, tellTo(trace, scenario, small.schedule))) print(line);
  print(`\nrun it again: barlink replay ${scenario.name}:${formatSchedule(small.schedule)}`);
}

/** Runs a schedule and, where `file` is named, writes what the machine tells of it for Perfetto. */
function tellTo(file: string | undefined, scenario: Scenario, schedule: readonly number[]): Told {
  if (file === undefined) return tell(scenario, schedule);
  const events: PerfettoEvent[] = [];
  const writer = new PerfettoWriter((e) => events.push(e));
  const told = tell(scenario, schedule, (record) => writer.write(record));
  try {
    writeFileSync(file, `${JSON.stringify(events)}\n`);
  } catch (e) {
    throw new UsageError(`the trace cannot be written: ${(e as Error).message}`);
  }
  return told;
}

/** Runs `scenario:schedule` once and shows it; 1 when something that must not happen did. */
export function replaySchedule(text: string, trace?: string): number {
  const at = text.indexOf(":");
  if (at < 0) throw new UsageError(`"${text}" is no schedule: it is a scenario's name, a colon, and who steps, as in map-vs-revoke:a2b4a`);
  const scenario = scenarioOf(text.slice(0, at));
  let schedule: number[];
  try {
    schedule = parseSchedule(text.slice(at + 1));
  } catch (e) {
    throw new UsageError((e as Error).message);
  }
  const stranger = schedule.find((t) => t >= scenario.threads.length && t < NAMED);
  if (stranger !== undefined)
    throw new UsageError(`${scenario.name} has ${scenario.threads.length} threads, a to ${formatSchedule([scenario.threads.length - 1])}`);
  const told = tellTo(trace, scenario, schedule);
  for (const line of formatInterleaving(scenario, told)) process.stdout.write(`${line}\n`);
  return told.outcome.violation === undefined ? 0 : 1;
}

/** One line on a terminal, rewritten twice a second. */
class Progress {
  readonly #start = performance.now();
  #last: number = this.#start;

  tell(counts: Counts, depth: number): void {
    const now = performance.now();
    if (process.stderr.isTTY !== true || now - this.#last < PROGRESS_MS) return;
    this.#last = now;
    process.stderr.write(`\r${this.summary(counts)}, ${depth} deep \x1b[K`);
  }

  end(): void {
    if (this.#last !== this.#start) process.stderr.write("\r\x1b[K");
  }

  summary({ executions, blocked, steps }: Counts): string {
    const s = (performance.now() - this.#start) / 1000;
    return `${executions} complete runs${blocked > 0 ? ` and ${blocked} in vain` : ""}, ${steps} steps, ${s.toFixed(1)} s, ${Math.round((executions + blocked) / s)} runs/s`;
  }
}
