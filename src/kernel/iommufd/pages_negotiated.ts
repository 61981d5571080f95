/**
 * Pages of a buffer that was negotiated: iommufd as an importer of type IOMMU,
 * level SYNC.
 *
 * iommufd never sees an address. It holds one mapping handle, asks it to fill
 * its domains (any number, also later ones), and gives it back within the
 * callback when it is revoked. The tracker then still says what was where: an
 * IOAS that has opted in (`IOMMU_OPTION_DMABUF_REVALIDATE`) gets its mappings
 * back, at the same IOVAs, when the buffer is live again. Without it, and after
 * a permanent revoke, the pages are dead: maps, copies and attaches that need
 * them are told ENODEV.
 *
 * Whether pages are restored is decided when they are made, by their IOAS; a
 * copy shows the same pages, and shares their fate.
 *
 * Invariants: `#handle` is defined exactly while the pages are not revoked; a
 * pair is tracked and mapped, or tracked and to be restored.
 *
 * Lock order: RESV → mutex of the pages. `#handle` is written under both, and
 * under RESV alone before the pages are shown by an area and after.
 *
 * Source: this design; docs/negotiation.md.
 */
import { PAGE_SIZE_N } from "../../lib/addr.ts";
import { ENODEV, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import type { Device } from "../device.ts";
import type { DmaBuf } from "../dma_buf/dma_buf.ts";
import { dmaBufPut } from "../dma_buf/dma_buf.ts";
import {
  dmaBufAcquire,
  dmaBufLeave,
  dmaBufNegotiate,
  dmaBufRelease,
  type NegotiatedAttachment,
  type NegotiatedImporter,
} from "../dma_buf/negotiated/attachment.ts";
import { RevokeLevel, type RevokeReason } from "../dma_buf/negotiated/contract.ts";
import { IommuHandle } from "../dma_buf/negotiated/iommu_converter.ts";
import type { IoptArea } from "./area.ts";
import type { IoptDomain } from "./domain.ts";
import { PagesDmabuf } from "./pages_dmabuf.ts";

export class NegotiatedDmabuf extends PagesDmabuf {
  /** Mappings come back after a temporary revoke. */
  readonly restorable: boolean;
  readonly #writable: boolean;
  /** Byte of the buffer at which the pages begin. */
  readonly #baseByte: bigint;
  #mutex: Mutex | undefined = undefined;
  #att: NegotiatedAttachment | undefined = undefined;
  #handle: IommuHandle | undefined = undefined;
  /** There was a handle: before, there is nothing to lose and nothing to restore. */
  #begun = false;
  /** Nothing will be mapped again. */
  #dead = false;

  constructor(baseByte: bigint, writable: boolean, restorable: boolean) {
    super();
    this.#baseByte = baseByte;
    this.#writable = writable;
    this.restorable = restorable;
  }

  /**
   * Agrees with the exporter and takes a mapping; `mutex` is the pages'. On
   * success the caller's reference to the buffer is the pages'. EOPNOTSUPP, or
   * why the buffer cannot be mapped now: nothing is left then.
   */
  *attach(dmabuf: DmaBuf, mutex: Mutex, requesters: () => Iterable<Device>): Step<Errno | undefined> {
    this.#mutex = mutex;
    const att = yield* dmaBufNegotiate(dmabuf, [{ type: "iommu", level: RevokeLevel.sync, requesters }], importer, this);
    if (att instanceof Errno) return att;
    this.#att = att;
    yield* dmabuf.resv.lock();
    const e = yield* this.#acquire(att);
    dmabuf.resv.unlock();
    if (e === undefined) return undefined;
    this.#att = undefined;
    yield* dmaBufLeave(att);
    return e;
  }

  /** RESV held, and the mutex of the pages once they can be found. */
  *#acquire(att: NegotiatedAttachment): Step<Errno | undefined> {
    const handle = yield* dmaBufAcquire(att, this.#writable);
    if (handle instanceof Errno) return handle;
    if (!(handle instanceof IommuHandle)) throw new KernelBug("iommufd is given a mapping that it did not ask for");
    this.#handle = handle;
    this.#begun = true;
    return undefined;
  }

  get revoked(): boolean {
    return this.#handle === undefined;
  }

  get dead(): boolean {
    return this.#dead;
  }

  get refusal(): Errno | undefined {
    return this.#dead ? ENODEV : undefined;
  }

  map(area: IoptArea, offset: bigint, domain: IoptDomain, pageByPage: boolean): Errno | undefined {
    const step = pageByPage ? PAGE_SIZE_N : undefined;
    return this.#handle === undefined ? ENODEV : this.#handle.map(domain, area.start, offset, area.length, area.prot, step);
  }

  unmap(area: IoptArea, domain: IoptDomain): void {
    this.#handle?.unmap(domain, area.start, area.length);
  }

  reaches(dev: Device): boolean {
    return this.#att?.reaches(dev) ?? true;
  }

  *release(): Step<void> {
    const att = this.#att;
    if (att === undefined) return;
    const { dmabuf } = att;
    yield* dmabuf.resv.lock();
    if (this.#handle !== undefined) dmaBufRelease(this.#handle);
    this.#handle = undefined;
    this.#dead = true;
    dmabuf.resv.unlock();
    yield* dmaBufLeave(att);
    this.#att = undefined;
    dmaBufPut(dmabuf);
  }

  attachedTimes(): number {
    return this.#att?.buffer.attachments.filter((a) => a === this.#att).length ?? 0;
  }

  physAt(offset: bigint): bigint | undefined {
    return this.#handle?.physAt(offset);
  }

  attributesAt(offset: bigint): number {
    return this.#handle?.attributesAt(offset) ?? 0;
  }

  /** RESV held. */
  *invalidate(reason: RevokeReason): Step<undefined> {
    yield* this.#locked((handle) => {
      if (!this.#begun) return;
      if (reason === "permanent" || !this.restorable) this.#dead = true;
      if (handle === undefined) return;
      for (const { area, domain } of this.tracker) handle.unmap(domain, area.start, area.length);
      dmaBufRelease(handle);
      this.#handle = undefined;
    });
  }

  /** RESV held. What cannot be mapped again (a table's memory is short) makes the pages dead, in the log. */
  *revalidate(att: NegotiatedAttachment): Step<void> {
    const mutex = this.#mutex;
    if (mutex === undefined) return;
    yield* mutex.lock();
    try {
      if (!this.#begun || this.#dead || this.#handle !== undefined) return;
      const e = (yield* this.#acquire(att)) ?? this.#mapTracked();
      if (e === undefined) return;
      this.#dead = true;
      att.dmabuf.kernel.printk(`iommufd: mappings of dma-buf ${att.dmabuf.ino} are lost, they cannot be restored: ${e.name}`);
    } finally {
      mutex.unlock();
    }
  }

  #mapTracked(): Errno | undefined {
    const handle = this.#handle;
    if (handle === undefined) return ENODEV;
    for (const [i, { area, domain, pageByPage }] of this.tracker.entries()) {
      const e = this.map(area, this.#baseByte + area.startByteAt(area.start), domain, pageByPage);
      if (e === undefined) continue;
      for (const t of this.tracker.slice(0, i)) handle.unmap(t.domain, t.area.start, t.area.length);
      dmaBufRelease(handle);
      this.#handle = undefined;
      return e;
    }
    return undefined;
  }

  *#locked(body: (handle: IommuHandle | undefined) => void): Step<void> {
    const mutex = this.#mutex;
    if (mutex === undefined) return;
    yield* mutex.lock();
    try {
      body(this.#handle);
    } finally {
      mutex.unlock();
    }
  }
}

const importer: NegotiatedImporter = {
  name: "iommufd",
  *invalidate(att, reason) {
    const pages = att.priv as NegotiatedDmabuf;
    const { trace } = att.dmabuf.kernel;
    if (!pages.revoked && trace.on) trace.emit({ type: "iommufd.revoke", dmabuf: att.dmabuf.ino, mappings: pages.tracked });
    return yield* pages.invalidate(reason);
  },
  *revalidate(att) {
    yield* (att.priv as NegotiatedDmabuf).revalidate(att);
  },
};
