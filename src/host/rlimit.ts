/** Limits of a process (prlimit(2)). */
import { readFileSync } from "node:fs";
import type { Errno } from "../lib/errno.ts";
import { checkVoid, nr, reserve, syscall4 } from "./ffi.ts";

export const RLIMIT_FSIZE = 1;
export const RLIMIT_NOFILE = 7;
export const RLIMIT_MEMLOCK = 8;
export const RLIM_INFINITY = 0xffff_ffff_ffff_ffffn;

export interface Rlimit {
  readonly soft: bigint;
  readonly hard: bigint;
}

const PRLIMIT = nr("prlimit64");
const next = reserve(16);
const previous = reserve(16);

/** A limit of `pid`, 0 for this process. EPERM: not ours. */
export function getRlimit(pid: number, resource: number): Rlimit | Errno {
  return (
    checkVoid(syscall4(PRLIMIT, pid, resource, 0, previous.address)) ?? { soft: previous.u64[0] as bigint, hard: previous.u64[1] as bigint }
  );
}

export function setRlimit(pid: number, resource: number, limit: Rlimit): Errno | undefined {
  next.u64[0] = limit.soft;
  next.u64[1] = limit.hard;
  return checkVoid(syscall4(PRLIMIT, pid, resource, next.address, 0));
}

/**
 * The soft limit on descriptors with which this process was started, which Node has raised to the hard one before any of
 * our code ran: the parent's, as far as that can be read. undefined: it cannot, or it is no lower.
 */
export function inheritedNofile(): bigint | undefined {
  try {
    const row = /^Max open files\s+(\d+)\s+(\d+|unlimited)/m.exec(readFileSync(`/proc/${process.ppid}/limits`, "latin1"));
    return row?.[1] === undefined ? undefined : BigInt(row[1]);
  } catch {
    return undefined;
  }
}
