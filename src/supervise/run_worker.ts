/** The supervising thread of `barlink run`: boots the machine, starts the program, serves it to its end. */
import { appendFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import { readMachine } from "../client/machine_file.ts";
import { HostError, setChildSubreaper, startProgram } from "../host/index.ts";
import { EACCES, ENOENT } from "../lib/errno.ts";
import { boot } from "../machine/boot.ts";
import { MachineError } from "../machine/schema.ts";
import { REGION_OFFSET_BASE } from "./device_files.ts";
import { compileFilter } from "./filter.ts";
import { runLoop } from "./loop.ts";
import type { RunMessage, RunOrder } from "./messages.ts";
import { registerAll } from "./parts.ts";
import { Core } from "./supervisor.ts";
import { PROCESS_LIST } from "./watchdog.ts";

const order = workerData as RunOrder;
const tell = (m: RunMessage): void => parentPort?.postMessage(m);

/** Straight to the descriptor: the streams of a worker go through the main thread, which may be gone by then. */
function warn(message: string): void {
  try {
    writeSync(2, `barlink: ${message}\n`);
  } catch {
    // Standard error is closed or full: there is nobody to tell.
  }
}

function refusal(e: unknown): RunMessage {
  if (e instanceof MachineError) return { kind: "refused", status: 2, message: e.message };
  if (e instanceof HostError) {
    if (e.call === "execve")
      return { kind: "refused", status: e.errno === ENOENT ? 127 : e.errno === EACCES ? 126 : 126, message: e.message };
    const hint = "; `barlink doctor` says what this machine allows";
    return { kind: "refused", status: 1, message: `${e.message}${hint}` };
  }
  return { kind: "refused", status: 70, message: `internal error: ${e instanceof Error ? (e.stack ?? e.message) : String(e)}` };
}

function main(): void {
  const kernel = boot(readMachine(order.machine), { vfioPci: { regionOffsetBase: REGION_OFFSET_BASE }, selftest: order.selftest });
  const core = new Core(kernel, { selftest: order.selftest, debug: order.debug, directory: order.directory, warn });
  registerAll(core, order);
  const list = join(order.directory, PROCESS_LIST);
  core.registry.onNew = (pid, startTime) => appendFileSync(list, `${pid} ${startTime}\n`);
  setChildSubreaper(true);
  const spawn = startProgram({ program: order.file, argv: order.argv, filter: compileFilter(core.traps) });
  const listenerFd = spawn.waitListener();
  let pid: number | undefined;
  const programPid = (): number | undefined => {
    if (pid === undefined) {
      pid = spawn.poll()?.pid;
      if (pid !== undefined) tell({ kind: "started", pid });
    }
    return pid;
  };
  const { end } = runLoop(core, listenerFd, programPid);
  const left = core.finish();
  if (left.size > 0) {
    warn(`internal error: the embedded kernel still holds ${[...left].map(([what, n]) => `${n} × ${what}`).join(", ")}`);
  } else if (order.debug) warn("nothing is left in the embedded kernel");
  tell(
    end === undefined
      ? { kind: "ended", how: "exited", status: 1 }
      : { kind: "ended", how: end.kind === "exited" ? "exited" : "killed", status: end.status },
  );
}

try {
  main();
} catch (e) {
  tell(refusal(e));
}
