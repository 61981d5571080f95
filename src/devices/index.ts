/** Device models, and what it takes to write one. In the order of reading. */
export {
  type AcsFlag,
  type BarKind,
  type BarMemory,
  type BarStore,
  type PciBarDescription,
  type PciFunctionDescription,
  PciModel,
  type PciPort,
  type RegisterMap,
  type RegisterRange,
  type ResetKind,
  type ResetOutcome,
  SparseMemory,
} from "../kernel/pci/pci_model.ts";
export { Edu, type EduOptions } from "./edu.ts";
export { Ivshmem, type IvshmemOptions } from "./ivshmem.ts";
export { Nvme, type NvmeOptions } from "./nvme.ts";
export { PciTestdev } from "./pci_testdev.ts";
