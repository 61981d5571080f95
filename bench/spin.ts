/**
 * A lock protocol in SPIN and here: threads that take two locks and count, in
 * one order; and with one of them in the other order, which deadlocks.
 *
 * The two do not count the same: SPIN stores states and follows transitions,
 * the explorer here stores nothing and runs one schedule of each trace. What
 * can be compared is the time until all is known, and what is found.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type AbstractThread, abstractProgram, exploreOptimal, lock, type Program, read, unlock, write } from "../src/explore/index.ts";

const ROUNDS = 2;
const THREADS = 3;
const TIMEOUT_MS = 120_000;

/** `turned`: the last thread takes the locks in the other order. */
function promela(turned: boolean): string {
  const thread = (id: number, first: string, second: string): string => `
active proctype thread${id}() {
  byte n = 0; byte seen;
  do
  :: n < ${ROUNDS} ->
     atomic { !${first} -> ${first} = true }
     atomic { !${second} -> ${second} = true }
     seen = total;
     total = seen + 1;
     ${second} = false;
     ${first} = false;
     n++
  :: else -> break
  od;
  ended++
}`;
  const threads = Array.from({ length: THREADS }, (_, i) => (turned && i === THREADS - 1 ? thread(i, "b", "a") : thread(i, "a", "b")));
  return `bool a = false; bool b = false; byte total = 0; byte ended = 0;\n${threads.join("\n")}
active proctype check() { ended == ${THREADS} -> assert(total == ${THREADS * ROUNDS}) }\n`;
}

function here(turned: boolean): Program {
  const body = (first: number, second: number): AbstractThread =>
    function* () {
      for (let n = 0; n < ROUNDS; n++) {
        yield lock(first);
        yield lock(second);
        const seen = yield read(0);
        yield write(0, seen + 1);
        yield unlock(second);
        yield unlock(first);
      }
    };
  const threads = Array.from({ length: THREADS }, (_, i) => (turned && i === THREADS - 1 ? body(1, 0) : body(0, 1)));
  return abstractProgram("two locks", 1, 2, threads);
}

const has = (command: string): boolean => spawnSync(command, ["-V"], { timeout: 10_000 }).error === undefined;

/** Why there is no SPIN; undefined when there is one. */
function missing(): string | undefined {
  if (spawnSync("cc", ["--version"]).error !== undefined) return "a C compiler is missing, which SPIN needs";
  if (has("spin")) return undefined;
  if (process.getuid?.() !== 0) return "SPIN is missing (Debian: apt-get install spin)";
  spawnSync("apt-get", ["install", "-y", "-q", "--no-install-recommends", "spin"], { timeout: TIMEOUT_MS, stdio: "ignore" });
  return has("spin") ? undefined : "SPIN is missing, and apt-get could not install it";
}

interface Spin {
  readonly errors: number;
  readonly states: number;
  readonly transitions: number;
  /** Of the verifier alone. */
  readonly ms: number;
  /** Of making the verifier: spin -a and the C compiler. */
  readonly makeMs: number;
}

function spin(source: string): Spin | string {
  const dir = mkdtempSync(join(tmpdir(), "barlink-spin-"));
  const go = (command: string, ...args: string[]): string => {
    const r = spawnSync(command, args, { cwd: dir, encoding: "utf8", timeout: TIMEOUT_MS });
    if (r.error !== undefined || r.status !== 0) throw new Error(`${command}: ${r.error?.message ?? r.stderr}`);
    return r.stdout;
  };
  try {
    writeFileSync(join(dir, "model.pml"), source);
    const start = performance.now();
    go("spin", "-a", "model.pml");
    go("cc", "-O2", "-DSAFETY", "-o", "pan", "pan.c");
    const made = performance.now();
    // Every error is counted, as here every trace is run.
    const text = go("./pan", "-c0", "-n", "-m100000");
    const ms = performance.now() - made;
    const number = (r: RegExp): number => Number(text.match(r)?.[1] ?? Number.NaN);
    return {
      errors: number(/errors: (\d+)/),
      states: number(/(\d+) states, stored/),
      transitions: number(/(\d+) transitions/),
      ms,
      makeMs: made - start,
    };
  } catch (e) {
    return (e as Error).message;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const n = (x: number): string => x.toLocaleString("en");

export function compareWithSpin(out: (text: string) => void): void {
  const why = missing();
  if (why !== undefined) out(why);
  for (const turned of [false, true]) {
    out(`${THREADS} threads, ${ROUNDS} rounds of two locks and a counter${turned ? ", one thread in the other order" : ""}`);
    for (let i = 0; i < 3; i++) exploreOptimal(here(turned), () => undefined);
    const start = performance.now();
    const c = exploreOptimal(here(turned), () => undefined);
    const ms = performance.now() - start;
    out(`  here   ${n(c.executions)} traces, ${n(c.steps)} steps, ${c.violations} of them deadlock, ${ms.toFixed(1)} ms`);
    if (why !== undefined) continue;
    const s = spin(promela(turned));
    if (typeof s === "string") out(`  SPIN   ${s}`);
    else
      out(
        `  SPIN   ${n(s.states)} states, ${n(s.transitions)} transitions, ${s.errors} errors, ${s.ms.toFixed(1)} ms, and ${Math.round(s.makeMs)} ms to make the verifier`,
      );
  }
}
