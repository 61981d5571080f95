/**
 * Attachments: one importer's hold on a buffer, and what it does with it.
 *
 * Order of an importer's life: attach (no lock) → lock the reservation → pin →
 * map … unmap → unpin → unlock → detach (no lock). An importer with
 * `importerOps` is dynamic: it is told through `invalidateMappings`, with the
 * reservation held, that its mappings must go. An importer without is static:
 * mapping pins, and waits for the kernel's fences.
 *
 * Invariants: an attachment is on its buffer's list from the end of attach to
 * detach, under the reservation; it leaves exactly once, with nothing mapped
 * and nothing pinned. It does not keep the buffer alive: the importer holds a
 * reference to the buffer for as long as it is attached.
 *
 * Source: drivers/dma-buf/dma-buf.c ("locking convention"), spec section 3.
 */
import { EBUSY, ENOMEM, Errno } from "../../lib/errno.ts";
import { bugOn, KernelBug } from "../../lib/kernel_bug.ts";
import type { Step } from "../../sched/task.ts";
import type { Device } from "../device.ts";
import type { DmaBuf } from "./buffer.ts";
import type { SgTable } from "./mapping.ts";
import { Usage } from "./resv.ts";

/** Which way the data goes, seen from the device. */
export type DmaDirection = "bidirectional" | "to_device" | "from_device";

/** What a dynamic importer offers. */
export interface DmaBufAttachOps {
  /** It can take addresses of another device's memory. */
  readonly allowPeer2peer: boolean;
  /**
   * Called with the reservation held: stop using every mapping made through
   * this attachment, and see to it that unmap follows. Must not take the
   * reservation, nor wait for the exporter.
   */
  invalidateMappings?(att: DmaBufAttachment): Step<void>;
}

export class DmaBufAttachment {
  readonly dmabuf: DmaBuf;
  readonly dev: Device;
  /** May the exporter hand out addresses of device memory? An exporter may turn it off in its attach. */
  peer2peer: boolean;
  readonly importerOps: DmaBufAttachOps | undefined;
  readonly importerPriv: unknown;
  /** The exporter's. */
  priv: unknown = undefined;
  /** Pins not undone, under the reservation. */
  pins = 0;
  /** Maps not undone, under the reservation. */
  maps = 0;

  constructor(dmabuf: DmaBuf, dev: Device, importerOps: DmaBufAttachOps | undefined, importerPriv: unknown) {
    this.dmabuf = dmabuf;
    this.dev = dev;
    this.importerOps = importerOps;
    this.importerPriv = importerPriv;
    this.peer2peer = importerOps?.allowPeer2peer ?? false;
  }

  get isDynamic(): boolean {
    return this.importerOps !== undefined;
  }
}

/** A static importer must find the memory where it was. */
const pinsOnMap = (att: DmaBufAttachment): boolean => att.dmabuf.ops.pin !== undefined && !att.isDynamic;

/**
 * Attaches `dev`. ENOMEM, or the exporter's answer when it refuses. Without `importerOps`
 * the importer is static. The reservation must not be held.
 */
export function* dmaBufDynamicAttach(
  dmabuf: DmaBuf,
  dev: Device | undefined,
  importerOps?: DmaBufAttachOps,
  importerPriv?: unknown,
): Step<DmaBufAttachment | Errno> {
  if (dev === undefined) throw new KernelBug("dma_buf_attach without a device");
  if (dmabuf.kernel.fault.slab("dma_buf_attachment")) return ENOMEM;
  const att = new DmaBufAttachment(dmabuf, dev, importerOps, importerPriv);
  const { trace } = dmabuf.kernel;
  if (dmabuf.ops.attach !== undefined) {
    const err = yield* dmabuf.ops.attach(dmabuf, att);
    if (err !== undefined) {
      if (trace.on) trace.emit({ type: "dma_buf.attach_refused", ino: dmabuf.ino, importer: dev.name, errno: err.name });
      return err;
    }
  }
  yield* dmabuf.resv.lock();
  dmabuf.attachments.unshift(att);
  dmabuf.stats.attachments++;
  dmabuf.resv.unlock();
  if (trace.on) {
    trace.emit({ type: "dma_buf.attach", ino: dmabuf.ino, importer: dev.name, dynamic: att.isDynamic, peer2peer: att.peer2peer });
  }
  return att;
}

/** Undoes the attach. The reservation must not be held. */
export function* dmaBufDetach(dmabuf: DmaBuf, att: DmaBufAttachment): Step<void> {
  bugOn(att.dmabuf !== dmabuf, "dma_buf_detach of an attachment of another buffer");
  yield* dmabuf.resv.lock();
  try {
    const i = dmabuf.attachments.indexOf(att);
    bugOn(i < 0, `${att.dev.name} is detached twice`);
    bugOn(att.pins > 0 || att.maps > 0, `${att.dev.name} is detached with ${att.maps} maps and ${att.pins} pins`);
    dmabuf.attachments.splice(i, 1);
    dmabuf.stats.attachments--;
  } finally {
    dmabuf.resv.unlock();
  }
  if (dmabuf.ops.detach !== undefined) yield* dmabuf.ops.detach(dmabuf, att);
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.detach", ino: dmabuf.ino, importer: att.dev.name });
  dmabuf.kernel.sched.freed(att);
}

