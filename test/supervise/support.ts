/** Running `barlink run` as a user does, and what a run must leave behind: nothing. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";

export const root: string = join(import.meta.dirname, "..", "..");
const cli = join(root, "dist/cli/main.js");

/** Set BARLINK_STRESS=full for the sizes that the project promises; otherwise a fraction, for every day. */
export const full: boolean = process.env.BARLINK_STRESS === "full";

/** Builds a program of this folder into `directory`; throws with what is missing. */
export function compile(source: string, directory: string, ...flags: string[]): string {
  const out = join(directory, basename(source).replace(/\.c$/, flags.includes("-static") ? "-static" : ""));
  const cc = ["cc", "gcc", "clang"].find((c) => spawnSync(c, ["--version"]).status === 0);
  if (cc === undefined) throw new Error(`these tests build ${source}, and there is no C compiler here: install cc, gcc or clang`);
  const r = spawnSync(cc, ["-O1", "-pthread", ...flags, "-o", out, resolve(import.meta.dirname, "programs", source)], { encoding: "utf8" });
  if (r.status !== 0) throw new Error(`${cc} cannot build ${source}: ${r.stderr}`);
  return out;
}

export interface Result {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

/** `barlink run --debug …`; "--" and what comes after is the program. Our own environment, and `env`. */
export function barlink(args: readonly string[], input?: string, env: Record<string, string> = {}): Result {
  const r = spawnSync(process.execPath, [cli, "run", "--debug", ...args], {
    encoding: "utf8",
    timeout: 120_000,
    killSignal: "SIGKILL",
    env: { ...process.env, ...env },
    ...(input === undefined ? { stdio: ["ignore", "pipe", "pipe"] } : { input }),
  });
  return { status: r.status, signal: r.signal, out: r.stdout, err: r.stderr };
}

/** The same program without barlink. */
export function bare(command: string, args: readonly string[], input?: string): Result {
  const r = spawnSync(command, args, { encoding: "utf8", timeout: 60_000, input: input ?? "" });
  return { status: r.status, signal: r.signal, out: r.stdout, err: r.stderr };
}

/** What `--debug` says at the end of a run that left nothing. */
export const NOTHING_LEFT = "barlink: nothing is left in the embedded kernel\n";

/** A run in the background; its output is collected. */
export class Running {
  readonly child: ChildProcess;
  out = "";
  err = "";
  readonly ended: Promise<{ status: number | null; signal: NodeJS.Signals | null }>;

  constructor(args: readonly string[]) {
    this.child = spawn(process.execPath, [cli, "run", "--debug", ...args], { stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout?.on("data", (d) => {
      this.out += d;
    });
    this.child.stderr?.on("data", (d) => {
      this.err += d;
    });
    this.ended = new Promise((resolve) => {
      this.child.once("close", (status, signal) => resolve({ status, signal }));
    });
  }

  get pid(): number {
    return this.child.pid as number;
  }

  /** Waits until the program has printed `text`. */
  async printed(text: string): Promise<void> {
    await until(() => this.out.includes(text), `the program to print "${text}"; it printed "${this.out}" and "${this.err}"`);
  }
}

export async function until(condition: () => boolean, what: string, ms = 30_000): Promise<void> {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((r) => setTimeout(r, 10));
  }
}

/** Pids of processes whose command line contains `text`. */
export function processesWith(text: string): number[] {
  return readdirSync("/proc")
    .filter((p) => /^\d+$/.test(p))
    .map(Number)
    .filter((pid) => {
      try {
        return (
          pid !== process.pid &&
          readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(text) &&
          readFileSync(`/proc/${pid}/stat`, "latin1").includes(") Z ") === false
        );
      } catch {
        return false;
      }
    });
}

/** A private folder for temporary files of a test file, so that what a run leaves there is seen. */
export function privateTmp(): string {
  return mkdtempSync(join(tmpdir(), "barlink-run-test-"));
}
