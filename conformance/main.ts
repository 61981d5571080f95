/** `npm run conformance -- [dpor|golden|hostile|p2p|pagetables] [options]`: all of them when none is named. */
import * as dpor from "./dpor.ts";
import * as golden from "./golden.ts";
import * as hostile from "./hostile.ts";
import * as p2p from "./p2p_run.ts";
import * as pagetables from "./pagetables.ts";

const suites: Readonly<Record<string, { run(args: string[]): number | Promise<number> }>> = { dpor, golden, hostile, p2p, pagetables };

const [first, ...rest] = process.argv.slice(2);
if (first === "--help" || first === "-h") {
  process.stdout.write(`usage: npm run conformance -- [${Object.keys(suites).join("|")}] [--verbose]\n`);
  process.exit(0);
}
const named = first !== undefined && !first.startsWith("-");
if (named && suites[first] === undefined) {
  process.stderr.write(`barlink: no conformance suite "${first}"; one of ${Object.keys(suites).join(", ")}\n`);
  process.exit(2);
}
let status = 0;
for (const [name, suite] of Object.entries(suites)) {
  if (named && name !== first) continue;
  process.stdout.write(`== ${name}\n`);
  status = Math.max(status, await suite.run(named ? rest : process.argv.slice(2)));
}
process.exitCode = status;
