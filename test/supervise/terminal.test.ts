/** On a terminal: ^C, ^Z and a job-control shell see of barlink what they would see of the program. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { root } from "./support.ts";

const barlink = `${process.execPath} ${join(root, "dist/cli/main.js")} run --`;

/** Types at a command's terminal: each text when what stands before it has come. A negative status is a signal. */
function typed(script: [expected: string, typed: string][], ...command: string[]): { out: string; status: number } {
  const r = spawnSync("python3", [join(import.meta.dirname, "programs/terminal.py"), JSON.stringify(script), ...command], {
    encoding: "utf8",
    timeout: 58_000,
  });
  expect(r.stderr).toBe("");
  return JSON.parse(r.stdout) as { out: string; status: number };
}

describe("at a terminal", () => {
  it("^C ends the program, and barlink by the same signal", () => {
    const { status } = typed([["ready", "\x03"]], ...barlink.split(" "), "sh", "-c", "echo ready; sleep 60; echo not");
    expect(status).toBe(-2);
  });

  it("^C is the program's to handle", () => {
    const program = "trap 'echo got it; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    const { out, status } = typed([["ready", "\x03"]], ...barlink.split(" "), "sh", "-c", program);
    expect(out).toContain("got it");
    expect(status).toBe(9);
  });

  it("^Z stops the job, fg goes on with it, and the shell gets its status", () => {
    const { out } = typed(
      [
        ["$ ", `${barlink} sh -c 'echo be''gun; sleep 1; echo en''ded; exit 7'\n`],
        ["begun", "\x1a"],
        ["Stopped", "jobs; fg\n"],
        ["ended", "echo status=$?\n"],
        ["status=7", "exit\n"],
      ],
      "bash",
      "--norc",
      "-i",
    );
    expect(out).toContain("status=7");
  });
});
