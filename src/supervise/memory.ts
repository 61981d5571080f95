/** What the supervisor knows of memory, foreign descriptors and credentials: its hooks, and the calls that take pages away. */
import { totalmem } from "node:os";
import { PAGE_MASK_N, physAddr } from "../lib/addr.ts";
import { TargetCredentials, track, withheldFromRoot } from "./credentials.ts";
import { ForeignFiles } from "./foreign_files.ts";
import { registerMemoryCalls } from "./memory_calls.ts";
import { ProcessMemory } from "./process_memory.ts";
import { RealMemory } from "./real_file.ts";
import type { SupervisedProcess, Supervisor } from "./types.ts";

/**
 * Where pinned pages of the program get physical addresses when the described
 * machine's RAM is used up: the program lives in this host's memory, and may pin
 * as much of it as there is. Above what AMD reserves below 1 TiB, below the
 * window of 64-bit BARs.
 */
const PROGRAM_RAM_BASE = physAddr(1n << 40n);

/** Sets the hooks `memory`, `foreign` and `credentials`, and traps the calls that unmap. Before the program starts. */
export function registerMemory(supervisor: Supervisor): RealMemory {
  const { hooks } = supervisor;
  supervisor.kernel.phys.addRam(PROGRAM_RAM_BASE, BigInt(totalmem()) & ~PAGE_MASK_N);
  const shared = new RealMemory(supervisor.kernel);
  shared.caller = (target) => {
    const call = supervisor.currentCall;
    return call?.process.target === target ? call.tid : undefined;
  };
  shared.heldFile = (id) => supervisor.files.byId(id);
  const foreign = new ForeignFiles(shared, (fd, callback) => supervisor.onReadable(fd, callback));
  const credentials = new WeakMap<SupervisedProcess, TargetCredentials>();
  const rootHolds = supervisor.options.selftest ? withheldFromRoot() : 0n;
  hooks.memory = (_s, target) => new ProcessMemory(shared, target);
  hooks.foreign = (_s, process, tid, fd, link) => foreign.open(process.target.pid, tid, fd, link);
  hooks.credentials = (_s, process) => {
    shared.calls++;
    const live = credentials.get(process);
    if (live !== undefined) {
      live.begin();
      return;
    }
    const made = new TargetCredentials(supervisor.kernel, process.target, rootHolds);
    credentials.set(process, made);
    track(process, made);
  };
  registerMemoryCalls(supervisor);
  const warned = new Set<string>();
  shared.budget.onLost = (store, why) => {
    if (warned.has(why)) return;
    warned.add(why);
    supervisor.warn(
      `a device reached for a page of ${store.name} that barlink does not have any more (${why}), and Linux would: see mm.lost in --trace`,
    );
  };
  return shared;
}
