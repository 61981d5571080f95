/**
 * The buffer object: what exporter, importers and its file share.
 *
 * What the exporter may lock: its attach, detach, release, CPU access and mmap
 * are called without the reservation; its pin, unpin, map and unmap with it.
 *
 * Invariants: a buffer is on the kernel's list from export to release; no
 * attachment is left at release.
 *
 * Source: struct dma_buf, struct dma_buf_ops (include/linux/dma-buf.h), spec
 * sections 1 and 9.
 */
import { Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { File } from "../fs/file.ts";
import type { Kernel } from "../kernel.ts";
import type { Vma } from "../mm/vma.ts";
import { PerKernel } from "../per_kernel.ts";
import type { DmaBufAttachment, DmaDirection } from "./attachment.ts";
import { FenceContexts } from "./fence.ts";
import type { SgTable } from "./mapping.ts";
import { NegotiatedBuffer, type NegotiatedExporter } from "./negotiated/buffer.ts";
import { Resv, usageRw } from "./resv.ts";

/** What an exporter implements. */
export interface DmaBufOps {
  /** May this importer attach? No reservation. */
  attach?(dmabuf: DmaBuf, att: DmaBufAttachment): Step<Errno | undefined>;
  detach?(dmabuf: DmaBuf, att: DmaBufAttachment): Step<void>;
  /** Keep the memory in place. Reservation held. With `unpin` or not at all. */
  pin?(att: DmaBufAttachment): Errno | undefined;
  unpin?(att: DmaBufAttachment): void;
  /** Reservation held. */
  mapDmaBuf(att: DmaBufAttachment, dir: DmaDirection): Step<SgTable | Errno>;
  unmapDmaBuf(att: DmaBufAttachment, sgt: SgTable, dir: DmaDirection): Step<void>;
  /** What it offers where mappings are negotiated; see `negotiated/`. */
  readonly negotiated?: NegotiatedExporter;
  /** The last reference is gone. */
  release(dmabuf: DmaBuf): Step<void>;
  /** Into a process; the range has been checked against the buffer's size. */
  mmap?(dmabuf: DmaBuf, vma: Vma): Errno | undefined;
  beginCpuAccess?(dmabuf: DmaBuf, dir: DmaDirection): Step<Errno | undefined>;
  endCpuAccess?(dmabuf: DmaBuf, dir: DmaDirection): Step<Errno | undefined>;
}

export interface DmaBufExportInfo {
  /** The exporter's name, as fdinfo shows it. */
  readonly expName: string;
  /** Module that implements `ops`. */
  readonly owner: string;
  readonly ops: DmaBufOps;
  /** Bytes. */
  readonly size: bigint;
  /** Open flags; the access mode and O_NONBLOCK shape the file. */
  readonly flags: number;
  /** A reservation shared with other buffers; its own when left out. */
  readonly resv?: Resv;
  readonly priv: unknown;
}

export class DmaBuf {
  readonly kernel: Kernel;
  /** What its kernel counts. */
  readonly stats: DmaBufStats;
  /** Tells one buffer from another: 1 for the first since boot. */
  readonly ino: number;
  readonly size: bigint;
  readonly ops: DmaBufOps;
  readonly expName: string;
  readonly owner: string;
  readonly resv: Resv;
  readonly priv: unknown;
  /** Newest first; under the reservation. */
  readonly attachments: DmaBufAttachment[] = [];
  readonly file: File;
  /** Its contract, on a machine whose interconnect is negotiated and for an exporter that negotiates. */
  readonly negotiated: NegotiatedBuffer | undefined;
  /** Set by DMA_BUF_SET_NAME. */
  name: string | undefined = undefined;
  /** A poll waits for the signal of a fence, and holds a reference: per direction. */
  readonly pollArmed: { in: boolean; out: boolean } = { in: false, out: false };

  /** `file`: made for it, and its from now on. */
  constructor(kernel: Kernel, info: DmaBufExportInfo, file: File) {
    this.kernel = kernel;
    this.stats = dmaBufStats(kernel);
    this.ino = this.stats.nextIno();
    this.size = info.size;
    this.ops = info.ops;
    this.expName = info.expName;
    this.owner = info.owner;
    this.resv = info.resv ?? new Resv(kernel.sched);
    this.priv = info.priv;
    this.file = file;
    file.privateData = this;
    const exporter = kernel.interconnect === "negotiated" ? info.ops.negotiated : undefined;
    this.negotiated = exporter === undefined ? undefined : new NegotiatedBuffer(this, exporter);
  }
}

/** What a kernel knows of its buffers. */
export class DmaBufStats {
  /** Live buffers in order of export. */
  readonly buffers: Set<DmaBuf> = new Set();
  readonly fences: FenceContexts;
  attachments = 0;
  sgTables = 0;
  #lastIno = 0;

  constructor(kernel: Kernel) {
    this.fences = new FenceContexts(kernel.sched);
    kernel.leakChecks.set("dma_buf", () => this.buffers.size);
    kernel.leakChecks.set("dma_buf attachment", () => this.attachments);
    kernel.leakChecks.set("dma_buf sg_table", () => this.sgTables);
  }

  nextIno(): number {
    return ++this.#lastIno;
  }
}

const statsOf: PerKernel<DmaBufStats> = new PerKernel();

/** The buffers of `kernel`. */
export function dmaBufStats(kernel: Kernel): DmaBufStats {
  return statsOf.getOr(kernel, (k) => new DmaBufStats(k));
}

/** The file's last reference is gone. */
export function* dmaBufRelease(dmabuf: DmaBuf): Step<void> {
  const { kernel } = dmabuf;
  if (dmabuf.pollArmed.in || dmabuf.pollArmed.out) throw new KernelBug("a dma-buf is released while a poll holds it");
  dmabuf.stats.buffers.delete(dmabuf);
  if (kernel.trace.on) kernel.trace.emit({ type: "dma_buf.release", ino: dmabuf.ino });
  yield* dmabuf.ops.release(dmabuf);
  const attachments = dmabuf.attachments.length + (dmabuf.negotiated?.attachments.length ?? 0);
  if (attachments > 0) throw new KernelBug(`a dma-buf of ${dmabuf.expName} is released with ${attachments} attachments`);
  kernel.modules.put(dmabuf.owner);
  kernel.sched.freed(dmabuf);
}

/** Before the CPU looks at the memory: the exporter makes it coherent, and what is pending ends. EINTR. */
export function* dmaBufBeginCpuAccess(dmabuf: DmaBuf, dir: DmaDirection): Step<Errno | undefined> {
  const err = dmabuf.ops.beginCpuAccess === undefined ? undefined : yield* dmabuf.ops.beginCpuAccess(dmabuf, dir);
  if (err !== undefined) return err;
  const r = yield* dmabuf.resv.waitTimeout(usageRw(dir !== "from_device"), true, Number.POSITIVE_INFINITY);
  return r instanceof Errno ? r : undefined;
}

/** After the CPU has looked at the memory. The exporter's answer. */
export function* dmaBufEndCpuAccess(dmabuf: DmaBuf, dir: DmaDirection): Step<Errno | undefined> {
  return dmabuf.ops.endCpuAccess === undefined ? undefined : yield* dmabuf.ops.endCpuAccess(dmabuf, dir);
}
