/**
 * A graphics importer: jobs that read or write the buffer, fences for them, and
 * unmaps that come later.
 *
 * A job puts a fence into the reservation (BOOKKEEP) and touches the buffer when
 * it ends, some virtual time after its submission. A revoke stops new jobs; a
 * worker waits for those in flight, then takes RESV and gives the mapping back:
 * level BOUNDED. Jobs may be submitted again when the buffer is live.
 *
 * Lock: RESV guards `handle` and the jobs in flight.
 *
 * Source: this design; docs/negotiation.md; the TTM eviction of amdgpu and xe
 * for the order.
 */
import { EBUSY, EFAULT, EINVAL, ENODEV, ENOMEM, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import { dmaRead, dmaWrite } from "../../pci/dma.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import { type DmaBuf, dmaBufStats } from "../buffer.ts";
import { dmaBufPut } from "../dma_buf.ts";
import { DmaFence } from "../fence.ts";
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
import { Usage } from "../resv.ts";
import { segmentAt } from "./segments.ts";

/** A job may take this long: what is promised to exporters, ns. */
export const JOB_LIMIT_NS = 10_000_000;

/** What a job does when it ends. */
export interface Job {
  readonly offset: bigint;
  readonly bytes: Uint8Array;
  readonly write: boolean;
  /** Virtual time from submission to end, ns; at most `JOB_LIMIT_NS`. */
  readonly ns: number;
}

export class GpuImport {
  readonly dev: PciDev;
  /** RESV. */
  handle: DmaHandle | undefined = undefined;
  /** The unmap has been asked for and has not come yet; RESV. */
  evicting = false;
  readonly #context: bigint;
  #seqno = 0n;
  #att: NegotiatedAttachment | undefined = undefined;

  private constructor(dev: PciDev) {
    this.dev = dev;
    this.#context = dmaBufStats(dev.kernel).fences.alloc();
  }

  /** Imports the buffer; takes over the caller's reference on success. ENOMEM, or the negotiation's errno. */
  static *import(dev: PciDev, dmabuf: DmaBuf): Step<GpuImport | Errno> {
    if (dev.kernel.fault.slab("gpu import")) return ENOMEM;
    const gpu = new GpuImport(dev);
    const offer = { type: "dma", dev, peer2peer: true, level: RevokeLevel.bounded, boundNs: JOB_LIMIT_NS } as const;
    const att = yield* dmaBufNegotiate(dmabuf, [offer], importer, gpu);
    if (att instanceof Errno) return att;
    gpu.#att = att;
    return gpu;
  }

  /** Waits for the jobs and lets go of the buffer. */
  *close(): Step<void> {
    const att = this.#att;
    if (att === undefined) throw new RangeError("the import is closed");
    const { dmabuf } = att;
    yield* this.evict();
    yield* dmaBufLeave(att);
    this.#att = undefined;
    dmaBufPut(dmabuf);
  }

  /**
   * Submits a job; its fence. ENOMEM. ENODEV: revoked. EBUSY: an unmap is under way.
   * EINVAL: past the end of the buffer, or longer than promised. A job whose DMA
   * does not arrive ends with EFAULT in its fence.
   */
  *submit(job: Job): Step<DmaFence | Errno> {
    const att = this.#att;
    if (att === undefined) return ENODEV;
    const { dmabuf } = att;
    const { kernel, resv } = dmabuf;
    if (job.offset + BigInt(job.bytes.length) > dmabuf.size || job.ns > JOB_LIMIT_NS) return EINVAL;
    yield* resv.lock();
    try {
      if (this.evicting) return EBUSY;
      if (kernel.fault.slab("fence") || kernel.fault.slab("dma_resv_list")) return ENOMEM;
      if (this.handle === undefined) {
        const handle = yield* dmaBufAcquire(att, true);
        if (handle instanceof Errno) return handle;
        if (!(handle instanceof DmaHandle)) throw new KernelBug("a graphics importer is given a mapping that it did not ask for");
        this.handle = handle;
      }
      const address = segmentAt(this.handle.segments, job.offset) as bigint;
      const fence = new DmaFence(kernel.sched, { context: this.#context, seqno: ++this.#seqno, driver: "gpu", timeline: "jobs" });
      resv.reserveFences(1);
      resv.addFence(fence, Usage.bookkeep);
      kernel.sched.timer(job.ns, () => {
        const { fn } = this.dev;
        const ok = job.write ? dmaWrite(fn, address, job.bytes) : dmaRead(fn, address, job.bytes);
        fence.signal(ok ? undefined : EFAULT);
      });
      return fence;
    } finally {
      resv.unlock();
    }
  }

  /** Takes RESV once the jobs are done, and gives the mapping back. */
  *evict(): Step<void> {
    const att = this.#att;
    if (att === undefined) return;
    const { resv } = att.dmabuf;
    yield* resv.waitTimeout(Usage.bookkeep, false, Number.POSITIVE_INFINITY);
    yield* resv.lock();
    if (this.handle !== undefined) dmaBufRelease(this.handle);
    this.handle = undefined;
    this.evicting = false;
    resv.unlock();
  }
}

const importer: NegotiatedImporter = {
  name: "gpu",
  *invalidate(att) {
    const gpu = att.priv as GpuImport;
    if (gpu.handle === undefined || gpu.evicting) return undefined;
    gpu.evicting = true;
    att.dmabuf.kernel.sched.spawn("gpu evict", () => gpu.evict());
    return undefined;
  },
};
