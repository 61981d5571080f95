/**
 * The old importer calls over a negotiated buffer: attach with a device, map to
 * a scatter list, unmap, detach.
 *
 * An importer that knows only these becomes one DMA offer: it can be revoked
 * when it has the callback, and then within the limit, since the old callback
 * names no bound. So an exporter implements one contract, and old importers
 * keep working, or are refused as they were.
 *
 * Source: this design; docs/negotiation.md.
 */
import { EOPNOTSUPP, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import type { DmaBufAttachment } from "../attachment.ts";
import type { DmaBufOps } from "../buffer.ts";
import type { SgTable } from "../mapping.ts";
import { dmaBufAcquire, dmaBufLeave, dmaBufNegotiate, dmaBufRelease, NegotiatedAttachment } from "./attachment.ts";
import { type ImporterOffer, RevokeLevel } from "./contract.ts";
import { DmaHandle } from "./dma_converter.ts";
import { DRAIN_LIMIT_NS } from "./revoke.ts";

const offerOf = (att: DmaBufAttachment): ImporterOffer => ({
  type: "dma",
  dev: att.dev,
  peer2peer: att.peer2peer,
  level: att.importerOps?.invalidateMappings === undefined ? RevokeLevel.none : RevokeLevel.bounded,
  boundNs: DRAIN_LIMIT_NS,
});

function negotiatedOf(att: DmaBufAttachment): NegotiatedAttachment {
  if (!(att.priv instanceof NegotiatedAttachment)) throw new KernelBug("an attachment of the old kind has no negotiated one");
  return att.priv;
}

/** The old calls of an exporter that negotiates. */
export const legacyDmaBufOps: Pick<Required<DmaBufOps>, "attach" | "detach" | "mapDmaBuf" | "unmapDmaBuf"> = {
  *attach(dmabuf, att): Step<Errno | undefined> {
    const callback = att.importerOps?.invalidateMappings;
    const importer = {
      name: att.dev.name,
      ...(callback === undefined
        ? {}
        : {
            *invalidate(): Step<undefined> {
              yield* callback(att);
            },
          }),
    };
    const negotiated = yield* dmaBufNegotiate(dmabuf, [offerOf(att)], importer);
    if (negotiated instanceof Errno) return negotiated;
    att.priv = negotiated;
    return undefined;
  },

  *detach(_dmabuf, att): Step<void> {
    yield* dmaBufLeave(negotiatedOf(att));
  },

  *mapDmaBuf(att, dir): Step<SgTable | Errno> {
    const handle = yield* dmaBufAcquire(negotiatedOf(att), dir !== "to_device");
    if (handle instanceof Errno) return handle;
    return handle instanceof DmaHandle ? { entries: handle.segments, priv: handle } : EOPNOTSUPP;
  },

  *unmapDmaBuf(_att, sgt): Step<void> {
    if (!(sgt.priv instanceof DmaHandle)) throw new KernelBug("a scatter list is unmapped that no map made");
    dmaBufRelease(sgt.priv);
  },
};
