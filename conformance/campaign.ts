/**
 * Campaigns that are disturbed come to what undisturbed ones come to.
 *
 * A search is divided, first among threads with nobody in the way. Then two
 * workers explore it by way of a server whose append-only file is on, and at
 * random moments a worker, the server and the coordinator are ended with
 * kill -9, and started again; with `--full` a worker is also stopped for so
 * long that it is taken for dead, and goes on. The coordinator's file is deleted
 * when it is killed: what it then knows it has from the server. At the end both
 * have written the same lines, in whatever order; the states are those of the
 * search that is not divided; and the campaign has left no job at the server.
 *
 * With Debian's redis-server, and valkey-server where there is a package of it.
 * Arguments: `--full` for larger scenarios and more disturbances, `--seed N`.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis } from "ioredis";
import { exploreOptimal, parseCampaign, scenarios, taskProgram } from "../src/explore/index.ts";
import { Rng } from "../src/lib/rng.ts";
import { install, killed, SERVERS, Server, type ServerName } from "./campaign_server.ts";

const MAIN = join(import.meta.dirname, "..", "dist", "cli", "main.js");
const LOOK_MS = 20;
const LIMIT_MS = 600_000;
/** Longer than a part's lock lasts, and than it takes others to see that. */
const HELD_UP_MS = 10_000;

export interface Division {
  readonly scenario: string;
  readonly parts: number;
  readonly limit: number;
}

/** Ended with kill -9; or a worker that is held up for so long that it is taken for dead, and goes on. */
type Victim = "worker" | "server" | "coordinator" | "held-up worker";

export interface Disturbed {
  /** Lines of the undisturbed campaign's file, sorted; the header is one. */
  readonly expected: readonly string[];
  /** Of the disturbed one's. */
  readonly got: readonly string[];
  /** Who was, in order. */
  readonly disturbed: readonly Victim[];
  /** Keys of jobs that are left at the server. */
  readonly left: readonly string[];
  /** Milliseconds of the disturbed one. */
  readonly ms: number;
}

const start = (...args: string[]): ChildProcess => spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "ignore", "pipe"] });

const divided = ({ scenario, parts, limit }: Division, file: string): string[] => {
  return ["explore", scenario, "--parts", String(parts), "--part-runs", String(limit), "--campaign", file];
};

function linesOf(file: string): string[] {
  try {
    return readFileSync(file, "utf8").split("\n").slice(0, -1);
  } catch {
    return [];
  }
}

