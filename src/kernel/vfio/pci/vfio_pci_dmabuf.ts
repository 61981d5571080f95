/**
 * A device's BARs as buffers that other devices may reach.
 *
 * VFIO_DEVICE_FEATURE_DMA_BUF makes a buffer of one or more page-aligned
 * ranges of a BAR. The buffer is revocable: whenever the device's memory goes
 * away (decode off, D3, reset, close) `vfioPciDmaBufMove` makes every importer
 * let go and returns only when none can reach the device any more. When the
 * memory is back the buffer lives again; after the close of the device it
 * never does.
 *
 *   LIVE ⇄ REVOKED → CLEANED-UP (no `vdev`) → released
 *
 * What holds:
 *   - "revoked or not" is decided under RESV, by both sides: a map succeeds
 *     only while not revoked, and a revoke sets the flag before it tells the
 *     importers. The look in attach is without the lock, and only a courtesy.
 *   - `kref` is 1 plus the live scatter-list maps; a revoke drops the 1, waits
 *     for `comp`, and arms both again, so that the state after a revoke is the
 *     state after an export.
 *   - the registration reference on the device is put once: by release or by
 *     cleanup, whoever unlinks the buffer.
 *   - a buffer whose file has no reference left is skipped; it has no
 *     attachment, for each of those holds one.
 *
 * Lock order: ML (the device's memory lock, write) → RESV. The wait for unmaps
 * is under ML without RESV; the wait for fences under both. Both waits are
 * uninterruptible and without bound.
 *
 * Source: drivers/vfio/pci/vfio_pci_dmabuf.c, spec sections 2, 3, 6, 7.1, 9.
 */
