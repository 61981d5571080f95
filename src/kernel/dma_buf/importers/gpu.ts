/**
 * A graphics importer: jobs that read or write the buffer, fences for them, and
 * unmaps that come later.
 *
 * A job puts a fence into the reservation (BOOKKEEP) and touches the buffer when
 * it ends, some virtual time after its submission. A revoke stops new jobs; a
 * worker waits for its own jobs in flight (others' fences are no concern of its
 * promise), then takes RESV and gives the mapping back: level BOUNDED. Jobs may be
 * submitted again when the buffer is live.
 *
 * Whoever may still run when the import is closed (a submission that waits for
 * RESV, the worker) holds a reference to the buffer of its own.
 *
 * Lock: RESV guards `handle`, the flags and the jobs in flight.
 *
 * Source: this design; docs/negotiation.md; the TTM eviction of amdgpu and xe
 * for the order.
 */
import { EBUSY, EFAULT, EINVAL, ENODEV, ENOMEM, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
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
import { segmentsDma } from "./segments.ts";

/** A job may take this long, ns. */
export const JOB_LIMIT_NS = 10_000_000;
/** What is promised to exporters, ns: the longest job, and the worker's turn after it. */
const EVICT_BOUND_NS = 2 * JOB_LIMIT_NS;

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
  /** No more jobs, for good; RESV. */
  #closing = false;
  /** RESV. */
  readonly #inFlight: Set<DmaFence> = new Set();
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
    const offer = { type: "dma", dev, peer2peer: true, level: RevokeLevel.bounded, boundNs: EVICT_BOUND_NS } as const;
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
    yield* dmabuf.resv.lock();
    this.#closing = true;
    dmabuf.resv.unlock();
    yield* this.#evict(dmabuf);
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
    if (job.offset + BigInt(job.bytes.length) > dmabuf.size || job.ns > JOB_LIMIT_NS) return EINVAL;
    dmabuf.file.get();
    try {
      return yield* this.#submit(att, job);
    } finally {
      dmaBufPut(dmabuf);
    }
  }

  *#submit(att: NegotiatedAttachment, job: Job): Step<DmaFence | Errno> {
    const { kernel, resv } = att.dmabuf;
    yield* resv.lock();
    try {
      if (this.#closing) return ENODEV;
      if (this.evicting) return EBUSY;
      if (kernel.fault.slab("fence") || kernel.fault.slab("dma_resv_list")) return ENOMEM;
      if (this.handle === undefined) {
        const handle = yield* dmaBufAcquire(att, true);
        if (handle instanceof Errno) return handle;
        if (!(handle instanceof DmaHandle)) throw new KernelBug("a graphics importer is given a mapping that it did not ask for");
        this.handle = handle;
      }
      const { segments } = this.handle;
      const fence = new DmaFence(kernel.sched, { context: this.#context, seqno: ++this.#seqno, driver: "gpu", timeline: "jobs" });
      resv.reserveFences(1);
      resv.addFence(fence, Usage.bookkeep);
      this.#inFlight.add(fence);
      kernel.sched.timer(job.ns, () => {
        const ok = segmentsDma(this.dev, segments, job.offset, job.bytes, job.write);
        this.#inFlight.delete(fence);
        fence.signal(ok ? undefined : EFAULT);
      });
      return fence;
    } finally {
      resv.unlock();
    }
  }

  /** RESV held: from now on no job is taken, and a worker gives the mapping back. */
  evictLater(dmabuf: DmaBuf): void {
    // A close that is under way gives it back as soon.
    if (this.handle === undefined || this.evicting || this.#closing) return;
    this.evicting = true;
    dmabuf.file.get();
    dmabuf.kernel.sched.spawn("gpu evict", () => this.#evictAndPut(dmabuf));
  }

  *#evictAndPut(dmabuf: DmaBuf): Step<void> {
    yield* this.#evict(dmabuf);
    dmaBufPut(dmabuf);
  }

  /** Takes RESV once the jobs are done, of which no more come, and gives the mapping back. */
  *#evict({ resv }: DmaBuf): Step<void> {
    for (const fence of [...this.#inFlight]) yield* fence.waitTimeout(false, Number.POSITIVE_INFINITY);
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
    (att.priv as GpuImport).evictLater(att.dmabuf);
    return undefined;
  },
};
