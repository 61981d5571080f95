/**
 * The selftest's exporter: a buffer of RAM that says where it is, as VFIO's
 * buffers do, and is revoked by a command rather than by a device.
 *
 * DMABUF_GET answers the descriptor. Linux 7.3 lost it (it answers 0) until its
 * test code was mended; what was recorded for comparison has the mend.
 * Source: iommufd_test_dmabuf_ops in drivers/iommu/iommufd/selftest.c.
 */
import { alignUp, PAGE_SHIFT, PAGE_SIZE_N, type Pfn, type PhysAddr, physAddr } from "../../lib/addr.ts";
import { EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { dmaBufInvalidateMappings } from "../dma_buf/attachment.ts";
import { type DmaBuf, type DmaBufOps, dmaBufExport, dmaBufFd, dmaBufGet, dmaBufPut } from "../dma_buf/dma_buf.ts";
import type { PrivateMap } from "../dma_buf/interconnect.ts";
import { type ExporterOffer, type PhysRange, RevokeLevel } from "../dma_buf/negotiated/contract.ts";
import { dmaBufRestore, dmaBufRevoke } from "../dma_buf/negotiated/revoke.ts";
import type { Kernel } from "../kernel.ts";

const MOST_PAGES = 512n;

interface TestBuffer {
  readonly first: Pfn;
  readonly npages: number;
  /** Under the reservation. */
  revoked: boolean;
}

/** It poses as a device's memory that can be revoked. */
const OFFERS: readonly ExporterOffer[] = [{ type: "iommu", minLevel: RevokeLevel.sync }];

const physOf = (dmabuf: DmaBuf): PhysAddr => physAddr(BigInt((dmabuf.priv as TestBuffer).first) << BigInt(PAGE_SHIFT));

const testDmabufOps: DmaBufOps = {
  *mapDmaBuf(): Step<Errno> {
    return EOPNOTSUPP;
  },
  *unmapDmaBuf(): Step<void> {},
  negotiated: {
    offers: () => OFFERS,
    *place(dmabuf): Step<readonly PhysRange[]> {
      return [{ paddr: physOf(dmabuf), len: dmabuf.size, kind: "mmio", cache: "uncached", provider: undefined }];
    },
  },
  *release(dmabuf: DmaBuf): Step<void> {
    const { first, npages } = dmabuf.priv as TestBuffer;
    for (let i = 0; i < npages; i++) dmabuf.kernel.frames.put((first + i) as Pfn);
  },
};

/** IOMMU_TEST_OP_DMABUF_GET: the descriptor. EINVAL: no bytes, or more than 2 MiB; ENOMEM; EMFILE. */
export function testDmabufGet(kernel: Kernel, length: number, openFlags: number): number | Errno {
  const size = alignUp(BigInt(length), PAGE_SIZE_N);
  if (size === 0n || size > MOST_PAGES * PAGE_SIZE_N) return EINVAL;
  if (kernel.fault.slab("iommufd_test_dma_buf") || kernel.fault.slab("memory", Number(size))) return ENOMEM;
  const npages = Number(size >> BigInt(PAGE_SHIFT));
  const { frames } = kernel;
  const order = Math.ceil(Math.log2(npages));
  const first = frames.allocContiguous(order);
  if (first instanceof Errno) return first;
  for (let i = npages; i < 2 ** order; i++) frames.put((first + i) as Pfn);
  const priv: TestBuffer = { first, npages, revoked: false };
  const dmabuf = dmaBufExport(kernel, { expName: "iommufd", owner: "iommufd", ops: testDmabufOps, size, flags: openFlags, priv });
  if (dmabuf instanceof Errno) {
    for (let i = 0; i < npages; i++) frames.put((first + i) as Pfn);
    return dmabuf;
  }
  const fd = dmaBufFd(kernel.current, dmabuf, openFlags);
  if (fd instanceof Errno) dmaBufPut(dmabuf);
  return fd;
}

/** IOMMU_TEST_OP_DMABUF_REVOKE: sets or clears the mark, and has every importer let go either way. EOPNOTSUPP: another exporter's. */
export function* testDmabufRevoke(kernel: Kernel, fd: number, revoked: boolean): Step<Errno | undefined> {
  const dmabuf = dmaBufGet(kernel.current, fd);
  if (dmabuf instanceof Errno) return dmabuf;
  try {
    if (dmabuf.ops !== testDmabufOps) return EOPNOTSUPP;
    if (dmabuf.negotiated !== undefined) {
      if (revoked) yield* dmaBufRevoke(dmabuf.negotiated, "temporary");
      else yield* dmaBufRestore(dmabuf.negotiated);
      return undefined;
    }
    yield* dmabuf.resv.lock();
    (dmabuf.priv as TestBuffer).revoked = revoked;
    yield* dmaBufInvalidateMappings(dmabuf);
    dmabuf.resv.unlock();
    return undefined;
  } finally {
    dmaBufPut(dmabuf);
  }
}

/** Where a buffer of this exporter is. Reservation held. ENODEV while it is revoked. */
export const testDmabufMap: PrivateMap = ({ dmabuf }) => {
  dmabuf.resv.assertHeld();
  if (dmabuf.ops !== testDmabufOps) return EOPNOTSUPP;
  if ((dmabuf.priv as TestBuffer).revoked) return ENODEV;
  return { paddr: physOf(dmabuf), len: dmabuf.size };
};
