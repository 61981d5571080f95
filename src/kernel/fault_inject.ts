/**
 * Fault injection: which allocations and copies of user memory fail.
 *
 * Wherever Linux's code may run out of memory or fault, this kernel asks its
 * one hook: `slab` for kmalloc and its kin, xarray entries among them, `page`
 * for whole pages, `userCopy` for copies from and to user memory, `iommufd` for
 * the places at which iommufd's own test code asks. True means: fail now, as if
 * there were no memory; the caller then undoes what it did and answers ENOMEM
 * (EFAULT for a copy). What is asked about is named after the thing that Linux
 * allocates there, so that a failure can be told from another.
 *
 * An object of this kernel takes no memory that could run out, so nothing fails
 * unless somebody decides so. With nobody to decide, the hook is the test of
 * one field. The decision is replaceable (`decide`): by default the knobs make
 * it (`fault_attr.ts`: failslab and the others of debugfs, and the fail-nth of
 * the calling thread); a test or an explorer of schedules can put another in
 * their place, and be asked about every point instead.
 *
 * Where Linux cannot fail (`__GFP_NOFAIL`, memory set aside before, a teardown)
 * nobody is asked. A point comes before the allocation has any effect: whoever
 * is told to fail has nothing of that one thing to undo.
 *
 * Source: lib/fault-inject.c, mm/failslab.c, mm/fail_page_alloc.c,
 * lib/fault-inject-usercopy.c; include/linux/uaccess.h for which copies ask
 * (get_user, put_user and clear_user do not); iommufd_should_fail.
 */
import type { Task } from "../sched/task.ts";
import { FaultKnobs } from "./fault_attr.ts";
import type { Kernel } from "./kernel.ts";

/** Who asks; the name of its directory in debugfs. */
export type FaultName = "failslab" | "fail_page_alloc" | "fail_usercopy" | "fail_iommufd";

/** One place at which something may fail, at the moment it is reached. */
export interface FaultPoint {
  readonly name: FaultName;
  /** The thing that is to be made, or "copy". */
  readonly what: string;
  /** Bytes of a slab object, pages, or 1. */
  readonly size: number;
  /** The allocation may wait for memory to be reclaimed: all but those in atomic context. */
  readonly mayWait: boolean;
  /** Pages for user space. */
  readonly highmem: boolean;
}

/** True: it fails. */
export type FaultDecision = (point: FaultPoint) => boolean;

/** Objects here have no size: what one counts against the attribute `space`, bytes, unless the place says better. */
const OBJECT_SIZE = 64;

export class FaultInjection {
  readonly knobs: FaultKnobs;
  readonly #kernel: Kernel;
  /** Undefined: nothing fails, and nobody is asked. */
  #decide: FaultDecision | undefined = undefined;
  #replaced: FaultDecision | undefined = undefined;

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
    this.knobs = new FaultKnobs(kernel, () => this.#choose());
  }

  /** An allocation of kmalloc's that may sleep. `size`: bytes, where they are known. True: it fails with ENOMEM. */
  slab(what: string, size: number = OBJECT_SIZE): boolean {
    return this.#decide !== undefined && this.#ask({ name: "failslab", what, size, mayWait: true, highmem: false });
  }

  /** One in atomic context, or that must not wait (GFP_ATOMIC, GFP_NOWAIT). */
  slabAtomic(what: string, size: number = OBJECT_SIZE): boolean {
    return this.#decide !== undefined && this.#ask({ name: "failslab", what, size, mayWait: false, highmem: false });
  }

  /** 2^order adjacent pages for the kernel's own use. */
  page(what: string, order = 0): boolean {
    return this.#decide !== undefined && this.#ask({ name: "fail_page_alloc", what, size: 2 ** order, mayWait: true, highmem: false });
  }

  /** The same for user space. */
  userPage(what: string, order = 0): boolean {
    return this.#decide !== undefined && this.#ask({ name: "fail_page_alloc", what, size: 2 ** order, mayWait: true, highmem: true });
  }

  /** A copy from or to user memory; of its bytes none is copied then. */
  userCopy(): boolean {
    return this.#decide !== undefined && this.#ask({ name: "fail_usercopy", what: "copy", size: 1, mayWait: true, highmem: false });
  }

  /** A place where iommufd has itself tested; only a kernel with its selftest asks. */
  iommufd(what: string): boolean {
    return this.#decide !== undefined && this.#ask({ name: "fail_iommufd", what, size: 1, mayWait: true, highmem: false });
  }

  /** Puts `decision` in the place of the knobs; undefined gives it back to them. */
  decide(decision: FaultDecision | undefined): void {
    this.#replaced = decision;
    this.#choose();
  }

  /** The n-th point that `task` reaches from now on fails, and no other; 0: none. `Task.failNth` tells how many are left. */
  setNth(task: Task, n: number): void {
    task.failNth = n;
    this.knobs.armNth(n);
  }

  #choose(): void {
    this.#decide = this.#replaced ?? (this.knobs.armed ? (p) => this.knobs.shouldFail(p) : undefined);
  }

  #ask(point: FaultPoint): boolean {
    const fails = this.#decide?.(point) === true;
    const { trace } = this.#kernel;
    if (fails && trace.on) trace.emit({ type: "mm.fail", by: point.name, what: point.what });
    return fails;
  }
}
