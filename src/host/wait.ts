/** What became of children, orphans included (waitid(2)). */
import type { Errno } from "../lib/errno.ts";
import { checkVoid, nr, reserve, syscall6 } from "./ffi.ts";

const P_ALL = 0;
const P_PID = 1;
const P_PIDFD = 3;
const WNOHANG = 1;
const WSTOPPED = 2;
const WEXITED = 4;
const WCONTINUED = 8;
const WNOWAIT = 0x0100_0000;

const WAITID = nr("waitid");
const info = reserve(128);
const KINDS = ["exited", "killed", "dumped", "trapped", "stopped", "continued"] as const;

export interface ChildEvent {
  readonly pid: number;
  readonly kind: (typeof KINDS)[number];
  /** The exit status for "exited", otherwise the signal's number. */
  readonly status: number;
}

export interface WaitOptions {
  /** Sleep until there is something. Off when left out. */
  readonly block?: boolean;
  /** Stops and continuations too, for job control. */
  readonly stops?: boolean;
  /** Leave it to be waited for again. */
  readonly keep?: boolean;
}

/** `pid`'s end; undefined: not yet. ECHILD: not a child of ours (any more). */
export function waitPid(pid: number, options: WaitOptions = {}): ChildEvent | undefined | Errno {
  return wait(P_PID, pid, options);
}

export function waitPidfd(pidfd: number, options: WaitOptions = {}): ChildEvent | undefined | Errno {
  return wait(P_PIDFD, pidfd, options);
}

/** Any child's end, and any orphan's of a subreaper. Takes those of node:child_process too: not in a process that uses that. */
export function waitAny(options: WaitOptions = {}): ChildEvent | undefined | Errno {
  return wait(P_ALL, 0, options);
}

function wait(type: number, id: number, { block, stops, keep }: WaitOptions): ChildEvent | undefined | Errno {
  const options = WEXITED | (block ? 0 : WNOHANG) | (stops ? WSTOPPED | WCONTINUED : 0) | (keep ? WNOWAIT : 0);
  info.s32.fill(0);
  const failed = checkVoid(syscall6(WAITID, type, id, info.address, options, 0, 0));
  if (failed !== undefined) return failed;
  // siginfo_t: si_code at 8, si_pid at 16, si_status at 24.
  const [code = 0, pid = 0, status = 0] = [info.s32[2], info.s32[4], info.s32[6]];
  const kind = KINDS[code - 1];
  return pid === 0 || kind === undefined ? undefined : { pid, kind, status };
}

/** The status that a shell shows for a child's end: 128 and the signal's number for one that was killed. */
export function shellStatus(event: ChildEvent): number {
  return event.kind === "exited" ? event.status : 128 + event.status;
}
