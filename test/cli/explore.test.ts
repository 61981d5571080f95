/** Schedules on the command line: explored, printed, run again. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { exploreScenario } from "../../src/cli/explore.ts";
import { mapVsRevoke } from "../../src/explore/index.ts";
import type { DmaBufAttachment } from "../../src/kernel/dma_buf/attachment.ts";
import type { VfioPciDmaBuf } from "../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";

const main = join(import.meta.dirname, "..", "..", "dist", "cli", "main.js");
const barlink = (...args: string[]): { status: number | null; out: string; err: string } => {
  const r = spawnSync(process.execPath, [main, ...args], { encoding: "utf8", env: { ...process.env, FORCE_COLOR: undefined } });
  return { status: r.status, out: r.stdout, err: r.stderr };
};

test("explore without a name lists the scenarios", () => {
  expect(barlink("explore").out).toMatch(/^map-vs-revoke .*threads map, toggle, unmap$/m);
});

test("explore takes map-vs-revoke through all schedules, counts them, and says what that means", { timeout: 60_000 }, () => {
  const { status, out, err } = barlink("explore", "map-vs-revoke");
  expect(err).toBe("");
  expect(out).toMatch(/^strategy optimal: \d+ complete runs and \d+ in vain, \d+ steps, [\d.]+ s, \d+ runs\/s$/m);
  expect(out).toMatch(/^ +\d+ {2}map = ENODEV, toggle = off on, unmap = ENOENT; reached 0$/m);
  expect(out).toContain("exhausted: no violation");
  expect(status).toBe(0);
});

test("a violation is shown in columns with the locks held, and with what to replay", { timeout: 60_000 }, () => {
  // An exporter that hands the address out without a look at the flag (H6).
  const careless = (att: DmaBufAttachment): unknown => (att.dmabuf.priv as VfioPciDmaBuf).physVec[0];
  const scenario = mapVsRevoke({
    alter: (k) => k.modules.exportSymbol("vfio_pci_core", "vfio_pci_dma_buf_iommufd_map", careless, ["iommufd"]),
  });
  let out = "";
  const write = vi.spyOn(process.stdout, "write").mockImplementation((s) => {
    out += String(s);
    return true;
  });
  const status = exploreScenario(scenario, { strategy: "optimal", runs: "1", seed: "1", depth: "1" });
  write.mockRestore();
  expect(status).toBe(1);
  expect(out).toMatch(/^VIOLATION, shrunk from [a-cA-Z@0-9]+ in \d+ runs:$/m);
  expect(out).toMatch(/^ +map +toggle +unmap +locks held$/m);
  expect(out).toMatch(/^ +\d+ +lock RESV +toggle: vfio vdev->memory_lock, RESV$/m);
  expect(out).toMatch(/^ +invariant: I1\/I2: the BAR is mapped/m);
  expect(out).toMatch(/^run it again: barlink replay map-vs-revoke:[a-c0-9]{1,6}$/m);
  expect(out).not.toContain("exhausted");
});

test("a random search says that its runs are not all", { timeout: 60_000 }, () => {
  expect(barlink("explore", "map-vs-revoke", "--strategy", "random", "--runs", "5").out).toContain("in 5 runs, which are not all");
});

test("replay runs a schedule step by step, the same each time", () => {
  const { status, out } = barlink("replay", "map-vs-revoke:a2b4a");
  expect(status).toBe(0);
  expect(out).toMatch(/^ +6 +lock iopt_pages\.mutex \(dma-buf\) +toggle: vfio vdev->memory_lock, RESV$|^ +5 +lock RESV +toggle: .*RESV$/m);
  expect(out).toContain("map = ENODEV");
  expect(barlink("replay", "map-vs-revoke:a2b4a").out).toBe(out);
});

test("replay writes a trace: each thread's locks as slices, and what the machine tells", () => {
  const file = join(mkdtempSync(join(tmpdir(), "barlink-trace-")), "run.json");
  expect(barlink("replay", "map-vs-revoke:a2b4a", "--trace", file).status).toBe(0);
  const events = JSON.parse(readFileSync(file, "utf8")) as { name: string; ph: string; tid: number; args?: { name?: string } }[];
  const tid = new Map(events.filter((e) => e.name === "thread_name").map((e) => [e.args?.name, e.tid]));
  const slices = (thread: string): string[] => events.filter((e) => e.tid === tid.get(thread) && e.ph === "B").map((e) => e.name);
  expect(slices("toggle")).toEqual(expect.arrayContaining(["vfio vdev->memory_lock", "RESV"]));
  expect(slices("map")).toContain("RESV");
  expect(events.filter((e) => e.ph === "B").length).toBe(events.filter((e) => e.ph === "E").length);
  expect(events.map((e) => e.name)).toContain("dma_buf.revoke");
  rmSync(join(file, ".."), { recursive: true });
});

test.each([
  [["explore", "nope"], 'no scenario "nope"; there is map-vs-revoke'],
  [["explore", "map-vs-revoke", "--strategy", "magic"], 'no strategy "magic"; one of optimal, all, pct, random'],
  [["explore", "map-vs-revoke", "--preemptions", "2"], "--preemptions bounds the strategy all"],
  [["replay", "map-vs-revoke:a", "--trace", "/no/such/place"], "the trace cannot be written"],
  [["replay", "a2b4a"], "is no schedule"],
  [["replay", "map-vs-revoke:2a"], "is no schedule"],
  [["replay", "map-vs-revoke:z"], "has 3 threads, a to c"],
])("a mistake is told in a line: %j", (args, said) => {
  const { status, err } = barlink(...args);
  expect(err).toContain(said);
  expect(status).toBe(2);
});
