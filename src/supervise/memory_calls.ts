/**
 * Calls of the program that take pages away, seen before the real kernel does
 * them: pinned bytes among those pages are set apart first (`ProcessMemory`).
 *
 * | Call | Leaves |
 * |---|---|
 * | munmap | the range |
 * | mmap with MAP_FIXED (not _NOREPLACE) | what was in the range |
 * | mremap | what is cut off; what MREMAP_FIXED lands on; all of it when it moves |
 * | madvise MADV_DONTNEED, _DONTNEED_LOCKED | private pages of the range |
 * | brk, to a lower address | the heap above it |
 * | shmdt | the segment |
 * | exit_group, while other processes live | everything, if it is no more than 16 MiB |
 *
 * Every one of them is then done by the real kernel, so that one which fails
 * there has set apart bytes that are still mapped: those that fail for a reason
 * that shows in their arguments are left alone, and the rest (a sealed mapping,
 * no memory for a split) is rare and traced.
 *
 * A process in which nothing is pinned pays the trap and a look at two counters.
 */

import { PAGE_MASK_N } from "../lib/addr.ts";
import type { Step } from "../sched/task.ts";
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  MAP_SHARED,
  MAP_SHARED_VALIDATE,
  MAP_TYPE,
  MREMAP_DONTUNMAP,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
} from "../uapi/index.ts";
import { SYS_brk, SYS_exit_group, SYS_madvise, SYS_mmap, SYS_mremap, SYS_munmap, SYS_shmdt } from "./numbers.ts";
import { ProcessMemory } from "./process_memory.ts";
import type { Handler, Supervisor, TrappedCall } from "./types.ts";

const MADV_DONTNEED_LOCKED = 24;
/** One past the highest address of a program, with four levels of page tables. */
const TASK_SIZE = 0x7fff_ffff_f000n;
/** Most pages of a process that are set apart when it exits. */
const EXIT_LIMIT = 4096;

type Args = readonly bigint[];
const arg = (args: Args, n: number): bigint => args[n] ?? 0n;

function munmap(m: ProcessMemory, args: Args): void {
  if (isRange(arg(args, 0), arg(args, 1))) m.leaving(arg(args, 0), arg(args, 1), "munmap");
}

function mmap(m: ProcessMemory, args: Args): void {
  const flags = Number(arg(args, 3));
  const type = flags & MAP_TYPE;
  const known = type === MAP_PRIVATE || type === MAP_SHARED || type === MAP_SHARED_VALIDATE;
  if (!known || !isRange(arg(args, 0), arg(args, 1)) || (arg(args, 5) & PAGE_MASK_N) !== 0n) return;
  const fd = Number(BigInt.asIntN(32, arg(args, 4)));
  if ((flags & MAP_ANONYMOUS) === 0 && !m.hasDescriptor(fd)) return;
  m.leaving(arg(args, 0), arg(args, 1), "mmap");
}

/** Whole pages from `addr` on, below the end of the address space: what else there is, is EINVAL or ENOMEM. */
const isRange = (addr: bigint, length: bigint): boolean =>
  (addr & PAGE_MASK_N) === 0n && length > 0n && addr <= TASK_SIZE && length <= TASK_SIZE - addr;

function mremap(m: ProcessMemory, args: Args): void {
  const [addr, oldLength, newLength] = [arg(args, 0), pageUp(arg(args, 1)), pageUp(arg(args, 2))];
  const flags = Number(arg(args, 3));
  if (!isRange(addr, oldLength) || !isRange(addr, newLength)) return;
  const fixed = (flags & MREMAP_FIXED) !== 0;
  if (fixed && ((flags & MREMAP_MAYMOVE) === 0 || !isRange(arg(args, 4), newLength))) return;
  if (fixed) m.leaving(arg(args, 4), newLength, "mremap");
  if (newLength < oldLength) m.leaving(addr + newLength, oldLength - newLength, "mremap");
  const grows = newLength > oldLength && (flags & MREMAP_MAYMOVE) !== 0 && !fitsInPlace(m, addr, oldLength, newLength);
  if (fixed || grows || (flags & MREMAP_DONTUNMAP) !== 0) m.leaving(addr, oldLength, "mremap", { lost: "moved" });
}

/** Linux grows a mapping where it is if it ends there, and if nothing is in the way. */
function fitsInPlace(m: ProcessMemory, addr: bigint, oldLength: bigint, newLength: bigint): boolean {
  const vma = m.mappingFrom(addr);
  if (vma === undefined || vma.start > addr || vma.end !== addr + oldLength) return false;
  const next = m.mappingFrom(vma.end);
  return next === undefined || next.start >= addr + newLength;
}

function madvise(m: ProcessMemory, args: Args): void {
  if (isRange(arg(args, 0), arg(args, 1))) m.leaving(arg(args, 0), arg(args, 1), "madvise", { privateOnly: true });
}

function brk(m: ProcessMemory, args: Args): void {
  const end = pageUp(arg(args, 0));
  const heap = m.mappingFrom(arg(args, 0));
  // 0, or anything that is not in the heap, only asks where the heap ends.
  if (heap?.path === "[heap]" && heap.start <= end && heap.end > end) m.leaving(end, heap.end - end, "brk");
}

function shmdt(m: ProcessMemory, args: Args): void {
  const segment = m.mappingFrom(arg(args, 0));
  if (segment?.start === arg(args, 0) && segment.path.startsWith("/SYSV")) m.leaving(segment.start, segment.end - segment.start, "shmdt");
}

const pageUp = (n: bigint): bigint => (n + PAGE_MASK_N) & ~PAGE_MASK_N;

/** Traps the calls. */
export function registerMemoryCalls(supervisor: Supervisor): void {
  const pinned = ({ memory }: TrappedCall): boolean => memory instanceof ProcessMemory && memory.pinned;
  const before = (tell: (m: ProcessMemory, args: Args) => void): Handler =>
    Object.assign(
      function* (call: TrappedCall): Step<undefined> {
        tell(call.memory as ProcessMemory, call.args);
        return undefined;
      },
      { concerns: pinned },
    );
  supervisor.handle(SYS_munmap, before(munmap), { kind: "always" });
  supervisor.handle(SYS_mmap, before(mmap), { kind: "bits", arg: 3, bits: MAP_FIXED });
  supervisor.handle(SYS_mremap, before(mremap), { kind: "always" });
  supervisor.handle(SYS_madvise, before(madvise), { kind: "equals", arg: 2, values: [MADV_DONTNEED, MADV_DONTNEED_LOCKED] });
  supervisor.handle(SYS_brk, before(brk), { kind: "always" });
  // The last process takes every device with it: nobody is left to look.
  const exit = (m: ProcessMemory): void => {
    if (m.privatePins <= EXIT_LIMIT && [...supervisor.processes].length > 1) m.leaving(0n, m.end, "exit");
  };
  supervisor.handle(SYS_exit_group, before(exit), { kind: "always" });
  supervisor.handle(SYS_shmdt, before(shmdt), { kind: "always" });
}
