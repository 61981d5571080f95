import { expect, it } from "vitest";
import { judge } from "../../conformance/iommu.ts";
import { casesOf } from "../../conformance/selftest_run.ts";

const OUTPUT = `TAP version 13
1..5
# Starting 5 tests from 2 test cases.
#  RUN           a.one ...
#            OK  a.one
ok 1 a.one
not ok 2 a.domain_dirty64M_huge.two
ok 3 a.v.three # SKIP Skipping test for variant v
not ok 4 a.four
ok 5 a.five
# Totals: pass:2 fail:2 xfail:0 xpass:0 skip:1 error:0
`;

it("the cases of a run are read from what it printed", () => {
  expect([...casesOf(OUTPUT)]).toEqual([
    ["a.one", "pass"],
    ["a.domain_dirty64M_huge.two", "fail"],
    ["a.v.three", "skip"],
    ["a.four", "fail"],
    ["a.five", "pass"],
  ]);
});

it("what passed on Linux must pass, and only what was skipped there may be skipped", () => {
  const cases = casesOf(OUTPUT);
  const linux = { seconds: 1, pass: ["a.one", "a.domain_dirty64M_huge.two", "a.five"], skip: ["a.v.three"] };
  expect(judge(linux, new Map([...cases].filter(([name]) => name !== "a.four")), 32).lines).toEqual([
    "a.domain_dirty64M_huge.two: pass on Linux, fail here",
  ]);
  expect(judge({ ...linux, pass: [...linux.pass, "a.v.three", "a.gone"], skip: [] }, cases, 64).lines).toEqual([
    "a.domain_dirty64M_huge.two: pass on Linux, fail here",
    "a.v.three: pass on Linux, skip here",
    "a.gone: pass on Linux, missing here",
    "a.four: not in the recording, fail here",
  ]);
});

it("a case without the huge pages it needs is not run, and has not passed", () => {
  const linux = { seconds: 1, pass: ["a.domain_dirty64M_huge.two", "a.huge_map"], skip: [] };
  const cases = new Map([
    ["a.domain_dirty64M_huge.two", "fail"],
    ["a.huge_map", "fail"],
  ] as const);
  expect(judge(linux, cases, 8)).toEqual({ lines: ["a.huge_map: pass on Linux, fail here"], notRun: ["a.domain_dirty64M_huge.two"] });
  expect(judge(linux, cases, 0).notRun).toEqual(["a.domain_dirty64M_huge.two", "a.huge_map"]);
});
