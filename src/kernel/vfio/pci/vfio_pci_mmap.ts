/**
 * BARs in a process's address space.
 *
 * A map only reserves addresses; the first touch of a page faults it in, under
 * ML for reading, and gives SIGBUS while memory cannot be reached or the user
 * has asked for low power. Whatever revokes takes the pages out again.
 *
 * A process whose memory is not simulated here has no pages that could be taken
 * out. Whoever shows it the BARs calls `vfioPciCoreMmap` for the checks, and
 * then keeps to one rule: whenever ML is released by a writer
 * (`memoryLock.released`) it looks at `barsReachable`, and takes the memory
 * away, or gives it back, before the call that changed it returns. Between a
 * zap and that release a fault would only have waited.
 *
 * Lock order: mmap_lock → ML(R).
 * Source: vfio_pci_core_mmap and vfio_pci_mmap_huge_fault in vfio_pci_core.c.
 */
import { physAddr } from "../../../lib/addr.ts";
import { EINVAL, type Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import { VFIO_PCI_NUM_REGIONS, VFIO_PCI_ROM_REGION_INDEX } from "../../../uapi/vfio.ts";
import type { FaultResult, Vma, VmaOps } from "../../mm/vma.ts";
import { REGION_MASK, type VfioPciCoreDevice } from "./vfio_pci_core.ts";

const PAGE_SHIFT = 12n;
const PAGE_MASK = 4095n;

/** EINVAL: not a BAR, not mappable, private, or past the BAR's last page; else why the BAR was not reserved at open. */
export function vfioPciCoreMmap(vdev: VfioPciCoreDevice, vma: Vma): Errno | undefined {
  const index = vdev.regionAt(vma.offset);
  if (index < 0 || index >= VFIO_PCI_NUM_REGIONS || !vma.shared || index >= VFIO_PCI_ROM_REGION_INDEX) return EINVAL;
  const res = vdev.pdev.resources[index];
  if (vdev.barMmapSupported[index] !== true || res === undefined) return EINVAL;
  const pages = (res.length + PAGE_MASK) & ~PAGE_MASK;
  if ((vma.offset & REGION_MASK) + vma.length > pages) return EINVAL;
  const error = vdev.iomapBar(index);
  if (error !== undefined) return error;
  vma.privateData = vdev;
  vma.ops = vfioPciMmapOps;
  return undefined;
}

const vfioPciMmapOps: VmaOps = {
  *fault(vma: Vma, pageOffset: number): Step<FaultResult> {
    const vdev = vma.privateData as VfioPciCoreDevice;
    const at = BigInt(pageOffset) << PAGE_SHIFT;
    const bar = vdev.regionAt(at);
    const offset = at & REGION_MASK;
    yield* vdev.memoryLock.downRead();
    try {
      const served = vdev.barsReachable();
      if (vdev.kernel.trace.on) vdev.kernel.trace.emit({ type: "vfio.bar_fault", device: vdev.pdev.name, bar, offset, served });
      if (!served) return "SIGBUS";
      // A BAR smaller than a page is mapped only where it starts a page of its own.
      return physAddr(((vdev.pdev.resources[bar]?.start ?? 0n) & ~PAGE_MASK) + offset);
    } finally {
      vdev.memoryLock.upRead();
    }
  },
};
