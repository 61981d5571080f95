/**
 * Filters with a listener (linux/seccomp.h). A filter binds the calling thread and what it starts, and nobody else: see
 * `spawn.ts` for how that is used.
 */
import type { Errno } from "../lib/errno.ts";
import { checkVoid, lastErrno, nr, reserve, scratch, syscall4 } from "./ffi.ts";
import { must } from "./host_error.ts";
import { PR_SET_NO_NEW_PRIVS, prctl } from "./prctl.ts";

export const SECCOMP_SET_MODE_FILTER = 1;
export const SECCOMP_GET_ACTION_AVAIL = 2;
export const SECCOMP_GET_NOTIF_SIZES = 3;

export const SECCOMP_FILTER_FLAG_TSYNC = 0x01;
export const SECCOMP_FILTER_FLAG_NEW_LISTENER = 0x08;
/** A signal does not interrupt a call whose notification was received; only a fatal one does. Linux 5.19. */
export const SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 0x20;

export const SECCOMP_RET_KILL_PROCESS = 0x8000_0000;
export const SECCOMP_RET_KILL_THREAD = 0x0000_0000;
export const SECCOMP_RET_TRAP = 0x0003_0000;
/** The low 16 bits are the errno. */
export const SECCOMP_RET_ERRNO = 0x0005_0000;
export const SECCOMP_RET_USER_NOTIF = 0x7fc0_0000;
export const SECCOMP_RET_TRACE = 0x7ff0_0000;
export const SECCOMP_RET_LOG = 0x7ffc_0000;
export const SECCOMP_RET_ALLOW = 0x7fff_0000;

const SECCOMP = nr("seccomp");
const fprog = reserve(16);

/**
 * Puts `program` (of `BpfAssembler.assemble`) on this thread, for good, and returns the listener's descriptor. no_new_privs
 * is set first, so that no privilege is needed. EBUSY: a filter with a listener is in force already. Throws nothing.
 */
export function installListener(program: Uint8Array): number | Errno {
  const refused = prctl(PR_SET_NO_NEW_PRIVS, 1);
  if (typeof refused !== "number") return refused;
  scratch.bytes.set(program);
  fprog.u64[0] = 0n;
  fprog.u32[0] = program.length / 8;
  fprog.u64[1] = BigInt(scratch.address);
  const flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  const fd = syscall4(SECCOMP, SECCOMP_SET_MODE_FILTER, flags, fprog.address, 0);
  return fd === -1 ? lastErrno() : fd;
}

/** Whether the kernel knows an action, SECCOMP_RET_*: `undefined` when it does, EOPNOTSUPP when not, ENOSYS without seccomp. */
export function seccompActionMissing(action: number): Errno | undefined {
  scratch.u32[0] = action;
  return checkVoid(syscall4(SECCOMP, SECCOMP_GET_ACTION_AVAIL, 0, scratch.address, 0));
}

/** The sizes of the kernel's structs. Throws HostError without seccomp. */
export function seccompNotifSizes(): { notif: number; response: number; data: number } {
  scratch.u32.fill(0, 0, 2);
  const failed = checkVoid(syscall4(SECCOMP, SECCOMP_GET_NOTIF_SIZES, 0, scratch.address, 0));
  if (failed !== undefined) must("seccomp", failed, "sizes of a notification");
  const word = scratch.u32[0] ?? 0;
  return { notif: word & 0xffff, response: word >>> 16, data: (scratch.u32[1] ?? 0) & 0xffff };
}
