/**
 * Every row of the interconnect's specification, and that a test's title names it.
 *
 * A title names rows as "§4.1 row 12", "§6 rows 1 and 2", "§2 pre 3 to 6". Rows
 * that no call can reach are listed with the reason, here and in
 * docs/differences.md; a row must not be in both lists.
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const TESTS: string = dirname(dirname(fileURLToPath(import.meta.url)));

/** By section and kind: what each row says, in order from `first`. */
const TABLES: readonly { readonly id: string; readonly first: number; readonly rows: readonly string[] }[] = [
  {
    id: "§2 pre",
    first: 1,
    rows: [
      "not bound: EINVAL",
      "the device cannot be resumed: EIO",
      "the header cannot be read: EFAULT",
      "argsz below the header: EINVAL",
      "unknown flags: EINVAL",
      "GET and SET without PROBE: EINVAL",
      "a driver without features: ENOTTY",
    ],
  },
  {
    id: "§2 row",
    first: 0,
    rows: [
      "built without: ENOTTY",
      "the driver exports nothing: EOPNOTSUPP",
      "SET: EINVAL",
      "PROBE: 0",
      "neither GET nor SET: EINVAL",
      "argsz below the fixed part: EINVAL",
      "the fixed part cannot be read: EFAULT",
      "no ranges, or flags: EINVAL",
      "no such BAR, or not mapped at open: ENODEV",
      "the ranges cannot be copied: ENOMEM, EFAULT",
      "a range empty or unaligned, a total that does not fit: EINVAL",
      "no memory: ENOMEM",
      "no provider: EINVAL",
      "an address that wraps: EOVERFLOW",
      "past the BAR: EINVAL",
      "being unregistered: ENODEV",
      "the export fails",
      "published, revoked or not",
      "no descriptor: EMFILE, and released",
      "the descriptor",
    ],
  },
  {
    id: "§2 fact",
    first: 1,
    rows: [
      "born revoked while memory is off",
      "ranges overlap, repeat and descend",
      "open flags are not validated, the mode not enforced",
      "the MSI-X page can be exported, a small BAR not",
      "another driver's physical addresses",
      "size is the sum; no mmap, no CPU access",
    ],
  },
  {
    id: "§4.1 row",
    first: 1,
    rows: [
      "size: EINVAL, E2BIG",
      "flags: EOPNOTSUPP",
      "iova or length everything: EOVERFLOW",
      "no access: EINVAL",
      "no IOAS: ENOENT",
      "no bytes: EINVAL",
      "start + length wraps: EOVERFLOW",
      "no file: EBADF",
      "past the buffer: EINVAL",
      "no such number of pages: EINVAL",
      "attach refused",
      "pin refused",
      "no private map: EOPNOTSUPP",
      "private map refused: ENODEV, EOPNOTSUPP",
      "no memory for the area: ENOMEM",
      "length unaligned: EINVAL",
      "no room: EINVAL, ENOSPC",
      "rights, page offset: EPERM, EINVAL",
      "the domain refuses",
      "the answer cannot be copied: EFAULT, and mapped",
    ],
  },
  { id: "§4.1 row 17'", first: 0, rows: ["a fixed IOVA: EINVAL, EOVERFLOW, EEXIST"] },
  {
    id: "§4.2 row",
    first: 1,
    rows: [
      "live, one range: mapped",
      "two ranges: EOPNOTSUPP",
      "revoked: ENODEV",
      "revoked in between: 0, and dead",
      "the selftest's buffer",
      "another exporter's: EOPNOTSUPP",
      "udmabuf: EOPNOTSUPP",
      "a file: pinned when needed",
      "built without dma-buf",
    ],
  },
  {
    id: "§4.3 point",
    first: 1,
    rows: ["one kind a batch", "one run of MMIO", "page by page without large pages", "never read back from a domain"],
  },
  {
    id: "§5 row",
    first: 1,
    rows: [
      "UNMAP",
      "COPY",
      "a new domain",
      "a domain goes",
      "access: pin",
      "access: read and write",
      "access: never asked to let go",
      "CHANGE_PROCESS",
      "dirty tracking",
      "HW_QUEUE_ALLOC",
      "a cut",
      "NOIOMMU_GET_PA",
      "a mapped BAR",
      "DESTROY",
    ],
  },
  {
    id: "§6 move",
    first: 1,
    rows: ["the dying are skipped", "no change, no call", "flag, invalidate, fences", "the last map", "un-revoke", "fput"],
  },
  {
    id: "§6 row",
    first: 1,
    rows: [
      "COMMAND: memory off",
      "COMMAND: memory on",
      "COMMAND: the write fails",
      "to D3hot",
      "to D0",
      "DEVICE_RESET",
      "the FLR bits",
      "PCI_HOT_RESET",
      "low power: entry, exit",
      "low power: wake",
      "the last close",
      "hot-unplug",
      "no hook: resets outside of VFIO",
    ],
  },
  {
    id: "§9 row",
    first: 1,
    rows: ["MAP_FILE fails", "the last area", "iommufd closed", "the buffer closed", "the device closed", "the driver unbound"],
  },
];

