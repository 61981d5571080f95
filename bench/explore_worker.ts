/** Explores one scenario for a while, in the thread that calls: what the bench of the explorer runs, alone or on two threads. */
import { exploreOptimal, exploreRandom, type Scenario, scenarios, taskProgram } from "../src/explore/index.ts";
import { Rng } from "../src/lib/rng.ts";
import { smallTasks } from "./small_tasks.ts";

export interface Job {
  readonly scenario: string;
  readonly strategy: "optimal" | "random";
  readonly seed: number;
  readonly warmSeconds: number;
  readonly seconds: number;
}

export interface Done {
  executions: number;
  blocked: number;
  steps: number;
  /** Of the part that is measured. */
  seconds: number;
  /** Processor time of the whole process in that part: of every job that ran beside this one, and of the collector. */
  cpuSeconds: number;
  /** Executions when all is explored; undefined where one go was not finished. */
  traces: number | undefined;
}

function scenarioOf(name: string): Scenario {
  const scenario = smallTasks.find((s) => s.name === name) ?? scenarios.get(name);
  if (scenario === undefined) throw new TypeError(`no scenario "${name}"`);
  return scenario;
}

/** Explores again and again from the start until the time is up. */
function during(seconds: number, { scenario, strategy, seed }: Job): Done {
  const done: Done = { executions: 0, blocked: 0, steps: 0, seconds: 0, cpuSeconds: 0, traces: undefined };
  const cpu = process.cpuUsage();
  const start = performance.now();
  const over = (): boolean => performance.now() - start >= seconds * 1000;
  const rng = new Rng(seed);
  const program = taskProgram(scenarioOf(scenario));
  for (let n = 0; !over(); ) {
    const onRun = (): boolean => ++n % 16 === 0 && over();
    const c = strategy === "optimal" ? exploreOptimal(program, onRun) : exploreRandom(program, onRun, rng, 1e9);
    done.executions += c.executions;
    done.blocked += c.blocked;
    done.steps += c.steps;
    if (c.exhausted) done.traces = c.executions;
  }
  done.seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  done.cpuSeconds = (user + system) / 1e6;
  return done;
}

export default function work(job: Job): Done {
  during(job.warmSeconds, job);
  return during(job.seconds, job);
}
