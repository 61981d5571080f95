/**
 * An eventfd that makes the kernel do something when it is signalled.
 *
 * The signal is consumed: the counter goes back to zero. `handler` runs where
 * the signal came from and may not sleep; when it answers true, `thread` runs
 * in a worker. The eventfd's last close ends it.
 * Source: drivers/vfio/virqfd.c.
 */
import { EBUSY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { type EventfdCtx, eventfdCtxFromFd } from "../fs/eventfd.ts";
import type { Kernel } from "../kernel.ts";

export class Virqfd {
  readonly #kernel: Kernel;
  readonly #ctx: EventfdCtx;
  readonly #handler: () => boolean;
  readonly #thread: () => Step<void>;
  #active = true;

  private constructor(kernel: Kernel, ctx: EventfdCtx, handler: () => boolean, thread: () => Step<void>) {
    this.#kernel = kernel;
    this.#ctx = ctx;
    this.#handler = handler;
    this.#thread = thread;
  }

  /**
   * Listens to descriptor `fd` of the current process; an eventfd that is
   * already signalled counts at once. EBADF, EINVAL; EBUSY when `busy`: one is
   * there already, which is looked at after the descriptor.
   */
  static enable(kernel: Kernel, fd: number, busy: boolean, handler: () => boolean, thread: () => Step<void>): Virqfd | Errno {
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

  disable(): void {
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
    if (hungUp) this.disable();
    else if (this.#active && this.#ctx.consume() > 0n) this.#run();
  };

  #run(): void {
    if (this.#handler()) this.#kernel.sched.spawn("vfio-irqfd", this.#thread);
  }
}
