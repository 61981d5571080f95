/** Who a task is, by calls that cost a tenth of reading its status (capget(2), ioctl_pidfd(2)). */
import { ENOTTY, type Errno } from "../lib/errno.ts";
import { checkVoid, ioctl, lastErrno, nr, reserve, syscall4 } from "./ffi.ts";

const CAPGET = nr("capget");
/** Two words for each set. */
const CAPABILITY_VERSION_3 = 0x2008_0522;
/** struct pidfd_info as Linux 6.13 had it first: 64 bytes. */
const PIDFD_GET_INFO = 0xc040_ff0b;
const INFO_CREDS = 2n;
const RUID = 7;
const EUID = 9;

const header = reserve(8);
const sets = reserve(24);
const info = reserve(64);

/** Effective capabilities of a thread, a bit each. ESRCH. */
export function effectiveCapabilities(tid: number): bigint | Errno {
  header.u32[0] = CAPABILITY_VERSION_3;
  header.u32[1] = tid;
  const failed = checkVoid(syscall4(CAPGET, header.address, sets.address, 0, 0));
  if (failed !== undefined) return failed;
  return BigInt(sets.u32[0] as number) | (BigInt(sets.u32[3] as number) << 32n);
}

/** Real and effective user of what a pidfd names. ENOTTY, EINVAL: before Linux 6.13. ESRCH: gone. */
export function usersOf(pidfd: number): { readonly real: number; readonly effective: number } | Errno {
  info.u64.fill(0n);
  if (ioctl(pidfd, PIDFD_GET_INFO, info.address) === -1) return lastErrno();
  if (((info.u64[0] as bigint) & INFO_CREDS) === 0n) return ENOTTY;
  return { real: info.u32[RUID] as number, effective: info.u32[EUID] as number };
}
