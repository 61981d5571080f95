/** The kernel's own selftests, unmodified, under `barlink run`: fetched, built, run, and read. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const BIN = join(root, "dist", "selftests", "bin");
/** Long enough for the slowest on a loaded machine, ms. */
const PATIENCE = 300_000;

export type CaseResult = "pass" | "fail" | "skip";

/** What a selftest printed, in the Test Anything Protocol, and how long it took. */
export interface SelftestRun {
  /** In the order of the run. */
  readonly cases: ReadonlyMap<string, CaseResult>;
  /** How many it said there would be; undefined when it did not come so far. */
  readonly planned: number | undefined;
  /** It printed its totals. */
  readonly ended: boolean;
  /** From the program's first line to its end, s. */
  readonly seconds: number;
  /** The whole command, with Node's start and the machine's boot, s. */
  readonly secondsInAll: number;
  readonly stderr: string;
}

/** The cases of a run in the Test Anything Protocol. */
export function casesOf(output: string): Map<string, CaseResult> {
  const cases = new Map<string, CaseResult>();
  for (const [, not, name = "", skip] of output.matchAll(/^(not )?ok \d+ (\S+)( # SKIP)?/gm)) {
    cases.set(name, not !== undefined ? "fail" : skip !== undefined ? "skip" : "pass");
  }
  return cases;
}

/** Builds the selftests when they are not there; `tree`: a source tree of Linux 7.3. False when that failed. */
export function buildSelftests(tree: string | undefined): boolean {
  if (existsSync(join(BIN, "iommufd")) && existsSync(join(BIN, "iommufd_fail_nth"))) return true;
  process.stdout.write("building the kernel's selftests (fetches its source once) …\n");
  const built = spawnSync(join(root, "scripts", "build-selftests"), tree === undefined ? [] : [tree], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  return built.status === 0;
}

/** Runs one to its end under `barlink run --selftest`, on the machine that was recorded. */
export function runSelftest(name: string, args: readonly string[] = []): Promise<SelftestRun> {
  const command = [join(root, "dist/cli/main.js"), "run", "--machine", "oracle", "--selftest", "--", join(BIN, name), ...args];
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, command, {
      stdio: ["ignore", "pipe", "pipe"],
      timeout: PATIENCE,
      killSignal: "SIGKILL",
    });
    let first: number | undefined;
    let output = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      first ??= performance.now();
      output += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.once("error", reject);
    child.once("close", () => {
      const now = performance.now();
      const planned = /^1\.\.(\d+)$/m.exec(output)?.[1];
      resolve({
        cases: casesOf(output),
        planned: planned === undefined ? undefined : Number(planned),
        ended: /^# Totals: /m.test(output),
        seconds: (now - (first ?? now)) / 1000,
        secondsInAll: (now - started) / 1000,
        stderr,
      });
    });
  });
}

/** Did it come to its end? Says so when not. */
export function complete(name: string, r: SelftestRun): boolean {
  if (r.ended && r.cases.size === r.planned) return true;
  process.stdout.write(`${name}: did not come to its end (${r.cases.size} of ${r.planned ?? "?"} tests)\n${r.stderr.slice(-500)}\n`);
  return false;
}

export const count = (r: SelftestRun, what: CaseResult): number => [...r.cases.values()].filter((c) => c === what).length;
