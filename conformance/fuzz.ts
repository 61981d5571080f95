/**
 * Calls made up by the thousand, good ones and bad ones, in sequences that build
 * on each other (`fuzz/generate.ts`).
 *
 *   npm run conformance -- fuzz                   what Linux answered to 20,000 of them, then 100,000 more on the embedded kernel alone
 *   … fuzz --seed 7 --calls 1000000               on the embedded kernel alone
 *   … fuzz --seed 7 --linux 'COMMAND'             the same 20,000 on a real Linux, compared; `fuzz/linux.ts` says what COMMAND is
 *   … fuzz --seed 7 --linux 'COMMAND' --record    and kept as `data/fuzz-linux.gz`
 *   … fuzz --run                                  the program that asked Linux, native, under `barlink run`: against the same answers
 *
 * On the embedded kernel each sequence has a fresh machine, lockdep watches, the
 * invariants of every context are checked between calls, and nothing may be left
 * at the end. Where something breaks or differs, the sequence is made as small
 * as it can be and printed.
 *
 * The recording was made on the Linux of `hostile.c`, with 7.3.4's lost return
 * value of IOMMU_TEST_OP_DMABUF_GET mended. It holds the calls themselves.
 */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { Piscina } from "piscina";
import { readMachine } from "../src/client/index.ts";
import { type Difference, type KnownDifferences, knownDifferences } from "./differences.ts";
import { DEVICES, execute, invent } from "./fuzz/execute.ts";
import { type Answers, askLinux, record, recorded } from "./fuzz/linux.ts";
import type { Sequence } from "./fuzz/program.ts";
import { labels, readable } from "./fuzz/readable.ts";
import { shrink } from "./fuzz/shrink.ts";
import type { Report, Share } from "./fuzz/worker.ts";
import { Tallies } from "./tally.ts";

const out = (line: string): void => {
  process.stdout.write(`${line}\n`);
};

/** Sequences that one task of a worker gets. */
const SHARE = 20;
/** Different breakages that are made small. */
const MOST_SHOWN = 5;
const LINUX_CALLS = 20_000;
const ALONE_CALLS = 100_000;

interface Options {
  readonly seed: number;
  readonly calls?: number;
  readonly length: number;
  readonly jobs: number;
  readonly linux?: string;
  readonly record: boolean;
  readonly run: boolean;
}

function parse(args: readonly string[]): Options {
  const whole = (text: string): number => {
    const n = Number(text);
    if (!Number.isSafeInteger(n) || n < 0) throw new InvalidArgumentError("not a whole number.");
    return n;
  };
  return new Command("npm run conformance -- fuzz")
    .option("--seed <n>", "first seed; each sequence takes the next", whole, 1)
    .option("--calls <n>", `calls to make (${LINUX_CALLS} with --linux)`, whole)
    .option("--length <n>", "calls in a sequence", whole, 250)
    .option("--jobs <n>", "threads", whole, availableParallelism())
    .option("--linux <command>", "asks a real Linux: a line for sh, with $FUZZ and $PROGRAM")
    .option("--record", "keeps what it answers", false)
    .option("--run", "asks barlink run instead, with what is kept", false)
    .option("--verbose", "of other suites")
    .parse([...args], { from: "user" })
    .opts<Options>();
}

const seedsOf = ({ seed, length }: Options, calls: number): number[] =>
  Array.from({ length: Math.ceil(calls / length) }, (_, i) => seed + i);

/** Calls that give a descriptor: what they return, or write. */
const DESCRIPTORS: ReadonlySet<string> = new Set([
  "open",
  "dup",
  "memfd",
  "eventfd",
  "VFIO_DEVICE_FEATURE",
  "IOMMU_TEST_OP_DMABUF_GET",
  "IOMMU_TEST_OP_CREATE_ACCESS",
  "IOMMU_FAULT_QUEUE_ALLOC",
  "IOMMU_VEVENTQ_ALLOC",
]);

