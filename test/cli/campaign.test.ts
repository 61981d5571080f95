/** Searches in parts on the command line: on threads, from a file, ended in the middle, and with a violation. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";

const dist = join(import.meta.dirname, "..", "..", "dist");
const main = join(dist, "cli", "main.js");
const PARTS = ["--parts", "8", "--part-runs", "10"];

let folder = "";
let file = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "barlink-campaign-"));
  file = join(folder, "campaign.jsonl");
});
afterEach(() => rmSync(folder, { recursive: true }));

const barlink = (args: readonly string[], options = ""): { status: number | null; out: string; err: string } => {
  const r = spawnSync(process.execPath, [main, ...args], { encoding: "utf8", env: { ...process.env, NODE_OPTIONS: options } });
  return { status: r.status, out: r.stdout, err: r.stderr };
};

const linesOf = (f: string): string[] => {
  try {
    return readFileSync(f, "utf8").split("\n").slice(0, -1);
  } catch {
    return [];
  }
};

/** The states that are printed, without how often. */
const statesIn = (out: string): string[] => [...out.matchAll(/^ +\d+ {2}(.*)$/gm)].map(([, state]) => state as string);

async function untilLines(n: number, of: ChildProcess): Promise<void> {
  while (linesOf(file).length < n && of.exitCode === null) await sleep(20);
}

test("a search on threads ends in the states of the undivided one, as many threads as there are", { timeout: 120_000 }, () => {
  const whole = barlink(["explore", "map-vs-revoke"]);
  const one = barlink(["explore", "map-vs-revoke", "--jobs", "1", ...PARTS]);
  const three = barlink(["explore", "map-vs-revoke", "--jobs", "3", ...PARTS]);
  expect(one.err).toBe("");
  expect([whole.status, one.status, three.status]).toEqual([0, 0, 0]);
  expect(statesIn(one.out)).toEqual(statesIn(whole.out));
  const withoutTimes = (out: string): string => out.replace(/, [\d.]+ s, \d+ runs\/s/, "");
  expect(withoutTimes(three.out)).toBe(withoutTimes(one.out));
  expect(one.out).toMatch(/^strategy optimal, \d+ parts: \d+ complete runs.*, \d+ steps, [\d.]+ s, \d+ runs\/s$/m);
  expect(one.out).toContain("exhausted: no violation");
});

