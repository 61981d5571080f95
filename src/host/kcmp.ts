/** Whether two tasks share something, or two descriptors an open file (kcmp(2)). Needs CONFIG_KCMP. */
import type { Errno } from "../lib/errno.ts";
import { check, nr, syscall6 } from "./ffi.ts";

const KCMP = nr("kcmp");
/** What two tasks can share. `files`: the table of descriptors; `vm`: memory. */
const RESOURCES = { vm: 1, files: 2, fs: 3, sighand: 4 } as const;
const KCMP_FILE = 0;

/** EPERM: one of them is not ours to look into; ESRCH: gone. */
export function sharesResource(pidA: number, pidB: number, resource: keyof typeof RESOURCES): boolean | Errno {
  return equal(check(syscall6(KCMP, pidA, pidB, RESOURCES[resource], 0, 0, 0)));
}

/** The two descriptors are of one open file. EBADF: one of them is not open. */
export function sameOpenFile(pidA: number, fdA: number, pidB: number, fdB: number): boolean | Errno {
  return equal(check(syscall6(KCMP, pidA, pidB, KCMP_FILE, fdA, fdB, 0)));
}

function equal(order: number | Errno): boolean | Errno {
  return typeof order === "number" ? order === 0 : order;
}
