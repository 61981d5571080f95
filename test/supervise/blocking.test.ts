/** Calls that wait: others go on, signals and death end them. */
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compile, privateTmp, root } from "./support.ts";

const MODES = ["blocked", "interrupted:0", "interrupted:1", "killed"];

interface Told {
  readonly mode: string;
}

/** By mode: what the program printed, and what the supervisor told at its end. */
const results = new Map<string, { lines: string[]; told: Told }>();
let dir = "";

beforeAll(() => {
  dir = privateTmp();
  const script = fileURLToPath(new URL("./blocking.ts", import.meta.url));
  const args = ["--import", "tsx", script, compile("core.c", dir), dir, ...MODES];
  const r = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8", timeout: 50_000 });
  expect(r.stderr).toBe("");
  let lines: string[] = [];
  for (const line of r.stdout.trimEnd().split("\n")) {
    if (line.startsWith("{")) {
      const told = JSON.parse(line) as Told;
      results.set(told.mode, { lines, told });
      lines = [];
    } else lines.push(line);
  }
}, 60_000);
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const expectRun = (mode: string, lines: string[], waits: number): void => {
  expect(results.get(mode)).toEqual({ lines, told: { mode, end: "exited", status: 0, left: [], pending: 0, waits } });
};

describe("a call that waits", () => {
  it("does not stop the calls of other threads, and one of them may end the wait", () => {
    expectRun("blocked", ["others go on: ioas 1", "woken: 1", "waited: 77"], 1);
  });

  it("ends with EINTR when a signal comes whose handler does not restart it", () => {
    expectRun("interrupted:0", ["-4 after 1 ticks"], 1);
  });

  it("is made again after a handler that restarts it", () => {
    expectRun("interrupted:1", ["77 after 1 ticks"], 2);
  });

  it("ends when its process is killed, and its parent learns of that at once", () => {
    expectRun("killed", ["signal 9, nobody waits: 0"], 1);
  });
});