/** What has a name instead of a number. */
const NAMED: readonly string[] = [
  "§2 predicate",
  "§3 attach",
  "§3 pin",
  "§3 map_dma_buf",
  "§3 unmap_dma_buf",
  "§3 private map",
  "§3 release",
  "§3 order",
  "§4.2 sub-ranges",
  "§4.2 accounting",
  "§6 cleanup",
  "§6 invalidate",
  "§8 order",
  "§8 forbidden",
  "§8 waits",
];

/** No call reaches them; why stands in docs/differences.md. */
const UNREACHABLE: readonly string[] = ["§2 pre 7", "§2 row 0", "§2 fact 5", "§4.2 row 9", "§4.3 point 1"];

const ROWS: readonly string[] = [
  ...TABLES.flatMap((t) => (t.id.endsWith("'") ? [t.id] : t.rows.map((_, i) => `${t.id} ${t.first + i}`))),
  ...NAMED,
];

/** The rows that a text names. */
function named(text: string): Set<string> {
  const out = new Set<string>();
  for (const id of NAMED) if (text.includes(id)) out.add(id);
  for (const [, section, kind, list] of text.matchAll(/§([\d.]+) (row|fact|pre|point|move)s? (\d+'?(?:(?:, | and | to )\d+'?)*)/g)) {
    const parts = (list as string).split(/(, | and | to )/);
    for (let i = 0; i < parts.length; i += 2) {
      const last = parts[i] as string;
      const from = parts[i - 1] === " to " ? Number(parts[i - 2]) + 1 : undefined;
      for (let n = from ?? Number.NaN; n < Number(last); n++) out.add(`§${section} ${kind} ${n}`);
      out.add(`§${section} ${kind} ${last}`);
    }
  }
  return out;
}

function testTexts(dir: string): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((e) => {
    const path = join(dir, e.name);
    if (e.isDirectory()) return testTexts(path);
    if (!e.name.endsWith(".test.ts") || path === fileURLToPath(import.meta.url)) return [];
    // Titles and tables of faults only: a comment that names a row shows nothing.
    return [readFileSync(path, "utf8").replaceAll(/^\s*(\/\/|\/?\*).*$/gm, "")];
  });
}

describe("the rows of the specification", () => {
  const shown = named(testTexts(TESTS).join("\n"));

  test.each(ROWS.filter((r) => !UNREACHABLE.includes(r)))("%s is named by a test", (row) => {
    expect([...shown]).toContain(row);
  });

  test.each(UNREACHABLE)("%s cannot be reached, and docs/differences.md says why", (row) => {
    expect(ROWS).toContain(row);
    expect([...shown]).not.toContain(row);
    expect([...named(readFileSync(join(TESTS, "..", "docs", "differences.md"), "utf8"))]).toContain(row);
  });

  test("no title names a row that there is not", () => {
    expect([...shown].filter((r) => !ROWS.includes(r))).toEqual([]);
  });
});

test("lists and spans of rows are read as they are meant", () => {
  expect([...named("§6 rows 1 and 2, §2 pre 3 to 5: x; §4.1 row 17': y")]).toEqual([
    "§6 row 1",
    "§6 row 2",
    "§2 pre 3",
    "§2 pre 4",
    "§2 pre 5",
    "§4.1 row 17'",
  ]);
});
