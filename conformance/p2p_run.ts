/**
 * The recorded program itself, unmodified, under `barlink run`.
 *
 * `p2p/p2p.c` is compiled against Linux's headers (`scripts/build-p2p`) and run
 * once per recorded exporter, one after the other on one machine, as it was run
 * on Linux. What it prints is held against what it printed there: every record
 * in order, its call, arguments, return value (descriptor numbers included),
 * errno and outputs, and every note.
 *
 * Not compared, since the machine it runs on decides: time (`us`); the text and
 * count of lines in the kernel's log (`fault`, `dmar_log_lines`), which is read
 * from the real one; `ino` and `mnt_id` in the note of /proc/self/fdinfo.
 *
 * What the program finds outside of barlink is made as it was there: /tmp is a
 * tmpfs, in a mount namespace of its own where that is allowed; and a log that
 * cannot be read is replaced by another open descriptor, so that the numbers
 * agree.
 *
 * A record that only one side has is "not covered" or "extra", never dropped. A
 * difference fails the run unless `docs/differences.md` has a row for it.
 */
import { spawnSync } from "node:child_process";
import { accessSync, closeSync, constants, existsSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { type Difference, knownDifferences } from "./differences.ts";
import { compare, sameArgs } from "./golden.ts";
import type { CallRecord } from "./p2p_env.ts";
import { Tallies } from "./tally.ts";

const root = join(import.meta.dirname, "..");
const LINUX_SECONDS = 79;
const PROGRAM = join(root, "dist", "p2p", "p2p");
const TMPFS_MAGIC = 0x0102_1994;
/** Lines shown of what disagrees. */
const MOST_LINES = 60;
/** How far to look for a record that did not come where it was expected. */
const LOOK_AHEAD = 40;

/** Name, exporter and region of the recorded runs; importer and third device are the same. */
const RUNS = [
  ["ivshmem", "0000:02:00.0", "2"],
  ["nvme-pmr", "0000:03:00.0", "4"],
] as const;

interface NoteRecord {
  readonly exp: string;
  readonly sec: string;
  readonly note: string;
}

type P2pRecord = CallRecord | NoteRecord;

const isNote = (r: P2pRecord): r is NoteRecord => "note" in r;

const parse = (text: string): P2pRecord[] =>
  text
    .split("\n")
    .filter((l) => l.startsWith("{"))
    .map((l) => JSON.parse(l) as P2pRecord);

/** Without what the machine decides. */
const settled = (note: string): string => note.replace(/\b(mnt_id|ino): \d+/g, "$1");

/** A note begins with a word that says what it is about. */
function same(a: P2pRecord, b: P2pRecord): boolean {
  if (a.exp !== b.exp || a.sec !== b.sec) return false;
  if (isNote(a) || isNote(b)) return isNote(a) && isNote(b) && a.note.split(" ")[0] === b.note.split(" ")[0];
  return a.call === b.call && sameArgs(a, b);
}

function differencesOf(want: P2pRecord, got: P2pRecord): Difference[] {
  if (!isNote(want) && !isNote(got)) return compare(want, got);
  if (!isNote(want) || !isNote(got) || settled(want.note) === settled(got.note)) return [];
  return [{ section: want.sec, call: "note", what: want.note.split(" ")[0] ?? "", field: "note", want: want.note, got: got.note }];
}

/** The program as a shell runs it on the machine, for each exporter in turn. */
function script(): string {
  let log = true;
  try {
    closeSync(openSync("/dev/kmsg", constants.O_RDONLY | constants.O_NONBLOCK));
  } catch {
    log = false;
  }
  const rest = log ? "" : " 3</dev/null";
  return RUNS.map(([name, exporter, region]) => `EXPNAME=${name} '${PROGRAM}' 0000:01:00.0 ${exporter} ${region} 0000:00:08.0${rest}`).join(
    "\n",
  );
}

/** A way to give the program a tmpfs on /tmp, or undefined when it has one anyway, or none can be had. */
function privateTmp(): string[] | undefined {
  if (statfsSync("/tmp").type === TMPFS_MAGIC) return undefined;
  // A checkout below /tmp is carried over the mount.
  const below = root.startsWith("/tmp/");
  const mounts = below
    ? `mount --bind '${root}' /mnt && mount -t tmpfs tmpfs /tmp && mkdir -p '${root}' && mount --bind /mnt '${root}' && cd '${root}'`
    : "mount -t tmpfs tmpfs /tmp";
  const unshare = ["unshare", process.getuid?.() === 0 ? "-m" : "-rm", "sh", "-c", `${mounts} && exec "$@"`, "sh"];
  const tried = spawnSync(unshare[0] as string, [...unshare.slice(1), "true"], { stdio: "ignore" });
  return tried.status === 0 ? unshare : undefined;
}

interface Outcome {
  readonly output: string;
  readonly status: number | null;
  readonly seconds: number;
}

function execute(debug: boolean): Outcome {
  const barlink = [join(root, "dist", "cli", "main.js"), "run", "--machine", "oracle", "--selftest", ...(debug ? ["--debug"] : [])];
  const command = [...(privateTmp() ?? []), process.execPath, ...barlink, "--", "sh", "-c", script()];
  // Not below /tmp, which is another one in there.
  const directory = mkdtempSync(join(root, "dist", "p2p", "run-"));
  const records = join(directory, "records");
  const started = performance.now();
  const r = spawnSync(command[0] as string, command.slice(1), {
    stdio: ["ignore", "inherit", "inherit"],
    env: { ...process.env, OUT: records },
  });
  const seconds = (performance.now() - started) / 1000;
  const output = existsSync(records) ? readFileSync(records, "utf8") : "";
  rmSync(directory, { recursive: true });
  return { output, status: r.status, seconds };
}

/** Makes the program if it is not there; false when that cannot be done here. */
function build(): boolean {
  const source = join(root, "conformance", "p2p", "p2p.c");
  if (existsSync(PROGRAM)) {
    try {
      accessSync(PROGRAM, constants.X_OK);
      return true;
    } catch {
      // Not whole: made again.
    }
  }
  process.stdout.write(`building ${source} …\n`);
  const r = spawnSync(join(root, "scripts", "build-p2p"), { stdio: ["ignore", "ignore", "inherit"] });
  return r.status === 0;
}

/** Pairs each recorded one with what came, allowing for some that are missing or extra. */
function* align(recorded: readonly P2pRecord[], came: readonly P2pRecord[]): Generator<[P2pRecord | undefined, P2pRecord | undefined]> {
  let next = 0;
  for (const want of recorded) {
    const i = came.slice(next, next + LOOK_AHEAD).findIndex((g) => same(want, g));
    if (i < 0) {
      yield [want, undefined];
      continue;
    }
    for (const extra of came.slice(next, next + i)) yield [undefined, extra];
    next += i;
    yield [want, came[next]];
    next++;
  }
  for (const extra of came.slice(next)) yield [undefined, extra];
}

const describe = (r: P2pRecord): string => (isNote(r) ? `note "${r.note}"` : `${r.call} ${JSON.stringify(r.args)}`);

/** There is no program to run. That fails only whoever asked for this suite; all else that keeps it from running is a failure. */
function cannotBuild(): number {
  process.stdout.write("p2p: not run: the program cannot be built here\n");
  return process.argv.includes("p2p") ? 1 : 0;
}

export function run(args: readonly string[]): number {
  const recorded = parse(readFileSync(join(import.meta.dirname, "data", "p2p-linux.jsonl"), "utf8"));
  if (!build()) return cannotBuild();
  const { output, status: exit, seconds } = execute(args.includes("--debug"));
  const came = parse(output);
  if (came.length === 0) {
    process.stdout.write(`p2p: the program printed no record, and barlink run ended with ${exit}\n`);
    return 1;
  }
  const known = knownDifferences("p2p");
  const tallies = new Tallies();
  const lines: string[] = [];
  let status = exit === 0 ? 0 : 1;
  for (const [want, got] of align(recorded, came)) {
    const sec = (want ?? got)?.sec ?? "";
    if (want === undefined || got === undefined) {
      status = 1;
      if (want !== undefined) tallies.missing(sec);
      lines.push(`${(want ?? got)?.exp} ${sec}: ${want === undefined ? "extra" : "not there"}: ${describe((want ?? got) as P2pRecord)}`);
      continue;
    }
    const unexplained = tallies.judge(sec, differencesOf(want, got), known, `${want.exp} ${sec}`);
    if (unexplained.length > 0) status = 1;
    lines.push(...unexplained);
  }
  for (const k of known.unused()) {
    lines.push(`docs/differences.md has a row that no record needs any more: ${k}`);
    status = 1;
  }
  const shown = args.includes("--verbose") ? lines : lines.slice(0, MOST_LINES);
  if (shown.length < lines.length) shown.push(`… and ${lines.length - shown.length} more: --verbose shows them`);
  tallies.report("p2p", "recorded records covered", shown);
  if (exit !== 0) process.stdout.write(`p2p: barlink run ended with ${exit}\n`);
  process.stdout.write(
    `p2p: ${seconds.toFixed(1)} s, as the program under barlink run; ${LINUX_SECONDS} s on Linux in a virtual machine\n`,
  );
  return status;
}
