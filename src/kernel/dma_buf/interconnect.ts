/**
 * The private interconnect: how iommufd learns where a VFIO buffer really is.
 *
 * A scatter list is made for devices; iommufd wants the physical range itself,
 * to map it into IOMMU domains of its own. VFIO lends it one function, as a
 * symbol for iommufd alone. On success it is certain that the buffer is one
 * run of MMIO, that it was not revoked at that moment, and that from now on a
 * revoke reaches the importer through `invalidateMappings`.
 *
 * The function hands out no reference. That the address is never used after a
 * revoke rests on three things: the attachment is on the buffer's list before
 * the reservation is taken, the invalidate is synchronous, and both sides look
 * at "revoked" under the reservation.
 *
 * Both sides stand in this file, the exporter's half first.
 *
 * Lock order: RESV → mutex of the pages. The symbol is taken under RESV.
 *
 * Source: vfio_pci_dma_buf_iommufd_map (drivers/vfio/pci/vfio_pci_dmabuf.c),
 * iopt_map_dmabuf and iopt_release_pages (drivers/iommu/iommufd/pages.c), spec
 * sections 3, 4.1 (steps 11-14) and 9.
 */
import { ENODEV, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import { bugOn } from "../../lib/kernel_bug.ts";
import type { Mutex } from "../../sched/locks.ts";
import type { Step } from "../../sched/task.ts";
import { Device } from "../device.ts";
import type { Kernel } from "../kernel.ts";
import { PerKernel } from "../per_kernel.ts";
import { VfioPciDmaBuf, vfioPciDmaBufOps } from "../vfio/pci/vfio_pci_dmabuf.ts";
import { type DmaBufAttachment, type DmaBufAttachOps, dmaBufDetach, dmaBufDynamicAttach, dmaBufPin, dmaBufUnpin } from "./attachment.ts";
import { type DmaBuf, dmaBufPut } from "./dma_buf.ts";
import type { PhysVec } from "./mapping.ts";

/** The shape of the lent function. Reservation held. */
export type PrivateMap = (att: DmaBufAttachment) => PhysVec | Errno;

const SYMBOL = "vfio_pci_dma_buf_iommufd_map";
const EXPORTER_MODULE = "vfio_pci_core";
const IMPORTER_MODULE = "iommufd";

/**
 * The one physical MMIO range of a VFIO buffer. Reservation held. EOPNOTSUPP
 * for another exporter's buffer, ENODEV while it is revoked, EOPNOTSUPP for
 * more than one range; in this order.
 */
export function vfioPciDmaBufIommufdMap(att: DmaBufAttachment): PhysVec | Errno {
  const { dmabuf } = att;
  dmabuf.resv.assertHeld();
  const r = privateMap(dmabuf);
  const { trace } = dmabuf.kernel;
  if (trace.on) {
    if (r instanceof Errno) trace.emit({ type: "dma_buf.private_map_refused", ino: dmabuf.ino, errno: r.name });
    else trace.emit({ type: "dma_buf.private_map", ino: dmabuf.ino, paddr: r.paddr, len: r.len });
  }
  return r;
}

function privateMap(dmabuf: DmaBuf): PhysVec | Errno {
  if (dmabuf.ops !== vfioPciDmaBufOps || !(dmabuf.priv instanceof VfioPciDmaBuf)) return EOPNOTSUPP;
  const priv = dmabuf.priv;
  if (priv.revoked) return ENODEV;
  const [range] = priv.physVec;
  if (range === undefined || priv.physVec.length !== 1) return EOPNOTSUPP;
  return { ...range };
}

/** Lends the function; part of loading vfio-pci-core. */
export function exportPrivateMap(kernel: Kernel): void {
  kernel.modules.exportSymbol(EXPORTER_MODULE, SYMBOL, vfioPciDmaBufIommufdMap satisfies PrivateMap, [IMPORTER_MODULE]);
}

/** What the importer keeps of a buffer; iommufd's `PrivateMapPages` have these members. */
export interface DmaBufPages {
  /** Inside the reservation, of a lock class of its own. */
  readonly mutex: Mutex;
  readonly dmabuf: {
    /** From a successful map to the release. */
    attach: DmaBufAttachment | undefined;
    /** `len` 0n: not mapped yet, or revoked. Written under RESV, read under the mutex. */
    phys: PhysVec;
  };
}

const importers: PerKernel<Device> = new PerKernel();

/** The device in whose name iommufd attaches: its misc device, on no bus where DMA happens. */
export function iommufdGlobalDevice(kernel: Kernel): Device {
  return importers.getOr(kernel, () => new Device("iommu", "misc", 0));
}

/** Borrows the exporter's function for one call. */
function symbolMap(kernel: Kernel, att: DmaBufAttachment): PhysVec | Errno {
  const fn = kernel.modules.symbolGet<PrivateMap>(SYMBOL, IMPORTER_MODULE);
  if (fn === undefined) return EOPNOTSUPP;
  try {
    return fn(att);
  } finally {
    kernel.modules.symbolPut(SYMBOL);
  }
}

/**
 * Attaches `pages` to the buffer, pins it, and notes its physical range in
 * `pages.dmabuf`. On success the caller's reference to the buffer is the
 * pages', to be undone by `ioptReleaseDmabuf`; on failure everything is undone
 * here but that reference. `ops.invalidateMappings` is iommufd's revoke; the
 * attachment's `importerPriv` is `pages`. `testMap` is asked first and says
 * EOPNOTSUPP to what is not its own (the exporter of the kernel's selftest).
 */
export function* ioptMapDmabuf(
  kernel: Kernel,
  pages: DmaBufPages,
  dmabuf: DmaBuf,
  ops: DmaBufAttachOps,
  testMap?: PrivateMap,
): Step<Errno | undefined> {
  const att = yield* dmaBufDynamicAttach(dmabuf, iommufdGlobalDevice(kernel), ops, pages);
  if (att instanceof Errno) return att;
  yield* dmabuf.resv.lock();
  // The revoke takes the mutex inside the reservation; say so now, before any revoke.
  kernel.sched.lockdep.acquire(kernel.sched.current, pages.mutex, false);
  let err = dmaBufPin(att);
  if (err === undefined) {
    let phys: PhysVec | Errno = testMap?.(att) ?? EOPNOTSUPP;
    if (phys === EOPNOTSUPP) phys = symbolMap(kernel, att);
    if (phys instanceof Errno) {
      err = phys;
      dmaBufUnpin(att);
    } else {
      pages.dmabuf.phys = phys;
    }
  }
  dmabuf.resv.unlock();
  if (err !== undefined) {
    yield* dmaBufDetach(dmabuf, att);
    return err;
  }
  pages.dmabuf.attach = att;
  return undefined;
}

/** Unpins, detaches and drops the buffer of pages whose last reference is gone. No reservation held. */
export function* ioptReleaseDmabuf({ dmabuf: held }: Pick<DmaBufPages, "dmabuf">): Step<void> {
  const att = held.attach;
  if (att === undefined) return;
  const { dmabuf } = att;
  yield* dmabuf.resv.lock();
  dmaBufUnpin(att);
  dmabuf.resv.unlock();
  yield* dmaBufDetach(dmabuf, att);
  bugOn(held.attach !== att, "pages are released twice");
  held.attach = undefined;
  dmaBufPut(dmabuf);
}
