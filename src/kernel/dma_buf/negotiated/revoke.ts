/**
 * Taking the memory back, and giving it out again.
 *
 * A revoke ends in bounded time whatever importers do:
 *   1. under RESV: the state changes, the epoch is closed, every importer is
 *      told. From here on nothing new is mapped.
 *   2. without RESV: the closed epoch, for at most the longest bound that an
 *      importer with mappings named, and never more than a second. Fences are
 *      not looked at: a mapping is given back only after the work that uses it,
 *      and a fence that has ended says nothing of what a device still reads.
 *   3. under RESV: what is left in the closed epoch is taken away by the core
 *      (severed), or, where the core has nothing in its hands, made harmless
 *      by the exporter (fenced). An importer that answered with an error or
 *      that promised SYNC and did not keep it is not waited for.
 *
 * A restore lets mappings be made again and tells the importers that asked to
 * know. It is refused while a mapping of a closed epoch is left: fenced, or still
 * waited for.
 *
 * Neither takes a lock of the exporter's. The exporter decides the reason: a
 * temporary revoke and a restore are idempotent, a permanent one is final. Whoever
 * needs the memory to stay away longer than the call (to reset, to copy) keeps
 * other restores out for that time: by a lock, or by a predicate that they ask.
 *
 * Source: this design; docs/negotiation.md.
 */
