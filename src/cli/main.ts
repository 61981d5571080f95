#!/usr/bin/env node
/** The command. What takes longest to come up is started first: for `run`, its threads, while the command line is looked at. */
import { RunThreads } from "../supervise/run_threads.ts";

const threads = process.argv[2] === "run" ? new RunThreads() : undefined;
try {
  const { main } = await import("./commands.ts");
  await main(threads);
} finally {
  // The command line may have asked for something else.
  await threads?.abandon();
}
