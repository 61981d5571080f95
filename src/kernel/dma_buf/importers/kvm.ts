/**
 * A second stage: a guest's memory, of which some is a buffer.
 *
 * A slot puts a slice of a buffer at a guest physical address. Nothing is
 * mapped before the guest touches it; a fault takes the mapping (type PHYS:
 * this importer owns a page table for addresses that are not its own) and maps
 * what the slot shows. A revoke empties the slot's range within the callback;
 * the guest's next touch faults again, and gets ENODEV while the buffer is
 * revoked: a VMM would be told, or inject an error.
 *
 * Lock order: slots → RESV → mmu lock. The mmu lock guards the table and `handle`;
 * `slots` is held for reading by every access of the guest's, so that a slot is
 * removed after the last fault in it. A revoke takes the mmu lock alone.
 *
 * Source: this design; the guest_memfd and KVM part of docs/negotiation.md.
 */
import { isPageAligned, physAddr } from "../../../lib/addr.ts";
import { EEXIST, EFAULT, EINVAL, ENOMEM, Errno } from "../../../lib/errno.ts";
import { bugOn, KernelBug } from "../../../lib/kernel_bug.ts";
import { PageTable, vtdss } from "../../../pt/index.ts";
import { LockClass } from "../../../sched/lockdep.ts";
import { Mutex, RwSem } from "../../../sched/locks.ts";
import type { Step } from "../../../sched/task.ts";
import { IOMMU_READ, IOMMU_WRITE } from "../../iommu/domain.ts";
import type { Kernel } from "../../kernel.ts";
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
import { PhysHandle } from "../negotiated/handle.ts";
import { piecesOf } from "../negotiated/ranges.ts";

const MMU_LOCK: LockClass = new LockClass("kvm mmu_lock");
const SLOTS_LOCK: LockClass = new LockClass("kvm slots_lock");
/** Guest physical addresses have 47 bits here. */
const GPA_BITS = 47;

/** A slice of a buffer in the guest's address space. */
export class GuestSlot {
  readonly gpa: bigint;
  readonly length: bigint;
  /** First byte of the buffer that it shows. */
  readonly offset: bigint;
  readonly writable: boolean;
  readonly guest: GuestMemory;
  /** From a fault to a revoke; RESV and the mmu lock. */
  handle: PhysHandle | undefined = undefined;
  att: NegotiatedAttachment | undefined = undefined;

  constructor(guest: GuestMemory, at: { gpa: bigint; length: bigint; offset: bigint; writable: boolean }) {
    this.guest = guest;
    this.gpa = at.gpa;
    this.length = at.length;
    this.offset = at.offset;
    this.writable = at.writable;
  }
}

export class GuestMemory {
  readonly kernel: Kernel;
  readonly mmuLock: Mutex;
  readonly #slotsLock: RwSem;
  readonly #table: PageTable = new PageTable(vtdss, { vasz: GPA_BITS });
  readonly #slots: GuestSlot[] = [];
  /** Second-stage faults served. */
  faults = 0;

  constructor(kernel: Kernel) {
    this.kernel = kernel;
    this.mmuLock = new Mutex(kernel.sched, MMU_LOCK);
    this.#slotsLock = new RwSem(kernel.sched, SLOTS_LOCK);
  }

  /**
   * Shows `length` bytes of the buffer from `offset` on at `gpa`; page-aligned.
   * Takes over the caller's reference on success. EINVAL: unaligned, or past the
   * buffer's end. EEXIST: overlaps another slot. ENOMEM, or the negotiation's errno.
   */
  *addSlot(dmabuf: DmaBuf, gpa: bigint, length: bigint, offset = 0n, writable = true): Step<GuestSlot | Errno> {
    if (![gpa, length, offset].every(isPageAligned) || length === 0n || offset + length > dmabuf.size) return EINVAL;
    if (gpa + length > 1n << BigInt(GPA_BITS)) return EINVAL;
    yield* this.#slotsLock.downWrite();
    try {
      return yield* this.#addSlot(dmabuf, gpa, length, offset, writable);
    } finally {
      this.#slotsLock.upWrite();
    }
  }

  *#addSlot(dmabuf: DmaBuf, gpa: bigint, length: bigint, offset: bigint, writable: boolean): Step<GuestSlot | Errno> {
    if (this.#slots.some((s) => gpa < s.gpa + s.length && s.gpa < gpa + length)) return EEXIST;
    if (this.kernel.fault.slab("memory slot")) return ENOMEM;
    const slot = new GuestSlot(this, { gpa, length, offset, writable });
    const att = yield* dmaBufNegotiate(dmabuf, [{ type: "phys", level: RevokeLevel.sync }], importer, slot);
    if (att instanceof Errno) return att;
    slot.att = att;
    this.#slots.push(slot);
    return slot;
  }

