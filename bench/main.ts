/** `npm run bench -- [pagetables|areas|boot|negotiate|host|run|explore] [options]`: all of them when none is named. */
import * as areas from "./areas.ts";
import * as boot from "./boot.ts";
import * as explore from "./explore.ts";
import * as host from "./host.ts";
import * as negotiate from "./negotiate.ts";
import * as pagetables from "./pagetables.ts";
import * as runs from "./run.ts";

const suites: Readonly<Record<string, { run(args: string[]): unknown }>> = { pagetables, areas, boot, negotiate, host, run: runs, explore };

const [first, ...rest] = process.argv.slice(2);
if (first === "--help" || first === "-h") {
  process.stdout.write(`usage: npm run bench -- [${Object.keys(suites).join("|")}]\n`);
  process.exit(0);
}
const named = first !== undefined && !first.startsWith("-");
if (named && suites[first] === undefined) {
  process.stderr.write(`barlink: no bench "${first}"; one of ${Object.keys(suites).join(", ")}\n`);
  process.exit(2);
}
process.stdout.write(`Node ${process.versions.node} on ${process.arch}; figures of this machine now: the ratios are what lasts\n`);
for (const [name, suite] of Object.entries(suites)) {
  if (named && name !== first) continue;
  process.stdout.write(`\n== ${name}\n`);
  await suite.run(named ? rest : process.argv.slice(2));
}
