/**
 * Memory regions of a network adapter, in the three forms that adapters have.
 *
 *   on-demand           nothing is mapped before the adapter faults; a revoke
 *                       zaps, and a later access faults again (SYNC)
 *   pinned, revocable   mapped at registration; a revoke unmaps, and the region
 *                       is dead for good (SYNC)
 *   pinned              mapped at registration, and never given back before the
 *                       region is deregistered (NONE)
 *
 * All take addresses for their own device (type DMA). What the adapter does with
 * them is real DMA: the IOMMU translates it, and a stale address faults.
 *
 * Lock order: users → RESV → region lock. The region lock guards `handle` and
 * `dead`; `users` is held for reading by whoever accesses the region, so that
 * deregistration comes after the last fault.
 *
 * Source: this design; docs/negotiation.md; the registrations of mlx5 and irdma
 * for the three forms.
 */
import { EFAULT, EINVAL, ENODEV, ENOMEM, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import { LockClass } from "../../../sched/lockdep.ts";
import { Mutex, RwSem } from "../../../sched/locks.ts";
import type { Step } from "../../../sched/task.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import type { DmaBuf } from "../buffer.ts";
import { dmaBufPut } from "../dma_buf.ts";
import {
  dmaBufAcquire,
  dmaBufLeave,
  dmaBufNegotiate,
  dmaBufRelease,
  type NegotiatedAttachment,
  type NegotiatedImporter,
} from "../negotiated/attachment.ts";
import { RevokeLevel } from "../negotiated/contract.ts";
import { DmaHandle } from "../negotiated/dma_converter.ts";
import { segmentsDma } from "./segments.ts";

export type RegionForm = "on-demand" | "pinned-revocable" | "pinned";

const REGION_LOCK: LockClass = new LockClass("rdma region lock");
const USERS: LockClass = new LockClass("rdma region users");

export class MemoryRegion {
  readonly dev: PciDev;
  readonly form: RegionForm;
  readonly writable: boolean;
  readonly lock: Mutex;
  readonly #users: RwSem;
  /** RESV and the region lock. */
  handle: DmaHandle | undefined = undefined;
  /** A pinned region was revoked: every access fails from now on. The region lock. */
  dead = false;
  #att: NegotiatedAttachment | undefined = undefined;

  private constructor(dev: PciDev, form: RegionForm, writable: boolean) {
    this.dev = dev;
    this.form = form;
    this.writable = writable;
    this.lock = new Mutex(dev.kernel.sched, REGION_LOCK);
    this.#users = new RwSem(dev.kernel.sched, USERS);
  }

  /** Registers the whole buffer; takes over the caller's reference on success. ENOMEM, or the negotiation's errno, or the map's. */
  static *register(dev: PciDev, dmabuf: DmaBuf, form: RegionForm, writable = true): Step<MemoryRegion | Errno> {
    if (dev.kernel.fault.slab("memory region")) return ENOMEM;
    const mr = new MemoryRegion(dev, form, writable);
    const level = form === "pinned" ? RevokeLevel.none : RevokeLevel.sync;
    const importer = IMPORTERS[form];
    const att = yield* dmaBufNegotiate(dmabuf, [{ type: "dma", dev, peer2peer: true, level }], importer, mr);
    if (att instanceof Errno) return att;
    mr.#att = att;
    if (form === "on-demand") return mr;
    const e = yield* mr.#map(att);
    if (e === undefined) return mr;
    yield* dmaBufLeave(att);
    return e;
  }

  *deregister(): Step<void> {
    const att = this.#att;
    if (att === undefined) throw new RangeError("the region is not registered");
    const { dmabuf } = att;
    yield* this.#users.downWrite();
    yield* dmabuf.resv.lock();
    yield* this.letGo(true);
    dmabuf.resv.unlock();
    yield* dmaBufLeave(att);
    this.#att = undefined;
    this.#users.upWrite();
    dmaBufPut(dmabuf);
  }

  *#map(att: NegotiatedAttachment): Step<Errno | undefined> {
    const { resv } = att.dmabuf;
    yield* resv.lock();
    try {
      if (this.handle !== undefined) return undefined;
      const handle = yield* dmaBufAcquire(att, this.writable);
      if (handle instanceof Errno) return handle;
      if (!(handle instanceof DmaHandle)) throw new KernelBug("an adapter is given a mapping that it did not ask for");
      yield* this.lock.lock();
      this.handle = handle;
      this.lock.unlock();
      return undefined;
    } finally {
      resv.unlock();
    }
  }

  /** Gives the mapping back; RESV held. */
  *letGo(forGood: boolean): Step<void> {
    yield* this.lock.lock();
    if (forGood) this.dead = true;
    if (this.handle !== undefined) dmaBufRelease(this.handle);
    this.handle = undefined;
    this.lock.unlock();
  }

  /**
   * The adapter reads or writes `bytes` at `offset` of the region. EINVAL: past
   * the end. ENODEV: revoked. EFAULT: the DMA did not arrive.
   */
  *access(offset: bigint, bytes: Uint8Array, write: boolean): Step<Errno | undefined> {
    yield* this.#users.downRead();
    try {
      const att = this.#att;
      if (att === undefined) return ENODEV;
      if (offset + BigInt(bytes.length) > att.dmabuf.size || (write && !this.writable)) return EINVAL;
      for (;;) {
        const r = yield* this.#tryAccess(offset, bytes, write);
        if (r !== "not mapped") return r;
        // A revoke that came between is over, or says so: the adapter faults again.
        const e = yield* this.#map(att);
        if (e !== undefined) return e;
      }
    } finally {
      this.#users.upRead();
    }
  }

  *#tryAccess(offset: bigint, bytes: Uint8Array, write: boolean): Step<Errno | undefined | "not mapped"> {
    yield* this.lock.lock();
    try {
      if (this.dead) return ENODEV;
      if (this.handle === undefined) return "not mapped";
      return segmentsDma(this.dev, this.handle.segments, offset, bytes, write) ? undefined : EFAULT;
    } finally {
      this.lock.unlock();
    }
  }
}

const regionOf = (att: NegotiatedAttachment): MemoryRegion => att.priv as MemoryRegion;

const IMPORTERS: Readonly<Record<RegionForm, NegotiatedImporter>> = {
  "on-demand": {
    name: "rdma on-demand",
    *invalidate(att, reason) {
      yield* regionOf(att).letGo(reason === "permanent");
      return undefined;
    },
  },
  "pinned-revocable": {
    name: "rdma pinned, revocable",
    *invalidate(att) {
      yield* regionOf(att).letGo(true);
      return undefined;
    },
  },
  pinned: { name: "rdma pinned" },
};
