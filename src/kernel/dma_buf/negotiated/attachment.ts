/**
 * An importer's hold on a buffer, without a device: what was agreed, and the
 * mappings made under the agreement.
 *
 * The order of an importer's life: negotiate (no lock) → lock RESV → acquire a
 * mapping … release it → unlock → leave (no lock). When the exporter needs its
 * memory back, `invalidate` is called with RESV held. An importer of level SYNC
 * has released every handle when that returns; one of level BOUNDED stops new
 * use, and releases its handles (taking RESV) within the bound it named.
 *
 * Invariants: an attachment is on its buffer's list from the end of negotiate to
 * leave; it leaves with no handle. It does not keep the buffer alive: the
 * importer holds a reference to the buffer for as long as it is attached.
 *
 * Lock order: RESV → the importer's own page lock.
 *
 * Source: this design; docs/negotiation.md.
 */
import { EACCES, EBUSY, ENODEV, ENOMEM, EOPNOTSUPP, Errno } from "../../../lib/errno.ts";
import { bugOn, KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import { O_ACCMODE, O_RDONLY } from "../../../uapi/index.ts";
import type { Device } from "../../device.ts";
import type { DmaBuf } from "../buffer.ts";
import type { NegotiatedBuffer } from "./buffer.ts";
import type { Agreement, ImporterOffer, RevokeReason } from "./contract.ts";
import { DmaHandle, mapForDevice } from "./dma_converter.ts";
import { type MappingHandle, PhysHandle, PrivateHandle } from "./handle.ts";
import { IommuHandle } from "./iommu_converter.ts";
import { matchMapping, reaches } from "./match.ts";

/** What an importer implements beside its offers. */
export interface NegotiatedImporter {
  /** For reports and traces; for PHYS also what the core trusts. */
  readonly name: string;
  /**
   * Stop using every handle, and release it as the agreed level says. RESV held:
   * must not take it, nor wait for the exporter. An errno says "I cannot": the
   * core then takes the mappings away itself. Only an importer whose offers are
   * all of level `none` may lack it.
   */
  invalidate?(att: NegotiatedAttachment, reason: RevokeReason): Step<Errno | undefined>;
  /** The buffer is live again after a temporary revoke; mappings may be acquired from inside. RESV held. */
  revalidate?(att: NegotiatedAttachment): Step<void>;
}

export class NegotiatedAttachment {
  readonly buffer: NegotiatedBuffer;
  readonly importer: NegotiatedImporter;
  readonly agreement: Agreement;
  /** The importer's. */
  readonly priv: unknown;
  /** Not yet released, severed ones included; RESV. */
  readonly handles: Set<MappingHandle> = new Set();
  /** Broke the contract and still holds mappings that only the exporter could make harmless; RESV. */
  fenced = false;

  constructor(buffer: NegotiatedBuffer, importer: NegotiatedImporter, agreement: Agreement, priv: unknown) {
    this.buffer = buffer;
    this.importer = importer;
    this.agreement = agreement;
    this.priv = priv;
  }

  get dmabuf(): DmaBuf {
    return this.buffer.dmabuf;
  }

  /**
   * Do the transactions of `dev` arrive at every BAR that the memory may lie in?
   * Asked when a device joins a domain: also while nothing is mapped, since what
   * is revoked may come back. No lock.
   */
  reaches(dev: Device): boolean {
    return (this.agreement.exporter.providers ?? []).every((p) => reaches(dev, p));
  }
}

/**
 * Importers that may be given physical addresses: those that are themselves the
 * owner of a page table for somebody else's addresses. A closed list, here.
 */
const TRUSTED: ReadonlySet<string> = new Set(["kvm"]);

/**
 * Agrees on a mapping type and attaches. No lock held, and nothing is touched
 * when it fails. EOPNOTSUPP: no type in common, or the buffer's exporter does
 * not negotiate; ENODEV: the buffer is dead; ENOMEM; or what an exporter aborts
 * with.
 */
export function* dmaBufNegotiate(
  dmabuf: DmaBuf,
  offers: readonly ImporterOffer[],
  importer: NegotiatedImporter,
  priv?: unknown,
): Step<NegotiatedAttachment | Errno> {
  const buffer = dmabuf.negotiated;
  const { trace } = dmabuf.kernel;
  const agreement = buffer === undefined ? EOPNOTSUPP : agree(buffer, offers, importer);
  if (buffer === undefined || agreement instanceof Errno) {
    if (trace.on)
      trace.emit({ type: "dma_buf.attach_refused", ino: dmabuf.ino, importer: importer.name, errno: (agreement as Errno).name });
    return agreement as Errno;
  }
  if (dmabuf.kernel.fault.slab("dma_buf_attachment")) return ENOMEM;
  const att = new NegotiatedAttachment(buffer, importer, agreement, priv);
  yield* dmabuf.resv.lock();
  try {
    if (buffer.state === "dead") return ENODEV;
    buffer.attachments.push(att);
    dmabuf.stats.attachments++;
  } finally {
    dmabuf.resv.unlock();
  }
  if (trace.on) trace.emit({ type: "dma_buf.negotiated", ino: dmabuf.ino, importer: importer.name, mapping: agreement.type });
  return att;
}

function agree(buffer: NegotiatedBuffer, offers: readonly ImporterOffer[], importer: NegotiatedImporter): Agreement | Errno {
  for (const o of offers) {
    if (o.level > 0 && importer.invalidate === undefined) throw new KernelBug(`${importer.name} offers to let go and has no invalidate`);
  }
  return matchMapping(buffer.offers, offers, { trusted: TRUSTED, importerName: importer.name });
}

/** Undoes the attach. RESV not held; every handle has been released. */
export function* dmaBufLeave(att: NegotiatedAttachment): Step<void> {
  const { buffer, dmabuf } = att;
  yield* dmabuf.resv.lock();
  try {
    const i = buffer.attachments.indexOf(att);
    bugOn(i < 0, `${att.importer.name} leaves a dma-buf twice`);
    bugOn(att.handles.size > 0, `${att.importer.name} leaves a dma-buf with ${att.handles.size} mappings`);
    buffer.attachments.splice(i, 1);
    dmabuf.stats.attachments--;
  } finally {
    dmabuf.resv.unlock();
  }
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.detach", ino: dmabuf.ino, importer: att.importer.name });
}

/**
 * A mapping of the whole buffer, of the agreed type, until `dmaBufRelease`.
 * RESV held. ENODEV: revoked or dead. EACCES: `write` through a buffer that was
 * opened for reading. EBUSY: the importer has yet to give back what it should
 * have let go of. ENOMEM. Or the exporter's or the DMA layer's errno.
 */
export function* dmaBufAcquire(att: NegotiatedAttachment, write: boolean): Step<MappingHandle | Errno> {
  const { buffer, dmabuf } = att;
  dmabuf.resv.assertHeld();
  const refused = refusal(att, write);
  const handle = refused ?? (yield* makeHandle(att, write));
  const { trace } = dmabuf.kernel;
  if (handle instanceof Errno) {
    if (trace.on) trace.emit({ type: "dma_buf.map_refused", ino: dmabuf.ino, importer: att.importer.name, errno: handle.name });
    return handle;
  }
  buffer.epoch.enter();
  att.handles.add(handle);
  if (trace.on) trace.emit({ type: "dma_buf.acquire", ino: dmabuf.ino, importer: att.importer.name, epoch: handle.epoch.number });
  return handle;
}

function refusal({ buffer, fenced }: NegotiatedAttachment, write: boolean): Errno | undefined {
  if (buffer.state !== "live") return ENODEV;
  if (fenced) return EBUSY;
  return write && (buffer.dmabuf.file.flags & O_ACCMODE) === O_RDONLY ? EACCES : undefined;
}

function* makeHandle(att: NegotiatedAttachment, write: boolean): Step<MappingHandle | Errno> {
  const { buffer, dmabuf, agreement } = att;
  const { exporter, epoch } = buffer;
  const { fault } = dmabuf.kernel;
  if (fault.slab("dma_buf_mapping")) return ENOMEM;
  const common = { att, epoch, write };
  if (agreement.type === "private") {
    const object = exporter.open === undefined ? EOPNOTSUPP : yield* exporter.open(dmabuf, att);
    return object instanceof Errno ? object : new PrivateHandle(common, object);
  }
  const ranges = yield* exporter.place(dmabuf, att);
  if (ranges instanceof Errno) return ranges;
  switch (agreement.importer.type) {
    case "iommu":
      return new IommuHandle(common, ranges);
    case "dma": {
      const mapped = fault.slab("segments") ? ENOMEM : mapForDevice(agreement.importer.dev, ranges, write);
      if (!(mapped instanceof Errno)) return new DmaHandle(common, mapped);
      exporter.unplace?.(dmabuf, att);
      return mapped;
    }
    default:
      return new PhysHandle(common, ranges);
  }
}

/** Gives a mapping back. RESV held; the importer uses none of it any more. */
export function dmaBufRelease(handle: MappingHandle): void {
  const { att } = handle;
  const { buffer, dmabuf } = att;
  dmabuf.resv.assertHeld();
  bugOn(!att.handles.delete(handle), `${att.importer.name} releases a mapping twice`);
  handle.end();
  if (att.agreement.type !== "private") buffer.exporter.unplace?.(dmabuf, att);
  if (!handle.severed) handle.epoch.leave();
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.give_back", ino: dmabuf.ino, importer: att.importer.name, epoch: handle.epoch.number });
  if (!handle.fenced) return;
  buffer.fenced--;
  att.fenced = [...att.handles].some((h) => h.fenced);
  if (buffer.fenced === 0) buffer.exporter.unfence?.(dmabuf);
}
