/**
 * Tests of `barlink run` need programs to run: some are built with a C compiler,
 * some are Python. A campaign across machines needs a server. Where a machine
 * lacks one of these, the files that need it are left out, and that is said.
 */
import { accessSync, constants, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

/** What a test file may need: how it shows in the source, how the tool is called, and how it is had. */
const TOOLS = [
  {
    shows: /"(cc|gcc)"|\b(cc|gcc)\b.*-O1/,
    names: ["cc", "gcc", "clang"],
    remedy: "a C compiler with a static C library (Debian: gcc libc6-dev)",
  },
  { shows: /python3/, names: ["python3"], remedy: "Python 3.10 or newer (Debian: python3)" },
  { shows: /redis-server/, names: ["redis-server", "valkey-server"], remedy: "a Redis or Valkey server (Debian: redis-server)" },
] as const;

const onPath = (name: string): boolean =>
  (process.env.PATH ?? "").split(":").some((dir) => {
    try {
      accessSync(join(dir, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });

/** The text of a test file and of what it imports from beside it. */
function sourceOf(file: string, seen: Set<string> = new Set()): string {
  if (seen.has(file)) return "";
  seen.add(file);
  const text = readFileSync(file, "utf8");
  const beside = [...text.matchAll(/from "(\.\/[^"]+\.ts)"/g)].map((m) => resolve(dirname(file), m[1] as string));
  return text + beside.map((f) => sourceOf(f, seen)).join("");
}

/** Test files below `root` that cannot run here, relative to it, and what they lack. */
export function leftOut(root: string): { readonly files: string[]; readonly remedies: string[] } {
  const missing = TOOLS.filter((t) => !t.names.some(onPath));
  if (missing.length === 0) return { files: [], remedies: [] };
  const files = ["test/cli", "test/host", "test/supervise"].flatMap((folder) =>
    readdirSync(join(root, folder))
      .filter((f) => f.endsWith(".test.ts"))
      .map((f) => join(root, folder, f))
      .filter((f) => {
        const source = sourceOf(f);
        return missing.some((t) => t.shows.test(source));
      })
      .map((f) => relative(root, f)),
  );
  return { files, remedies: missing.map((t) => t.remedy) };
}
