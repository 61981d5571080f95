/** Starting a thread of our own from a module: bundled, built or not. */
import { readdirSync, statSync } from "node:fs";
import { Worker, type WorkerOptions } from "node:worker_threads";

/** Where `scripts/bundle.mjs` puts them, from the folder of any built layer. */
const BUNDLES = "../bundle/";
/** What the compiler writes whenever it has written anything. */
const BUILD_STATES = "../.tsbuildinfo/";

/**
 * A worker that runs the module `name` ("./x.ts") beside `base` (import.meta.url of the caller), in this build's form:
 * as one file with its code cache if there is such a bundle that is not older than the build, which comes up in a third
 * of the time; else the built module; else the source, through tsx. Its output goes nowhere unless `worker.stdout` is
 * read: a worker that shares the user's standard output would set O_NONBLOCK on it, for the programs that share it as
 * well.
 */
export function startWorker(name: `./${string}.ts`, base: string, options: WorkerOptions = {}): Worker {
  const all = { stdin: false, stdout: true, stderr: true, ...options };
  if (!base.endsWith(".ts")) {
    return new Worker(bundleOf(name, base) ?? new URL(name.replace(/\.ts$/, ".js"), base), all);
  }
  // A worker does not get the loader of its parent, nor by `--import`.
  const [api, module] = [import.meta.resolve("tsx/esm/api"), new URL(name, base).href].map((url) => JSON.stringify(url));
  return new Worker(`import(${api}).then(({ register }) => { register(); return import(${module}); });`, {
    ...all,
    eval: true,
    execArgv: [],
  });
}

/** The bundle's entry; undefined when there is none, or the build has gone on without it. */
function bundleOf(name: string, base: string): URL | undefined {
  const entry = new URL(`${BUNDLES}${name.slice(2).replace(/\.ts$/, ".cjs")}`, base);
  try {
    const made = statSync(entry).mtimeMs;
    return newestState(new URL(BUILD_STATES, base)) <= made ? entry : undefined;
  } catch {
    return undefined;
  }
}

/** When the compiler last wrote; 0 in a package, which has no such states. */
function newestState(folder: URL): number {
  let files: string[];
  try {
    files = readdirSync(folder);
  } catch {
    return 0;
  }
  return files.reduce((newest, f) => Math.max(newest, statSync(new URL(f, folder)).mtimeMs), 0);
}