import { isPageAligned, physAddr, U64_MAX } from "../../../lib/addr.ts";
import { EFAULT, EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EOVERFLOW, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { RwSem } from "../../../sched/locks.ts";
import { Refcount } from "../../../sched/refcount.ts";
import type { Step } from "../../../sched/task.ts";
import { Completion } from "../../../sched/wait.ts";
import type { TraceEvent } from "../../../trace/events.ts";
import { VFIO_DEVICE_FEATURE_GET, VFIO_PCI_ROM_REGION_INDEX, VfioDeviceFeatureDmaBuf, VfioRegionDmaRange } from "../../../uapi/vfio.ts";
import { dmaBufAttachRevocable, dmaBufInvalidateMappings } from "../../dma_buf/attachment.ts";
import { type DmaBuf, type DmaBufOps, dmaBufExport, dmaBufFd, dmaBufPut } from "../../dma_buf/dma_buf.ts";
import { freeSgt, type PhysVec, physVecToSgt, type SgTable } from "../../dma_buf/mapping.ts";
import { Usage } from "../../dma_buf/resv.ts";
import type { Kernel } from "../../kernel.ts";
import { copyFromUser } from "../../mm/user_memory.ts";
import { type P2pdmaProvider, pcimP2pdmaProvider } from "../../pci/p2pdma.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import { PerKernel } from "../../per_kernel.ts";
import { vfioCheckFeature } from "../vfio_main.ts";
import type { DmaBufPhys, DmaBufRange } from "./vfio_pci_core.ts";
import { negotiatedVfioOps, revokeAll, settle } from "./vfio_pci_dmabuf_negotiated.ts";

/** What the exporter needs of a vfio-pci device; `VfioPciCoreDevice` has these members. */
export interface DmaBufDevice {
  readonly vdev: {
    readonly kernel: Kernel;
    /** Keeps the device registered; false while it is being unregistered. */
    tryGetRegistration(): boolean;
    putRegistration(): void;
  };
  readonly pdev: PciDev;
  /** ML. */
  readonly memoryLock: RwSem;
  /** In order of export; under ML (write). */
  readonly dmabufs: VfioPciDmaBuf[];
  /** Does the device answer on its BARs, as far as decode and power state go? */
  memoryEnabled(): boolean;
  /** The same, and the user has not put it into low power: what a BAR fault looks at, and all that is negotiated. */
  barsReachable(): boolean;
  /** Revokes under way that have let go of ML to wait; only where mappings are negotiated. */
  revoking: number;
  /** Buffers with a mapping in the hands of an importer that did not let go and that only this device can keep out; under RESV. Likewise. */
  readonly fenced: Set<VfioPciDmaBuf>;
  /** An error for a BAR that was not claimed and mapped at open. */
  iomapBar(bar: number): Errno | undefined;
  readonly pciOps: {
    /** Absent: the driver exports no buffers. */
    getDmabufPhys?(vdev: DmaBufDevice, region: number, ranges: readonly DmaBufRange[]): DmaBufPhys | Errno;
  };
}

/** The exporter's side of one buffer. */
export class VfioPciDmaBuf {
  /** The device, until cleanup; under ML (write). */
  vdev: DmaBufDevice | undefined;
  readonly size: bigint;
  readonly physVec: readonly PhysVec[];
  readonly provider: P2pdmaProvider;
  /** The device that keeps an importer of this buffer out; under RESV. */
  fencedIn: DmaBufDevice | undefined = undefined;
  /** No map may be made; decided under RESV. */
  revoked = false;
  /** 1 for the exporter, 1 for each scatter-list map. */
  readonly kref: Refcount;
  /** The last map is gone and the exporter has dropped its own. */
  readonly comp: Completion;
  #dmabuf: DmaBuf | undefined = undefined;

  constructor(vdev: DmaBufDevice, size: bigint, { provider, phys }: DmaBufPhys) {
    this.vdev = vdev;
    this.size = size;
    this.physVec = phys;
    this.provider = provider;
    this.kref = new Refcount("vfio dma-buf maps");
    this.comp = new Completion(vdev.vdev.kernel.sched, "vfio dma-buf unmapped");
  }

  get dmabuf(): DmaBuf {
    if (this.#dmabuf === undefined) throw new KernelBug("a vfio dma-buf is used before its export");
    return this.#dmabuf;
  }

  set dmabuf(dmabuf: DmaBuf) {
    this.#dmabuf = dmabuf;
  }

  /** A map is gone, or the exporter's own share. */
  putMap(): void {
    if (this.kref.put()) this.comp.complete();
  }

  /** Importers let go, and what they had in flight ends. RESV held. */
  *letGo(): Step<void> {
    const { resv, kernel, ino } = this.dmabuf;
    yield* dmaBufInvalidateMappings(this.dmabuf);
    const pending = resv.pending(Usage.bookkeep).length;
    if (pending > 0 && kernel.trace.on) kernel.trace.emit({ type: "dma_buf.wait_fences", ino, pending });
    yield* resv.waitTimeout(Usage.bookkeep, false, Number.POSITIVE_INFINITY);
  }

  /** No importer reaches the device when this returns. ML of the device held for writing; RESV is taken here. */
  *revoke(vdev: DmaBufDevice): Step<void> {
    const { resv } = this.dmabuf;
    yield* resv.lock();
    try {
      this.revoked = true;
      step(this, vdev, "revoked");
      yield* this.letGo();
    } finally {
      resv.unlock();
    }
    step(this, vdev, "drain");
    this.putMap();
    yield* this.comp.wait();
    // As after an export: the next revoke, or the next map, finds a count that lives.
    this.kref.reinit();
    this.comp.reinit();
    step(this, vdev, "drained");
  }

  /** Maps may be made again. Locks as in `revoke`. */
  *unrevoke(vdev: DmaBufDevice): Step<void> {
    const { resv } = this.dmabuf;
    yield* resv.lock();
    try {
      // With the flag still set: an importer that maps from inside the callback is refused.
      yield* this.letGo();
    } finally {
      resv.unlock();
    }
    yield* resv.lock();
    this.revoked = false;
    step(this, vdev, "live");
    resv.unlock();
  }
}

const privOf = (dmabuf: DmaBuf): VfioPciDmaBuf => dmabuf.priv as VfioPciDmaBuf;

/** Spec section 3, row by row. */
export const vfioPciDmaBufOps: DmaBufOps = {
  *attach(dmabuf, att): Step<Errno | undefined> {
    if (!att.peer2peer) return EOPNOTSUPP;
    if (privOf(dmabuf).revoked) return ENODEV;
    if (!dmaBufAttachRevocable(att)) return EOPNOTSUPP;
    return undefined;
  },

  *mapDmaBuf(att, dir): Step<SgTable | Errno> {
    const priv = privOf(att.dmabuf);
    att.dmabuf.resv.assertHeld();
    if (priv.revoked) return ENODEV;
    const sgt = physVecToSgt(att, priv.provider, priv.physVec, priv.size, dir);
    if (!(sgt instanceof Errno)) priv.kref.get();
    return sgt;
  },

  *unmapDmaBuf(att, sgt): Step<void> {
    att.dmabuf.resv.assertHeld();
    freeSgt(att, sgt);
    privOf(att.dmabuf).putMap();
  },

  *release(dmabuf): Step<void> {
    const priv = privOf(dmabuf);
    const { vdev } = priv;
    if (vdev !== undefined) {
      yield* vdev.memoryLock.downWrite();
      unlink(vdev, priv);
      vdev.memoryLock.upWrite();
      vdev.vdev.putRegistration();
    }
    live(dmabuf.kernel).count--;
    dmabuf.kernel.sched.freed(priv);
  },
};

const negotiatedOps: DmaBufOps = negotiatedVfioOps(vfioPciDmaBufOps.release);

function unlink(vdev: DmaBufDevice, priv: VfioPciDmaBuf): void {
  const i = vdev.dmabufs.indexOf(priv);
  if (i < 0) throw new KernelBug("a vfio dma-buf is unlinked twice");
  vdev.dmabufs.splice(i, 1);
}

/** Exports that have not been released, for the leak check. */
const counters: PerKernel<{ count: number }> = new PerKernel();

function live(kernel: Kernel): { count: number } {
  return counters.getOr(kernel, () => {
    const counter = { count: 0 };
    kernel.leakChecks.set("vfio dma-buf", () => counter.count);
    return counter;
  });
}

/**
 * The ranges of a BAR as physical addresses. EOVERFLOW when an address leaves
 * the 64-bit space, EINVAL beyond the BAR; the first range at fault decides.
 */
export function vfioPciCoreFillPhysVec(ranges: readonly DmaBufRange[], start: bigint, length: bigint): PhysVec[] | Errno {
  const max = start + length;
  const phys: PhysVec[] = [];
  for (const r of ranges) {
    if (r.length === 0n) return EINVAL;
    const paddr = start + r.offset;
    const end = paddr + r.length;
    if (paddr > U64_MAX || end > U64_MAX) return EOVERFLOW;
    if (end > max) return EINVAL;
    phys.push({ paddr: physAddr(paddr), len: r.length });
  }
  return phys;
}

/** Plain vfio-pci's `getDmabufPhys`: the BAR itself. EINVAL for a BAR that peers cannot reach. */
export function vfioPciCoreGetDmabufPhys(vdev: DmaBufDevice, region: number, ranges: readonly DmaBufRange[]): DmaBufPhys | Errno {
  const provider = pcimP2pdmaProvider(vdev.pdev, region);
  const bar = vdev.pdev.resources[region];
  if (provider === undefined || bar === undefined) return EINVAL;
  const phys = vfioPciCoreFillPhysVec(ranges, bar.start, bar.length);
  return phys instanceof Errno ? phys : { provider, phys };
}

/** Largest array the kernel copies from a user in one piece: one allocation of 4 MiB. */
const MAX_RANGES = (4 << 20) / VfioRegionDmaRange.size;
/** A total with this bit would be taken for a flag by the DMA layer. */
const SIZE_FLAG_BIT = 1n << 63n;

/** Bytes in all; EINVAL for an empty or unaligned range, or a total that does not fit. */
function totalLength(ranges: readonly DmaBufRange[]): bigint | Errno {
  let total = 0n;
  for (const { offset, length } of ranges) {
    if (length === 0n || !isPageAligned(offset) || !isPageAligned(length)) return EINVAL;
    total += length;
    if (total > U64_MAX) return EINVAL;
  }
  return (total & SIZE_FLAG_BIT) !== 0n ? EINVAL : total;
}

function readRanges(kernel: Kernel, addr: bigint, n: number): DmaBufRange[] | Errno {
  if (n > MAX_RANGES || kernel.fault.slab("ranges", n * VfioRegionDmaRange.size)) return ENOMEM;
  const bytes = new Uint8Array(n * VfioRegionDmaRange.size);
  if (copyFromUser(kernel, bytes, addr) !== 0) return EFAULT;
  const ranges: DmaBufRange[] = [];
  for (let at = 0; at < bytes.length; at += VfioRegionDmaRange.size) {
    const { offset, length } = VfioRegionDmaRange.over(bytes, at);
    ranges.push({ offset, length });
  }
  return ranges;
}

/**
 * VFIO_DEVICE_FEATURE with the DMA_BUF feature; `arg` points at the payload,
 * `argsz` counts its bytes (the ranges that follow the fixed part are not
 * counted by user space, and not checked against it). A descriptor, 0 for a
 * probe, or the errno of spec section 2, in its order.
 */
export function* vfioPciCoreFeatureDmaBuf(vdev: DmaBufDevice, flags: number, arg: bigint, argsz: number): Step<number | Errno> {
  const { kernel } = vdev.vdev;
  if (vdev.pciOps.getDmabufPhys === undefined) return EOPNOTSUPP;
  const fixed = VfioDeviceFeatureDmaBuf.size;
  const go = vfioCheckFeature(flags, argsz, VFIO_DEVICE_FEATURE_GET, fixed);
  if (go !== "go") return go;
  const get = VfioDeviceFeatureDmaBuf.alloc();
  if (copyFromUser(kernel, get.bytes, arg) !== 0) return EFAULT;
  if (get.nr_ranges === 0 || get.flags !== 0) return EINVAL;
  if (get.region_index >= VFIO_PCI_ROM_REGION_INDEX || vdev.iomapBar(get.region_index) !== undefined) return ENODEV;

  const ranges = readRanges(kernel, arg + BigInt(fixed), get.nr_ranges);
  if (ranges instanceof Errno) return ranges;
  const size = totalLength(ranges);
  if (size instanceof Errno) return size;
  if (kernel.fault.slab("vfio_pci_dma_buf") || kernel.fault.slab("phys_vec")) return ENOMEM;
  const phys = vdev.pciOps.getDmabufPhys(vdev, get.region_index, ranges);
  if (phys instanceof Errno) return phys;
  if (!vdev.vdev.tryGetRegistration()) return ENODEV;
  return yield* exportRanges(vdev, size, phys, get.open_flags);
}

/** Steps 16 to 19 of spec section 2. The registration taken by the caller becomes the buffer's. */
function* exportRanges(vdev: DmaBufDevice, size: bigint, phys: DmaBufPhys, openFlags: number): Step<number | Errno> {
  const { kernel } = vdev.vdev;
  const priv = new VfioPciDmaBuf(vdev, size, phys);
  const dmabuf = dmaBufExport(kernel, {
    expName: "vfio_pci_core",
    owner: "vfio_pci_core",
    ops: kernel.interconnect === "negotiated" ? negotiatedOps : vfioPciDmaBufOps,
    size,
    flags: openFlags,
    priv,
  });
  if (dmabuf instanceof Errno) {
    vdev.vdev.putRegistration();
    return dmabuf;
  }
  priv.dmabuf = dmabuf;
  live(kernel).count++;

  yield* vdev.memoryLock.downWrite();
  yield* dmabuf.resv.lock();
  vdev.dmabufs.push(priv);
  if (dmabuf.negotiated === undefined) priv.revoked = !vdev.memoryEnabled();
  else if (!vdev.barsReachable()) dmabuf.negotiated.setState("revoked");
  step(priv, vdev, priv.revoked ? "revoked" : "live");
  dmabuf.resv.unlock();
  vdev.memoryLock.upWrite();

  const fd = dmaBufFd(kernel.current, dmabuf, openFlags);
  // From here on the buffer owns everything: its release undoes the rest.
  if (fd instanceof Errno) dmaBufPut(dmabuf);
  return fd;
}

type RevokeStep = Extract<TraceEvent, { type: "dma_buf.revoke" }>["step"];

function step(priv: VfioPciDmaBuf, vdev: DmaBufDevice, what: RevokeStep): void {
  const { trace } = priv.dmabuf.kernel;
  if (trace.on) trace.emit({ type: "dma_buf.revoke", ino: priv.dmabuf.ino, device: vdev.pdev.name, step: what });
}

/**
 * Revokes every buffer of the device, or makes them live again. ML held for
 * writing. When a revoke returns, no importer can reach the device through
 * any of them.
 */
export function* vfioPciDmaBufMove(vdev: DmaBufDevice, revoked: boolean): Step<void> {
  vdev.memoryLock.assertHeldWrite();
  if (vdev.vdev.kernel.interconnect === "negotiated") {
    yield* revoked ? revokeAll(vdev, "temporary", false) : settle(vdev);
    return;
  }
  for (const priv of [...vdev.dmabufs]) {
    const { file, kernel } = priv.dmabuf;
    if (!file.getActive()) {
      step(priv, vdev, "skipped");
      continue;
    }
    if (priv.revoked === revoked) step(priv, vdev, "unchanged");
    else if (revoked) yield* priv.revoke(vdev);
    else yield* priv.unrevoke(vdev);
    kernel.fs.fput(file);
  }
}

/** Revokes while the memory locks of several devices are held, and stay held. ML held for writing. */
export function* vfioPciDmaBufRevokeLocked(vdev: DmaBufDevice): Step<void> {
  if (vdev.vdev.kernel.interconnect === "negotiated") yield* revokeAll(vdev, "temporary", true);
  else yield* vfioPciDmaBufMove(vdev, true);
}

/**
 * What changed the device's power or decode ends: the buffers are live again if
 * memory can be reached. ML held for writing.
 */
export function* vfioPciDmaBufSettle(vdev: DmaBufDevice): Step<void> {
  if (vdev.memoryEnabled() || vdev.vdev.kernel.interconnect === "negotiated") yield* vfioPciDmaBufMove(vdev, false);
}

/** The device is closed: every buffer is revoked for ever and let go of. Takes ML. */
export function* vfioPciDmaBufCleanup(vdev: DmaBufDevice): Step<void> {
  yield* vdev.memoryLock.downWrite();
  try {
    if (vdev.vdev.kernel.interconnect === "negotiated") yield* revokeAll(vdev, "permanent", false);
    else yield* vfioPciDmaBufMove(vdev, true);
    for (const priv of [...vdev.dmabufs]) {
      const { file, kernel } = priv.dmabuf;
      // A file that is dying is its own release's business.
      if (!file.getActive()) continue;
      unlink(vdev, priv);
      priv.vdev = undefined;
      step(priv, vdev, "cleaned_up");
      vdev.vdev.putRegistration();
      kernel.fs.fput(file);
    }
  } finally {
    vdev.memoryLock.upWrite();
  }
}
