/**
 * A scenario over kernel code of another make: with modules replaced, or with
 * lines of them edited. The kernel has no switch for this: the scenario and all
 * that it imports are bundled afresh, with the variant in place, and that bundle
 * is imported beside the kernel that is already loaded.
 *
 * A module that stands in for another re-exports what it does not change, and
 * is the only one that still sees the original:
 *
 *     export * from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";
 *     export function* vfioPciDmaBufCleanup(vdev: DmaBufDevice): Step<void> { … }
 *
 * What the original calls within itself stays its own; where that matters, or
 * where the step is private, edit the source instead. An edit that does not
 * match exactly once is an error, so that no variant goes stale unseen.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { build, type Plugin } from "esbuild";
import type * as Explore from "../src/explore/index.ts";

const ROOT: string = join(import.meta.dirname, "..");

/** All paths are relative to the project. */
export interface Variant {
  /** Module → the module that stands in for it. */
  readonly replace?: Readonly<Record<string, string>>;
  /** Module → its edits: a piece of its source that occurs once, and what comes in its place. */
  readonly edit?: Readonly<Record<string, readonly (readonly [from: string, to: string])[]>>;
}

/** What a bundle holds: the entry's exports, and an explorer that knows its kernel. Never mix it with another's. */
export interface Loaded<M> {
  readonly entry: M;
  readonly explore: typeof Explore;
}

function edited(path: string, edits: readonly (readonly [string, string])[]): string {
  let source = readFileSync(path, "utf8");
  for (const [from, to] of edits) {
    const pieces = source.split(from);
    if (pieces.length !== 2) throw new Error(`${path}: an edit matches ${pieces.length - 1} times, and must once: ${from}`);
    source = pieces.join(to);
  }
  return source;
}

function plugin({ replace = {}, edit = {} }: Variant): Plugin {
  const standIns = new Map(Object.entries(replace).map(([a, b]) => [resolve(ROOT, a), resolve(ROOT, b)]));
  const edits = new Map(Object.entries(edit).map(([a, e]) => [resolve(ROOT, a), e]));
  const unused = new Set([...standIns.keys(), ...edits.keys()]);
  return {
    name: "variant",
    setup(b) {
      b.onResolve({ filter: /^\..*\.ts$/ }, ({ path, resolveDir, importer }) => {
        const at = resolve(resolveDir, path);
        const standIn = standIns.get(at);
        if (standIn === undefined || importer === standIn) return { path: at };
        unused.delete(at);
        return { path: standIn };
      });
      b.onLoad({ filter: /\.ts$/ }, ({ path }) => {
        const e = edits.get(path);
        if (e === undefined) return undefined;
        unused.delete(path);
        return { contents: edited(path, e), loader: "ts" };
      });
      b.onEnd(() => {
        if (unused.size > 0) throw new Error(`not a module of this scenario: ${[...unused].join(", ")}`);
      });
    },
  };
}

/** Bundles the module `entry` (a path in the project) over the variant; the text is a CommonJS module. */
export async function bundleVariant(entry: string, variant: Variant): Promise<string> {
  const { outputFiles } = await build({
    stdin: {
      contents: `export * as entry from "./${entry}"; export * as explore from "./src/explore/index.ts";`,
      resolveDir: ROOT,
      loader: "ts",
    },
    bundle: true,
    write: false,
    // Required and not imported: so a test runner's own loader leaves it alone.
    format: "cjs",
    platform: "node",
    target: "node20",
    logLevel: "silent",
    plugins: [plugin(variant)],
  });
  return outputFiles[0]?.text as string;
}

/** The same, imported. */
export async function loadVariant<M>(entry: string, variant: Variant): Promise<Loaded<M>> {
  const text = await bundleVariant(entry, variant);
  const dir = mkdtempSync(join(tmpdir(), "barlink-variant-"));
  try {
    const file = join(dir, "variant.cjs");
    writeFileSync(file, text);
    return createRequire(import.meta.url)(file) as Loaded<M>;
  } finally {
    rmSync(dir, { recursive: true });
  }
}