test("a search that is killed, or ended with Ctrl-C, goes on from its file and comes to the same", { timeout: 120_000 }, async () => {
  const args = ["explore", "map-vs-revoke", "--jobs", "2", ...PARTS];
  const calm = join(folder, "calm.jsonl");
  const undisturbed = barlink([...args, "--campaign", calm]);
  expect(undisturbed.status).toBe(0);
  const count = linesOf(calm).length;

  const killed = spawn(process.execPath, [main, ...args, "--campaign", file], { stdio: "ignore" });
  await untilLines(count / 2, killed);
  killed.kill("SIGKILL");
  await once(killed, "exit");
  appendFileSync(file, '{"part":"0.1.'); // A line that was not written to its end.

  const ended = spawn(process.execPath, [main, ...args, "--campaign", file], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  ended.stderr?.on("data", (d) => {
    said += d;
  });
  await untilLines(linesOf(file).length + 3, ended);
  ended.kill("SIGINT");
  const [status] = (await once(ended, "exit")) as [number];
  // It may have come to its end first.
  if (status === 130)
    expect(said).toMatch(/^barlink: ended after \d+ complete runs, with \d+ parts open; the same command goes on from here$/m);
  else expect(status).toBe(0);

  const last = barlink([...args, "--campaign", file]);
  expect(last.err).toBe("");
  expect(last.status).toBe(0);
  expect(last.out).toContain(" were known)");
  expect(statesIn(last.out)).toEqual(statesIn(undisturbed.out));
  expect(linesOf(file).sort()).toEqual(linesOf(calm).sort());
  // What is finished is told again.
  expect(statesIn(barlink([...args, "--campaign", file]).out)).toEqual(statesIn(undisturbed.out));
});

test("a violation that a thread finds ends the search, is shrunk and told in columns", { timeout: 120_000 }, () => {
  // An exporter that hands the address out without a look at the flag (H6), as one more scenario.
  const preload = join(folder, "careless.mjs");
  writeFileSync(
    preload,
    `import { mapVsRevoke, scenarios } from ${JSON.stringify(pathToFileURL(join(dist, "explore", "index.js")).href)};
const careless = (att) => att.dmabuf.priv.physVec[0];
const alter = (k) => k.modules.exportSymbol("vfio_pci_core", "vfio_pci_dma_buf_iommufd_map", careless, ["iommufd"]);
scenarios.set("careless", { ...mapVsRevoke({ alter }), name: "careless" });
`,
  );
  const { status, out, err } = barlink(
    ["explore", "careless", "--jobs", "2", "--campaign", file, ...PARTS],
    `--import=${pathToFileURL(preload).href}`,
  );
  expect(err).toBe("");
  expect(out).toMatch(/^VIOLATION, shrunk from [a-cA-Z@0-9]+ in \d+ runs:$/m);
  expect(out).toMatch(/^ +invariant: I1\/I2: the BAR is mapped/m);
  expect(out).toMatch(/^run it again: barlink replay careless:[a-c0-9]{1,6}$/m);
  expect(out).not.toContain("exhausted");
  expect(status).toBe(1);
  // What is written down is told again, and not looked for again.
  const again = barlink(["explore", "careless", "--campaign", file, ...PARTS], `--import=${pathToFileURL(preload).href}`);
  expect(again.status).toBe(1);
  expect(again.out).toContain("run it again");
});

test.each([
  [["--jobs", "0"], "--jobs takes a number from 1 to 1024, not 0"],
  [["--jobs", "many"], '--jobs takes a number, not "many"'],
  [["--jobs", "2", "--parts", "0"], "--parts takes at least 1"],
  [["--jobs", "2", "--strategy", "random"], "--jobs, --campaign and --queue divide the strategy optimal, and no other"],
  [["--jobs", "2", "--queue", "redis://127.0.0.1:1"], "with --queue the workers explore"],
  [["--queue", "127.0.0.1:1"], '--queue takes redis://HOST:PORT, not "127.0.0.1:1"'],
  [["--queue", "redis://127.0.0.1:1"], "no Redis or Valkey server answers at redis://127.0.0.1:1: ECONNREFUSED"],
  [["--campaign", "/no/such/place"], "the campaign cannot be written: ENOENT"],
  [["--campaign", main], "is no campaign"],
])("a mistake is told in a line: %j", (args, said) => {
  const before = readFileSync(main, "utf8");
  const { status, err } = barlink(["explore", "map-vs-revoke", ...args]);
  expect(err).toContain(said);
  expect(err.trimEnd()).not.toContain("\n");
  expect(status).toBe(2);
  expect(readFileSync(main, "utf8")).toBe(before);
});

test("a file of another search is not gone on with", () => {
  const header = { campaign: "map-vs-revoke", barlink: "0.0.1", parts: 32, limit: 1000 };
  writeFileSync(file, `${JSON.stringify(header)}\n`);
  expect(barlink(["explore", "map-vs-revoke", "--campaign", file]).err).toContain("is a campaign of barlink 0.0.1, whose parts");
  expect(barlink(["explore", "revoke-refcount", "--campaign", file]).err).toContain(
    "is a campaign of map-vs-revoke, not of revoke-refcount",
  );
  const { version } = JSON.parse(readFileSync(join(dist, "..", "package.json"), "utf8")) as { version: string };
  writeFileSync(file, `${JSON.stringify({ ...header, barlink: version })}\n`);
  expect(barlink(["explore", "map-vs-revoke", "--parts", "8", "--campaign", file]).err).toContain("begun with --parts 32, not 8");
  writeFileSync(file, "what I have not saved");
  expect(barlink(["explore", "map-vs-revoke", "--campaign", file]).err).toContain("is no campaign, and is left alone");
  expect(readFileSync(file, "utf8")).toBe("what I have not saved");
});
