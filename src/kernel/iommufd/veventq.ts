/**
 * Event queues of virtual IOMMUs: what a unit's driver has to tell a guest,
 * handed to whoever emulates the guest's IOMMU.
 *
 * A queue holds at most `depth` events of one type. What comes when it is full
 * is dropped, and a header without an event says so at the end of the queue; it
 * goes when an event can be queued again, whose sequence number then tells how
 * many are missing. There is at most one such header, and it counts the number
 * of the latest event lost.
 *
 * A read gives whole events, each behind its header. What cannot be copied, or
 * does not fit, stays at the front.
 *
 * Locks: a queue comes and goes under its virtual IOMMU's `veventqsRwsem`,
 * written; an event is reported under it, read. The queue itself needs none, as
 * a step of a task is atomic.
 *
 * Source: drivers/iommu/iommufd/eventq.c, driver.c; iommufd_vevent_handler in
 * iommufd_private.h.
 */
import { EEXIST, EFAULT, EINVAL, ENOMEM, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import { Fifo } from "../../lib/fifo.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import {
  IOMMU_VEVENTQ_FLAG_LOST_EVENTS,
  IOMMU_VEVENTQ_TYPE_DEFAULT,
  IommufdVeventHeader,
  type IommuVeventqAlloc,
} from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import type { FileOps } from "../fs/file.ts";
import { copyToUser } from "../mm/user_memory.ts";
import { eventqFops, IommufdEventq, transferred } from "./eventq.ts";
import { abortObject, allocObject, decUsers, finalizeObject, getObject, putObject } from "./object.ts";
import { respond, type Ucmd } from "./ucmd.ts";
import { IommufdViommu } from "./viommu.ts";

/** Events a queue may be asked to hold; more than any hardware has room for. */
const MAX_DEPTH = 1 << 19;
/** Sequence numbers start again after this one. */
const LAST_SEQUENCE = 0x7fff_ffff;
const HEADER = IommufdVeventHeader.size;

/** An event; without `data`, the header that stands for those lost. */
interface Vevent {
  sequence: number;
  readonly data: Uint8Array | undefined;
}

export class IommufdVeventq extends IommufdEventq {
  readonly type = "veventq";
  readonly viommu: IommufdViommu;
  /** IOMMU_VEVENTQ_TYPE_*. */
  readonly eventType: number;
  readonly depth: number;
  readonly #deliver: Fifo<Vevent> = new Fifo();
  /** Events in the queue; those being read count until they are. */
  #events = 0;
  /** Number of the next event, lost or not. */
  sequence = 0;
  /** In the queue when events were lost after the last one there. */
  readonly #lost: Vevent = { sequence: 0, data: undefined };

  constructor(viommu: IommufdViommu, eventType: number, depth: number) {
    super(viommu.ctx);
    this.viommu = viommu;
    this.eventType = eventType;
    this.depth = depth;
  }

  /** Joins its virtual IOMMU, whose `veventqsRwsem` is held, written. */
  join(): void {
    this.viommu.users++;
    this.viommu.veventqs.push(this);
  }

  override get readable(): boolean {
    return this.#deliver.length > 0;
  }

