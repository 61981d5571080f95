/**
 * One mapping of an address space.
 *
 * [start, end) in bytes, whole pages. What is behind it: nothing but memory
 * (private), the pages of a cache (`cache`: shared, or copied on write), or
 * device memory that `ops.fault` finds page by page. A driver's mmap operation
 * sets `ops`; a mapping with `ops` is PFNMAP: never pinned.
 *
 * Source: struct vm_area_struct, vm_operations_struct.
 */
import type { PhysAddr } from "../../lib/addr.ts";
import type { Step } from "../../sched/task.ts";
import type { File } from "../fs/file.ts";
import type { AddressSpace } from "./address_space.ts";
import type { FileMapping } from "./file_mapping.ts";
import type { PageCache } from "./page_cache.ts";

export type FaultResult = PhysAddr | "SIGBUS";

export interface VmaOps {
  /**
   * The physical page behind page `pageOffset` of the file (so the first page of
   * the mapping is `vma.offset / 4096`), or SIGBUS. It stays mapped until
   * zapped. May be a generator: then it may sleep. Called with mmap_lock held
   * for reading.
   */
  fault(vma: Vma, pageOffset: number): FaultResult | Step<FaultResult>;
  /** The mapping was copied (fork) or split. */
  open?(vma: Vma): void;
  /** The mapping, or a part of it that was split off, is gone. */
  close?(vma: Vma): void;
}

export class Vma {
  readonly space: AddressSpace;
  start: bigint;
  /** One past the last byte. */
  end: bigint;
  /** PROT_* bits. */
  prot: number;
  /** MAP_SHARED. */
  readonly shared: boolean;
  /** PROT_WRITE may be asked for later (a shared mapping of a file opened for reading may not). */
  mayWrite = true;
  readonly file: File | undefined;
  /** Byte offset in the file of `start`; whole pages. */
  offset: bigint;
  ops: VmaOps | undefined = undefined;
  cache: PageCache | undefined = undefined;
  /** The driver's own. */
  privateData: unknown = undefined;

  constructor(space: AddressSpace, start: bigint, end: bigint, prot: number, shared: boolean, file: File | undefined, offset: bigint) {
    this.space = space;
    this.start = start;
    this.end = end;
    this.prot = prot;
    this.shared = shared;
    this.file = file;
    this.offset = offset;
  }

  get length(): bigint {
    return this.end - this.start;
  }

  /** Device memory: no page structs, so it cannot be pinned. */
  get pfnmap(): boolean {
    return this.ops !== undefined;
  }

  /** Page of the file behind virtual page number `vpn`. */
  pageOffset(vpn: number): number {
    return Number(this.offset >> 12n) + (vpn - Number(this.start >> 12n));
  }

  /** Where this mapping is listed for zapping. */
  get fileMapping(): FileMapping | undefined {
    return this.cache?.mapping ?? this.file?.mapping;
  }

  /** Unmaps all its pages: the next access faults. */
  zap(): void {
    this.space.zap(Number(this.start >> 12n), Number(this.end >> 12n), false);
  }

  /** Unmaps what it maps of file pages [first, end); returns how many. Private copies go too only when `copies`. */
  zapFilePages(first: number, end: number, copies = true): number {
    const base = Number(this.offset >> 12n);
    const npages = Number(this.length >> 12n);
    const from = Math.max(first - base, 0);
    const to = Math.min(end - base, npages);
    if (from >= to) return 0;
    const vpn = Number(this.start >> 12n);
    return this.space.zap(vpn + from, vpn + to, copies);
  }
}

/** Unmaps [offset, offset + length) of a file from everybody (length 0: to its end): the next access faults. */
export function zapVmaRange(of: File | FileMapping, offset: bigint, length: bigint): void {
  const mapping = "vmas" in of ? of : of.mapping;
  const first = Number(offset >> 12n);
  const end = length === 0n ? Number.POSITIVE_INFINITY : Number((offset + length + 4095n) >> 12n);
  let pages = 0;
  let trace: AddressSpace | undefined;
  for (const vma of mapping.vmas) {
    pages += vma.zapFilePages(first, end, false);
    trace = vma.space;
  }
  if (trace?.kernel.trace.on) trace.kernel.trace.emit({ type: "mm.zap", offset, length, pages });
}
