/** What a program sees of the findings: the same program under barlink and on Linux, whose answers are recorded. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { barlink, root } from "./support.ts";

const DEVICES = ["0000:01:00.0", "0000:02:00.0", "2", "0000:03:00.0"];
const recorded = readFileSync(join(root, "conformance/data/findings-linux.txt"), "utf8").trim().split("\n");

let folder = "";
let program = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "barlink-findings-"));
  program = join(folder, "findings");
  const cc = ["cc", "gcc", "clang"].find((c) => spawnSync(c, ["--version"]).status === 0) ?? "cc";
  const r = spawnSync(cc, ["-O1", "-o", program, join(root, "conformance/findings/findings.c")], { encoding: "utf8" });
  if (r.status !== 0) throw new Error(`${cc} cannot build findings.c: ${r.stderr}`);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("a program that looks for the findings", { timeout: 120_000 }, () => {
  test("is answered as on Linux, call by call", () => {
    const { out, status } = barlink(["--machine", join(root, "machines/oracle.json"), "--", program, ...DEVICES]);
    expect(out.trim().split("\n")).toEqual(recorded.filter((l) => !l.startsWith("N24")));
    expect(status).toBe(0);
  });

  test("leaves the device unusable when an area holds it open (N24), which barlink says is left", () => {
    const { out, err } = barlink(["--machine", join(root, "machines/oracle.json"), "--", program, ...DEVICES, "last"]);
    expect(out.trim().split("\n")).toEqual(recorded);
    expect(err).toContain("the embedded kernel still holds 1 × iommufd context");
  });
});