  /** Queues an event, or the loss of one. ENOMEM: lost for want of memory. */
  report(data: Uint8Array): Errno | undefined {
    if (data.length === 0) throw new KernelBug("an event of a virtual IOMMU is empty");
    const e = this.ctx.kernel.fault.slabAtomic("iommufd_vevent") ? ENOMEM : undefined;
    let vevent = this.#lost;
    if (e === undefined && this.#events < this.depth) {
      vevent = { sequence: 0, data: data.slice() };
      this.#events++;
    }
    if (this.#deliver.last === this.#lost) this.#deliver.pop();
    vevent.sequence = this.sequence;
    this.sequence = (this.sequence + 1) & LAST_SEQUENCE;
    this.#deliver.push(vevent);
    this.wake();
    return e;
  }

  /** Copies whole events to `buf`, as many as `count` bytes hold. EINVAL: there is no room for a header, or not for the first event. EFAULT, ENOMEM. */
  read(buf: bigint, count: number): number | Errno {
    if (count < HEADER) return EINVAL;
    let done = 0;
    let e: Errno | undefined;
    for (let next = this.#deliver.shift(); next !== undefined; next = this.#deliver.shift()) {
      const { sequence, data } = next;
      const length = HEADER + (data?.length ?? 0);
      // The header of lost events is read from a copy.
      if (data === undefined && this.ctx.kernel.fault.slabAtomic("iommufd_vevent")) e = ENOMEM;
      else if (length > count - done) e = EINVAL;
      else if (!this.#copy(buf + BigInt(done), sequence, data)) e = EFAULT;
      if (e !== undefined) {
        this.#deliver.unshift(next);
        break;
      }
      if (data !== undefined) this.#events--;
      done += length;
    }
    return transferred(done, e);
  }

  /** What reads of one event each would give, at most `most` of them. */
  packets(most: number): Uint8Array[] {
    const all: Uint8Array[] = [];
    for (const { sequence, data } of this.#deliver) {
      if (all.length >= most) break;
      const packet = new Uint8Array(HEADER + (data?.length ?? 0));
      packet.set(header(sequence, data));
      if (data !== undefined) packet.set(data, HEADER);
      all.push(packet);
    }
    return all;
  }

  /** The first `n` were read past `read`. */
  packetsRead(n: number): void {
    for (let i = 0; i < n; i++) if (this.#deliver.shift()?.data !== undefined) this.#events--;
  }

  #copy(buf: bigint, sequence: number, data: Uint8Array | undefined): boolean {
    const { kernel } = this.ctx;
    if (copyToUser(kernel, buf, header(sequence, data)) > 0) return false;
    return data === undefined || copyToUser(kernel, buf + BigInt(HEADER), data) === 0;
  }

  /** Leaves its virtual IOMMU, whose `veventqsRwsem` is held, written. */
  #leave(): void {
    decUsers(this.viommu);
    this.viommu.veventqs.splice(this.viommu.veventqs.indexOf(this), 1);
  }

  override *destroy(): Step<void> {
    yield* this.viommu.veventqsRwsem.downWrite();
    this.#leave();
    this.viommu.veventqsRwsem.upWrite();
  }

  /** Unlike `destroy`, with the lock held that the construction took. */
  override *abort(): Step<void> {
    yield* this.closeFile();
    this.#leave();
  }
}

const header = (sequence: number, data: Uint8Array | undefined): Uint8Array =>
  IommufdVeventHeader.alloc({ flags: data === undefined ? IOMMU_VEVENTQ_FLAG_LOST_EVENTS : 0, sequence }).bytes;

const veventqFops: FileOps = {
  ...eventqFops,
  name: "iommufd-veventq",

  *read(f, buf, count) {
    return (f.privateData as IommufdVeventq).read(buf, count);
  },

  packets: (f, most) => (f.privateData as IommufdVeventq).packets(most),
  packetsRead: (f, n) => (f.privateData as IommufdVeventq).packetsRead(n),
};

/**
 * IOMMU_VEVENTQ_ALLOC. EOPNOTSUPP: unknown flags, or the type that is none. EINVAL: a depth out of range. ENOENT: no such
 * virtual IOMMU. EEXIST: it has a queue of that type. ENOMEM, EMFILE.
 */
export function* veventqAlloc(ucmd: Ucmd, cmd: ViewOf<typeof IommuVeventqAlloc>): Step<Errno | undefined> {
  const { ctx } = ucmd;
  if (cmd.flags !== 0 || cmd.__reserved !== 0 || cmd.type === IOMMU_VEVENTQ_TYPE_DEFAULT) return EOPNOTSUPP;
  if (cmd.veventq_depth === 0 || cmd.veventq_depth > MAX_DEPTH) return EINVAL;
  const viommu = getObject(ctx, cmd.viommu_id, IommufdViommu);
  if (viommu instanceof Errno) return viommu;
  yield* viommu.veventqsRwsem.downWrite();
  try {
    return viommu.findVeventq(cmd.type) === undefined ? yield* create(ucmd, cmd, viommu) : EEXIST;
  } finally {
    viommu.veventqsRwsem.upWrite();
    putObject(ctx, viommu);
  }
}

function* create(ucmd: Ucmd, cmd: ViewOf<typeof IommuVeventqAlloc>, viommu: IommufdViommu): Step<Errno | undefined> {
  const { ctx } = ucmd;
  const veventq = allocObject(ctx, new IommufdVeventq(viommu, cmd.type, cmd.veventq_depth));
  if (veventq instanceof Errno) return veventq;
  veventq.join();
  const fd = veventq.openFile(veventqFops, "[iommufd-viommu-event]");
  let e: Errno | undefined;
  if (fd instanceof Errno) {
    e = fd;
  } else {
    cmd.out_veventq_id = veventq.id;
    cmd.out_veventq_fd = fd;
    e = respond(ucmd, cmd);
    if (e !== undefined) ctx.kernel.current.files.putUnused(fd);
    else {
      finalizeObject(ctx, veventq);
      veventq.installFile(fd);
    }
  }
  if (e !== undefined) yield* abortObject(ctx, veventq);
  return e;
}
