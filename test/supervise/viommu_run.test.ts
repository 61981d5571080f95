/** A program under `barlink run --selftest` that maps what a virtual IOMMU offers, and the mappings' part in its life. */
import { rmSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { barlink, compile, NOTHING_LEFT, privateTmp } from "./support.ts";

const folder = privateTmp();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let lines: Map<string, string>;
beforeAll(() => {
  const r = barlink(["--selftest", "--", compile("viommu.c", folder)]);
  expect(r.err).toBe(NOTHING_LEFT);
  lines = new Map(r.out.split("\n").map((l) => [l.slice(0, l.indexOf(":")), l.slice(l.indexOf(":") + 2)]));
}, 120_000);

test.each([
  ["is mapped as often as it likes", "map", "ok ok"],
  ["shows what the driver put there", "word", "beef"],
  ["is the same memory everywhere", "through the other mapping", "77"],
  ["keeps its owner", "destroy", "EBUSY"],
  ["keeps its owner as long as a page of it is mapped", "destroy with a page of it mapped", "EBUSY"],
  ["keeps its owner while a child that never called has it", "destroy while a child has it mapped", "EBUSY"],
  ["lets its owner go after that", "destroy after that", "ok"],
  ["is gone with its owner", "map after that", "ENXIO"],
  ["is not mapped where something is", "map where something is", "EEXIST"],
  ["does not keep its owner when mapping it failed", "destroy what was never mapped", "ok"],
  ["is new memory for the next owner", "again", "f00d 0"],
  ["is apart from another owner's", "a second one", "f00d f11d"],
  ["keeps its own owner only", "destroy each", "ok EBUSY"],
  ["stays when the descriptor is closed", "after close", "f11d 5"],
])("memory of a virtual IOMMU %s", (_, what, answer) => {
  expect(lines.get(what)).toBe(answer);
});
