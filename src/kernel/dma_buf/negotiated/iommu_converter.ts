/**
 * PHYS → IOMMU: an importer's domains are filled by the core, which alone sees
 * the addresses.
 *
 * One handle serves any number of domains, slices of the buffer, and domains
 * that come later: `map(domain, iova, offset, length, prot)` until it is
 * released. The handle remembers each piece, which is what a revoke needs to
 * find every page table that holds the memory, and what makes it severable.
 *
 * Who flushes: `unmap` and `sever` return with the IOTLB flushed. All or
 * nothing: a map that fails half way has unmapped what it mapped.
 *
 * Each range is mapped as it can be cached: a BAR as IOMMU_MMIO and never with
 * IOMMU_CACHE, cached RAM with it.
 *
 * Lock: the pieces are changed under the importer's page lock, and read by
 * `sever` with RESV held when that importer has failed; in a kernel a mutex of the
 * handle's own, innermost but for the page tables', since a map may allocate them.
 *
 * Source: this design; docs/negotiation.md.
 */
import { hex, minN } from "../../../lib/addr.ts";
import { EACCES, EINVAL, ENODEV, ENOMEM, type Errno } from "../../../lib/errno.ts";
import { bugOn, KernelBug } from "../../../lib/kernel_bug.ts";
import { IOMMU_CACHE, IOMMU_MMIO, IOMMU_WRITE } from "../../iommu/domain.ts";
import type { PhysRange } from "./contract.ts";
import { type HandleInit, MappingHandle } from "./handle.ts";
import { piecesOf } from "./ranges.ts";

/** What is asked of a domain here. */
export interface MapTarget {
  map(iova: bigint, pa: bigint, length: bigint, prot: number): Errno | undefined;
  /** Bytes unmapped, flushed on return. */
  unmap(iova: bigint, length: bigint): bigint;
}

/** A slice of the buffer in a domain. */
interface Piece {
  readonly domain: MapTarget;
  readonly iova: bigint;
  readonly length: bigint;
}

export class IommuHandle extends MappingHandle {
  readonly #ranges: readonly PhysRange[];
  #pieces: Piece[] = [];

  constructor(init: HandleInit, ranges: readonly PhysRange[]) {
    super(init);
    this.#ranges = ranges;
  }

  /**
   * Maps `length` bytes of the buffer from `offset` on at `iova`, with `prot`
   * (IOMMU_READ, IOMMU_WRITE; cacheability is the range's). No single `map` of
   * the domain is larger than `step` bytes, if given. The importer's page lock
   * held. ENODEV: severed. EACCES: not for writing. EINVAL: past the end.
   * ENOMEM. Or the page table's errno.
   */
  map(domain: MapTarget, iova: bigint, offset: bigint, length: bigint, prot: number, step?: bigint): Errno | undefined {
    if (this.severed) return ENODEV;
    if ((prot & IOMMU_WRITE) !== 0 && !this.write) return EACCES;
    if (this.att.dmabuf.kernel.fault.slab("dma_buf_piece")) return ENOMEM;
    let done = 0n;
    for (const { range, paddr, len } of piecesOf(this.#ranges, offset, length)) {
      const e = mapRange(domain, iova + done, paddr, len, attributes(range, prot), step ?? len);
      if (e !== undefined) {
        unmapAll(domain, iova, done);
        return e;
      }
      done += len;
    }
    if (done < length) {
      unmapAll(domain, iova, done);
      return EINVAL;
    }
    this.#pieces.push({ domain, iova, length });
    return undefined;
  }

  /** Takes out what one `map` put in; flushed on return. The importer's page lock held. Nothing to do when severed. */
  unmap(domain: MapTarget, iova: bigint, length: bigint): void {
    if (this.severed) return;
    const i = this.#pieces.findIndex((p) => p.domain === domain && p.iova === iova);
    const piece = this.#pieces[i];
    bugOn(piece === undefined || piece.length !== length, `${hex(length)} bytes at ${hex(iova)} are unmapped that one map did not make`);
    const last = this.#pieces.pop();
    if (last !== undefined && i < this.#pieces.length) this.#pieces[i] = last;
    unmapAll(domain, iova, length);
  }

  /** Slices in domains now, for checkers. */
  get mapped(): number {
    return this.#pieces.length;
  }

  /** Where byte `offset` of the buffer is, for checkers. */
  physAt(offset: bigint): bigint | undefined {
    for (const { paddr } of piecesOf(this.#ranges, offset, 1n)) return paddr;
    return undefined;
  }

  /** IOMMU_MMIO, IOMMU_CACHE or neither, as byte `offset` is mapped, for checkers. */
  attributesAt(offset: bigint): number {
    for (const { range } of piecesOf(this.#ranges, offset, 1n)) return attributes(range, 0);
    return 0;
  }

  sever(): boolean {
    for (const p of this.#pieces) unmapAll(p.domain, p.iova, p.length);
    this.#pieces = [];
    return true;
  }

  end(): void {
    bugOn(this.#pieces.length > 0, "a mapping is released while domains hold it");
  }
}

function attributes(r: PhysRange, prot: number): number {
  if (r.kind === "mmio") return (prot & ~IOMMU_CACHE) | IOMMU_MMIO;
  return r.cache === "cached" ? prot | IOMMU_CACHE : prot & ~IOMMU_CACHE;
}

function mapRange(domain: MapTarget, iova: bigint, pa: bigint, length: bigint, prot: number, step: bigint): Errno | undefined {
  for (let done = 0n; done < length; done += step) {
    const n = minN(length - done, step);
    const e = domain.map(iova + done, pa + done, n, prot);
    if (e === undefined) continue;
    unmapAll(domain, iova, done);
    return e;
  }
  return undefined;
}

function unmapAll(domain: MapTarget, iova: bigint, length: bigint): void {
  if (length === 0n) return;
  const n = domain.unmap(iova, length);
  if (n !== length) throw new KernelBug(`an unmap of ${hex(length)} bytes at ${hex(iova)} found ${hex(n)}`);
}
