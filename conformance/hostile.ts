/**
 * Hostile calls, made on a real Linux once and on the embedded kernel now.
 *
 * The calls are data (`hostile/*_calls.ts`), written out as text with
 * `--program FILE`; `hostile/hostile.c` made them on Linux and its answers lie in
 * `data/hostile-linux.jsonl`, each with the line that asked for it. Compared:
 * return value, errno, and every byte of memory that the call changed.
 *
 * The same program ran on three more machines, whose IOMMU is another; of each
 * only the answers that differ are kept (`hostile-linux-*.jsonl`). On the AMD
 * machines interrupts are not remapped: one refuses every bind, the other was
 * told to allow it.
 *
 * A call of the table whose line was never asked on Linux, or is no longer the
 * one that was, is "not covered". A difference fails the run unless
 * `docs/differences.md` has a row for it.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readMachine } from "../src/client/index.ts";
import type { MachineDescription } from "../src/machine/schema.ts";
import { type Difference, type KnownDifferences, knownDifferences } from "./differences.ts";
import { dmaBufCalls } from "./hostile/dma_buf_calls.ts";
import { fileCalls } from "./hostile/file_calls.ts";
import { type Answer, interpret } from "./hostile/interpret.ts";
import { iommufdCalls } from "./hostile/iommufd_calls.ts";
import { Program } from "./hostile/program.ts";
import { vfioCalls } from "./hostile/vfio_calls.ts";
import { Tallies } from "./tally.ts";

function hostileProgram(): Program {
  const p = new Program();
  fileCalls(p);
  iommufdCalls(p);
  vfioCalls(p);
  dmaBufCalls(p);
  return p;
}

function compare(section: string, want: Answer, got: Answer): Difference[] {
  const out: Difference[] = [];
  for (const field of new Set([...Object.keys(want), ...Object.keys(got)])) {
    const [w, g] = [JSON.stringify(want[field]), JSON.stringify(got[field])];
    if (w !== g) out.push({ section, call: want.call, what: want.what, field, want: w, got: g });
  }
  return out;
}

type Answers = ReadonlyMap<string, readonly Answer[]>;

const jsonLines = (name: string): unknown[] =>
  readFileSync(join(import.meta.dirname, "data", name), "utf8")
    .trim()
    .split("\n")
    .map((l) => JSON.parse(l) as unknown);

/** By section, in the order of the calls. */
function recordedAnswers(): Map<string, Answer[]> {
  const out = new Map<string, Answer[]>();
  let answers: Answer[] = [];
  for (const r of jsonLines("hostile-linux.jsonl") as (Answer | { section: string })[]) {
    if ("asked" in r) {
      answers.push(r as Answer);
    } else {
      answers = [];
      out.set((r as { section: string }).section, answers);
    }
  }
  return out;
}

/** The answers of a variant: those of the first machine but for what its file holds. */
function overlay(main: Answers, name: string): Answers {
  const out = new Map([...main].map(([section, answers]) => [section, [...answers]]));
  for (const r of jsonLines(`hostile-linux-${name}.jsonl`) as (Answer & { section: string; place: number })[]) {
    const { section, place, ...answer } = r;
    const answers = out.get(section);
    if (answers !== undefined) answers[place] = answer as Answer;
  }
  return out;
}

/** The machine's IOMMU as the recordings had it; the first is that of the machine's description. */
const VARIANTS: readonly { readonly name: string; readonly iommu?: MachineDescription["iommu"] }[] = [
  { name: "" },
  { name: "intel-scalable", iommu: { kind: "intel-scalable", snoopControl: false, coherentWalk: false } },
  { name: "amd", iommu: { kind: "amd" } },
  { name: "amd-no-remapping", iommu: { kind: "amd", interruptRemapping: false } },
];

interface Outcome {
  readonly known: KnownDifferences;
  readonly tallies: Tallies;
  readonly lines: string[];
}

/** Makes every call on one machine and holds the answers against the recorded ones. */
function hold(program: Program, machine: MachineDescription, expected: Answers, variant: string, { known, tallies, lines }: Outcome): void {
  for (const { section: name, answers } of interpret(program.lines, machine)) {
    const section = variant === "" ? name : `${name}@${variant}`;
    const group = variant === "" ? name : `all on ${variant}`;
    const theirs = expected.get(name) ?? [];
    answers.forEach((got, i) => {
      const want = theirs[i];
      if (want === undefined || want.asked !== got.asked) {
        tallies.missing(group);
        lines.push(`${section}: not asked on Linux: ${got.asked}`);
        return;
      }
      lines.push(...tallies.judge(group, compare(section, want, got), known, section));
    });
  }
}

export function run(args: readonly string[]): number {
  const program = hostileProgram();
  const at = args.indexOf("--program");
  if (at >= 0) {
    writeFileSync(args[at + 1] ?? "hostile.txt", program.text());
    return 0;
  }
  const known = knownDifferences("hostile");
  const tallies = new Tallies();
  const lines: string[] = [];
  const main = recordedAnswers();
  for (const v of VARIANTS) {
    const machine = readMachine("oracle");
    const expected = v.name === "" ? main : overlay(main, v.name);
    hold(program, { ...machine, iommu: v.iommu ?? machine.iommu }, expected, v.name, { known, tallies, lines });
  }
  const status = lines.length > 0 || known.unused().length > 0 ? 1 : 0;
  tallies.report("hostile", "calls asked on Linux", lines);
  for (const k of known.unused()) process.stdout.write(`docs/differences.md has a row that no call needs any more: ${k}\n`);
  return status;
}
