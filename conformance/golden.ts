/**
 * The calls recorded on a real Linux, made again on the embedded kernel.
 *
 * The recorded program is driven section by section with the same arguments in
 * the same order; each recorded call is then held against what the embedded
 * kernel answered. Compared: return value (descriptor numbers included), errno
 * and every output, except those that the machine and not the kernel decides:
 * time (`us`), and the text and count of lines of the IOMMU driver's log
 * (`fault`, `dmar_log_lines`), which Linux rate-limits.
 *
 * A recorded call with no counterpart is "not covered", never dropped. A
 * difference fails the run unless `docs/differences.md` has a row for it.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { EmbeddedHost, readMachine } from "../src/client/index.ts";
import { O_RDWR } from "../src/uapi/index.ts";
import { type Difference, knownDifferences } from "./differences.ts";
import { sectionAccess } from "./p2p_access.ts";
import { type CallRecord, must, Recorder } from "./p2p_env.ts";
import { sectionExport } from "./p2p_export.ts";
import { sectionCopy, sectionMap } from "./p2p_map.ts";
import { sectionDomains, sectionMisc, sectionOrder, sectionProcess } from "./p2p_other.ts";
import { sectionRevoke, type Trigger } from "./p2p_revoke.ts";
import { Tallies } from "./tally.ts";

const here = import.meta.dirname;
const NOT_COMPARED = new Set(["exp", "sec", "call", "args", "us", "fault", "dmar_log_lines"]);

/** The recorded machine has these exporters, in the order of the recording. */
const EXPORTERS = [
  { exp: "ivshmem:2", exporter: "0000:02:00.0", region: 2 },
  { exp: "nvme-pmr:4", exporter: "0000:03:00.0", region: 4 },
];

const TRIGGERS: readonly Trigger[] = ["cmd", "cmd4", "reset", "close", "d3", "lowpower", "hotreset", "flr"];

/** Standard streams, the record file and the kernel's log. */
const OWN_DESCRIPTORS = 5;
export function drive(options: (typeof EXPORTERS)[number]): { records: CallRecord[]; crashed: string[] } {
  const host = EmbeddedHost.boot(readMachine("oracle"), { selftest: true });
  const r = new Recorder(host, { ...options, edu: "0000:01:00.0", third: "0000:00:08.0" });
  for (let i = 0; i < OWN_DESCRIPTORS; i++) must(r.os.open("/dev/null", O_RDWR));
  const crashed: string[] = [];
  const section = (body: () => void): void => {
    try {
      body();
    } catch (e) {
      crashed.push(`${r.sec}: ${e instanceof Error ? (e.stack ?? e.message) : String(e)}`);
    }
  };
  section(() => sectionExport(r));
  section(() => sectionMap(r));
  section(() => sectionCopy(r));
  section(() => sectionAccess(r));
  section(() => sectionProcess(r));
  section(() => sectionDomains(r));
  for (const t of TRIGGERS) section(() => sectionRevoke(r, t));
  section(() => sectionOrder(r));
  section(() => sectionMisc(r));
  return { records: r.records, crashed };
}

/** Key order apart. */
export const sameArgs = (a: CallRecord, b: CallRecord): boolean => JSON.stringify(sorted(a.args)) === JSON.stringify(sorted(b.args));

function sorted(o: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(o).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Fields in which the two differ, `field: Linux → barlink`. */
export function compare(expected: CallRecord, actual: CallRecord): Difference[] {
  const out: Difference[] = [];
  for (const field of new Set([...Object.keys(expected), ...Object.keys(actual)])) {
    if (NOT_COMPARED.has(field)) continue;
    const want = JSON.stringify(expected[field]);
    const got = JSON.stringify(actual[field]);
    if (want !== got) out.push({ section: expected.sec, call: expected.call, what: String(expected.args.what ?? ""), field, want, got });
  }
  return out;
}

export function run(args: readonly string[]): number {
  const verbose = args.includes("--verbose");
  const recorded = readFileSync(join(here, "data", "p2p-linux.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((l) => JSON.parse(l) as CallRecord)
    .filter((r) => r.call !== undefined);
  const known = knownDifferences("golden");
  const tallies = new Tallies();
  const lines: string[] = [];
  let status = 0;
  for (const e of EXPORTERS) {
    const { records, crashed } = drive(e);
    for (const c of crashed) {
      lines.push(`${e.exp}: the driver stopped in ${c}`);
      status = 1;
    }
    let next = 0;
    for (const want of recorded.filter((r) => r.exp === e.exp)) {
      const got = records[next];
      if (got === undefined || got.sec !== want.sec || got.call !== want.call || !sameArgs(got, want)) {
        tallies.missing(want.sec);
        if (verbose) lines.push(`${e.exp} ${want.sec}: not covered: ${want.call} ${JSON.stringify(want.args)}`);
        continue;
      }
      next++;
      const unexplained = tallies.judge(want.sec, compare(want, got), known, `${e.exp} ${want.sec}`);
      if (unexplained.length > 0) status = 1;
      lines.push(...unexplained);
    }
    if (next < records.length) {
      const extra = records[next] as CallRecord;
      lines.push(
        `${e.exp} ${extra.sec}: ${records.length - next} calls of the driver match no recorded one, from ${extra.call} ${JSON.stringify(extra.args)} on`,
      );
      status = 1;
    }
  }
  tallies.report("golden", "recorded calls covered", lines);
  for (const k of known.unused()) {
    process.stdout.write(`docs/differences.md has a row that no call needs any more: ${k}\n`);
    status = 1;
  }
  return status;
}
