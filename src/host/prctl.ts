/** What a process asks of itself (linux/prctl.h). */
import type { Errno } from "../lib/errno.ts";
import { check, nr, syscall6 } from "./ffi.ts";

export const PR_SET_PDEATHSIG = 1;
export const PR_GET_DUMPABLE = 3;
export const PR_SET_DUMPABLE = 4;
export const PR_SET_NAME = 15;
export const PR_SET_CHILD_SUBREAPER = 36;
export const PR_GET_CHILD_SUBREAPER = 37;
export const PR_SET_NO_NEW_PRIVS = 38;
export const PR_GET_NO_NEW_PRIVS = 39;
/** Lets a process that is no ancestor read this one's memory, where Yama restricts that; ENOSYS or EINVAL without Yama. */
export const PR_SET_PTRACER = 0x5961_6d61;

const PRCTL = nr("prctl");

export function prctl(option: number, a = 0, b = 0, c = 0, d = 0): number | Errno {
  return check(syscall6(PRCTL, option, a, b, c, d, 0));
}

/** Orphans among this process's descendants become its children, to be waited for. */
export function setChildSubreaper(on: boolean): Errno | undefined {
  const r = prctl(PR_SET_CHILD_SUBREAPER, on ? 1 : 0);
  return typeof r === "number" ? undefined : r;
}
