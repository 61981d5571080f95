/**
 * Ends that nobody asked for: the program killed in the middle of its calls, and
 * barlink killed under the program. Nothing hangs, no process and no file stays,
 * and somebody says what happened.
 */
import { readdirSync, rmSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Rng } from "../../src/lib/index.ts";
import { compile, full, NOTHING_LEFT, privateTmp, processesWith, Running, until } from "./support.ts";

let dir = "";
let core = "";
const oldTmp = process.env.TMPDIR;
let tmp = "";
beforeAll(() => {
  dir = privateTmp();
  core = compile("core.c", dir);
  tmp = privateTmp();
  process.env.TMPDIR = tmp;
});
afterAll(() => {
  if (oldTmp === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = oldTmp;
  rmSync(dir, { recursive: true, force: true });
  rmSync(tmp, { recursive: true, force: true });
});

const nothingLeft = async (): Promise<void> => {
  await until(() => processesWith(core).length === 0, "the program's processes to be gone");
  await until(() => readdirSync(tmp).length === 0, `${tmp} to be empty`);
};

const rng = new Rng(7);
const random = (): number => rng.below(1_000_000) / 1_000_000;
const pause = (ms: number): Promise<void> => new Promise((r) => setTimeout(r, ms));

describe("a process of the program is killed", () => {
  it(`at any of ${full ? 1000 : 100} moments of its calls: the others are served, and barlink has no file more than before`, async () => {
    const run = new Running(["--", core, "massacre", full ? "1000" : "100"]);
    expect(await run.ended).toEqual({ status: 0, signal: null });
    expect(run.out).toBe(`${full ? 1000 : 100} killed, still served: yes\nbarlink has 0 files more\n`);
    expect(run.err).toBe(NOTHING_LEFT);
    await nothingLeft();
  });
});

describe("a process that never made a call", () => {
  it("is waited for when it ends as an orphan, however busy others are", async () => {
    const run = new Running(["--", core, "unseen"]);
    expect(await run.ended).toEqual({ status: 0, signal: null });
    expect(run.out).toBe("zombies: 0\n");
    expect(run.err).toBe(NOTHING_LEFT);
    await nothingLeft();
  });
});

describe("the program is killed", () => {
  it(`at any of ${full ? 50 : 6} moments: barlink ends by the same signal, and nothing is left`, async () => {
    for (let i = 0; i < (full ? 50 : 6); i++) {
      const run = new Running(["--", core, "forever", "1"]);
      await run.printed(".");
      await pause(random() * 30);
      const [pid] = processesWith(core).filter((p) => p !== run.pid);
      process.kill(pid as number, "SIGKILL");
      expect(await run.ended).toEqual({ status: null, signal: "SIGKILL" });
      expect(run.err).toBe(NOTHING_LEFT);
    }
    await nothingLeft();
  });

  it("while others of its processes go on", async () => {
    const run = new Running(["--", core, "forever", "3"]);
    await run.printed("...");
    const pids = processesWith(core).filter((p) => p !== run.pid);
    expect(pids).toHaveLength(3);
    for (const pid of pids) {
      await pause(random() * 20);
      process.kill(pid, "SIGKILL");
    }
    expect((await run.ended).signal).toBe("SIGKILL");
    expect(run.err).toBe(NOTHING_LEFT);
    await nothingLeft();
  });
});

describe("barlink is killed", () => {
  it(`at any of ${full ? 100 : 4} moments: its program and its folder go too, and the watchdog says so`, async () => {
    for (let i = 0; i < (full ? 100 : 4); i++) {
      const run = new Running(["--", core, "forever", "2"]);
      await run.printed("..");
      await pause(random() * 30);
      process.kill(run.pid, "SIGKILL");
      expect((await run.ended).signal).toBe("SIGKILL");
      await until(() => run.err.includes("barlink was killed"), "the watchdog's message");
      expect(run.err).toBe(
        "barlink: barlink was killed, and the 2 processes of its program with it: the devices that they used are gone\n",
      );
      await nothingLeft();
    }
  });

  it(`at any moment of its start`, async () => {
    for (let i = 0; i < (full ? 50 : 4); i++) {
      const run = new Running(["--", core, "forever", "2"]);
      await pause(random() * 600);
      process.kill(run.pid, "SIGKILL");
      expect((await run.ended).signal).toBe("SIGKILL");
      await nothingLeft();
    }
  });
});

describe("a command line without a program", () => {
  it.each([
    [["--help"], 0],
    [[], 2],
  ])("ends at once: run %j", async (args, status) => {
    // --debug comes first here.
    expect(await new Running(args).ended).toEqual({ status, signal: null });
    await nothingLeft();
  });
});

describe("signals to barlink", () => {
  it("are for the program", async () => {
    const run = new Running(["--", "sh", "-c", "trap 'echo got it; exit 8' TERM; echo ready; while :; do sleep 0.02; done"]);
    await run.printed("ready");
    process.kill(run.pid, "SIGTERM");
    expect(await run.ended).toEqual({ status: 8, signal: null });
    expect(run.out).toBe("ready\ngot it\n");
  });

  it("end it when they end the program", async () => {
    const run = new Running(["--", "sh", "-c", "echo ready; exec sleep 100"]);
    await run.printed("ready");
    process.kill(run.pid, "SIGINT");
    expect((await run.ended).signal).toBe("SIGINT");
  });
});
