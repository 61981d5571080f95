/** Everything that makes up `barlink run`, in the order in which handlers of one call are asked. */
import { writeSync } from "node:fs";
import { registerCoreCalls } from "./core_calls.ts";
import { registerDeviceFiles } from "./device_files.ts";
import { registerFailNth } from "./fail_nth.ts";
import { registerMemory } from "./memory.ts";
import type { RunOrder } from "./messages.ts";
import { registerProcFiles } from "./proc_files.ts";
import { StraceWriter } from "./strace.ts";
import type { Core } from "./supervisor.ts";
import { TraceFile } from "./trace_file.ts";
import { registerTree } from "./tree/index.ts";

export function registerAll(core: Core, order: Pick<RunOrder, "strace" | "traceFile">): void {
  registerMemory(core);
  registerDeviceFiles(core);
  registerProcFiles(core);
  if (core.options.selftest) registerFailNth(core);
  registerTree(core);
  registerCoreCalls(core);
  if (order.strace) core.observe(new StraceWriter((line) => writeSync(2, `${line}\n`)));
  if (order.traceFile !== undefined) core.observe(new TraceFile(core.kernel, order.traceFile));
}
