/**
 * Fault queues: page requests of devices, handed to user space to be answered.
 *
 * A hardware page table may be made with a fault queue; the page requests of
 * whatever is attached to it stand in the queue in groups (`deliver`) until they
 * are read, then under a cookie (`response`) until user space writes an answer
 * with it. A group is read whole or not at all.
 *
 * Whoever leaves the table, or is moved to another, has what it asked answered
 * "invalid" before the detach is done: a cookie that was read before is EINVAL
 * from then on. A queue that goes does the same for everything it holds.
 *
 * Invariant: a group in the queue is in `deliver` or in `response`, never both,
 * and its attach handle is attached.
 * Locks: `mutex` is held while groups move from `deliver` to `response` or are
 * answered; inside of the group lock of iommufd. `deliver` alone needs none, as a
 * step of a task is atomic: a unit may add to it at any time.
 *
 * Source: drivers/iommu/iommufd/eventq.c, device.c.
 */
import { EFAULT, EINVAL, ENOMEM, EOPNOTSUPP, Errno, ESPIPE } from "../../lib/errno.ts";
import { Fifo } from "../../lib/fifo.ts";
import { LockClass } from "../../sched/lockdep.ts";
import { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMUFD_PAGE_RESP_INVALID,
  IOMMUFD_PAGE_RESP_SUCCESS,
  type IommuFaultAlloc,
  IommuHwptPageResponse,
  IommuHwptPgfault,
} from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { FileOps } from "../fs/file.ts";
import type { IommuDomain } from "../iommu/domain.ts";
import type { AttachHandle } from "../iommu/group.ts";
import type { IopfGroup } from "../iommu/io_pagefault.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";
import { eventqFops, IommufdEventq, transferred } from "./eventq.ts";
import type { IommufdDevice } from "./group.ts";
import type { IommufdHwpt } from "./hwpt.ts";
import { abortObject, allocObject, finalizeObject, getObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";

const MUTEX: LockClass = new LockClass("iommufd_fault.mutex");

/** What iommufd attaches with: page requests find their way back to the device. A fresh one per attachment. */
export class IommufdAttachHandle implements AttachHandle {
  readonly domain: IommuDomain;
  /** The first device of the group to attach. */
  readonly idev: IommufdDevice;

  constructor(domain: IommuDomain, idev: IommufdDevice) {
    this.domain = domain;
    this.idev = idev;
  }
}

function answer(group: IopfGroup, code: "success" | "invalid"): void {
  group.respond(code);
  group.free();
}

export class IommufdFault extends IommufdEventq {
  readonly type = "fault";
  readonly mutex: Mutex;
  /** To be read. */
  readonly deliver: Fifo<IopfGroup> = new Fifo();
  /** Read and not answered, by cookie. Under `mutex`. */
  readonly response: Map<number, IopfGroup> = new Map();
  /**
   * No cookie below this one is free. 0 is none at first: an entry of Linux's array reserves it while the array is not empty.
   * An answer with that cookie takes the reservation away, although it is refused, and for good. Under `mutex`.
   */
  #lowestCookie = 1;

  constructor(ctx: IommufdCtx) {
    super(ctx);
    this.mutex = new Mutex(ctx.kernel.sched, MUTEX);
  }

  override get readable(): boolean {
    return this.deliver.length > 0;
  }

  /** A group of page requests from a table with this queue. */
  report(group: IopfGroup): undefined {
    group.dequeue();
    this.deliver.push(group);
    this.wake();
  }

  /** Copies whole groups to `buf`, as many as `count` bytes hold. EINVAL: not even the first fits. EFAULT, ENOMEM. `mutex` held. */
  read(buf: bigint, count: number): number | Errno {
    let done = 0;
    let e: Errno | undefined;
    for (let group = this.deliver.shift(); group !== undefined; group = this.deliver.shift()) {
      const length = group.faults.length * IommuHwptPgfault.size;
      if (done >= count || length > count - done) e = EINVAL;
      else e = this.#readGroup(group, buf + BigInt(done));
      if (e !== undefined) {
        this.deliver.unshift(group);
        break;
      }
      done += length;
    }
    return transferred(done, e);
  }

  #readGroup(group: IopfGroup, buf: bigint): Errno | undefined {
    const { idev } = group.handle as IommufdAttachHandle;
    if (this.ctx.kernel.fault.slab("entry of responses")) return ENOMEM;
    group.cookie = this.#store(group);
    let at = buf;
    for (const { flags, pasid, grpid, perm, addr } of group.faults) {
      const { bytes } = IommuHwptPgfault.alloc({ flags, dev_id: idev.id, pasid, grpid, perm, addr, cookie: group.cookie });
      if (copyToUser(this.ctx.kernel, at, bytes) > 0) {
        this.#erase(group.cookie);
        return EFAULT;
      }
      at += BigInt(bytes.length);
    }
    return undefined;
  }

  /** Answers by cookie, in order, up to the first that is none, or that is for no group. `mutex` held. */
  write(buf: bigint, count: number): number | Errno {
    const { size } = IommuHwptPageResponse;
    let done = 0;
    let e: Errno | undefined;
    while (done < count) {
      const view = IommuHwptPageResponse.alloc();
      e = copyFromUser(this.ctx.kernel, view.bytes, buf + BigInt(done)) > 0 ? EFAULT : this.#answerOne(view.cookie, view.code);
      if (e !== undefined) break;
      done += size;
    }
    return transferred(done, e);
  }

  #answerOne(cookie: number, code: number): Errno | undefined {
    if (code !== IOMMUFD_PAGE_RESP_SUCCESS && code !== IOMMUFD_PAGE_RESP_INVALID) return EINVAL;
    const group = this.#erase(cookie);
    if (group === undefined) return EINVAL;
    answer(group, code === IOMMUFD_PAGE_RESP_SUCCESS ? "success" : "invalid");
    return undefined;
  }

  /** Answers "invalid" to every group that came through `handle`, or through any: first what waits to be read, then by cookie. */
  answerInvalid(handle?: AttachHandle): void {
    const ours = (g: IopfGroup): boolean => handle === undefined || g.handle === handle;
    for (const group of this.deliver.extract(ours)) answer(group, "invalid");
    for (const [cookie, group] of [...this.response].sort(([a], [b]) => a - b)) {
      if (!ours(group)) continue;
      this.#erase(cookie);
      answer(group, "invalid");
    }
  }

  override *destroy(): Step<void> {
    this.answerInvalid();
  }

  #store(group: IopfGroup): number {
    let cookie = this.#lowestCookie;
    while (this.response.has(cookie)) cookie++;
    this.#lowestCookie = cookie + 1;
    this.response.set(cookie, group);
    return cookie;
  }

  #erase(cookie: number): IopfGroup | undefined {
    const group = this.response.get(cookie);
    if (group === undefined) {
      if (cookie === 0 && this.response.size > 0) this.#lowestCookie = 0;
      return undefined;
    }
    this.response.delete(cookie);
    this.#lowestCookie = Math.min(this.#lowestCookie, cookie);
    return group;
  }
}

