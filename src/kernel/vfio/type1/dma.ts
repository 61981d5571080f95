/**
 * One mapping of a type1 container, and the memory behind it.
 *
 * A mapping owns what it shows: frames of the process that made it, pinned and
 * charged to that process's locked memory; or device memory that the process has
 * mapped, which is neither. It is kept as runs of adjacent physical pages, since
 * that is how it stands in every domain.
 *
 * The charge goes to the memory of the process ("mm") and is limited by its
 * RLIMIT_MEMLOCK unless it has CAP_IPC_LOCK, with which it is only counted.
 *
 * Everything here is under the container's type1 lock.
 * Source: struct vfio_dma, vfio_pin_pages_remote, vfio_lock_acct (vfio_iommu_type1.c).
 */
import { PAGE_SHIFT, PAGE_SIZE_N, type Pfn } from "../../../lib/addr.ts";
import { EFAULT, ENOMEM, Errno, ESRCH } from "../../../lib/errno.ts";
import { ItreeNode } from "../../../lib/interval_tree.ts";
import type { Step } from "../../../sched/task.ts";
import type { Process } from "../../fs/process.ts";
import { IOMMU_WRITE } from "../../iommu/domain.ts";
import type { Kernel } from "../../kernel.ts";
import type { Mm } from "../../mm/mm.ts";

/** Adjacent physical pages. */
export interface Run {
  /** Offset in the mapping, bytes. */
  readonly offset: bigint;
  readonly pa: bigint;
  length: bigint;
  /** Device memory: not pinned, not charged. */
  readonly reserved: boolean;
}

/** Frames pinned at once. */
const BATCH = 512;

export class Dma extends ItreeNode {
  readonly kernel: Kernel;
  vaddr: bigint;
  /** IOMMU_READ, IOMMU_WRITE. */
  readonly prot: number;
  /** The process's memory has moved, and the new address is not known yet. */
  vaddrInvalid = false;
  readonly runs: Run[] = [];
  /** Whose limits apply. */
  #process: Process;
  #mm: Mm;
  #lockCap: boolean;
  /** Pages charged. */
  #locked = 0;

  constructor(process: Process, iova: bigint, last: bigint, vaddr: bigint, prot: number) {
    super(iova, last);
    this.kernel = process.kernel;
    this.vaddr = vaddr;
    this.prot = prot;
    this.#process = process;
    this.#lockCap = process.capable("CAP_IPC_LOCK");
    this.#mm = process.mm.grab();
  }

  get size(): bigint {
    return this.last - this.start + 1n;
  }

  /**
   * Pins and charges page after page; calls `map` for each run once the next one
   * begins. On an error some runs may be there: see `release`. EFAULT: no memory
   * there, or not with that access; ENOMEM: over the limit; what `map` says.
   */
  *pin(map: (run: Run) => Errno | undefined): Step<Errno | undefined> {
    let done = 0n;
    while (done < this.size) {
      const got = yield* this.#pinSome(this.vaddr + done, Number((this.size - done) >> BigInt(PAGE_SHIFT)));
      if (got instanceof Errno) return got;
      const e = yield* this.#take(done, got, map);
      if (e !== undefined) return e;
      done += BigInt(got.pas.length) * PAGE_SIZE_N;
    }
    const last = this.runs.at(-1);
    return last === undefined ? undefined : map(last);
  }

  /** Physical addresses of at least one page from `vaddr` on. */
  *#pinSome(vaddr: bigint, npages: number): Step<{ pas: bigint[]; reserved: boolean } | Errno> {
    const mm = this.#mm;
    yield* mm.mmapLock.downRead();
    try {
      let error: Errno = EFAULT;
      // What can be pinned up to a hole or to device memory: fewer, and fewer again.
      for (let n = Math.min(npages, BATCH); n >= 1; n >>>= 1) {
        const pfns = mm.memory.pin(vaddr, n, (this.prot & IOMMU_WRITE) !== 0);
        if (!(pfns instanceof Errno)) return { pas: pfns.map((p) => BigInt(p) << BigInt(PAGE_SHIFT)), reserved: false };
        error = pfns;
      }
      if (mm.memory.followPfnmap === undefined) return error;
      const pa = yield* mm.memory.followPfnmap(vaddr, (this.prot & IOMMU_WRITE) !== 0);
      if (pa === undefined) return error;
      return pa instanceof Errno ? pa : { pas: [pa], reserved: true };
    } finally {
      mm.mmapLock.upRead();
    }
  }

  /** Adds pages to the runs. They are the mapping's even when it fails. */
  *#take(
    offset: bigint,
    { pas, reserved }: { pas: bigint[]; reserved: boolean },
    map: (run: Run) => Errno | undefined,
  ): Step<Errno | undefined> {
    let error: Errno | undefined;
    pas.forEach((pa, i) => {
      const run = this.runs.at(-1);
      if (run !== undefined && run.reserved === reserved && run.pa + run.length === pa) {
        run.length += PAGE_SIZE_N;
        return;
      }
      if (run !== undefined && error === undefined) error = map(run);
      this.runs.push({ offset: offset + BigInt(i) * PAGE_SIZE_N, pa, length: PAGE_SIZE_N, reserved });
    });
    if (error !== undefined || reserved) return error;
    const e = yield* this.#account(pas.length);
    if (e === undefined) this.#locked += pas.length;
    return e;
  }

  /** Unpins everything and gives the charge back; a process that is gone took it with it. Nothing is mapped any more. */
  *release(): Step<void> {
    for (const run of this.runs) {
      if (run.reserved) continue;
      const first = Number(run.pa >> BigInt(PAGE_SHIFT));
      const pfns = Array.from({ length: Number(run.length >> BigInt(PAGE_SHIFT)) }, (_, i) => (first + i) as Pfn);
      this.#mm.memory.unpin(pfns, (this.prot & IOMMU_WRITE) !== 0);
    }
    this.runs.length = 0;
    if (this.#locked > 0) yield* this.#uncharge();
    this.#mm.drop();
  }

  *#uncharge(): Step<void> {
    if (this.#mm.getNotZero()) {
      yield* this.#account(-this.#locked);
      this.#mm.put();
    }
    this.#locked = 0;
  }

  /** The calling process takes the mapping and its charge over. ENOMEM: over its limit. */
  *changeOwner(): Step<Errno | undefined> {
    const process = this.kernel.current;
    if (process.mm === this.#mm) return undefined;
    const lockCap = process.capable("CAP_IPC_LOCK");
    const e = yield* account(process, process.mm, lockCap, this.#locked);
    if (e !== undefined) return e;
    const locked = this.#locked;
    yield* this.#uncharge();
    this.#locked = locked;
    this.#mm.drop();
    this.#process = process;
    this.#mm = process.mm.grab();
    this.#lockCap = lockCap;
    return undefined;
  }

  *#account(npages: number): Step<Errno | undefined> {
    return this.#mm.alive ? yield* account(this.#process, this.#mm, this.#lockCap, npages) : ESRCH;
  }
}

function* account(process: Process, mm: Mm, lockCap: boolean, npages: number): Step<Errno | undefined> {
  yield* mm.mmapLock.downWrite();
  try {
    if (npages > 0 && !lockCap && BigInt(mm.lockedVm + npages) > process.rlimits.memlock >> BigInt(PAGE_SHIFT)) return ENOMEM;
    mm.lockedVm += npages;
    const { trace } = mm.kernel;
    if (trace.on) trace.emit({ type: "mm.account", mode: "mm", npages, ok: true });
    return undefined;
  } finally {
    mm.mmapLock.upWrite();
  }
}
