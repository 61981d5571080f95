/**
 * What an errno means for one call: the causes, most likely first, in terms of
 * what the caller passed. A pair that is not listed falls back to the errno's
 * general meaning.
 */
import type { Errno } from "../lib/errno.ts";

const causes: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  VFIO_DEVICE_BIND_IOMMUFD: {
    EINVAL: "the device is bound already, its group belongs to another user, or a flag is unknown",
    EBADF: "the iommufd descriptor is not open",
    EBADFD: "the descriptor is not /dev/iommu",
    EPERM: "the platform does not isolate MSIs, so the device could raise another's interrupts",
    EBUSY: "somebody else owns the DMA of the device's IOMMU group",
  },
  VFIO_DEVICE_ATTACH_IOMMUFD_PT: {
    EINVAL: "the device is not bound, or the page table belongs to another kind of IOMMU",
    ENOENT: "no IOAS or HWPT has this id",
    EBUSY: "the device is attached already in another way",
    EADDRINUSE: "the IOAS maps an IOVA that this device reserves (its MSI window, or beyond its IOMMU's aperture) or is not page aligned",
  },
  VFIO_DEVICE_DETACH_IOMMUFD_PT: { EINVAL: "the device is not bound" },
  VFIO_DEVICE_FEATURE_DMA_BUF: {
    EINVAL:
      "the device is not bound, or a range is empty, not page aligned or beyond the region's end, or flags are set, or there is no range at all",
    ENODEV: "the region is no BAR, or the BAR is not implemented or could not be reserved",
    EOVERFLOW: "offset + length leaves the 64-bit address space",
    ENOMEM: "the list of ranges is too long for the kernel to copy",
    EFAULT: "the ranges lie in memory that cannot be read",
    EMFILE: "the process has no descriptor left",
    EOPNOTSUPP: "this VFIO driver does not export its BARs",
    ENOTTY: "the kernel was built without VFIO dma-buf support",
  },
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: { EINVAL: "the device is in low power already" },
  VFIO_DEVICE_RESET: {
    EINVAL: "the device has no reset that affects it alone",
    EAGAIN: "the device was busy; nothing was reset, and its exported mappings are gone all the same",
  },
  VFIO_DEVICE_PCI_HOT_RESET: {
    EINVAL: "a device on the same bus is not owned by this iommufd",
    EBUSY: "a device on the same bus is in use right now; mappings of others may have been revoked",
    ENODEV: "the bus cannot be reset",
    ENOTTY: "the bus has no way to be reset, or the device did not come back from it",
  },
  IOMMU_IOAS_MAP_FILE: {
    ENODEV: "the dma-buf is revoked: its device's memory is off, asleep, or the device was closed",
    EOPNOTSUPP:
      "an exporter other than VFIO, or a dma-buf of more than one range, cannot go over the private interconnect; or a flag is unknown",
    EINVAL:
      "start, length or IOVA is not aligned, lies beyond the buffer or outside the IOVA ranges, or neither read nor write was asked for",
    EOVERFLOW: "start + length, or the IOVA, leaves the 64-bit space",
    ENOENT: "no IOAS has this id",
    EBADF: "the file descriptor is not open",
    EEXIST: "the IOVA range overlaps an area (a revoked area keeps its range until it is unmapped)",
    ENOSPC: "no free IOVA range is large enough",
    ENOMEM: "out of memory, or over RLIMIT_MEMLOCK",
  },
  IOMMU_IOAS_MAP: {
    EFAULT: "the memory cannot be pinned: not mapped, not writable, or a device's (a BAR must be exported and mapped with MAP_FILE)",
    ENOMEM: "out of memory, or over RLIMIT_MEMLOCK",
    EEXIST: "the IOVA range overlaps an area",
    EINVAL: "address, length or IOVA is not aligned or outside the IOVA ranges, or neither read nor write was asked for",
    ENOSPC: "no free IOVA range is large enough",
    ENOENT: "no IOAS has this id",
  },
  IOMMU_IOAS_UNMAP: {
    ENOENT: "nothing is mapped there, or the range would cut an area in two",
    EBUSY: "the area is in use by a call that has not ended",
    EINVAL: "the length is zero",
    EOVERFLOW: "IOVA + length leaves the 64-bit space",
  },
  IOMMU_IOAS_COPY: {
    ENOENT: "the source range is not wholly mapped, or an IOAS id is unknown",
    EPERM: "the source is read-only",
    EEXIST: "the destination overlaps an area",
    EINVAL: "IOVA or length is not aligned, or neither read nor write was asked for",
  },
  IOMMU_IOAS_CHANGE_PROCESS: { EINVAL: "an area is not backed by a memfd: dma-buf and user-address areas cannot be re-homed" },
  IOMMU_DESTROY: { EBUSY: "the object is in use by another or by an attached device", ENOENT: "no object has this id" },
  IOMMU_HWPT_ALLOC: {
    EOPNOTSUPP: "this IOMMU has no such feature",
    ENODEV: "no such driver data",
    ENOENT: "no such device, IOAS or HWPT id",
  },
  IOMMU_OPTION: { EINVAL: "the value is not allowed now (HUGE_PAGES cannot change while areas exist)", EPERM: "needs CAP_SYS_RESOURCE" },
  open: { ENOENT: "no such device on this machine", EBUSY: "the device is open already", ENODEV: "no driver stands behind the node" },
};

/** What `errno` means for `call`; undefined when this call has no special meaning for it. */
export function explain(call: string, errno: Errno): string | undefined {
  return causes[call]?.[errno.name];
}
