/** What the supervising thread of `barlink run` does: boots the machine, starts the program, serves it to its end. */
import { appendFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { readMachine } from "../client/machine_file.ts";
import { arch, closeFd, HostError, type ProgramStarter, pidfdSendSignal, setChildSubreaper } from "../host/index.ts";
import { ENOENT } from "../lib/errno.ts";
import { boot } from "../machine/boot.ts";
import { MachineError } from "../machine/schema.ts";
import { REGION_OFFSET_BASE } from "./device_files.ts";
import { compileFilter, ownLibrary } from "./filter.ts";
import { runLoop } from "./loop.ts";
import type { RunMessage, RunOrder } from "./messages.ts";
import { registerAll } from "./parts.ts";
import { Core } from "./supervisor.ts";
import { PROCESS_LIST } from "./watchdog.ts";

const SIGKILL = 9;

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
    if (e.call === "execve") return { kind: "refused", status: e.errno === ENOENT ? 127 : 126, message: e.message };
    const hint = e.call === "platform" ? "" : "; `barlink doctor` says what this machine allows";
    return { kind: "refused", status: 1, message: `${e.message}${hint}` };
  }
  return { kind: "refused", status: 70, message: `internal error: ${e instanceof Error ? (e.stack ?? e.message) : String(e)}` };
}

/** `starter` has come up while this was loaded. `tell` hears of the start, and of the end, after which nothing more is to be done. */
export function superviseProgram(order: RunOrder, starter: ProgramStarter, tell: (m: RunMessage) => void): void {
  let core: Core;
  try {
    if (arch.name !== "x64") {
      throw new HostError(
        "platform",
        undefined,
        `programs are supervised on x86-64 only, and this is ${arch.name}; the embedded kernel runs here`,
      );
    }
    const kernel = boot(readMachine(order.machine), {
      vfioPci: { regionOffsetBase: REGION_OFFSET_BASE, mapRegisters: order.registerMaps },
      selftest: order.selftest,
    });
    core = new Core(kernel, { selftest: order.selftest, debug: order.debug, directory: order.directory, warn });
    registerAll(core, order);
  } catch (e) {
    starter.abandon();
    tell(refusal(e));
    return;
  }
  try {
    tell(serve(core, order, starter, tell));
  } catch (e) {
    // Without us the program's calls fail in ways it never met.
    for (const p of core.registry) pidfdSendSignal(p.target.pidfd, SIGKILL);
    tell(refusal(e));
  }
}

function serve(core: Core, order: RunOrder, starter: ProgramStarter, tell: (m: RunMessage) => void): RunMessage {
  const list = join(order.directory, PROCESS_LIST);
  core.registry.onNew = (pid, startTime) => appendFileSync(list, `${pid} ${startTime}\n`);
  setChildSubreaper(true);
  const spawn = starter.start({ program: order.file, argv: order.argv, filter: compileFilter(core.traps, ownLibrary()) });
  const listenerFd = spawn.waitListener();
  let pid: number | undefined;
  const programPid = (): number | undefined => {
    if (pid === undefined) {
      pid = spawn.poll()?.pid;
      if (pid !== undefined) {
        // On the list before its first call, which may be long in coming.
        core.registry.thread(pid);
        tell({ kind: "started", pid });
      }
    }
    return pid;
  };
  const { end } = runLoop(core, listenerFd, programPid);
  const left = core.finish();
  closeFd(listenerFd);
  if (left.size > 0) {
    warn(`internal error: the embedded kernel still holds ${[...left].map(([what, n]) => `${n} × ${what}`).join(", ")}`);
  } else if (order.debug) warn("nothing is left in the embedded kernel");
  if (end === undefined) return { kind: "ended", how: "exited", status: 1 };
  return { kind: "ended", how: end.kind === "exited" ? "exited" : "killed", status: end.status };
}
