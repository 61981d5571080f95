/**
 * What `barlink run` costs a program, with what it is compared to in the same run.
 *
 * One ioctl of iommufd served in the full path (wait, order of closes, which
 * file, 24 bytes in, 24 bytes out, answer) stands beside: a C supervisor that
 * answers 0 and does nothing else; one that also makes the system calls which
 * such an answer takes; strace of the same ioctl on /dev/null; and, with
 * `--linux COMMAND`, the call on a real Linux, which COMMAND runs (it gets a
 * static program's path and its arguments, and prints what that prints).
 * Rounds of all of them alternate, and each figure is the median of the rounds,
 * so that what else the machine does meets them alike.
 *
 * Arguments: `--rounds N` (5), `--calls N` (20000), `--linux COMMAND`.
 * Needs cc or gcc; strace if it is to be compared.
 */
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT: string = join(import.meta.dirname, "..");
const SOURCES: string = join(import.meta.dirname, "run");
const BARLINK: readonly string[] = [process.execPath, join(ROOT, "dist/cli/main.js"), "run", "--"];
const OPENS = 10_000;
const STRACED = 5_000;
const STARTS = 15;
const TARGETS = { median: 1.5, p99: 3, files: 3, startMs: 250, rssMB: 120 } as const;

function execute(argv: readonly string[]): SpawnSyncReturns<string> {
  return spawnSync(argv[0] as string, argv.slice(1), { encoding: "utf8", timeout: 300_000 });
}

/** The numbers of the last line that a run prints. Throws when it fails. */
function numbers(argv: readonly string[]): number[] {
  const r = execute(argv);
  const line = r.stdout?.trim().split("\n").at(-1) ?? "";
  if (r.status !== 0 || !/^[\d ]+$/.test(line)) {
    throw new Error(`${argv.join(" ")}: ${r.error?.message ?? `status ${r.status}`}${r.stderr ? `\n${r.stderr.trim()}` : ""}`);
  }
  return line.split(" ").map(Number);
}

const exists = (command: string): boolean => execute([command, "--version"]).error === undefined;
const out = (text: string): void => void process.stdout.write(`${text}\n`);
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] as number;
const us = (ns: number): string => `${(ns / 1000).toFixed(2)} µs`;
const verdict = (got: number, most: number): string => (got <= most ? "met" : "MISSED");

/** A column of rounds: what to run, and what it answered. */
interface Series {
  readonly name: string;
  readonly argv: readonly string[];
  readonly rounds: number[][];
}

const series = (name: string, ...argv: string[]): Series => ({ name, argv, rounds: [] });
const column = (s: Series, i: number): number => median(s.rounds.map((r) => r[i] as number));

function alternate(all: readonly Series[], rounds: number): void {
  for (let i = 0; i < rounds; i++) for (const s of all) s.rounds.push(numbers(s.argv));
}

/** Compiles the C sources into `folder`; says what is missing when it cannot. */
function compile(folder: string): { calls: string; supervisor: string } | undefined {
  const cc = ["cc", "gcc"].find(exists);
  if (cc === undefined) {
    out("nothing was measured: there is no C compiler here (cc or gcc) for the program that makes the calls and for the C supervisor");
    return undefined;
  }
  const made: string[] = [];
  for (const name of ["calls", "supervisor"]) {
    const to = join(folder, name);
    const r = execute([cc, "-O2", "-Wall", "-o", to, join(SOURCES, `${name}.c`)]);
    if (r.status !== 0) {
      out(`nothing was measured: ${cc} does not compile bench/run/${name}.c (are the headers of Linux 5.19 or newer there?)\n${r.stderr}`);
      return undefined;
    }
    made.push(to);
  }
  return { calls: made[0] as string, supervisor: made[1] as string };
}

function latency(calls: string, supervisor: string, n: number, rounds: number, linux: string | undefined, folder: string): void {
  const count = `${n}`;
  const native = series("native, ioctl on /dev/null", calls, "null", count);
  const nothing = series("C supervisor that does nothing", supervisor, "nothing", calls, "null", count);
  const same = series("C supervisor, the same system calls", supervisor, "same", calls, "null", count);
  const served = series("barlink run", ...BARLINK, calls, "ioctl", count);
  const all = [native, nothing, same, served];
  const strace = exists("strace")
    ? series("strace", "strace", "-f", "-e", "trace=ioctl", "-o", "/dev/null", calls, "null", `${STRACED}`)
    : undefined;
  if (strace !== undefined) all.push(strace);
  alternate(all, rounds);
  out(`\none ioctl, ${count} times in each of ${rounds} rounds${" ".repeat(8)}median        p99        best`);
  for (const s of all) {
    const [m, p, b] = [0, 1, 2].map((i) => us(column(s, i)).padStart(11));
    out(`${s.name.padEnd(42)}${m}${p}${b}   ×${(column(s, 0) / column(nothing, 0)).toFixed(2)} in the median`);
  }
  if (strace === undefined) out("strace: not installed");
  if (linux !== undefined) onLinux(linux, folder, served);
  for (const [i, what, most] of [
    [0, "median", TARGETS.median],
    [1, "p99", TARGETS.p99],
  ] as const) {
    const ratio = column(served, i) / column(nothing, i);
    out(`against the C supervisor that does nothing, ${what}: ×${ratio.toFixed(2)}, target ${most}: ${verdict(ratio, most)}`);
  }
  const fair = column(served, 0) / column(same, 0);
  out(`against the C supervisor with the same system calls, median: ×${fair.toFixed(2)}`);
}

