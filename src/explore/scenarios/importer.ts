/**
 * A device that imports a buffer as most drivers do: it maps a scatter list,
 * works on it in jobs that end with a fence, and unmaps from a task of its own
 * some time after it was told to. Pinned importers, or such as cannot let go,
 * are variants of it.
 */
import type { Device } from "../../kernel/device.ts";
import {
  type DmaBufAttachment,
  type DmaBufAttachOps,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufMapAttachment,
  dmaBufUnmapAttachmentUnlocked,
} from "../../kernel/dma_buf/attachment.ts";
import type { DmaBuf } from "../../kernel/dma_buf/dma_buf.ts";
import { DmaFence } from "../../kernel/dma_buf/fence.ts";
import type { SgTable } from "../../kernel/dma_buf/mapping.ts";
import { Usage } from "../../kernel/dma_buf/resv.ts";
import { Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";

export class Importer {
  readonly dev: Device;
  /** Undefined: a static importer. */
  readonly ops: DmaBufAttachOps | undefined;
  att: DmaBufAttachment | undefined = undefined;
  sgt: SgTable | undefined = undefined;
  /** The end of the job under way. */
  fence: DmaFence | undefined = undefined;

  constructor(dev: Device) {
    this.dev = dev;
    this.ops = this.makeOps();
  }

  protected makeOps(): DmaBufAttachOps | undefined {
    return { allowPeer2peer: true, invalidateMappings: () => this.invalidate() };
  }

  /** Told to let go: jobs under way end by themselves, and `unmap` follows. Reservation held. */
  *invalidate(): Step<void> {}

  *attach(dmabuf: DmaBuf): Step<Errno | undefined> {
    const att = yield* dmaBufDynamicAttach(dmabuf, this.dev, this.ops, this);
    if (att instanceof Errno) return att;
    this.att = att;
    return undefined;
  }

  /** Maps, and starts a job on what it mapped. */
  *map(): Step<Errno | undefined> {
    const { att } = this;
    if (att === undefined) throw new TypeError("an importer maps what it has not attached to");
    const { resv, kernel, stats } = att.dmabuf;
    yield* resv.lock();
    try {
      const sgt = yield* dmaBufMapAttachment(att, "bidirectional");
      if (sgt instanceof Errno) return sgt;
      this.sgt = sgt;
      const job = { context: stats.fences.alloc(), seqno: 1n, driver: "importer", timeline: "job" };
      this.fence = new DmaFence(kernel.sched, job);
      resv.reserveFences(1);
      resv.addFence(this.fence, Usage.bookkeep);
      this.mapped();
      return undefined;
    } finally {
      resv.unlock();
    }
  }

  /** The device can reach the buffer from here on. */
  protected mapped(): void {}

  /** The job is done. */
  finish(): void {
    this.fence?.signal();
    this.fence = undefined;
  }

  *unmap(): Step<void> {
    const { att, sgt } = this;
    if (att === undefined || sgt === undefined) return;
    this.unmapped();
    this.sgt = undefined;
    yield* dmaBufUnmapAttachmentUnlocked(att, sgt, "bidirectional");
  }

  /** The device cannot reach the buffer any more. */
  protected unmapped(): void {}

  *detach(): Step<void> {
    const { att } = this;
    if (att === undefined) return;
    this.att = undefined;
    yield* dmaBufDetach(att.dmabuf, att);
  }
}
