/**
 * Optimal DPOR: complete runs on the programs of the literature, and on random
 * small programs with choices against every interleaving: the same final states, every trace
 * once.
 */
import {
  type AbstractThread,
  abstractProgram,
  choose,
  exploreAll,
  exploreOptimal,
  lock,
  type Op,
  type Program,
  read,
  traceOf,
  unlock,
  update,
  write,
} from "../src/explore/index.ts";
import { Rng } from "../src/lib/rng.ts";
import { EXPECTED } from "./dpor_programs.ts";

const VARIABLES = 2;
const LOCKS = 2;
const PROGRAMS = 300;
/** Interleavings beyond which a random program is not enumerated. */
const LIMIT = 4000;

/** Two to four threads of a few operations; choices; conditions on what was read or chosen; locks held over others, so that some deadlock. */
export function randomProgram(rng: Rng): Program {
  const threads: AbstractThread[] = [];
  for (let t = 2 + rng.below(3); t > 0; t--) {
    const ops: (Op & { readonly when?: boolean })[] = [];
    const held: number[] = [];
    for (let n = 1 + rng.below(4); n > 0; n--) {
      const at = rng.below(VARIABLES);
      const free = [0, 1].filter((l) => !held.includes(l));
      switch (rng.below(7)) {
        case 0:
          ops.push(read(at));
          break;
        case 1:
          ops.push(write(at, 1 + rng.below(3)));
          break;
        case 2:
          ops.push(update(at, (old) => old * 2 + 1));
          break;
        case 3:
          ops.push({ ...write(at, 5), when: true });
          break;
        case 4:
          ops.push(choose(2 + rng.below(2)), { ...write(at, 7), when: true });
          break;
        default:
          if (free.length > 0 && (held.length === 0 || rng.chance(0.6))) {
            const l = rng.pick(free);
            held.push(l);
            ops.push(lock(l));
          } else {
            ops.push(unlock(held.pop() as number));
          }
      }
    }
    for (const l of held.reverse()) ops.push(unlock(l));
    threads.push(function* () {
      let got = 0;
      for (const op of ops) {
        if (op.when === true && got === 0) continue;
        const v = yield op;
        if (op.op === "read" || op.op === "choose") got = v;
      }
    });
  }
  return abstractProgram("random", VARIABLES, LOCKS, threads);
}

export interface Comparison {
  readonly interleavings: number;
  readonly traces: number;
  readonly differences: string[];
}

/** Undefined for a program with more interleavings than `limit`. */
export function compare(program: Program, limit = LIMIT): Comparison | undefined {
  const all = new Map<string, string>();
  const brute = exploreAll(program, (run, { executions }) => {
    all.set(traceOf(program, run.schedule), run.outcome.state);
    return executions >= limit;
  });
  if (!brute.exhausted) return undefined;
  const seen = new Set<string>();
  const states = new Set<string>();
  const differences: string[] = [];
  const dpor = exploreOptimal(program, (run) => {
    const trace = traceOf(program, run.schedule);
    if (seen.has(trace)) differences.push(`twice: ${trace}`);
    if (!all.has(trace)) differences.push(`no such trace: ${trace}`);
    seen.add(trace);
    states.add(run.outcome.state);
    return undefined;
  });
  for (const trace of all.keys()) if (!seen.has(trace)) differences.push(`missed: ${trace}`);
  for (const state of all.values()) if (!states.has(state)) differences.push(`final state missed: ${state}`);
  if (dpor.blocked > 0) differences.push(`${dpor.blocked} runs given up`);
  return { interleavings: brute.executions, traces: dpor.executions, differences };
}

export function run(args: string[]): number {
  const verbose = args.includes("--verbose");
  const print = (s: string): void => void process.stdout.write(`${s}\n`);
  let bad = 0;
  for (const [make, n, want] of EXPECTED) {
    const program = make(n);
    const start = performance.now();
    const { executions, blocked, steps } = exploreOptimal(program, () => undefined);
    const s = (performance.now() - start) / 1000;
    const good = executions === want && blocked === 0;
    if (!good) bad++;
    const rate = Math.round(executions / s).toLocaleString("en");
    print(
      `${program.name.padEnd(16)} ${String(executions).padStart(7)} complete runs, expected ${String(want).padStart(7)}, ${blocked} in vain, ${String(steps).padStart(8)} steps, ${s.toFixed(2)} s (${rate}/s)${good ? "" : "  DIFFERS"}`,
    );
  }
  const rng = new Rng(20261122);
  let [compared, skipped, interleavings, traces] = [0, 0, 0, 0];
  while (compared < PROGRAMS) {
    const c = compare(randomProgram(rng));
    if (c === undefined) {
      skipped++;
      continue;
    }
    compared++;
    interleavings += c.interleavings;
    traces += c.traces;
    if (c.differences.length > 0) bad++;
    for (const d of verbose ? c.differences : c.differences.slice(0, 3)) print(`random program ${compared}: ${d}`);
  }
  print(
    `${compared} random programs against every interleaving: ${interleavings.toLocaleString("en")} interleavings, ${traces.toLocaleString("en")} traces, each explored once; ${skipped} programs with over ${LIMIT.toLocaleString("en")} interleavings passed over`,
  );
  return bad === 0 ? 0 : 1;
}
