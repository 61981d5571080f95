/**
 * The rows of `docs/differences.md` that a program checks: a table whose first
 * cell is the suite, then section, call, what, field, reason. A cell `*` matches
 * anything.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

export interface Difference {
  readonly section: string;
  readonly call: string;
  readonly what: string;
  readonly field: string;
  readonly want: string | undefined;
  readonly got: string | undefined;
}

export interface KnownDifferences {
  has(d: Difference): boolean;
  /** Rows that matched nothing. */
  unused(): string[];
}

/** Those of one suite. */
export function knownDifferences(suite: string): KnownDifferences {
  const text = readFileSync(join(import.meta.dirname, "..", "docs", "differences.md"), "utf8");
  const rows = text
    .split("\n")
    .filter((l) => l.startsWith(`| ${suite} |`))
    .map((l) => l.split("|").map((c) => c.trim().replace(/^`|`$/g, "")))
    .map(([, , section = "", call = "", what = "", field = ""]) => ({ section, call, what, field, used: false }));
  const match = (pattern: string, value: string): boolean => pattern === "*" || pattern === value;
  return {
    has(d) {
      const row = rows.find(
        (r) => match(r.section, d.section) && match(r.call, d.call) && match(r.what, d.what) && match(r.field, d.field),
      );
      if (row === undefined) return false;
      row.used = true;
      return true;
    },
    unused: () => rows.filter((r) => !r.used).map((r) => `${r.section} ${r.call} ${r.what} ${r.field}`),
  };
}
