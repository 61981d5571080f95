/**
 * Asking a real Linux: `fuzz.c` is built, and a command of the user's runs it there.
 *
 * The command is a line for `sh`. In its environment $FUZZ is the program, static,
 * and $PROGRAM the file of calls; what it prints is what `fuzz $PROGRAM
 * edu=ADDRESS ivshmem=ADDRESS nvme=ADDRESS` prints there, as root.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";
import { callText, parseProgram, programText, type Sequence } from "./program.ts";

/** By the names of the sequences. */
export type Answers = ReadonlyMap<string, readonly string[]>;

/** A real Linux's answers, and lines of its log that warn. */
export interface Asked {
  readonly answers: Answers;
  readonly warnings: readonly string[];
}

export function parseAnswers(text: string): Asked {
  const answers = new Map<string, string[]>();
  const warnings: string[] = [];
  let current: string[] = [];
  for (const line of text.split("\n")) {
    if (line === "") continue;
    if (line.startsWith("# ")) {
      warnings.push(line.slice(2));
    } else if (line.startsWith("sequence ")) {
      current = [];
      answers.set(line.slice("sequence ".length), current);
    } else {
      current.push(line);
    }
  }
  return { answers, warnings };
}

export function askLinux(command: string, sequences: readonly Sequence[]): Asked {
  const folder = mkdtempSync(join(tmpdir(), "barlink-fuzz-"));
  try {
    const [fuzz, program] = [join(folder, "fuzz"), join(folder, "program")];
    execFileSync("gcc", ["-O1", "-static", "-Wall", "-o", fuzz, join(import.meta.dirname, "fuzz.c")], {
      stdio: ["ignore", "inherit", "inherit"],
    });
    writeFileSync(program, programText(sequences));
    const r = spawnSync("sh", ["-c", command], {
      env: { ...process.env, FUZZ: fuzz, PROGRAM: program },
      stdio: ["ignore", "pipe", "inherit"],
      encoding: "utf8",
      maxBuffer: 1 << 30,
    });
    if (r.status !== 0) throw new Error(`the command that asks Linux ended with ${r.status ?? r.signal}`);
    return parseAnswers(r.stdout);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const RECORDING: string = join(import.meta.dirname, "..", "data", "fuzz-linux.gz");

/** Each call with its answer behind a tab, so that the recording outlives a change of the generator. */
export function record(sequences: readonly Sequence[], answers: Answers): void {
  const text = sequences
    .map((s) => {
      const a = answers.get(s.name) ?? [];
      return `sequence ${s.name}\n${s.calls.map((c, i) => `${callText(c)}\t${a[i] ?? ""}\n`).join("")}`;
    })
    .join("");
  writeFileSync(RECORDING, gzipSync(text, { level: 9 }));
}

export function recorded(): { sequences: Sequence[]; answers: Answers } {
  const lines = gunzipSync(readFileSync(RECORDING)).toString("utf8").split("\n");
  const asked = lines.map((l) => l.split("\t")[0] ?? "").join("\n");
  const said = lines.map((l) => (l.startsWith("sequence ") ? l : (l.split("\t")[1] ?? ""))).join("\n");
  return { sequences: parseProgram(asked), answers: parseAnswers(said).answers };
}
