/** Descriptors of processes (pidfd_open(2)): a name that is never given to another process. */
import type { Errno } from "../lib/errno.ts";
import { check, checkVoid, nr, syscall4 } from "./ffi.ts";

const PIDFD_OPEN = nr("pidfd_open");
const PIDFD_GETFD = nr("pidfd_getfd");
const PIDFD_SEND_SIGNAL = nr("pidfd_send_signal");
const TGKILL = nr("tgkill");
const KILL = nr("kill");
/** The pidfd of a thread, not of its process. Linux 6.9. */
export const PIDFD_THREAD = 0o200;

/** A pidfd, with FD_CLOEXEC. Without `thread` `pid` must lead its process: EINVAL (ENOENT since 6.13) for another tid. ESRCH: nobody. */
export function pidfdOpen(pid: number, options: { thread?: boolean } = {}): number | Errno {
  return check(syscall4(PIDFD_OPEN, pid, options.thread === true ? PIDFD_THREAD : 0, 0, 0));
}

/** A descriptor of our own of the target's descriptor `fd`, with FD_CLOEXEC. It keeps the file open: close it soon. */
export function pidfdGetFd(pidfd: number, fd: number): number | Errno {
  return check(syscall4(PIDFD_GETFD, pidfd, fd, 0, 0));
}

export function pidfdSendSignal(pidfd: number, signal: number): Errno | undefined {
  return checkVoid(syscall4(PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0));
}

/** kill(2); signal 0 only asks. */
export function kill(pid: number, signal: number): Errno | undefined {
  return checkVoid(syscall4(KILL, pid, signal, 0, 0));
}

/** A signal to one thread. */
export function tgkill(pid: number, tid: number, signal: number): Errno | undefined {
  return checkVoid(syscall4(TGKILL, pid, tid, signal, 0));
}
