/** The embedded kernel, for who drives it without a client. In the order of reading. */

export type { Step, Task } from "../sched/task.ts";
export { Device } from "./device.ts";
// What exporters and importers of your own are written with.
export {
  type DmaBufAttachment,
  type DmaBufAttachOps,
  type DmaDirection,
  dmaBufDetach,
  dmaBufDynamicAttach,
  dmaBufInvalidateMappings,
  dmaBufMapAttachment,
  dmaBufUnmapAttachment,
} from "./dma_buf/attachment.ts";
export { type DmaBuf, type DmaBufOps, dmaBufExport, dmaBufPut } from "./dma_buf/dma_buf.ts";
export type { SgTable } from "./dma_buf/mapping.ts";
export { systemHeapInit } from "./dma_buf/system_heap.ts";
export { udmabufInit } from "./dma_buf/udmabuf.ts";
export { File, type FileOps } from "./fs/file.ts";
export { Process, type ProcessOptions } from "./fs/process.ts";
export type { IommuDescription } from "./iommu/description.ts";
export { IommuFault } from "./iommu/fault.ts";
// What a driver inside the kernel uses to reach an IOAS from the CPU.
export {
  iommufdAccessAttach,
  iommufdAccessCreate,
  iommufdAccessCreateInternal,
  iommufdAccessDestroy,
  iommufdAccessDetach,
  iommufdAccessReplace,
} from "./iommufd/access.ts";
export { iommufdInit } from "./iommufd/main.ts";
export { Kernel } from "./kernel.ts";
export type { UserMemory } from "./mm/user_memory.ts";
export { Modules } from "./modules.ts";
export { PciModel, type PciPort, SparseMemory } from "./pci/pci_model.ts";
export { vfioInit, vfioPciInit } from "./vfio/pci/vfio_pci.ts";
