/** `barlink run`: an unmodified program, for which the described machine's devices exist. */
import { run } from "../supervise/run.ts";
import type { RunThreads } from "../supervise/run_threads.ts";

export interface RunCommand {
  readonly machine?: string;
  readonly trace?: string;
  readonly strace?: boolean;
  readonly selftest?: boolean;
  readonly registerMaps?: boolean;
  readonly debug?: boolean;
}

/** Does not return when the program ran: this process ends as it did. */
export async function runProgram(threads: RunThreads, program: string, args: readonly string[], options: RunCommand): Promise<void> {
  await run(threads, program, args, {
    machine: options.machine ?? "default",
    traceFile: options.trace,
    strace: options.strace === true,
    selftest: options.selftest === true,
    registerMaps: options.registerMaps !== false,
    debug: options.debug === true,
  });
}