function onLinux(command: string, folder: string, served: Series): void {
  const to = join(folder, "calls-static");
  const r = execute(["cc", "-O2", "-static", "-o", to, join(SOURCES, "calls.c")]);
  if (r.status !== 0) {
    out(`real Linux: not measured, since cc makes no static program here: ${r.stderr.trim()}`);
    return;
  }
  const [m = 0, p = 0, b = 0] = numbers(["/bin/sh", "-c", `${command} "$@"`, "sh", to, "ioctl", "2000"]);
  const figures = [m, p, b].map((ns) => us(ns).padStart(11)).join("");
  out(`${"real Linux, by --linux".padEnd(42)}${figures}   barlink is ×${(column(served, 0) / m).toFixed(2)} of it`);
}

function files(calls: string, supervisor: string, rounds: number, folder: string): void {
  const of = join(folder, "files");
  mkdirSync(of);
  for (let i = 0; i < 100; i++) writeFileSync(join(of, `${i}`), "");
  const count = `${OPENS}`;
  const native = series("native", calls, "files", count, of);
  const least = series("C supervisor that lets every open through", supervisor, "opens", calls, "files", count, of);
  const served = series("barlink run", ...BARLINK, calls, "files", count, of);
  alternate([native, least, served], rounds);
  out(`\n${count} times open and close of ordinary files`);
  for (const s of [native, least, served]) {
    out(
      `${s.name.padEnd(42)}${(column(s, 0) / 1e6).toFixed(1).padStart(8)} ms   ×${(column(s, 0) / column(native, 0)).toFixed(2)} of native`,
    );
  }
  const ratio = column(served, 0) / column(native, 0);
  out(`against native: ×${ratio.toFixed(2)}, target ${TARGETS.files}: ${verdict(ratio, TARGETS.files)}`);
}

function starts(): void {
  const time = (argv: readonly string[]): number => {
    const from = performance.now();
    const r = execute(argv);
    if (r.status !== 0) throw new Error(`${argv.join(" ")}: status ${r.status}\n${r.stderr}`);
    return performance.now() - from;
  };
  const node: number[] = [];
  const barlink: number[] = [];
  for (let i = 0; i < STARTS; i++) {
    node.push(time([process.execPath, "-e", "0"]));
    barlink.push(time([...BARLINK, "true"]));
  }
  const ms = median(barlink);
  out(`\nstart to end, the median of ${STARTS} (and the best)`);
  out(`${"node -e 0".padEnd(42)}${median(node).toFixed(0).padStart(8)} ms (${Math.min(...node).toFixed(0)})`);
  out(
    `${"barlink run -- true".padEnd(42)}${ms.toFixed(0).padStart(8)} ms (${Math.min(...barlink).toFixed(0)})   ×${(ms / median(node)).toFixed(2)}`,
  );
  out(`target ${TARGETS.startMs} ms: ${verdict(ms, TARGETS.startMs)}`);
}

function memory(calls: string): void {
  const [rss = 0, peak = 0] = numbers([...BARLINK, calls, "memory", "10000"]).map((kB) => (kB * 1024) / 1e6);
  out(`\nbarlink's resident memory after 10000 ioctls: ${rss.toFixed(0)} MB, at most ${peak.toFixed(0)} MB`);
  out(`target ${TARGETS.rssMB} MB: ${verdict(peak, TARGETS.rssMB)}`);
}

export function run(args: string[]): void {
  const option = (name: string): string | undefined => (args.includes(name) ? args[args.indexOf(name) + 1] : undefined);
  const rounds = Number(option("--rounds") ?? 5);
  const n = Number(option("--calls") ?? 20_000);
  // A name that no part of the supervisor looks twice at: barlink's own folders begin with its name.
  const folder = mkdtempSync(join(tmpdir(), "bench-"));
  try {
    const made = compile(folder);
    if (made === undefined) return;
    latency(made.calls, made.supervisor, n, rounds, option("--linux"), folder);
    files(made.calls, made.supervisor, rounds, folder);
    starts();
    memory(made.calls);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
