/**
 * eventfd: a 64-bit counter that the kernel and processes signal through.
 *
 * The counter is an object of its own (`EventfdCtx`): a device that signals an
 * interrupt holds the context, not the file, and may outlive it. The counter
 * never reaches 2^64 - 1 by a write: a writer waits; a signal stops there.
 *
 * Source: fs/eventfd.c.
 */
import { minN, U64_MAX } from "../../lib/addr.ts";
import { EAGAIN, EFAULT, EINVAL, ENOMEM, Errno } from "../../lib/errno.ts";
import { Refcount } from "../../sched/refcount.ts";
import { WaitQueue } from "../../sched/wait.ts";
import { EFD_SEMAPHORE, O_NONBLOCK, O_RDWR, POLLERR, POLLIN, POLLOUT } from "../../uapi/index.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { File, FileOps } from "./file.ts";
import { PollQueue } from "./poll.ts";
import type { Process } from "./process.ts";

export class EventfdCtx {
  readonly kernel: Kernel;
  readonly id: number;
  readonly semaphore: boolean;
  /** Pollers, and kernel users that want a call at each change. */
  readonly pollQueue: PollQueue;
  readonly waiters: WaitQueue;
  readonly #refs: Refcount = new Refcount("eventfd");
  #count: bigint;

  constructor(kernel: Kernel, initial: number, semaphore: boolean, pollQueue: PollQueue = new PollQueue()) {
    this.kernel = kernel;
    this.id = kernel.fs.nextEventfdId();
    this.#count = BigInt(initial);
    this.semaphore = semaphore;
    this.pollQueue = pollQueue;
    this.waiters = new WaitQueue(kernel.sched, "eventfd");
    kernel.fs.eventfds++;
  }

  get count(): bigint {
    return this.#count;
  }

  set count(n: bigint) {
    this.#count = n;
  }

  get(): this {
    this.#refs.get();
    return this;
  }

  put(): void {
    if (!this.#refs.put()) return;
    this.kernel.fs.eventfds--;
    this.destroy();
  }

  /** The last reference is gone. */
  destroy(): void {}

  /** Adds `n`, up to 2^64 - 1. Never waits. */
  signal(n = 1): void {
    const room = U64_MAX - this.count;
    const add = BigInt(n);
    this.count += minN(add, room);
    this.trace();
    this.changed();
  }

  /** Takes the count (1 of it, as a semaphore); 0 when there is none. */
  consume(): bigint {
    const n = this.semaphore && this.count > 0n ? 1n : this.count;
    this.count -= n;
    return n;
  }

  /** Tells the trace that the count grew. */
  trace(): void {
    const { trace } = this.kernel;
    if (trace.on) trace.emit({ type: "fs.eventfd_signal", path: `eventfd#${this.id}`, count: this.count });
  }

  /** Whoever waits looks again. */
  changed(): void {
    this.waiters.wakeUp();
    this.pollQueue.wakeUp();
  }
}

const ctxOf = (f: File): EventfdCtx => f.privateData as EventfdCtx;
const word = new DataView(new ArrayBuffer(8));
const wordBytes = new Uint8Array(word.buffer);

const EVENTFD_OPS: FileOps = {
  name: "eventfd",
  stream: true,

  *read(f, buf, count) {
    const c = ctxOf(f);
    if (count < 8) return EINVAL;
    if (c.count === 0n) {
      if ((f.flags & O_NONBLOCK) !== 0) return EAGAIN;
      const e = yield* c.waiters.waitEventInterruptible(() => c.count > 0n);
      if (e !== undefined) return e;
    }
    const n = c.consume();
    c.changed();
    word.setBigUint64(0, n, true);
    return copyToUser(f.kernel, buf, wordBytes) > 0 ? EFAULT : 8;
  },

  *write(f, buf, count) {
    const c = ctxOf(f);
    if (count !== 8) return EINVAL;
    if (copyFromUser(f.kernel, wordBytes, buf) > 0) return EFAULT;
    const n = word.getBigUint64(0, true);
    if (n === U64_MAX) return EINVAL;
    if (U64_MAX - c.count <= n) {
      if ((f.flags & O_NONBLOCK) !== 0) return EAGAIN;
      const e = yield* c.waiters.waitEventInterruptible(() => U64_MAX - c.count > n);
      if (e !== undefined) return e;
    }
    c.count += n;
    c.trace();
    c.changed();
    return 8;
  },

  poll(f) {
    const { count } = ctxOf(f);
    let mask = 0;
    if (count > 0n) mask |= POLLIN;
    if (count === U64_MAX) mask |= POLLERR;
    if (U64_MAX - 1n > count) mask |= POLLOUT;
    return mask;
  },

  *llseek(f) {
    return f.pos;
  },

  *release(f) {
    const c = ctxOf(f);
    c.pollQueue.hangUp();
    c.put();
  },

  fdinfo(f) {
    const c = ctxOf(f);
    return [`eventfd-count: ${c.count.toString(16).padStart(16)}`, `eventfd-id: ${c.id}`, `eventfd-semaphore: ${c.semaphore ? 1 : 0}`];
  },

  stat() {
    return { mode: 0o600 };
  },

  eventfdCtx: ctxOf,
};

/** An eventfd's file, with one reference. `flags`: EFD_*, checked by the caller. ENOMEM. */
export function newEventfd(k: Kernel, initial: number, flags: number): File | Errno {
  if (k.fault.slab("eventfd")) return ENOMEM;
  const ctx = new EventfdCtx(k, initial, (flags & EFD_SEMAPHORE) !== 0);
  const file = k.fs.allocAnonFile(EVENTFD_OPS, { flags: O_RDWR | (flags & O_NONBLOCK), privateData: ctx, path: "anon_inode:[eventfd]" });
  if (file instanceof Errno) {
    ctx.put();
    return file;
  }
  file.pollQueue = ctx.pollQueue;
  return file;
}

/** The context of an eventfd with a reference; EBADF, or EINVAL for another kind of file. */
export function eventfdCtxFromFd(process: Process, fd: number): EventfdCtx | Errno {
  const f = process.files.get(fd);
  return f instanceof Errno ? f : eventfdCtxFromFile(f);
}

/** The same of a file that the caller holds. */
export function eventfdCtxFromFile(file: File): EventfdCtx | Errno {
  return file.ops.eventfdCtx?.(file).get() ?? EINVAL;
}
