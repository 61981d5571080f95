/**
 * From physical ranges to a scatter list that a device can use.
 *
 * The memory is MMIO and has no struct page: an entry carries a DMA address
 * and a length, nothing else. How the address comes about depends on where
 * importer and exporter sit:
 *
 *   below one switch     bus addresses, no IOMMU in the way
 *   over the root        one run of IOVAs that holds all ranges back to back
 *                        (a device behind an IOMMU), or each range mapped by
 *                        itself (a device behind none)
 *   anywhere else        refused: the transactions would not arrive
 *
 * An entry's length is 32 bits wide in the kernel, so a longer run is cut
 * every 4 GiB - 4 KiB: a page-aligned step, lest the next entry start in the
 * middle of a page.
 *
 * Unlike Linux 7.3, a failure half way gives back every IOVA and every mapping
 * it made, range by range.
 *
 * Source: drivers/dma-buf/dma-buf-mapping.c, spec section 3 (map_dma_buf).
 */
import { PAGE_SIZE_N, type Pfn, type PhysAddr, physOfPfn } from "../../lib/addr.ts";
import { EINVAL, ENOMEM, Errno } from "../../lib/errno.ts";
import { KernelBug } from "../../lib/kernel_bug.ts";
import type { Device } from "../device.ts";
import type { P2pdmaProvider } from "../pci/p2pdma.ts";
import { p2pdmaMapType } from "../pci/p2pdma.ts";
import type { DmaBufAttachment, DmaDirection } from "./attachment.ts";
import { dmaIovaAlloc, dmaIovaDestroy, dmaIovaLink, dmaMapPhys, dmaUnmapPhys, type IovaRun } from "./dma_map.ts";

/** A run of physical memory, bytes. */
export interface PhysVec {
  paddr: PhysAddr;
  len: bigint;
}

/** One entry of a scatter list: what the device puts on the bus, and how many bytes. */
export interface SgEntry {
  readonly address: bigint;
  readonly length: bigint;
}

/** What a map gave the importer, until it unmaps. */
export interface SgTable {
  readonly entries: readonly SgEntry[];
  /** The exporter's, to undo the map. */
  readonly priv: unknown;
}

/** Longest entry: the largest multiple of a page below 2^32. */
export const MAX_SG_ENTRY: bigint = 0xffff_f000n;

/** How `physVecToSgt` mapped a table. */
interface Mapped {
  readonly iova: IovaRun | undefined;
  /** What was mapped range by range, to be unmapped the same way. */
  readonly ranges: readonly SgEntry[];
}

/** A run as entries of at most `MAX_SG_ENTRY` bytes. */
export function* splitEntry(address: bigint, length: bigint): Generator<SgEntry> {
  for (let at = 0n; at < length; at += MAX_SG_ENTRY) {
    const left = length - at;
    yield { address: address + at, length: left < MAX_SG_ENTRY ? left : MAX_SG_ENTRY };
  }
}

/**
 * Maps `ranges` (`size` bytes in all) of `provider`'s BAR for the importer.
 * Reservation held. EINVAL when the topology forbids it, ENOMEM, the DMA
 * layer's errno when it cannot map.
 */
export function physVecToSgt(
  att: DmaBufAttachment,
  provider: P2pdmaProvider,
  ranges: readonly PhysVec[],
  size: bigint,
  dir: DmaDirection,
): SgTable | Errno {
  att.dmabuf.resv.assertHeld();
  const { fault } = att.dmabuf.kernel;
  if (fault.slab("dma_buf_dma") || fault.slab("dma_iova_state") || fault.slab("sg_table")) return ENOMEM;
  switch (p2pdmaMapType(provider, att.dev)) {
    case "bus_addr":
      return {
        entries: ranges.flatMap((r) => [...splitEntry(busAddress(provider, r.paddr), r.len)]),
        priv: { iova: undefined, ranges: [] } satisfies Mapped,
      };
    case "thru_host_bridge":
      return thruHostBridge(att, ranges, size, dir);
    default:
      return EINVAL;
  }
}

/** Where the BAR is on the bus, which need not be where the CPU sees it. */
const busAddress = (provider: P2pdmaProvider, paddr: PhysAddr): bigint => paddr + provider.busOffset;

function thruHostBridge(att: DmaBufAttachment, ranges: readonly PhysVec[], size: bigint, dir: DmaDirection): SgTable | Errno {
  const iova = dmaIovaAlloc(att.dev, size);
  if (iova === undefined) return mapEach(att.dev, ranges, dir, true);
  let linked = 0n;
  for (const r of ranges) {
    const err = dmaIovaLink(iova, linked, r.paddr, r.len, dir, true);
    if (err !== undefined) {
      dmaIovaDestroy(iova);
      return err;
    }
    linked += r.len;
  }
  if (linked !== size) throw new KernelBug(`${linked} bytes mapped of a buffer of ${size}`);
  return { entries: [...splitEntry(iova.address, size)], priv: { iova, ranges: [] } satisfies Mapped };
}

/** Every range by itself: all of them, or none and the DMA layer's errno. */
function mapEach(dev: Device, ranges: readonly PhysVec[], dir: DmaDirection, mmio: boolean): SgTable | Errno {
  const mapped: SgEntry[] = [];
  for (const r of ranges) {
    const address = dmaMapPhys(dev, r.paddr, r.len, dir, mmio);
    if (address instanceof Errno) {
      for (const m of mapped) dmaUnmapPhys(dev, m.address, m.length);
      return address;
    }
    mapped.push({ address, length: r.len });
  }
  return {
    entries: mapped.flatMap((m) => [...splitEntry(m.address, m.length)]),
    priv: { iova: undefined, ranges: mapped } satisfies Mapped,
  };
}

function unmapAll(dev: Device, sgt: SgTable): void {
  const { iova, ranges } = sgt.priv as Mapped;
  if (iova !== undefined) dmaIovaDestroy(iova);
  for (const m of ranges) dmaUnmapPhys(dev, m.address, m.length);
}

/** Undoes `physVecToSgt`. Reservation held. */
export function freeSgt(att: DmaBufAttachment, sgt: SgTable): void {
  att.dmabuf.resv.assertHeld();
  unmapAll(att.dev, sgt);
}

/** Pages of RAM as runs, adjacent ones joined. */
export function pageRuns(pages: readonly Pfn[]): PhysVec[] {
  const runs: PhysVec[] = [];
  for (const pfn of pages) {
    const paddr = physOfPfn(pfn);
    const last = runs[runs.length - 1];
    if (last !== undefined && last.paddr + last.len === paddr) last.len += PAGE_SIZE_N;
    else runs.push({ paddr, len: PAGE_SIZE_N });
  }
  return runs;
}

/** Maps RAM for `dev`: what an exporter of memory does in its map. */
export const ramToSgt = (dev: Device, runs: readonly PhysVec[], dir: DmaDirection): SgTable | Errno => mapEach(dev, runs, dir, false);

/** Undoes `ramToSgt`. */
export const freeRamSgt = (dev: Device, sgt: SgTable): void => unmapAll(dev, sgt);
