/** `interconnect.ts`, lending a function that hands the address out without a look at the flag. */
import type { PrivateMap } from "../../../src/kernel/dma_buf/interconnect.ts";
import type { PhysVec } from "../../../src/kernel/dma_buf/mapping.ts";
import type { Kernel } from "../../../src/kernel/kernel.ts";
import type { VfioPciDmaBuf } from "../../../src/kernel/vfio/pci/vfio_pci_dmabuf.ts";

export * from "../../../src/kernel/dma_buf/interconnect.ts";

const careless: PrivateMap = (att) => ({ ...((att.dmabuf.priv as VfioPciDmaBuf).physVec[0] as PhysVec) });

export function exportPrivateMap(kernel: Kernel): void {
  kernel.modules.exportSymbol("vfio_pci_core", "vfio_pci_dma_buf_iommufd_map", careless, ["iommufd"]);
}
