/**
 * What exploring costs: runs and steps each second on four fixed scenarios, on
 * one thread and on two, and a small lock protocol here and in SPIN.
 *
 * Each figure is taken from a process that has run the scenario for a while
 * already: the first thousand runs are a compiler's. With two jobs each has its
 * own machines and draws its own schedules, so the runs differ; a processor for
 * each is what makes the figure.
 *
 * Beside the figure stands the same per second of processor time, which is the
 * figure of a machine that does nothing else.
 *
 * The search in parts is measured as it is used: `barlink explore --jobs`, whose
 * runs are the same however many jobs there are, from the first to the last and
 * with the start of its threads.
 *
 * Arguments: `--seconds N` (5) for each figure, `--warm N` (3) before it.
 * SPIN is Debian's; where it is missing and this process is root, it is
 * installed with apt-get, and where it cannot be, the bench says so.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { Piscina } from "piscina";
import type { Done, Job } from "./explore_worker.ts";
import { compareWithSpin } from "./spin.ts";

const SCENARIOS = [
  { name: "20 steps", what: "3 small tasks of 20 steps in all", target: 100_000 },
  { name: "60 steps", what: "3 small tasks of 20 steps each", target: 100_000 },
  { name: "map-vs-revoke", what: "the whole kernel, its machine used again", target: 10_000 },
  { name: "revoke-refcount", what: "the whole kernel, booted for each run", target: undefined },
] as const;

const DIVIDED = "lock-graph";

const out = (text: string): void => void process.stdout.write(`${text}\n`);
const count = (n: number): string => Math.round(n).toLocaleString("en").padStart(9);

function option(args: readonly string[], name: string, fallback: number): number {
  const at = args.indexOf(name);
  const n = at < 0 ? fallback : Number(args[at + 1]);
  if (!(n > 0)) throw new RangeError(`${name} takes a number of seconds`);
  return n;
}

function line(what: string, done: readonly Done[], target: number | undefined): void {
  const sum = (of: (d: Done) => number): number => done.reduce((n, d) => n + of(d) / d.seconds, 0);
  const runs = sum((d) => d.executions + d.blocked);
  const cpu = done.reduce((n, d) => n + d.cpuSeconds, 0) / done.length;
  const perCpu = done.reduce((n, d) => n + d.executions + d.blocked, 0) / cpu;
  const verdict = target === undefined ? "" : `  target ${target.toLocaleString("en")}: ${runs >= target ? "met" : "MISSED"}`;
  out(`  ${what.padEnd(34)}${count(runs)} runs/s ${count(sum((d) => d.steps))} steps/s ${count(perCpu)} runs/CPU s${verdict}`);
}

/** One search in parts, whole, on one thread and on two. */
function divided(): void {
  const main = join(import.meta.dirname, "..", "dist", "cli", "main.js");
  out(`${DIVIDED}, each trace once, in parts`);
  const seconds = [1, 2].map((jobs) => {
    const r = spawnSync(process.execPath, [main, "explore", DIVIDED, "--jobs", String(jobs)], { encoding: "utf8" });
    const [, what, s] = /^strategy optimal, (.*), ([\d.]+) s, \d+ runs\/s$/m.exec(r.stdout) ?? [];
    if (what === undefined || s === undefined) throw new Error(`barlink explore --jobs ${jobs} failed: ${r.stderr}`);
    out(`  ${`--jobs ${jobs}`.padEnd(34)}${s.padStart(9)} s  ${what}`);
    return Number(s);
  }) as [number, number];
  out(`  ${"two jobs are faster by".padEnd(34)}${(seconds[0] / seconds[1]).toFixed(2).padStart(9)} times`);
}

export async function run(args: string[]): Promise<void> {
  const seconds = option(args, "--seconds", 5);
  const warmSeconds = option(args, "--warm", 3);
  // What a program that imports barlink runs: JavaScript without a loader's hooks.
  const dir = mkdtempSync(join(tmpdir(), "barlink-bench-"));
  const filename = join(dir, "worker.mjs");
  await build({
    entryPoints: [join(import.meta.dirname, "explore_worker.ts")],
    outfile: filename,
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20",
    logLevel: "silent",
  });
  const pool = new Piscina<Job, Done>({ filename, minThreads: 2, maxThreads: 2, execArgv: [] });
  try {
    for (const { name, what, target } of SCENARIOS) {
      const job = (strategy: Job["strategy"], seed: number): Job => ({ scenario: name, strategy, seed, warmSeconds, seconds });
      out(`${name}: ${what}`);
      const optimal = await pool.run(job("optimal", 1));
      line(`each trace once${optimal.traces === undefined ? "" : ` (${optimal.traces.toLocaleString("en")} traces)`}`, [optimal], target);
      line("drawn at random, 1 job", [await pool.run(job("random", 1))], undefined);
      line("drawn at random, 2 jobs", await Promise.all([1, 2].map((seed) => pool.run(job("random", seed)))), undefined);
    }
  } finally {
    await pool.destroy();
    rmSync(dir, { recursive: true });
  }
  divided();
  out(`${cpus().length} processors, ${cpus()[0]?.model ?? "unknown"}\n`);
  compareWithSpin(out);
}
