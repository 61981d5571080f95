/**
 * An eventfd that makes the kernel do something when it is signalled.
 *
 * The signal is consumed: the counter goes back to zero. `handler` runs where
 * the signal came from and may not sleep; when it answers true, `thread` runs
 * in a worker; signals that come before the worker has begun count as one.
 * The eventfd's last close ends it. Whoever ends it waits for the worker, which
 * uses what is about to be taken down.
 * Source: drivers/vfio/virqfd.c.
 */
import { EBUSY, ENOMEM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { Completion } from "../../sched/wait.ts";
import { type EventfdCtx, eventfdCtxFromFd } from "../fs/eventfd.ts";
import type { Kernel } from "../kernel.ts";

export class Virqfd {
  readonly #kernel: Kernel;
  readonly #ctx: EventfdCtx;
  readonly #handler: () => boolean;
  readonly #thread: () => Step<void>;
  #active = true;
  /** A worker that has not begun. */
  #queued = false;
  /** Workers that have not ended. */
  #working = 0;
  /** Ends with the last of them. */
  #idle: Completion | undefined = undefined;

  private constructor(kernel: Kernel, ctx: EventfdCtx, handler: () => boolean, thread: () => Step<void>) {
    this.#kernel = kernel;
    this.#ctx = ctx;
    this.#handler = handler;
    this.#thread = thread;
  }

  /**
   * Listens to descriptor `fd` of the current process; an eventfd that is
   * already signalled counts at once. ENOMEM, EBADF, EINVAL; EBUSY when `busy`: one is
   * there already, which is looked at after the descriptor.
   */
  static enable(kernel: Kernel, fd: number, busy: boolean, handler: () => boolean, thread: () => Step<void>): Virqfd | Errno {
    if (kernel.fault.slab("virqfd")) return ENOMEM;
    const ctx = eventfdCtxFromFd(kernel.current, fd);
    if (ctx instanceof Errno) return ctx;
    if (busy) {
      ctx.put();
      return EBUSY;
    }
    const v = new Virqfd(kernel, ctx, handler, thread);
    ctx.pollQueue.add(v.#wakeup);
    if (ctx.count > 0n) v.#run();
    return v;
  }

  /** Listens no more, and waits for a worker that is under way. No lock held that the thread takes. */
  *disable(): Step<void> {
    this.#deactivate();
    yield* this.flush();
  }

  /** Waits for a worker that is under way. */
  *flush(): Step<void> {
    if (this.#working === 0) return;
    this.#idle ??= new Completion(this.#kernel.sched, "vfio-irqfd");
    yield* this.#idle.wait();
  }

  #deactivate(): void {
    if (!this.#active) return;
    this.#active = false;
    this.#ctx.pollQueue.remove(this.#wakeup);
    this.#ctx.put();
  }

  /** Still listening: neither disabled nor hung up. */
  get active(): boolean {
    return this.#active;
  }

  readonly #wakeup = (hungUp: boolean): void => {
    if (hungUp) this.#deactivate();
    else if (this.#active && this.#ctx.consume() > 0n) this.#run();
  };

  #run(): void {
    if (!this.#handler() || this.#queued) return;
    this.#queued = true;
    this.#working++;
    this.#kernel.sched.spawn("vfio-irqfd", () => this.#work());
  }

  *#work(): Step<void> {
    this.#queued = false;
    try {
      yield* this.#thread();
    } finally {
      this.#working--;
      if (this.#working === 0) {
        this.#idle?.completeAll();
        this.#idle = undefined;
      }
    }
  }
}