import { EBUSY, type Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import type { NegotiatedAttachment } from "./attachment.ts";
import type { Epoch, NegotiatedBuffer } from "./buffer.ts";
import { RevokeLevel, type RevokeReason, type RevokeReport } from "./contract.ts";
import type { MappingHandle } from "./handle.ts";

/** No revoke waits longer for an importer, whatever it asks for: 1 s. */
export const DRAIN_LIMIT_NS = 1_000_000_000;

const NOTHING: RevokeReport = { broken: [], severed: 0, fenced: 0 };

/** What is left to be done after the importers were told. */
export interface Drain {
  readonly buffer: NegotiatedBuffer;
  /** Closed, and not yet empty; also those of a revoke that is still under way. */
  readonly epochs: readonly Epoch[];
  /** How long to wait, and until when: of several drains, the waits run at once. */
  readonly waitNs: number;
  readonly until: number;
  readonly broken: Set<NegotiatedAttachment>;
}

/** Step 1. RESV is taken here. As `dmaBufRevokeBeginLocked`. */
export function* dmaBufRevokeBegin(buffer: NegotiatedBuffer, reason: RevokeReason): Step<Drain | undefined> {
  const { resv } = buffer.dmabuf;
  yield* resv.lock();
  try {
    return yield* dmaBufRevokeBeginLocked(buffer, reason);
  } finally {
    resv.unlock();
  }
}

/**
 * Step 1 by an exporter that has something to look at first. RESV held. Undefined
 * when there is nothing to wait for: the buffer was revoked before, and that
 * revoke is over.
 */
export function* dmaBufRevokeBeginLocked(buffer: NegotiatedBuffer, reason: RevokeReason): Step<Drain | undefined> {
  buffer.dmabuf.resv.assertHeld();
  const broken = new Set<NegotiatedAttachment>();
  const done = buffer.state === "dead" || (buffer.state === "revoked" && reason === "temporary");
  if (!done) {
    buffer.setState(reason === "permanent" ? "dead" : "revoked");
    buffer.nextEpoch();
    for (const att of [...buffer.attachments]) if ((yield* tell(att, reason)) !== undefined) broken.add(att);
  }
  // Whoever comes while another revoke waits has to wait for the same.
  const epochs = buffer.draining();
  if (done && epochs.length === 0) return undefined;
  let waitNs = 0;
  for (const att of buffer.attachments) {
    if (!broken.has(att) && heldIn(att, epochs).length > 0) waitNs = Math.max(waitNs, boundOf(att, broken));
  }
  waitNs = Math.min(waitNs, DRAIN_LIMIT_NS);
  return { buffer, epochs, waitNs, until: buffer.dmabuf.kernel.sched.now + waitNs, broken };
}

function* tell(att: NegotiatedAttachment, reason: RevokeReason): Step<Errno | undefined> {
  const { importer, dmabuf } = att;
  if (importer.invalidate === undefined) return undefined;
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.invalidate", ino: dmabuf.ino, importer: importer.name });
  return yield* importer.invalidate(att, reason);
}

/** How long an importer that still holds mappings may take; a SYNC one has had its time. */
function boundOf(att: NegotiatedAttachment, broken: Set<NegotiatedAttachment>): number {
  const { level, boundNs } = att.agreement.importer;
  if (level === RevokeLevel.bounded) return boundNs ?? DRAIN_LIMIT_NS;
  broken.add(att);
  return 0;
}

const heldIn = (att: NegotiatedAttachment, epochs: readonly Epoch[]): MappingHandle[] =>
  [...att.handles].filter((h) => epochs.includes(h.epoch) && !h.severed && !h.fenced);

/** Steps 2 and 3. No RESV held on entry; nothing can reach the memory on return. */
export function* dmaBufRevokeFinish({ buffer, epochs, until, broken }: Drain): Step<RevokeReport> {
  const { sched } = buffer.dmabuf.kernel;
  for (const epoch of epochs) if (epoch.users > 0 && until > sched.now) yield* epoch.drained.waitTimeout(until - sched.now);
  return epochs.every((e) => e.users === 0) ? report(buffer, broken, 0, 0) : yield* takeAway(buffer, epochs, broken);
}

/** Step 3. RESV is taken here. */
function* takeAway(buffer: NegotiatedBuffer, epochs: readonly Epoch[], broken: Set<NegotiatedAttachment>): Step<RevokeReport> {
  const { dmabuf } = buffer;
  const { resv } = dmabuf;
  let severed = 0;
  let fenced = 0;
  yield* resv.lock();
  try {
    for (const att of [...buffer.attachments]) {
      for (const h of heldIn(att, epochs)) {
        broken.add(att);
        if (h.sever()) {
          h.severed = true;
          severed++;
          h.epoch.leave();
        } else {
          h.fenced = true;
          att.fenced = true;
          buffer.fenced++;
          fenced++;
          buffer.exporter.fence?.(dmabuf, att);
        }
      }
    }
  } finally {
    resv.unlock();
  }
  return report(buffer, broken, severed, fenced);
}

function report({ dmabuf }: NegotiatedBuffer, broken: Set<NegotiatedAttachment>, severed: number, fenced: number): RevokeReport {
  if (broken.size === 0) return NOTHING;
  const r = { broken: [...broken].map((a) => a.importer.name), severed, fenced };
  const { trace } = dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.contract_broken", ino: dmabuf.ino, importers: r.broken, severed, fenced });
  return r;
}

/** A whole revoke. RESV not held. */
export function* dmaBufRevoke(buffer: NegotiatedBuffer, reason: RevokeReason): Step<RevokeReport> {
  const drain = yield* dmaBufRevokeBegin(buffer, reason);
  return drain === undefined ? NOTHING : yield* dmaBufRevokeFinish(drain);
}

/** The memory is there again. RESV not held. EBUSY while a revoke waits, or a fenced mapping is left; nothing to do unless it is revoked. */
export function* dmaBufRestore(buffer: NegotiatedBuffer): Step<Errno | undefined> {
  const { resv } = buffer.dmabuf;
  yield* resv.lock();
  try {
    if (buffer.state !== "revoked") return undefined;
    if (buffer.draining().length > 0) return EBUSY;
    buffer.setState("live");
    for (const att of [...buffer.attachments]) if (att.importer.revalidate !== undefined) yield* att.importer.revalidate(att);
    return undefined;
  } finally {
    resv.unlock();
  }
}