const faultFops: FileOps = {
  ...eventqFops,
  name: "iommufd-fault",

  *read(f, buf, count) {
    const fault = f.privateData as IommufdFault;
    if (count % IommuHwptPgfault.size !== 0) return ESPIPE;
    yield* fault.mutex.lock();
    try {
      return fault.read(buf, count);
    } finally {
      fault.mutex.unlock();
    }
  },

  *write(f, buf, count) {
    const fault = f.privateData as IommufdFault;
    if (count % IommuHwptPageResponse.size !== 0) return ESPIPE;
    yield* fault.mutex.lock();
    try {
      return fault.write(buf, count);
    } finally {
      fault.mutex.unlock();
    }
  },
};

/** IOMMU_FAULT_QUEUE_ALLOC. EOPNOTSUPP: unknown flags. ENOMEM, EMFILE. */
export function* faultAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuFaultAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (cmd.flags !== 0) return EOPNOTSUPP;
  const fault = allocObject(ctx, new IommufdFault(ctx));
  if (fault instanceof Errno) return fault;
  const fd = fault.openFile(faultFops, "[iommufd-pgfault]");
  let e: Errno | undefined;
  if (fd instanceof Errno) {
    e = fd;
  } else {
    cmd.out_fault_id = fault.id;
    cmd.out_fault_fd = fd;
    e = respond(ucmd, cmd);
    if (e === undefined) fault.installFile(fd);
    else ctx.kernel.current.files.putUnused(fd);
  }
  if (e === undefined) finalizeObject(ctx, fault);
  else yield* abortObject(ctx, fault);
  return e;
}

/**
 * A page table that is being made gets a fault queue, which it uses until it goes. ENOENT: no such queue. Linux keeps a virtual
 * function off such a table where its physical function has PRI, which none here has.
 */
export function setHwptFault(ctx: IommufdCtx, hwpt: IommufdHwpt, faultId: number): Errno | undefined {
  const fault = getObject(ctx, faultId, IommufdFault);
  if (fault instanceof Errno) return fault;
  hwpt.fault = fault;
  hwpt.domain.iopfHandler = (group) => fault.report(group);
  fault.users++;
  putObject(ctx, fault);
  return undefined;
}

/** An attachment is no more: nobody will answer what came through it. */
export function* autoResponseFaults(hwpt: IommufdHwpt, handle: AttachHandle | undefined): Step<void> {
  const { fault } = hwpt;
  if (fault === undefined || handle === undefined) return;
  yield* fault.mutex.lock();
  fault.answerInvalid(handle);
  fault.mutex.unlock();
}
