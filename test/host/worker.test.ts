import { mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { startWorker } from "../../src/host/index.ts";

const dir = mkdtempSync(join(tmpdir(), "barlink-worker-"));
afterAll(() => rmSync(dir, { recursive: true }));

/** A build with one worker, as `tsc -b` leaves it. */
const base = pathToFileURL(join(dir, "supervise", "run.js")).href;
const state = join(dir, ".tsbuildinfo", "supervise.tsbuildinfo");
const bundle = join(dir, "bundle", "some_worker.cjs");
const says = (who: string): string => `require("node:worker_threads").parentPort.postMessage("${who}");`;

function file(path: string, text: string, second: number): void {
  writeFileSync(path, text);
  utimesSync(path, second, second);
}

beforeEach(() => {
  rmSync(dir, { recursive: true });
  for (const folder of ["supervise", "bundle", ".tsbuildinfo"]) mkdirSync(join(dir, folder), { recursive: true });
  file(join(dir, "supervise", "some_worker.js"), says("module"), 100);
  file(state, "", 100);
});

const answer = (): Promise<unknown> =>
  new Promise((resolve, reject) => {
    startWorker("./some_worker.ts", base).once("message", resolve).once("error", reject);
  });

describe("a thread of a build", () => {
  it("is the module while there is no bundle", async () => {
    expect(await answer()).toBe("module");
  });

  it("is the bundle that was made after the build", async () => {
    file(bundle, says("bundle"), 101);
    expect(await answer()).toBe("bundle");
  });

  it("is the module again once the compiler has written since", async () => {
    file(bundle, says("bundle"), 101);
    file(state, "", 102);
    expect(await answer()).toBe("module");
  });

  it("is the bundle in a package, which has no states of the compiler", async () => {
    file(bundle, says("bundle"), 1);
    rmSync(join(dir, ".tsbuildinfo"), { recursive: true });
    expect(await answer()).toBe("bundle");
  });
});
