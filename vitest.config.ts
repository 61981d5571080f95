import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import { leftOut } from "./test/tools.ts";

const { files, remedies } = leftOut(import.meta.dirname);
if (files.length > 0) {
  process.stderr.write(`barlink: ${files.length} test files are left out here: they need ${remedies.join(", and ")}\n`);
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    exclude: files,
    testTimeout: 60_000,
    // Tests of what a process holds look at their own process.
    pool: "forks",
    // Much of a test of `barlink run` is waiting: two at a time also where there are but two processors.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    coverage: { include: ["src/**/*.ts"], exclude: ["src/cli/**"] },
  },
});
