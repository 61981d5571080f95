/**
 * Fences: one-shot promises that some work on a buffer will end.
 *
 * A fence belongs to a context (a timeline) and has a place on it (`seqno`);
 * of two fences of one context the later implies the earlier. It is signalled
 * once, possibly with an error, and never goes back. A fence array stands for
 * several and is signalled when all of them are.
 *
 * Signalling may happen outside of any task (a timer, a device). Callbacks run
 * right there, must not sleep, and each runs once.
 *
 * Source: drivers/dma-buf/dma-fence.c, dma-fence-array.c, dma-fence-unwrap.c.
 */
import type { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Sched } from "../../sched/sched.ts";
import type { Step } from "../../sched/task.ts";
import { WaitQueue } from "../../sched/wait.ts";

export type FenceCallback = (fence: DmaFence) => void;

export interface DmaFenceInfo {
  /** Number of the timeline; fences of two timelines are never compared. */
  readonly context: bigint;
  /** Place on the timeline. */
  readonly seqno: bigint;
  readonly driver: string;
  readonly timeline: string;
}

export class DmaFence {
  readonly context: bigint;
  readonly seqno: bigint;
  readonly driver: string;
  readonly timeline: string;
  /** Why the work failed, when it did; set before the signal. */
  error: Errno | undefined = undefined;
  /** Virtual time of the signal, ns; meaningful once signalled. */
  timestamp = 0;
  /** The earliest time anybody asked for, virtual ns; a hint to whoever signals. */
  deadline: bigint | undefined = undefined;
  protected readonly sched: Sched;
  #signalled = false;
  #callbacks: FenceCallback[] = [];
  /** Made for the first waiter: most fences are never waited for. */
  #waiters: WaitQueue | undefined = undefined;

  constructor(sched: Sched, info: DmaFenceInfo) {
    this.sched = sched;
    this.context = info.context;
    this.seqno = info.seqno;
    this.driver = info.driver;
    this.timeline = info.timeline;
  }

  get name(): string {
    return `fence ${this.driver}-${this.timeline}`;
  }

  get signalled(): boolean {
    this.sched.observer?.touched?.(this);
    return this.#signalled;
  }

  /** 0 pending, 1 done, or the negative errno of the failure: what user space is shown. */
  get status(): number {
    if (!this.#signalled) return 0;
    return this.error === undefined ? 1 : -this.error.code;
  }

  /** Ends it: wakes the waiters and runs the callbacks. Throws `KernelBug` when it has ended already. */
  signal(error?: Errno): void {
    if (this.#signalled) throw new KernelBug(`fence ${this.driver}-${this.timeline}${this.context}-${this.seqno} is signalled twice`);
    this.sched.observer?.touched?.(this);
    this.error = error;
    this.#signalled = true;
    this.timestamp = this.sched.now;
    const callbacks = this.#callbacks;
    this.#callbacks = [];
    for (const fn of callbacks) fn(this);
    this.#waiters?.wakeUp();
  }

  /** `fn` runs at the signal; false, and it never runs, when that is past. */
  addCallback(fn: FenceCallback): boolean {
    if (this.#signalled) return false;
    this.#callbacks.push(fn);
    return true;
  }

  /** Takes `fn` back; false when it has run. */
  removeCallback(fn: FenceCallback): boolean {
    const i = this.#callbacks.indexOf(fn);
    if (i < 0) return false;
    this.#callbacks.splice(i, 1);
    return true;
  }

  /** On one timeline: does this end no earlier than `other`? */
  isLaterOrSame(other: DmaFence): boolean {
    return this === other || (this.context === other.context && this.seqno >= other.seqno);
  }

  setDeadline(ns: bigint): void {
    if (this.deadline === undefined || ns < this.deadline) this.deadline = ns;
  }

  /**
   * Waits for the signal for at most `timeout` ns (`Infinity`: for ever).
   * Answers what is left of the time (at least 1), 0 when it ran out, EINTR
   * when `intr` and a signal is pending.
   */
  *waitTimeout(intr: boolean, timeout: number): Step<number | Errno> {
    if (this.signalled) return Math.max(timeout, 1);
    if (timeout === 0) return 0;
    this.#waiters ??= new WaitQueue(this.sched, this.name);
    const queue = this.#waiters;
    const until = this.sched.now + timeout;
    let over = false;
    const timer =
      timeout === Number.POSITIVE_INFINITY
        ? undefined
        : this.sched.timer(timeout, () => {
            over = true;
            queue.wakeUp();
          });
    const ended = (): boolean => this.#signalled || over;
    try {
      if (intr) {
        const err = yield* queue.waitEventInterruptible(ended);
        if (err !== undefined) return err;
      } else {
        yield* queue.waitEvent(ended);
      }
    } finally {
      timer?.cancel();
    }
    return this.#signalled ? Math.max(until - this.sched.now, 1) : 0;
  }
}

/** Several fences as one; never itself put into a reservation. */
export class DmaFenceArray extends DmaFence {
  readonly fences: readonly DmaFence[];

  constructor(sched: Sched, context: bigint, fences: readonly DmaFence[]) {
    super(sched, { context, seqno: 1n, driver: "dma_fence_array", timeline: "unbound" });
    this.fences = fences;
    let pending = fences.length;
    let error: Errno | undefined;
    const done = (f: DmaFence): void => {
      error ??= f.error;
      if (--pending === 0) this.signal(error);
    };
    for (const f of fences) if (!f.addCallback(done)) done(f);
  }

  override setDeadline(ns: bigint): void {
    for (const f of this.fences) f.setDeadline(ns);
  }
}

/** The plain fences that `fence` stands for. */
export function unwrapFence(fence: DmaFence): readonly DmaFence[] {
  return fence instanceof DmaFenceArray ? fence.fences : [fence];
}

/** Hands out timelines and the fence that was always signalled; one per kernel. */
export class FenceContexts {
  readonly #sched: Sched;
  #next = 1n;
  #stub: DmaFence | undefined = undefined;

  constructor(sched: Sched) {
    this.#sched = sched;
  }

  /** The first of `n` fresh timelines. */
  alloc(n = 1): bigint {
    const first = this.#next;
    this.#next += BigInt(n);
    return first;
  }

  /** Stands where a fence is wanted and nothing is pending. */
  stub(): DmaFence {
    if (this.#stub === undefined) {
      this.#stub = new DmaFence(this.#sched, { context: this.alloc(), seqno: 0n, driver: "stub", timeline: "stub" });
      this.#stub.signal();
    }
    return this.#stub;
  }
}
