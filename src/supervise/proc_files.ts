/**
 * Files of /proc that tell of what the real kernel knows nothing about:
 * `/proc/self/fdinfo/FD` of the embedded kernel's files; how much memory that
 * kernel has pinned and locked, in `/proc/PID/status`; and the interrupts by
 * which the described machine's IOMMU reports faults, in `/proc/interrupts`.
 *
 * The rest of `/proc/interrupts` is the real one's, but for lines of an IOMMU of
 * its own; what FD_CLOEXEC is, the real kernel says.
 *
 * Source: fs/proc/fd.c (seq_show), kernel/irq/proc.c (show_interrupts).
 */
import { readFileSync } from "node:fs";
import { closeFd, memfdCreate, reopenFd, writeFd } from "../host/index.ts";
import type { Kernel } from "../kernel/kernel.ts";
import { Errno } from "../lib/errno.ts";
import type { Step } from "../sched/task.ts";
import { O_ACCMODE, O_CLOEXEC, O_PATH, O_RDONLY } from "../uapi/index.ts";
import { Call } from "./call.ts";
import * as sys from "./numbers.ts";
import type { Core } from "./supervisor.ts";
import type { Handler, Outcome, SupervisedProcess, TrappedCall } from "./types.ts";

const INTERRUPTS = "/proc/interrupts";
const STATUS = /^\/proc\/(self|thread-self|\d+)\/status$/;
const FDINFO = /^\/proc\/(self|thread-self|\d+)\/fdinfo\/(\d{1,9})$/;

export function registerProcFiles(core: Core): void {
  const opens: [nr: number, path: number, flags: number][] = [
    [sys.SYS_open, 0, 1],
    [sys.SYS_openat, 1, 2],
  ];
  for (const [nr, path, flags] of opens) {
    const handler: Handler = (call) => open(core, call, call.path(path), call.int(flags));
    handler.concerns = (call) => {
      const p = call.path(path);
      return (
        typeof p === "string" &&
        p.startsWith("/proc/") &&
        (p === INTERRUPTS || pinner(core, call, p) !== undefined || ownFd(core, call, p) !== undefined)
      );
    };
    core.handle(nr, handler);
  }
}

/** The descriptor of the calling process that a path of /proc tells of, if it is one of ours. */
function ownFd(core: Core, call: TrappedCall, path: string): number | undefined {
  const m = FDINFO.exec(path);
  if (m === null || !(call instanceof Call)) return undefined;
  const own = m[1] === "self" || m[1] === "thread-self" || Number(m[1]) === call.pid || Number(m[1]) === call.tid;
  const fd = Number(m[2]);
  return own && core.heldFile(call.tid, fd) !== undefined ? fd : undefined;
}

/** Read-only files: who wants more is refused by the real ones. */
function* open(core: Core, call: TrappedCall, path: string | Errno, flags: number): Step<Outcome | undefined> {
  if (path instanceof Errno || (flags & O_ACCMODE) !== O_RDONLY || (flags & O_PATH) !== 0) return undefined;
  const fd = ownFd(core, call, path);
  const owner = fd === undefined ? pinner(core, call, path) : undefined;
  const text = fd !== undefined ? yield* fdinfo(call, fd) : owner !== undefined ? status(path, call, owner) : interrupts(core.kernel);
  return text instanceof Errno ? undefined : give(text, (flags & O_CLOEXEC) !== 0);
}

/** The process that a `status` tells of, if the embedded kernel holds memory of it. */
function pinner(core: Core, call: TrappedCall, path: string): SupervisedProcess | undefined {
  const who = STATUS.exec(path)?.[1];
  if (who === undefined) return undefined;
  const process = who.endsWith("self") ? call.process : core.process(Number(who));
  return process !== undefined && process.mm.pinnedVm + process.mm.lockedVm > 0 ? process : undefined;
}

/** The real one, with what is pinned and locked here counted. A program reads it as `/proc/self`, barlink does not. */
function status(path: string, call: TrappedCall, { mm }: SupervisedProcess): string {
  const text = readFileSync(path.replace(/^\/proc\/(thread-)?self\//, `/proc/${call.tid}/`), "latin1");
  const add = (line: string, field: string, pages: number): string =>
    line.replace(
      new RegExp(`^(${field}:\\s*)(\\d+) kB$`, "m"),
      (_, _head: string, kb: string) => `${field}:\t${String(Number(kb) + 4 * pages).padStart(8)} kB`,
    );
  return add(add(text, "VmLck", mm.lockedVm), "VmPin", mm.pinnedVm);
}

function* fdinfo(call: TrappedCall, fd: number): Step<string | Errno> {
  const text = yield* call.process.sys.fdinfo(fd);
  if (text instanceof Errno) return text;
  const real = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/${call.tid}/fdinfo/${fd}`, "latin1"))?.[1] ?? "0";
  const cloexec = Number.parseInt(real, 8) & O_CLOEXEC;
  return text.replace(
    /^(flags:\t)(\d+)$/m,
    (_, head: string, digits: string) => `${head}0${(Number.parseInt(digits, 8) | cloexec).toString(8)}`,
  );
}

/** With one line per IOMMU unit; the first one's has the faults of all. */
function interrupts(kernel: Kernel): string {
  const lines = readFileSync(INTERRUPTS, "latin1").split("\n");
  const cpus = lines[0]?.match(/CPU\d+/g)?.length ?? 1;
  const kept = lines.filter((l) => !/\b(dmar\d|AMD-Vi)/.test(l));
  const numbered = kept.flatMap((l) => /^\s*(\d+):/.exec(l)?.[1] ?? []);
  let irq = Math.max(23, ...numbered.map(Number)) + 1;
  const ours = kernel.iommu.units.map((unit, i) => {
    const counts = Array.from({ length: cpus }, (_, cpu) => String(i === 0 && cpu === 0 ? kernel.iommu.faults : 0).padStart(10));
    const by = unit.name.startsWith("dmar") ? `DMAR-MSI   ${i}-edge      ${unit.name}` : `PCI-MSI   ${i}-edge      AMD-Vi`;
    return `${String(irq++).padStart(3)}: ${counts.join(" ")}  ${by}`;
  });
  const at = kept.findLastIndex((l) => /^\s*\d+:/.test(l)) + 1;
  return [...kept.slice(0, at), ...ours, ...kept.slice(at)].join("\n");
}

function give(text: string, cloexec: boolean): Outcome | undefined {
  const memfd = memfdCreate("barlink-proc");
  if (memfd instanceof Errno) return undefined;
  try {
    if (writeFd(memfd, new TextEncoder().encode(text)) instanceof Errno) return undefined;
    const hostFd = reopenFd(memfd, O_RDONLY);
    return hostFd instanceof Errno ? undefined : { kind: "addfd", hostFd, cloexec, close: true };
  } finally {
    closeFd(memfd);
  }
}
