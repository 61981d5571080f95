/**
 * The kernel's selftests of iommufd against Linux 7.3.4, case by case.
 *
 * `data/selftests-linux.json` says how each case ended on Linux. What passed
 * there must pass here, and what is skipped here must be skipped there; anything
 * else is named, and the status is not 0.
 *
 * Some cases need the host's huge pages (`mmap` with MAP_HUGETLB, which the real
 * kernel serves). As root they are reserved for the length of the run. Where
 * they cannot be, the cases count as not run, which is no pass.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { buildSelftests, type CaseResult, complete, count, runSelftest, type SelftestRun } from "./selftest_run.ts";

interface Recorded {
  readonly seconds: number;
  readonly secondsWithBoot?: number;
  readonly pass: readonly string[];
  readonly skip: readonly string[];
}

const recording = JSON.parse(readFileSync(new URL("data/selftests-linux.json", import.meta.url), "utf8")) as {
  suites: Readonly<Record<string, Recorded>>;
};

const NR_HUGEPAGES = "/proc/sys/vm/nr_hugepages";
const HUGEPAGE_KIB = 2048;
/** Huge pages of 2 MiB that a case needs, by the part of its name that says so. */
const HUGE_CASES: readonly { readonly name: RegExp; readonly pages: number }[] = [
  { name: /\.domain_dirty128M_huge\./, pages: 64 },
  { name: /\.domain_dirty64M_huge\./, pages: 32 },
  { name: /_hugepage\.|\.access_domain_destory$|\.huge_map$/, pages: 2 },
];
/** What all of them need at a time, and a little for the case before, whose process is just ending. */
const HUGE_PAGES = 72;

/** Huge pages that are free for the run, and how to give back what was reserved. */
interface HugePages {
  readonly free: number;
  /** Why they are fewer than are needed; "" when they are not. */
  readonly why: string;
  restore(): void;
}

const meminfo = (field: string): number =>
  Number(new RegExp(`^${field}:\\s+(\\d+)`, "m").exec(readFileSync("/proc/meminfo", "utf8"))?.[1] ?? 0);

function reserveHugePages(): HugePages {
  const nothing = (): void => {};
  if (meminfo("Hugepagesize") !== HUGEPAGE_KIB) {
    return { free: 0, why: `the host's huge pages are not of ${HUGEPAGE_KIB} KiB`, restore: nothing };
  }
  if (meminfo("HugePages_Free") >= HUGE_PAGES) return { free: HUGE_PAGES, why: "", restore: nothing };
  const before = readFileSync(NR_HUGEPAGES, "utf8").trim();
  let restore = nothing;
  let refused = "the host has no room for more";
  try {
    writeFileSync(NR_HUGEPAGES, String(Number(before) + HUGE_PAGES - meminfo("HugePages_Free")));
    restore = () => writeFileSync(NR_HUGEPAGES, before);
  } catch (e) {
    refused = `${NR_HUGEPAGES} cannot be written (${(e as NodeJS.ErrnoException).code ?? e})`;
  }
  const free = meminfo("HugePages_Free");
  const why = free >= HUGE_PAGES ? "" : `${free} of ${HUGE_PAGES} huge pages are free, and ${refused}`;
  return { free, why, restore };
}

/** Huge pages that a case needs. */
const hugePagesOf = (name: string): number => HUGE_CASES.find((c) => c.name.test(name))?.pages ?? 0;

interface Verdict {
  /** A line for each case that is not as it should be. */
  readonly lines: readonly string[];
  readonly notRun: readonly string[];
}

/** Every recorded case held against the run's. `free`: huge pages there were for it. */
export function judge(recorded: Recorded, cases: ReadonlyMap<string, CaseResult>, free: number): Verdict {
  const lines: string[] = [];
  const notRun: string[] = [];
  const skipped = new Set(recorded.skip);
  for (const name of [...recorded.pass, ...recorded.skip]) {
    const here = cases.get(name);
    const linux = skipped.has(name) ? "skip" : "pass";
    // A case that Linux skips may also pass here.
    if (here === "pass" || here === linux) continue;
    if (hugePagesOf(name) > free) notRun.push(name);
    else lines.push(`${name}: ${linux} on Linux, ${here ?? "missing"} here`);
  }
  const known = new Set([...recorded.pass, ...recorded.skip]);
  for (const [name, here] of cases) if (!known.has(name)) lines.push(`${name}: not in the recording, ${here} here`);
  return { lines, notRun };
}

function report(name: string, recorded: Recorded, r: SelftestRun, huge: HugePages): number {
  if (!complete(name, r)) return 1;
  const { lines, notRun } = judge(recorded, r.cases, huge.free);
  const row = (who: string, ...cells: (string | number)[]): void => {
    process.stdout.write(`${who.padEnd(22)}${cells.map((c) => String(c).padStart(10)).join("")}\n`);
  };
  const s = (n: number | undefined): string => (n === undefined ? "" : `${n.toFixed(n < 10 ? 2 : 1)} s`);
  row(name, "pass", "fail", "skip", "not run", "test", "in all");
  row("  Linux 7.3.4", recorded.pass.length, 0, recorded.skip.length, 0, s(recorded.seconds), s(recorded.secondsWithBoot));
  row("  barlink", count(r, "pass"), count(r, "fail") - notRun.length, count(r, "skip"), notRun.length, s(r.seconds), s(r.secondsInAll));
  for (const l of lines) process.stdout.write(`  ${l}\n`);
  if (lines.length > 0 && process.geteuid?.() !== 0) {
    process.stdout.write(
      "  (not run as root: what needs CAP_SYS_RESOURCE, or locks more than RLIMIT_MEMLOCK allows, Linux refuses as well)\n",
    );
  }
  if (notRun.length > 0) process.stdout.write(`  not run, because ${huge.why}: ${notRun.join(", ")}\n`);
  return lines.length + notRun.length > 0 ? 1 : 0;
}

/** `args`: a source tree of Linux 7.3, when there is one. */
export async function run(args: readonly string[]): Promise<number> {
  if (!buildSelftests(args.find((a) => !a.startsWith("-")))) return 1;
  let status = 0;
  const huge = reserveHugePages();
  try {
    for (const [name, recorded] of Object.entries(recording.suites)) {
      status = Math.max(status, report(name, recorded, await runSelftest(name), huge));
    }
  } finally {
    huge.restore();
  }
  return status;
}
