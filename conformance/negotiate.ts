/**
 * The negotiated interconnect: what every pair of exporter and importer agrees
 * on (held against docs/negotiation.md, or written to it with --write), random
 * sequences over all of them, and the explorer's scenarios on it, exhausted.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { exploreOptimal, formatSchedule, scenarios, taskProgram } from "../src/explore/index.ts";
import { pairsTable } from "./negotiate/pairs.ts";
import { randomSequences, SequenceFailed } from "./negotiate/random.ts";

const DOC = fileURLToPath(new URL("../docs/negotiation.md", import.meta.url));
const BEGIN = "<!-- pairs -->\n";
const END = "<!-- /pairs -->";
const SEQUENCES = 100_000;

const usage = (): number => {
  process.stdout.write("usage: npm run conformance -- negotiate [--write] [--sequences N] [--seed N]\n");
  return 0;
};

/** The number after `name`; `fallback` when it is not there, NaN when it is none. */
function numberAfter(args: readonly string[], name: string, fallback: number): number {
  const i = args.indexOf(name);
  return i < 0 ? fallback : Number(args[i + 1]);
}

export function run(args: string[]): number {
  if (args.includes("--help")) return usage();
  const sequences = numberAfter(args, "--sequences", SEQUENCES);
  const seed = numberAfter(args, "--seed", 1);
  if (!Number.isInteger(sequences) || !Number.isInteger(seed)) {
    process.stderr.write("barlink: --sequences and --seed take whole numbers\n");
    return 2;
  }
  return Math.max(pairs(args.includes("--write")), random(seed, sequences), explored());
}

function pairs(write: boolean): number {
  const doc = readFileSync(DOC, "utf8");
  const from = doc.indexOf(BEGIN) + BEGIN.length;
  const to = doc.indexOf(END);
  const table = pairsTable();
  const said = doc.slice(from, to);
  if (write) writeFileSync(DOC, doc.slice(0, from) + table + doc.slice(to));
  else if (said !== table) {
    process.stdout.write(`FAIL the pairs agree on other things than docs/negotiation.md says (--write puts it right):\n${table}`);
    return 1;
  }
  process.stdout.write(`ok   ${table.trim().split("\n").length - 2} exporters, each with every importer, as docs/negotiation.md says\n`);
  return 0;
}

function random(seed: number, count: number): number {
  const begun = performance.now();
  const tty = process.stdout.isTTY;
  try {
    randomSequences(seed, count, (done) => {
      if (tty) process.stdout.write(`\r     ${done} of ${count} sequences`);
    });
  } catch (e) {
    if (!(e instanceof SequenceFailed)) throw e;
    process.stdout.write(
      `${tty ? "\r" : ""}FAIL ${e.message}\n     again: npm run conformance -- negotiate --sequences 1 --seed ${e.seed}\n`,
    );
    return 1;
  }
  const seconds = (performance.now() - begun) / 1000;
  process.stdout.write(
    `${tty ? "\r" : ""}ok   ${count} random sequences from seed ${seed}, I1 to I7 after every step (${seconds.toFixed(0)} s)\n`,
  );
  return 0;
}

/** Every schedule of every scenario that has a negotiated half. */
function explored(): number {
  let status = 0;
  for (const scenario of scenarios.values()) {
    if (!scenario.name.endsWith("-negotiated")) continue;
    const program = taskProgram(scenario);
    const begun = performance.now();
    let found = "";
    const counts = exploreOptimal(program, ({ schedule, outcome: { violation } }) => {
      if (violation !== undefined)
        found = `${violation.kind}: ${violation.message} (barlink replay ${scenario.name}:${formatSchedule(schedule)})`;
      return violation !== undefined;
    });
    const seconds = ((performance.now() - begun) / 1000).toFixed(0);
    const ok = found === "" && counts.exhausted;
    if (!ok) status = 1;
    process.stdout.write(
      `${ok ? "ok  " : "FAIL"} ${scenario.name}: ${counts.executions} runs, ${ok ? "exhausted" : found} (${seconds} s)\n`,
    );
  }
  return status;
}