/** In which way two answers differ: `ENOENT here 0`, or only in a descriptor's number, or in what was written. */
function fieldOf(call: string, want: string | undefined, got: string | undefined): string {
  const [w, g] = [want?.split(" ")[0], got?.split(" ")[0]];
  if (DESCRIPTORS.has(call) && /^\d/.test(w ?? "") && /^\d/.test(g ?? "")) return "descriptor";
  return w === g ? "memory" : `${w} here ${g}`;
}

/** Where the answers part: of each call. */
function compare(s: Sequence, want: readonly string[], got: readonly string[]): Difference[][] {
  const names = labels(s);
  const [, section = ""] = s.name.split(" ");
  return s.calls.map((_, i) => {
    const [w, g] = [want[i], got[i]];
    if (w === g) return [];
    const call = names[i] ?? "";
    return [{ section, call, what: s.name, field: fieldOf(call, w, g), want: w, got: g }];
  });
}

/** Compares all, prints the tally, and what differed first of its kind in full. */
async function hold(
  sequences: readonly Sequence[],
  answers: Answers,
  known: KnownDifferences,
  ask?: (s: readonly Sequence[]) => Answers,
): Promise<number> {
  const machine = readMachine("oracle");
  const tallies = new Tallies();
  const lines: string[] = [];
  const kinds = new Map<string, () => Promise<void>>();
  for (const s of sequences) {
    const { answers: got, broken } = execute(s, machine);
    const want = answers.get(s.name) ?? [];
    if (broken !== undefined) lines.push(`sequence ${s.name} broke after ${broken.after} calls: ${broken.what}`);
    let first = true;
    compare(s, want, got).forEach((differences, i) => {
      const section = s.name.split(" ")[1] ?? "";
      if (want[i] === undefined) {
        tallies.missing(section);
        return;
      }
      const unknown = tallies.judge(section, differences, known, `sequence ${s.name} call ${i}`);
      // What comes after a difference may only follow from it.
      if (first) lines.push(...unknown);
      const [d] = differences;
      if (unknown.length === 0 || d === undefined || !first) return;
      first = false;
      const kind = `${d.call} ${d.field}`;
      if (!kinds.has(kind)) kinds.set(kind, () => explain(s, i, want[i] ?? "", got[i] ?? "", ask));
    });
  }
  tallies.report("fuzz", "calls asked on Linux", lines);
  for (const k of known.unused()) out(`docs/differences.md has a row that no call needs any more: ${k}`);
  for (const show of [...kinds.values()].slice(0, MOST_SHOWN)) await show();
  return lines.length > 0 || known.unused().length > 0 ? 1 : 0;
}

/**
 * The smallest sequence whose last call is answered here as that one was; with a
 * Linux to ask, and there otherwise.
 */
async function explain(s: Sequence, at: number, want: string, got: string, ask?: (s: readonly Sequence[]) => Answers): Promise<void> {
  const machine = readMachine("oracle");
  const kept = s.calls[at];
  // After it only what has to be undone.
  const upTo: Sequence = { name: s.name, calls: s.calls.filter((c, i) => i <= at || c.needed === true) };
  const answer = (c: Sequence, answers: readonly string[] | undefined): string | undefined =>
    kept === undefined ? undefined : answers?.[c.calls.indexOf(kept)];
  const mine = (c: Sequence): boolean => answer(c, execute(c, machine).answers) === got;
  const least = await shrink(upTo, kept, (candidates) => {
    const here = candidates.map(mine);
    const good = candidates.flatMap((c, i) => (here[i] === true ? [{ name: `${i}`, calls: c.calls }] : []));
    if (ask === undefined || good.length === 0) return here;
    const there = ask(good);
    return candidates.map((c, i) => here[i] === true && answer(c, there.get(`${i}`)) === want);
  });
  out(`\nleast with that answer${ask === undefined ? " here (Linux was not asked)" : ""}, of sequence ${s.name}, Linux: ${want}`);
  for (const line of readable(least, { here: execute(least, machine).answers })) out(`  ${line}`);
}

