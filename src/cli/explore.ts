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

/** How a search goes that is not divided. */
export interface SearchOptions {
  readonly strategy: string;
  readonly preemptions?: string;
  readonly runs: string;
  readonly seed: string;
  readonly depth: string;
  readonly trace?: string;
}

export interface ExploreCommand extends SearchOptions {
  readonly jobs?: string;
  readonly campaign?: string;
  readonly queue?: string;
  readonly parts: string;
  readonly partRuns: string;
}

/** Writes a line of what was found. */
const print = (line: string): void => void process.stdout.write(`${line}\n`);

const STRATEGIES = ["optimal", "all", "pct", "random"] as const;
const PROGRESS_MS = 500;

export function scenarioOf(name: string): Scenario {
  const scenario = scenarios.get(name);
  if (scenario === undefined) throw new UsageError(`no scenario "${name}"; there is ${[...scenarios.keys()].join(", ")}`);
  return scenario;
}

export function natural(option: string, text: string): number {
  if (!/^[0-9]{1,9}$/.test(text)) throw new UsageError(`--${option} takes a number, not "${text}"`);
  return Number(text);
}

/** Lists the scenarios. */
export function listScenarios(): void {
  for (const s of scenarios.values()) process.stdout.write(`${s.name.padEnd(20)} ${s.summary}; threads ${s.threads.join(", ")}\n`);
}

/** 1 when something that must not happen did. */
export function explore(name: string, options: SearchOptions): number {
  return exploreScenario(scenarioOf(name), options);
}

/** The same for any scenario. */
export function exploreScenario(scenario: Scenario, options: SearchOptions): number {
  const program = taskProgram(scenario);
  const states = new Map<string, number>();
  const progress = new ProgressLine();
  let found: Run | undefined;
  const onRun = (run: Run, counts: Counts): boolean => {
    states.set(run.outcome.state, (states.get(run.outcome.state) ?? 0) + 1);
    progress.show(() => `${progress.summary(counts)}, ${run.schedule.length} deep`);
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
  const how = `strategy ${options.strategy}${bound === undefined ? "" : `, at most ${bound} preemptions`}`;
  return report(
    scenario,
    { how: `${how}: ${progress.summary(counts)}`, states, found, said: said(options.strategy, bound, counts) },
    options.trace,
  );
}

export interface Report {
  /** What was done, and what it took. */
  readonly how: string;
  /** Complete runs by the state they ended in. */
  readonly states: ReadonlyMap<string, number>;
  readonly found: Run | undefined;
  /** What it means that nothing was found. */
  readonly said: string;
}

/** Prints what a search has come to; 1 when something that must not happen did. */
export function report(scenario: Scenario, { how, states, found, said }: Report, trace: string | undefined): number {
  print(`${scenario.name}: ${scenario.summary}`);
  print(how);
  for (const [state, n] of [...states].sort()) print(`  ${String(n).padStart(7)}  ${state}`);
  if (found === undefined) {
    print(said);
    return 0;
  }
  tellViolation(scenario, found, trace);
  return 1;
}

export const EXHAUSTED = "exhausted: no violation in any order of steps that share a lock, a wait or a watched field";

function said(strategy: string, bound: number | undefined, counts: Counts): string {
  if (!counts.exhausted) return `nothing was found in ${counts.executions} runs, which are not all`;
  if (bound !== undefined) return `exhausted within ${bound} preemptions: no violation`;
  return strategy === "optimal" ? EXHAUSTED : "exhausted: no violation in any interleaving";
}

/** The shortest schedule found, in columns, and how to run it again. */
function tellViolation(scenario: Scenario, { schedule, outcome }: Run, trace: string | undefined): void {
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
export class ProgressLine {
  readonly #start = performance.now();
  #last: number = this.#start;

  /** Seconds since the beginning. */
  get seconds(): number {
    return (performance.now() - this.#start) / 1000;
  }

  show(line: () => string): void {
    const now = performance.now();
    if (process.stderr.isTTY !== true || now - this.#last < PROGRESS_MS) return;
    this.#last = now;
    process.stderr.write(`\r${line()} \x1b[K`);
  }

  end(): void {
    if (this.#last !== this.#start) process.stderr.write("\r\x1b[K");
  }

  /** What there is, and how fast it came; `before` was there already. */
  summary(
    { executions, blocked, steps }: Pick<Counts, "executions" | "blocked" | "steps">,
    before = { executions: 0, blocked: 0 },
  ): string {
    const s = this.seconds;
    const inVain = blocked > 0 ? ` and ${blocked} in vain` : "";
    const rate = Math.round((executions + blocked - before.executions - before.blocked) / s);
    const known = before.executions > 0 ? ` (${before.executions} were known)` : "";
    return `${executions} complete runs${known}${inVain}, ${steps} steps, ${s.toFixed(1)} s, ${rate} runs/s`;
  }
}
