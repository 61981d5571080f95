/**
 * `npm run conformance -- [SUITE] [options]`: one suite, or all but those that take minutes or fetch something.
 */
import * as bugs from "./bugs.ts";
import * as campaign from "./campaign.ts";
import * as compatibility from "./compatibility.ts";
import * as dpor from "./dpor.ts";
import * as events from "./events.ts";
import * as fuzz from "./fuzz.ts";
import * as golden from "./golden.ts";
import * as hostile from "./hostile.ts";
import * as iommu from "./iommu.ts";
import * as negotiate from "./negotiate.ts";
import * as p2p from "./p2p_run.ts";
import * as pagetables from "./pagetables.ts";
import * as selftests from "./selftests.ts";
import * as stress from "./stress.ts";

const suites: Readonly<Record<string, { run(args: string[]): number | Promise<number> }>> = {
  compatibility,
  dpor,
  events,
  fuzz,
  golden,
  hostile,
  p2p,
  pagetables,
};
/** Only when they are named: they fetch a source, or take minutes and judge the machine as well. */
const onDemand: typeof suites = { campaign, bugs, iommu, negotiate, selftests, stress };

const [first, ...rest] = process.argv.slice(2);
if (first === "--help" || first === "-h") {
  process.stdout.write(`usage: npm run conformance -- [${Object.keys({ ...suites, ...onDemand }).join("|")}] [--verbose]\n`);
  process.exit(0);
}
const named = first !== undefined && !first.startsWith("-");
if (named && suites[first] === undefined && onDemand[first] === undefined) {
  process.stderr.write(`barlink: no conformance suite "${first}"; one of ${Object.keys({ ...suites, ...onDemand }).join(", ")}\n`);
  process.exit(2);
}
let status = 0;
for (const [name, suite] of Object.entries(named ? { ...suites, ...onDemand } : suites)) {
  if (named && name !== first) continue;
  process.stdout.write(`== ${name}\n`);
  status = Math.max(status, await suite.run(named ? rest : process.argv.slice(2)));
}
process.exitCode = status;