/** Many sequences on the embedded kernel alone. */
async function alone(o: Options, calls: number): Promise<number> {
  const seeds = seedsOf(o, calls);
  const pool = new Piscina<Share, Report>({ filename: new URL("fuzz/worker.ts", import.meta.url).href, maxThreads: o.jobs });
  const start = performance.now();
  const shares: Promise<Report>[] = [];
  for (let i = 0; i < seeds.length; i += SHARE) shares.push(pool.run({ seeds: seeds.slice(i, i + SHARE), length: o.length }));
  const reports = await Promise.all(shares);
  await pool.destroy();
  const sum = (of: (r: Report) => number): number => reports.reduce((n, r) => n + of(r), 0);
  const broken = reports.flatMap((r) => r.broken);
  const seconds = (performance.now() - start) / 1000;
  const share = Math.round(
    (100 * sum((r) => r.succeeded)) /
      Math.max(
        1,
        sum((r) => r.calls),
      ),
  );
  out(
    `fuzz: ${sum((r) => r.calls)} calls in ${seeds.length} sequences from seed ${o.seed}, ${share} % succeed, ` +
      `${broken.length} sequences broke; ${seconds.toFixed(1)} s on ${o.jobs} threads`,
  );
  const kinds = new Map(broken.map((b) => [b.what.split("\n")[0] ?? "", b]));
  for (const [what, b] of [...kinds].slice(0, MOST_SHOWN)) await explainBroken(o, b, what);
  return broken.length > 0 ? 1 : 0;
}

async function explainBroken(o: Options, b: Report["broken"][number], what: string): Promise<void> {
  const machine = readMachine("oracle");
  const whole = invent(b.seed, o.length, machine).sequence;
  const least = await shrink(whole, undefined, (candidates) =>
    candidates.map((c) => execute(c, machine, 1).broken?.what.split("\n")[0] === what),
  );
  out(`\nseed ${b.seed}, after ${b.after} calls: ${b.what}\nleast that breaks so:`);
  for (const line of readable(least, { here: execute(least, machine).answers })) out(`  ${line}`);
}

/** The recorded calls by the native program under `barlink run`. */
function underRun(): number {
  const { sequences, answers } = recorded();
  const barlink = join(import.meta.dirname, "..", "dist", "cli", "main.js");
  const names = Object.entries(DEVICES)
    .map(([name, address]) => `${name.slice(1)}=${address}`)
    .join(" ");
  const command = `"${process.execPath}" "${barlink}" run --selftest --machine oracle -- "$FUZZ" "$PROGRAM" ${names}`;
  const got = askLinux(command, sequences).answers;
  const known = knownDifferences("fuzz-run");
  const tallies = new Tallies();
  const lines: string[] = [];
  for (const s of sequences) {
    const section = s.name.split(" ")[1] ?? "";
    const want = answers.get(s.name) ?? [];
    compare(s, want, got.get(s.name) ?? []).forEach((differences, i) => {
      lines.push(...tallies.judge(section, differences, known, `sequence ${s.name} call ${i}`));
    });
  }
  tallies.report("fuzz --run", "calls asked on Linux", lines);
  for (const k of known.unused()) out(`docs/differences.md has a row that no call needs any more: ${k}`);
  return lines.length > 0 || known.unused().length > 0 ? 1 : 0;
}

export async function run(args: readonly string[]): Promise<number> {
  const o = parse(args);
  if (o.run) return underRun();
  const known = knownDifferences("fuzz");
  const { linux } = o;
  if (linux !== undefined) {
    const machine = readMachine("oracle");
    const sequences = seedsOf(o, o.calls ?? LINUX_CALLS).map((seed) => invent(seed, o.length, machine).sequence);
    const asked = askLinux(linux, sequences);
    for (const w of asked.warnings) out(`Linux logged: ${w}`);
    if (o.record) record(sequences, asked.answers);
    return hold(sequences, asked.answers, known, (s) => askLinux(linux, s).answers);
  }
  if (o.calls !== undefined) return alone(o, o.calls);
  const { sequences, answers } = recorded();
  return Math.max(await hold(sequences, answers, known), await alone(o, ALONE_CALLS));
}