  /** Takes a slot out of the guest and lets go of its buffer. */
  *removeSlot(slot: GuestSlot): Step<void> {
    yield* this.#slotsLock.downWrite();
    try {
      const { att } = slot;
      const i = this.#slots.indexOf(slot);
      if (i < 0 || att === undefined) throw new RangeError("the slot is not in this guest");
      this.#slots.splice(i, 1);
      const { dmabuf } = att;
      yield* dmabuf.resv.lock();
      yield* this.zap(slot);
      dmabuf.resv.unlock();
      yield* dmaBufLeave(att);
      slot.att = undefined;
      dmaBufPut(dmabuf);
    } finally {
      this.#slotsLock.upWrite();
    }
  }

  /** Empties the slot's range and gives its mapping back. RESV held. */
  *zap(slot: GuestSlot): Step<void> {
    yield* this.mmuLock.lock();
    const { handle } = slot;
    if (handle !== undefined) {
      bugOn(this.#table.unmap(slot.gpa, slot.length) !== slot.length, "a slot was not mapped whole");
      slot.handle = undefined;
      dmaBufRelease(handle);
    }
    this.mmuLock.unlock();
  }

  /** The guest reads. EFAULT: no slot there; ENODEV: the buffer is revoked; ENOMEM. What nobody answers reads as ones. */
  *read(gpa: bigint, dst: Uint8Array): Step<Errno | undefined> {
    const pa = yield* this.#translate(gpa, dst.length, false);
    if (pa instanceof Errno) return pa;
    this.kernel.phys.read(physAddr(pa), dst);
    return undefined;
  }

  /** The guest writes; EFAULT also where the slot is not writable. */
  *write(gpa: bigint, src: Uint8Array): Step<Errno | undefined> {
    const pa = yield* this.#translate(gpa, src.length, true);
    if (pa instanceof Errno) return pa;
    this.kernel.phys.write(physAddr(pa), src);
    return undefined;
  }

  /** An access stays within one page: the processor splits others. */
  *#translate(gpa: bigint, length: number, write: boolean): Step<bigint | Errno> {
    if ((gpa & 0xfffn) + BigInt(length) > 0x1000n) throw new RangeError("a guest's access crosses a page");
    yield* this.#slotsLock.downRead();
    try {
      for (;;) {
        const there = this.#table.translate(gpa);
        if (there !== undefined && (!write || there.writable)) return there.pa;
        // A revoke may come between the fault and the next try: the guest faults again.
        const e = yield* this.#fault(gpa, write);
        if (e !== undefined) return e;
      }
    } finally {
      this.#slotsLock.upRead();
    }
  }

  *#fault(gpa: bigint, write: boolean): Step<Errno | undefined> {
    const slot = this.#slots.find((s) => s.gpa <= gpa && gpa < s.gpa + s.length);
    if (slot?.att === undefined || (write && !slot.writable)) return EFAULT;
    // The tables come from a cache that is filled before a lock is taken, so that mapping cannot fail for them.
    if (this.kernel.fault.slab("mmu_memory_cache")) return ENOMEM;
    const { resv } = slot.att.dmabuf;
    yield* resv.lock();
    try {
      if (slot.handle !== undefined) return undefined;
      const handle = yield* dmaBufAcquire(slot.att, slot.writable);
      if (handle instanceof Errno) return handle;
      if (!(handle instanceof PhysHandle)) throw new KernelBug("kvm is given a mapping that it did not ask for");
      yield* this.mmuLock.lock();
      const e = this.#map(slot, handle);
      if (e === undefined) slot.handle = handle;
      else dmaBufRelease(handle);
      this.mmuLock.unlock();
      this.faults++;
      return e;
    } finally {
      resv.unlock();
    }
  }

  #map(slot: GuestSlot, handle: PhysHandle): Errno | undefined {
    const prot = slot.writable ? IOMMU_READ | IOMMU_WRITE : IOMMU_READ;
    let done = 0n;
    for (const { paddr, len } of piecesOf(handle.ranges, slot.offset, slot.length)) {
      const e = this.#table.map(slot.gpa + done, paddr, len, prot);
      if (e !== undefined) {
        if (done > 0n) this.#table.unmap(slot.gpa, done);
        return e;
      }
      done += len;
    }
    return undefined;
  }

  /** Where the guest's address leads now, without a fault. */
  lookUp(gpa: bigint): bigint | undefined {
    return this.#table.translate(gpa)?.pa;
  }
}

const importer: NegotiatedImporter = {
  name: "kvm",
  *invalidate(att) {
    const slot = att.priv as GuestSlot;
    yield* slot.guest.zap(slot);
    return undefined;
  },
};
