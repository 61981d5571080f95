/** The mappings of one object, across processes: what unmap_mapping_range walks. Source: struct address_space, i_mmap. */
import type { Vma } from "./vma.ts";

export class FileMapping {
  readonly vmas: Set<Vma> = new Set();
}
