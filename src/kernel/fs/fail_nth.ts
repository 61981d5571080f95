/**
 * /proc/PID/fail-nth and make-it-fail: what a program tells fault injection of
 * one of its threads.
 *
 * Writing n to fail-nth has the n-th point that the thread reaches from now on
 * fail; 0 calls it off; a read tells what is left, 0 once it has failed. Reading
 * and writing are copies, and so are points themselves. make-it-fail is 1 for a
 * thread that the knobs with `task-filter` may pick; only CAP_SYS_RESOURCE may
 * set it.
 *
 * Source: proc_fail_nth_*, proc_fault_inject_* in fs/proc/base.c.
 */
import { EFAULT, EINVAL, EPERM, ERANGE, Errno } from "../../lib/errno.ts";
import type { Step, Task } from "../../sched/task.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { File, FileOps } from "./file.ts";

/** Digits that kstrto… reads of a write. */
const MOST_DIGITS = 35;

const taskOf = (f: File): Task => f.privateData as Task;

/** What a read of the whole text finds from `pos` on. */
function readText(f: File, text: string, buf: bigint, count: number, pos: bigint): number | Errno {
  if (pos >= BigInt(text.length)) return 0;
  const bytes = Uint8Array.from(text.slice(Number(pos), Number(pos) + count), (c) => c.charCodeAt(0));
  const left = copyToUser(f.kernel, buf, bytes);
  return left === bytes.length && left > 0 ? EFAULT : bytes.length - left;
}

/** A u32 in any base, as kstrtouint_from_user reads it. EFAULT, EINVAL, ERANGE. */
function readNumber(f: File, buf: bigint, count: number): number | Errno {
  const bytes = new Uint8Array(Math.min(count, MOST_DIGITS));
  if (copyFromUser(f.kernel, bytes, buf) > 0) return EFAULT;
  const end = bytes.indexOf(0);
  const text = String.fromCharCode(...(end < 0 ? bytes : bytes.subarray(0, end))).replace(/\n$/, "");
  const m = /^\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$/.exec(text)?.[1];
  if (m === undefined) return EINVAL;
  const value = Number(/^0[0-7]/.test(m) ? `0o${m.slice(1)}` : m);
  return value > 0xffff_ffff ? ERANGE : value;
}

const failNthOps: FileOps = {
  name: "fail-nth",
  *read(f, buf, count, pos): Step<number | Errno> {
    return readText(f, `${taskOf(f).failNth}\n`, buf, count, pos);
  },
  *write(f, buf, count): Step<number | Errno> {
    const n = readNumber(f, buf, count);
    if (n instanceof Errno) return n;
    f.kernel.fault.setNth(taskOf(f), n);
    return count;
  },
};

const makeItFailOps: FileOps = {
  name: "make-it-fail",
  *read(f, buf, count, pos): Step<number | Errno> {
    return readText(f, taskOf(f).makeItFail ? "1\n" : "0\n", buf, count, pos);
  },
  *write(f, buf, count): Step<number | Errno> {
    if (!f.kernel.current.capable("CAP_SYS_RESOURCE")) return EPERM;
    const n = readNumber(f, buf, count);
    if (n instanceof Errno) return n === ERANGE ? EINVAL : n;
    if (n > 1) return EINVAL;
    taskOf(f).makeItFail = n === 1;
    return count;
  },
};

export type TaskFaultFile = "fail-nth" | "make-it-fail";

/** An open one of them, of `task`. ENOMEM. */
export function openTaskFault(kernel: Kernel, what: TaskFaultFile, task: Task, flags: number, path: string): File | Errno {
  return kernel.fs.allocFile(what === "fail-nth" ? failNthOps : makeItFailOps, { flags, privateData: task, path });
}
