/**
 * Random calls on fault queues and event queues, under `barlink run`, against
 * what Linux answered to them.
 *
 * `events/events.c` is compiled against Linux's headers (`scripts/build-p2p`) and
 * makes the calls of its seed; the recording is what it printed on Linux. Every
 * line must be the same, in order: the calls depend on the answers, so one that
 * differs is followed by others, and the first is the one to look at.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const PROGRAM = join(root, "dist", "p2p", "events");
const RECORDING = join(import.meta.dirname, "data", "events-linux.txt");
/** Seed, runs, steps: those of the recording. */
const ARGUMENTS = ["7", "12", "350"] as const;
/** Lines shown around the first difference. */
const CONTEXT = 5;

/** The program is there, or can be made. */
function build(): boolean {
  if (existsSync(PROGRAM)) return true;
  process.stdout.write("building conformance/events/events.c …\n");
  return spawnSync(join(root, "scripts", "build-p2p"), { stdio: ["ignore", "ignore", "inherit"] }).status === 0;
}

const linesOf = (text: string): string[] => text.split("\n").filter((l) => l !== "");

export function run(args: readonly string[]): number {
  if (!build()) {
    process.stdout.write("events: not run: the program cannot be built here\n");
    // Whoever asked for this suite is failed; the rest goes on without it.
    return process.argv.includes("events") ? 1 : 0;
  }
  const want = linesOf(readFileSync(RECORDING, "utf8"));
  const barlink = [join(root, "dist", "cli", "main.js"), "run", "--selftest", "--", PROGRAM, ...ARGUMENTS];
  const r = spawnSync(process.execPath, barlink, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1 << 26 });
  const got = linesOf(r.stdout);
  const first = Array.from({ length: Math.max(want.length, got.length) }, (_, i) => i).find((i) => want[i] !== got[i]);
  const agree = first ?? want.length;
  process.stdout.write(`events: ${agree} of ${want.length} recorded lines agree\n`);
  if (r.status !== 0) process.stdout.write(`events: barlink run ended with ${r.status}\n`);
  if (first !== undefined) {
    for (let i = Math.max(0, first - CONTEXT); i < first; i++) process.stdout.write(`  ${want[i] ?? ""}\n`);
    process.stdout.write(`L ${want[first] ?? "(nothing)"}\nb ${got[first] ?? "(nothing)"}\n`);
    if (args.includes("--verbose")) for (const l of got.slice(first + 1)) process.stdout.write(`b ${l}\n`);
  }
  return first === undefined && r.status === 0 ? 0 : 1;
}