/** Runs the division without and with disturbances. Throws when a campaign fails. */
export async function disturb(name: ServerName, division: Division, victims: readonly Victim[], rng: Rng): Promise<Disturbed> {
  const folder = mkdtempSync(join(tmpdir(), "barlink-campaign-"));
  const own = new Set<ChildProcess>();
  const run = (...args: string[]): ChildProcess => {
    const child = start(...args);
    own.add(child);
    child.stderr?.resume();
    return child;
  };
  let server: Server | undefined;
  try {
    const calm = join(folder, "calm.jsonl");
    await finished(run(...divided(division, calm), "--jobs", "2"));
    const expected = linesOf(calm).sort();

    server = await Server.start(name, join(folder, "server"));
    const file = join(folder, "disturbed.jsonl");
    const work = (): ChildProcess => run("worker", "--queue", (server as Server).url, "--jobs", "1");
    const coordinate = (): ChildProcess => run(...divided(division, file), "--queue", (server as Server).url);
    const workers = [work(), work()];
    await Promise.all(workers.map((w) => once(w.stderr as NonNullable<typeof w.stderr>, "data")));
    const began = performance.now();
    let coordinator = coordinate();
    const done: Victim[] = [];
    // Each at a moment of its own within the part of the search that lies before its successor's.
    const moments = victims.map((_, i) => Math.floor(((i + rng.below(1000) / 1000) / victims.length) * 0.9 * expected.length));
    for (const [i, victim] of victims.entries()) {
      while (linesOf(file).length < (moments[i] as number) && coordinator.exitCode === null) await within(began);
      if (coordinator.exitCode !== null) break;
      done.push(victim);
      if (victim === "worker") {
        const w = rng.below(workers.length);
        await killed(workers[w]);
        workers[w] = work();
      } else if (victim === "held-up worker") {
        const held = workers[rng.below(workers.length)] as ChildProcess;
        held.kill("SIGSTOP");
        await sleep(HELD_UP_MS);
        held.kill("SIGCONT");
      } else if (victim === "server") {
        await server.kill();
        await sleep(rng.below(500));
        await server.start();
      } else {
        await killed(coordinator);
        rmSync(file);
        coordinator = coordinate();
      }
    }
    await finished(coordinator);
    const ms = performance.now() - began;
    return { expected, got: linesOf(file).sort(), disturbed: done, left: await jobsAt(server.url), ms };
  } finally {
    for (const child of own) await killed(child);
    await server?.kill();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function within(began: number): Promise<void> {
  if (performance.now() - began > LIMIT_MS) throw new Error("a disturbed campaign does not end");
  await sleep(LOOK_MS);
}

/** Waits for the end of an `explore`, which must be a good one. */
async function finished(child: ChildProcess): Promise<void> {
  let said = "";
  child.stderr?.on("data", (d: Uint8Array) => {
    said += Buffer.from(d).toString();
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), LIMIT_MS);
  if (child.exitCode === null) await once(child, "exit");
  clearTimeout(timer);
  if (child.exitCode !== 0) throw new Error(`a campaign ended with ${child.exitCode ?? child.signalCode}: ${said}`);
}

/** Keys of jobs; the queue's own few are not counted. */
async function jobsAt(url: string): Promise<string[]> {
  const connection = new Redis(url);
  try {
    return (await connection.keys("barlink:*")).filter((key) => key.includes("/"));
  } finally {
    connection.disconnect();
  }
}

/** The states that the undivided search ends in. */
export function statesOf(name: string): string[] {
  const scenario = scenarios.get(name);
  if (scenario === undefined) throw new RangeError(`no scenario "${name}"`);
  const states = new Set<string>();
  exploreOptimal(taskProgram(scenario), ({ outcome }) => {
    states.add(outcome.state);
    return false;
  });
  return [...states].sort();
}

/** What does not hold of a disturbed campaign; empty when all does. */
export function wrongWith({ scenario }: Division, victims: readonly Victim[], { expected, got, disturbed, left }: Disturbed): string[] {
  const wrong: string[] = [];
  if (disturbed.length < victims.length) wrong.push(`it ended after ${disturbed.length} of ${victims.length} disturbances`);
  const [missing, more] = [expected.filter((l) => !got.includes(l)), got.filter((l) => !expected.includes(l))];
  if (missing.length > 0) wrong.push(`${missing.length} lines are missing: ${missing[0]}`);
  if (more.length > 0) wrong.push(`${more.length} lines are there that should not be: ${more[0]}`);
  if (missing.length === 0 && more.length === 0 && got.length !== expected.length) wrong.push("lines are there more than once");
  if (left.length > 0) wrong.push(`${left.length} keys are left at the server: ${left[0]}`);
  const header = got.find((l) => l.includes('"campaign"')) ?? "";
  const rest = got.filter((l) => l !== header).sort((a, b) => nameOf(a).length - nameOf(b).length);
  const states = [...(parseCampaign([header, ...rest, ""].join("\n"))?.totals.states.keys() ?? [])].sort();
  const whole = statesOf(scenario);
  if (states.join("\n") !== whole.join("\n")) wrong.push(`it has ${states.length} states, the undivided search ${whole.length}`);
  return wrong;
}

const nameOf = (line: string): string => (JSON.parse(line) as { part: string }).part;

const SHORT: readonly Division[] = [{ scenario: "revoke-refcount-negotiated", parts: 16, limit: 10 }];
const FULL: readonly Division[] = [
  ...SHORT,
  { scenario: "map-vs-revoke", parts: 32, limit: 5 },
  { scenario: "buffer-lifetime", parts: 32, limit: 20 },
  { scenario: "hot-reset-negotiated", parts: 64, limit: 30 },
];
const ROUND: readonly Victim[] = ["worker", "server", "worker", "coordinator", "server", "worker"];

export async function run(args: string[]): Promise<number> {
  const full = args.includes("--full");
  const at = args.indexOf("--seed");
  const seed = at < 0 ? 1 : Number(args[at + 1]);
  if (!Number.isSafeInteger(seed)) throw new RangeError("--seed takes a number");
  const victims: readonly Victim[] = full ? [...ROUND, ...ROUND, "held-up worker"] : ROUND;
  let failed = 0;
  let ran = 0;
  for (const name of SERVERS) {
    const missing = install(name);
    if (missing !== undefined) {
      process.stdout.write(`${missing}\n`);
      continue;
    }
    for (const division of full ? FULL : SHORT) {
      ran++;
      const result = await disturb(name, division, victims, new Rng(seed));
      const wrong = wrongWith(division, victims, result);
      const what = `${result.expected.length - 1} entries; disturbed: ${result.disturbed.join(", ")}; ${(result.ms / 1000).toFixed(0)} s`;
      process.stdout.write(`${wrong.length === 0 ? "ok  " : "FAIL"} ${name}, ${division.scenario}: ${what}\n`);
      for (const w of wrong) process.stdout.write(`     ${w}\n`);
      if (wrong.length > 0) failed++;
    }
  }
  if (ran === 0) process.stdout.write("no server, and so nothing was run\n");
  return failed > 0 || ran === 0 ? 1 : 0;
}
