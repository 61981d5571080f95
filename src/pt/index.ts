export { amdv1, amdv1Mock } from "./fmt/amdv1.ts";
export { vtdss } from "./fmt/vtdss.ts";
export { x86_64 } from "./fmt/x86_64.ts";
export {
  PROT_CACHE,
  PROT_MMIO,
  PROT_NOEXEC,
  PROT_READ,
  PROT_WRITE,
  type PtFormat,
  type PtProt,
  possibleSizes,
} from "./format.ts";
export { PtGather } from "./gather.ts";
export { PageTable, type Translation } from "./page_table.ts";
export { TableArena, type TableHooks, type TableMemory } from "./table_memory.ts";
export type { PtOptions } from "./tree.ts";
export { type EntryInfo, type TableInfo, walkEntries, walkTables } from "./walk.ts";
