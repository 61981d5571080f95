/**
 * The program's seccomp filter: which calls come to us.
 *
 * Everything else runs at full speed, and a number that is never trapped is
 * even answered from the kernel's bitmap without running the filter. Calls of
 * another ABI pass: the file opens among them are reported, so that whoever
 * runs a 32-bit program is told why it sees no devices.
 */
import { readFileSync } from "node:fs";
import {
  arch,
  BpfAssembler,
  readMaps,
  SECCOMP_DATA_ARGS,
  SECCOMP_DATA_IP,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_USER_NOTIF,
} from "../host/index.ts";
import {
  SYS_brk,
  SYS_execve,
  SYS_execveat,
  SYS_exit_group,
  SYS_madvise,
  SYS_mmap,
  SYS_mremap,
  SYS_munmap,
  SYS_write,
  SYS_writev,
} from "./numbers.ts";
import type { When } from "./types.ts";

export const AUDIT_ARCH_I386 = 0x4000_0003;
/** The bit that marks the x32 ABI in a call's number. */
export const X32_BIT = 0x4000_0000;
/** open, openat of i386. */
const I386_OPENS = [5, 295];
const SIGN = 0x8000_0000;

/** Machine code, by address. */
export interface CodeRange {
  readonly start: bigint;
  /** Open. */
  readonly end: bigint;
}

/**
 * What the thread that starts the program calls once it is bound by the filter,
 * until its own end, and what the child calls that becomes the program.
 *
 * The thread gives back memory under locks that all threads of this process
 * share: if such a call waited for an answer, whoever must answer could be
 * waiting for the lock. The child has a copy of the listener until its execve:
 * if that waited, and barlink were killed, it would wait for ever. So these
 * calls are recognised, by where they are made from, and never trapped.
 */
const OF_THE_START: readonly number[] = [
  SYS_munmap,
  SYS_madvise,
  SYS_mmap,
  SYS_mremap,
  SYS_brk,
  SYS_write,
  SYS_writev,
  SYS_execve,
  SYS_execveat,
  SYS_exit_group,
];

const ADDR_NO_RANDOMIZE = 0x0004_0000;

/**
 * Where this process's C library makes its system calls from. undefined where
 * addresses are not randomised: a program's library would lie at the same place.
 */
export function ownLibrary(): CodeRange | undefined {
  const personality = Number.parseInt(readFileSync("/proc/self/personality", "utf8"), 16);
  if ((personality & ADDR_NO_RANDOMIZE) !== 0) return undefined;
  const code = readMaps(process.pid)?.find((m) => m.executable && /\/(libc[.-]|ld-musl-)[^/]*$/.test(m.path));
  return code !== undefined && code.start >> 32n === (code.end - 1n) >> 32n ? code : undefined;
}

/** Compiles the filter: number → conditions, any of which traps the call. `own`: code whose calls of the start are let through. */
export function compileFilter(traps: ReadonlyMap<number, readonly When[]>, own?: CodeRange): Uint8Array {
  const a = new BpfAssembler();
  a.loadArch().if("eq", arch.audit, "native");
  if (arch.name === "x64") {
    a.if("eq", AUDIT_ARCH_I386, undefined, "allow-i386").loadNr();
    for (const nr of I386_OPENS) a.if("eq", nr, "trap-i386");
    a.label("allow-i386").ret(SECCOMP_RET_ALLOW).label("trap-i386").ret(SECCOMP_RET_USER_NOTIF);
  } else {
    a.ret(SECCOMP_RET_ALLOW);
  }
  a.label("native").loadNr();
  for (const nr of traps.keys()) {
    a.if("eq", nr, `call${nr}`);
    const openat = arch.numbers.get("openat");
    if (nr === openat && arch.name === "x64") a.if("eq", (nr | X32_BIT) >>> 0, "trap-x32");
  }
  a.ret(SECCOMP_RET_ALLOW).label("trap-x32").ret(SECCOMP_RET_USER_NOTIF);
  for (const [nr, whens] of traps) {
    a.label(`call${nr}`);
    if (own !== undefined && OF_THE_START.includes(nr)) allowFrom(a, own, `elsewhere${nr}`);
    if (whens.some((w) => w.kind === "always")) {
      a.ret(SECCOMP_RET_USER_NOTIF);
      continue;
    }
    whens.forEach((w, i) => {
      condition(a, w, `trap${nr}`, `next${nr}.${i}`);
    });
    a.ret(SECCOMP_RET_ALLOW).label(`trap${nr}`).ret(SECCOMP_RET_USER_NOTIF);
  }
  return a.assemble();
}

function allowFrom(a: BpfAssembler, own: CodeRange, elsewhere: string): void {
  a.load(SECCOMP_DATA_IP + 4).if("eq", Number(own.start >> 32n), undefined, elsewhere);
  a.load(SECCOMP_DATA_IP).if("ge", Number(own.start & 0xffff_ffffn), undefined, elsewhere);
  a.if("gt", Number((own.end - 1n) & 0xffff_ffffn), elsewhere)
    .ret(SECCOMP_RET_ALLOW)
    .label(elsewhere);
}

/** The same test, of a call that was trapped for any reason. */
export function matches(w: When, args: readonly bigint[]): boolean {
  if (w.kind === "always") return true;
  const arg = args[w.arg] as bigint;
  const low = Number(arg & 0xffff_ffffn);
  switch (w.kind) {
    case "ioctl-type":
      return w.types.includes((low >>> 8) & 0xff);
    case "equals":
      return w.values.some((v) => v >>> 0 === low);
    case "high-half": {
      const high = Number(arg >> 32n);
      return high < SIGN && high >= w.least;
    }
    case "at-most":
      return arg <= BigInt(w.most);
    case "multiple":
      return arg >> 32n === 0n && low % w.of === 0;
    case "bits":
      return (low & w.bits) >>> 0 === w.bits >>> 0;
  }
}

function condition(a: BpfAssembler, w: When, trap: string, next: string): void {
  switch (w.kind) {
    case "always":
      a.goto(trap);
      break;
    case "ioctl-type":
      a.loadArgLow(w.arg).alu("rsh", 8).and(0xff);
      for (const t of w.types) a.if("eq", t, trap);
      break;
    case "equals":
      a.loadArgLow(w.arg);
      for (const v of w.values) a.if("eq", v >>> 0, trap);
      break;
    case "high-half":
      a.loadArgHigh(w.arg).if("ge", SIGN, next).if("ge", w.least, trap).label(next);
      break;
    case "at-most":
      a.loadArgHigh(w.arg).if("eq", 0, undefined, next).loadArgLow(w.arg).if("gt", w.most, next, trap).label(next);
      break;
    case "multiple":
      a.loadArgHigh(w.arg)
        .if("eq", 0, undefined, next)
        .loadRest(SECCOMP_DATA_ARGS + 8 * w.arg, w.of)
        .if("eq", 0, trap)
        .label(next);
      break;
    case "bits":
      a.loadArgLow(w.arg)
        .and(w.bits >>> 0)
        .if("eq", w.bits >>> 0, trap);
      break;
  }
}
