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
 * decode stays off, whatever the user writes to COMMAND, until the importer has
 * given back its last mapping. The BAR stays reserved, so that nobody else is
 * given its addresses.
 *
 * Lock order: ML (write) → RESV; both let go for the wait.
 *
 * Source: this design; docs/negotiation.md.
 */
import type { Step } from "../../../sched/task.ts";
import { PCI_COMMAND, PCI_COMMAND_MEMORY } from "../../../uapi/pci_regs.ts";
import type { DmaBuf, DmaBufOps } from "../../dma_buf/buffer.ts";
import type { NegotiatedBuffer, NegotiatedExporter } from "../../dma_buf/negotiated/buffer.ts";
import { type ExporterOffer, type PhysRange, RevokeLevel, type RevokeReason } from "../../dma_buf/negotiated/contract.ts";
import { legacyDmaBufOps } from "../../dma_buf/negotiated/legacy.ts";
import { type Drain, dmaBufRestore, dmaBufRevokeBegin, dmaBufRevokeFinish } from "../../dma_buf/negotiated/revoke.ts";
import type { DmaBufDevice, VfioPciDmaBuf } from "./vfio_pci_dmabuf.ts";

const privOf = (dmabuf: DmaBuf): VfioPciDmaBuf => dmabuf.priv as VfioPciDmaBuf;

const exporter: NegotiatedExporter = {
  // A page table of the importer's is emptied within the callback or not at all (SYNC);
  // a device that was given addresses may finish what it has begun (BOUNDED).
  offers(dmabuf): readonly ExporterOffer[] {
    const providers = [privOf(dmabuf).provider];
    return [
      { type: "iommu", minLevel: RevokeLevel.sync, providers },
      { type: "phys", minLevel: RevokeLevel.sync, providers },
      { type: "dma", minLevel: RevokeLevel.bounded, providers },
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
    // Outlives the close of the device, which unlinks the buffer.
    priv.fencedIn ??= priv.vdev;
    if (priv.fencedIn === undefined) return;
    priv.fencedIn.fenced.add(priv);
    vfioPciKeepFenced(priv.fencedIn);
  },

  unfence(dmabuf) {
    const priv = privOf(dmabuf);
    const vdev = priv.fencedIn;
    priv.fencedIn = undefined;
    vdev?.fenced.delete(priv);
    if (vdev === undefined || !vdev.vdev.tryGetRegistration()) return;
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

/**
 * While an importer of any buffer of the device is fenced, also of one that died
 * with an earlier open, decode is off in the hardware. ML(W) held, or nobody has
 * the device yet.
 */
export function vfioPciKeepFenced(vdev: DmaBufDevice): void {
  if (vdev.fenced.size === 0) return;
  const command = vdev.pdev.configRead(PCI_COMMAND, 2);
  if ((command & PCI_COMMAND_MEMORY) === 0) return;
  vdev.pdev.configWrite(PCI_COMMAND, 2, command & ~PCI_COMMAND_MEMORY);
  vdev.decodeFenced = true;
}

/** The user's own wish holds again. */
function decodeBack(vdev: DmaBufDevice): void {
  vdev.decodeFenced = false;
  const command = vdev.pdev.configRead(PCI_COMMAND, 2);
  vdev.pdev.configWrite(PCI_COMMAND, 2, command | PCI_COMMAND_MEMORY);
}

/** Buffers of memory that can be reached are live again. ML(W) held. */
export function* settle(vdev: DmaBufDevice): Step<void> {
  vfioPciKeepFenced(vdev);
  if (!vdev.barsReachable()) return;
  if (vdev.decodeFenced) decodeBack(vdev);
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
  for (const d of drains) yield* dmaBufRevokeFinish(d);
  if (unlock) yield* vdev.memoryLock.downWrite();
  vdev.revoking--;
  for (const f of files) f.kernel.fs.fput(f);
}
