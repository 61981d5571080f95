/**
 * A device's BARs as buffers under the negotiated contract.
 *
 * Whether the buffers are live follows from one predicate, the device's
 * `barsReachable`: powered, not in low power, decode on (a VF's too, as its user
 * sees it), not being revoked, nobody fenced. Page faults ask it, exports, and
 * restores. Whoever changes any of these under the memory
 * lock (ML) calls `settle` before letting go: the buffers then agree with the
 * predicate, also after a reset that failed, a wake-up, or an early return.
 *
 * A revoke that must wait lets ML go meanwhile, and takes it again: a BAR fault
 * then gives SIGBUS instead of waiting behind the writer with the mmap lock
 * held (`revoking` keeps the BARs out of reach). Only a hot reset, which holds
 * the locks of several devices, keeps them, for at most the drain's limit.
 *
 * An importer that cannot be cut off by the core is fenced: the function's
 * decode stays off, whoever writes to COMMAND (`PciDev.fenceDecode`), until the
 * importer has given back its last mapping, also after a close and under another
 * driver. The BAR's addresses stay the function's.
 *
 * Lock order: ML (write) → RESV; both let go for the wait.
 *
 * Source: this design; docs/negotiation.md.
 */
import { EOPNOTSUPP } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import type { DmaBuf, DmaBufOps } from "../../dma_buf/buffer.ts";
import type { NegotiatedBuffer, NegotiatedExporter } from "../../dma_buf/negotiated/buffer.ts";
import { type ExporterOffer, type PhysRange, RevokeLevel, type RevokeReason } from "../../dma_buf/negotiated/contract.ts";
import { severableFor } from "../../dma_buf/negotiated/dma_converter.ts";
import { legacyDmaBufOps } from "../../dma_buf/negotiated/legacy.ts";
import { type Drain, dmaBufRestore, dmaBufRevokeBegin, dmaBufRevokeFinish } from "../../dma_buf/negotiated/revoke.ts";
import type { DmaBufDevice, VfioPciDmaBuf } from "./vfio_pci_dmabuf.ts";

const privOf = (dmabuf: DmaBuf): VfioPciDmaBuf => dmabuf.priv as VfioPciDmaBuf;

const exporter: NegotiatedExporter = {
  // A page table of the importer's is emptied within the callback or not at all (SYNC);
  // a device that was given addresses may finish what it has begun (BOUNDED).
  offers(dmabuf): readonly ExporterOffer[] {
    const { provider, vdev } = privOf(dmabuf);
    const providers = [provider];
    // A VF has no decode of its own to be fenced by: addresses go to those alone whom the core can cut off.
    const veto: ExporterOffer["veto"] = (i) => (i.type === "dma" && !severableFor(i.dev, provider) ? EOPNOTSUPP : undefined);
    return [
      { type: "iommu", minLevel: RevokeLevel.sync, providers },
      { type: "phys", minLevel: RevokeLevel.sync, providers },
      { type: "dma", minLevel: RevokeLevel.bounded, providers, ...(vdev?.pdev.noCommandMemory === true && { veto }) },
    ];
  },

  *place(dmabuf): Step<readonly PhysRange[]> {
    const { physVec, provider } = privOf(dmabuf);
    return physVec.map(({ paddr, len }) => ({ paddr, len, kind: "mmio", cache: "uncached", provider }));
  },

  stateChanged(dmabuf, state) {
    privOf(dmabuf).revoked = state !== "live";
  },

  fence(dmabuf) {
    const priv = privOf(dmabuf);
    if (priv.fencedIn !== undefined) return;
    const { vdev } = priv;
    if (vdev === undefined) throw new KernelBug("a vfio dma-buf is fenced that has no device any more");
    // Outlives the close of the device, which unlinks the buffer.
    priv.fencedIn = vdev;
    vdev.fenced.add(priv);
    vdev.pdev.fenceDecode();
  },

  unfence(dmabuf) {
    const priv = privOf(dmabuf);
    const vdev = priv.fencedIn;
    priv.fencedIn = undefined;
    if (vdev === undefined) return;
    vdev.fenced.delete(priv);
    vdev.pdev.unfenceDecode();
    if (!vdev.vdev.tryGetRegistration()) return;
    // RESV is held here, and ML comes before it.
    dmabuf.kernel.sched.spawn("vfio dma-buf restore", () => restoreLater(vdev));
  },
};

function* restoreLater(vdev: DmaBufDevice): Step<void> {
  yield* vdev.memoryLock.downWrite();
  try {
    yield* settle(vdev);
  } finally {
    vdev.memoryLock.upWrite();
  }
  vdev.vdev.putRegistration();
}

/** What the exporter's buffers are made with where mappings are negotiated; `release` as always. */
export const negotiatedVfioOps = (release: DmaBufOps["release"]): DmaBufOps => ({ ...legacyDmaBufOps, negotiated: exporter, release });

function* contracts(vdev: DmaBufDevice): Generator<NegotiatedBuffer, void, void> {
  for (const { dmabuf } of vdev.dmabufs) if (dmabuf.negotiated !== undefined) yield dmabuf.negotiated;
}

/** Buffers of memory that can be reached are live again. ML(W) held. */
export function* settle(vdev: DmaBufDevice): Step<void> {
  if (!vdev.barsReachable()) return;
  for (const c of [...contracts(vdev)]) {
    const { file, kernel } = c.dmabuf;
    if (!file.getActive()) continue;
    yield* dmaBufRestore(c);
    kernel.fs.fput(file);
  }
}

/**
 * Revokes every buffer of the device; on return nothing reaches the BARs through
 * any of them. ML(W) held on entry and on return; let go for the wait, unless
 * `keepLocked`.
 */
export function* revokeAll(vdev: DmaBufDevice, reason: RevokeReason, keepLocked: boolean): Step<void> {
  const drains: Drain[] = [];
  const files = [];
  for (const c of [...contracts(vdev)]) {
    if (!c.dmabuf.file.getActive()) continue;
    files.push(c.dmabuf.file);
    const drain = yield* dmaBufRevokeBegin(c, reason);
    if (drain !== undefined) drains.push(drain);
  }
  const unlock = !keepLocked && drains.some((d) => d.waitNs > 0);
  vdev.revoking++;
  if (unlock) vdev.memoryLock.upWrite();
  // One after the other, but all by deadlines that began to run together.
  for (const d of drains) yield* dmaBufRevokeFinish(d);
  if (unlock) yield* vdev.memoryLock.downWrite();
  vdev.revoking--;
  for (const f of files) f.kernel.fs.fput(f);
}
