/** Starting a thread of our own from a module, built or not. */
import { Worker, type WorkerOptions } from "node:worker_threads";

/**
 * A worker that runs the module `name` ("./x.ts") beside `base` (import.meta.url of the caller), in this build's form:
 * JavaScript when built, else through tsx. Its output goes nowhere unless `worker.stdout` is read: a worker that shares
 * the user's standard output would set O_NONBLOCK on it, for the programs that share it as well.
 */
export function startWorker(name: `./${string}.ts`, base: string, options: WorkerOptions = {}): Worker {
  const all = { stdin: false, stdout: true, stderr: true, ...options };
  if (!base.endsWith(".ts")) return new Worker(new URL(name.replace(/\.ts$/, ".js"), base), all);
  // A worker does not get the loader of its parent, nor by `--import`.
  const [api, module] = [import.meta.resolve("tsx/esm/api"), new URL(name, base).href].map((url) => JSON.stringify(url));
  return new Worker(`import(${api}).then(({ register }) => { register(); return import(${module}); });`, {
    ...all,
    eval: true,
    execArgv: [],
  });
}
