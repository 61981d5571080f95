/**
 * Locked memory: who is charged for pinned pages, and up to which limit.
 *
 * Three modes, as an I/O address space chooses: nobody (its opener holds
 * CAP_IPC_LOCK), the user (all processes of a uid together), or the mm alone
 * (what VFIO type1 did). The limit is the process's soft RLIMIT_MEMLOCK, looked
 * at when pages are charged. `pinnedVm` of the mm counts the pages in every
 * mode.
 *
 * Source: iopt_pages_update_pinned and around it (drivers/iommu/iommufd/pages.c),
 * __account_locked_vm (mm/util.c).
 */
import { EINVAL, ENOMEM, type Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { Process, Rlimits, UserStruct } from "../fs/process.ts";
import type { Mm } from "./mm.ts";

export type AccountMode = "none" | "user" | "mm";

/** Whom to charge: taken from the process that maps, and kept after it is gone. */
export interface AccountSource {
  readonly mm: Mm;
  readonly user: UserStruct;
  /** The process's own, so that a later setrlimit counts. */
  readonly rlimits: Readonly<Rlimits>;
}

/** The current process as a source. */
export const accountSourceOf = (p: Process): AccountSource => ({ mm: p.mm, user: p.creds.user, rlimits: p.rlimits });

/** How `p` is charged unless somebody chose the mm mode: not at all with CAP_IPC_LOCK. */
export const defaultAccountMode = (p: Process): AccountMode => (p.capable("CAP_IPC_LOCK") ? "none" : "user");

/** Charges pages. ENOMEM over the limit, EINVAL when an mm that must be charged is gone; then nothing is charged. */
export function charge(s: AccountSource, mode: AccountMode, npages: number): Errno | undefined {
  const limit = s.rlimits.memlock >> 12n;
  let error: Errno | undefined;
  if (mode === "user") {
    if (BigInt(s.user.lockedVm + npages) > limit) error = ENOMEM;
    else s.user.lockedVm += npages;
  } else if (mode === "mm") {
    if (!s.mm.alive) error = EINVAL;
    else if (BigInt(s.mm.lockedVm + npages) > limit) error = ENOMEM;
    else s.mm.lockedVm += npages;
  }
  traced(s, mode, npages, error === undefined);
  if (error === undefined) s.mm.pinnedVm += npages;
  return error;
}

/** Gives pages back. An mm that is gone took its charge with it. */
export function uncharge(s: AccountSource, mode: AccountMode, npages: number): void {
  if (mode === "user") {
    if (s.user.lockedVm < npages) throw new KernelBug(`uid ${s.user.uid}: ${npages} pages uncharged, ${s.user.lockedVm} are charged`);
    s.user.lockedVm -= npages;
  } else if (mode === "mm") {
    if (!s.mm.alive) return;
    if (s.mm.lockedVm < npages) throw new KernelBug(`mm: ${npages} pages uncharged, ${s.mm.lockedVm} are charged`);
    s.mm.lockedVm -= npages;
  }
  s.mm.pinnedVm -= npages;
  traced(s, mode, -npages, true);
}

/** `charge`, and `uncharge` for a negative count, under the locks that Linux takes: mmap_lock in mm mode. */
export function* update(s: AccountSource, mode: AccountMode, npages: number): Step<Errno | undefined> {
  const lock = mode === "mm" ? s.mm.mmapLock : undefined;
  if (lock !== undefined) yield* lock.downWrite();
  try {
    if (npages >= 0) return charge(s, mode, npages);
    uncharge(s, mode, -npages);
    return undefined;
  } finally {
    lock?.upWrite();
  }
}

function traced(s: AccountSource, mode: AccountMode, npages: number, ok: boolean): void {
  const { trace } = s.mm.kernel;
  if (trace.on) trace.emit({ type: "mm.account", mode, npages, ok });
}