/** Keeps the memory where it is until `dmaBufUnpin`; for dynamic importers. Reservation held. The exporter's answer. */
export function dmaBufPin(att: DmaBufAttachment): Errno | undefined {
  const { dmabuf } = att;
  bugOn(!att.isDynamic, "dma_buf_pin by a static importer");
  dmabuf.resv.assertHeld();
  const err = dmabuf.ops.pin?.(att);
  if (err === undefined) att.pins++;
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.pin", ino: dmabuf.ino, importer: att.dev.name, errno: err?.name });
  return err;
}

/** Undoes one `dmaBufPin`. Reservation held. */
export function dmaBufUnpin(att: DmaBufAttachment): void {
  const { dmabuf } = att;
  bugOn(!att.isDynamic, "dma_buf_unpin by a static importer");
  dmabuf.resv.assertHeld();
  bugOn(att.pins === 0, `${att.dev.name} unpins what it has not pinned`);
  att.pins--;
  dmabuf.ops.unpin?.(att);
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.unpin", ino: dmabuf.ino, importer: att.dev.name });
}

/**
 * Gives the importer addresses its device can use, until
 * `dmaBufUnmapAttachment`. Reservation held. The exporter's answer, or EINTR
 * when a static importer's wait for fences is interrupted.
 */
export function* dmaBufMapAttachment(att: DmaBufAttachment, dir: DmaDirection): Step<SgTable | Errno> {
  const { dmabuf } = att;
  const { trace } = dmabuf.kernel;
  dmabuf.resv.assertHeld();
  const refused = (err: Errno): Errno => {
    if (trace.on) trace.emit({ type: "dma_buf.map_refused", ino: dmabuf.ino, importer: att.dev.name, errno: err.name });
    return err;
  };
  if (pinsOnMap(att)) {
    const err = dmabuf.ops.pin?.(att);
    bugOn(err === EBUSY, "an exporter made a buffer inaccessible that is attached");
    if (err !== undefined) return refused(err);
  }
  const sgt = yield* dmabuf.ops.mapDmaBuf(att, dir);
  if (sgt instanceof Errno) {
    if (pinsOnMap(att)) dmabuf.ops.unpin?.(att);
    return refused(sgt);
  }
  if (!att.isDynamic) {
    const r = yield* dmabuf.resv.waitTimeout(Usage.kernel, true, Number.POSITIVE_INFINITY);
    if (r instanceof Errno) {
      yield* dmabuf.ops.unmapDmaBuf(att, sgt, dir);
      if (pinsOnMap(att)) dmabuf.ops.unpin?.(att);
      return refused(r);
    }
  }
  att.maps++;
  dmabuf.stats.sgTables++;
  if (trace.on) trace.emit({ type: "dma_buf.map", ino: dmabuf.ino, importer: att.dev.name, entries: sgt.entries });
  return sgt;
}

/** Undoes one map. Reservation held. */
export function* dmaBufUnmapAttachment(att: DmaBufAttachment, sgt: SgTable, dir: DmaDirection): Step<void> {
  const { dmabuf } = att;
  dmabuf.resv.assertHeld();
  bugOn(att.maps === 0, `${att.dev.name} unmaps what it has not mapped`);
  att.maps--;
  dmabuf.stats.sgTables--;
  yield* dmabuf.ops.unmapDmaBuf(att, sgt, dir);
  if (pinsOnMap(att)) dmabuf.ops.unpin?.(att);
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.unmap", ino: dmabuf.ino, importer: att.dev.name });
}

/** `dmaBufMapAttachment` by a caller that does not hold the reservation. */
export function* dmaBufMapAttachmentUnlocked(att: DmaBufAttachment, dir: DmaDirection): Step<SgTable | Errno> {
  yield* att.dmabuf.resv.lock();
  try {
    return yield* dmaBufMapAttachment(att, dir);
  } finally {
    att.dmabuf.resv.unlock();
  }
}

/** `dmaBufUnmapAttachment` by a caller that does not hold the reservation. */
export function* dmaBufUnmapAttachmentUnlocked(att: DmaBufAttachment, sgt: SgTable, dir: DmaDirection): Step<void> {
  yield* att.dmabuf.resv.lock();
  try {
    yield* dmaBufUnmapAttachment(att, sgt, dir);
  } finally {
    att.dmabuf.resv.unlock();
  }
}

/**
 * Can this importer be made to let go? It says so by having the callback; an
 * exporter that must be able to revoke refuses all others.
 */
export const dmaBufAttachRevocable = (att: DmaBufAttachment): boolean => att.importerOps?.invalidateMappings !== undefined;

/**
 * Tells every dynamic importer to let go of its mappings. Reservation held.
 * On return importers may still write until their fences end, and read until
 * they unmap: whoever needs the memory quiet waits for both.
 */
export function* dmaBufInvalidateMappings(dmabuf: DmaBuf): Step<void> {
  dmabuf.resv.assertHeld();
  const { trace } = dmabuf.kernel;
  for (const att of dmabuf.attachments) {
    if (att.importerOps?.invalidateMappings === undefined) continue;
    if (trace.on) trace.emit({ type: "dma_buf.invalidate", ino: dmabuf.ino, importer: att.dev.name });
    yield* att.importerOps.invalidateMappings(att);
  }
}
