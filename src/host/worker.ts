/** Starting a thread of our own from a module, built or not. */
import { Worker, type WorkerOptions } from "node:worker_threads";

/**
 * A worker that runs the module `name` ("./x.ts") beside `base` (import.meta.url of the caller), in this build's form:
 * JavaScript when built, else through tsx. Its output goes nowhere unless `worker.stdout` is read: a worker that shares
 * the user's standard output would set O_NONBLOCK on it, for the programs that share it as well.
 */
export function startWorker(name: `./${string}.ts`, base: string, options: WorkerOptions = {}): Worker {
  const source = base.endsWith(".ts");
  const url = new URL(source ? name : name.replace(/\.ts$/, ".js"), base);
  return new Worker(url, {
    stdin: false,
    stdout: true,
    stderr: true,
    ...options,
    execArgv: source ? ["--import", import.meta.resolve("tsx")] : [],
  });
}
