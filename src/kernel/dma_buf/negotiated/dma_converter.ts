/**
 * PHYS → DMA: addresses that one device may put on its bus, for importers that
 * know nothing but those.
 *
 * A device behind an IOMMU gets one run of IOVAs that holds all ranges back to
 * back; the core owns that translation, and can sever it: the pages go, the
 * IOVAs stay taken until the importer releases the handle, so that a late
 * access faults and never meets another buffer. A peer below the same switch
 * gets bus addresses, and a device behind no IOMMU physical ones: nothing lies
 * between it and the memory, and only the exporter can fence it.
 *
 * Source: this design; docs/negotiation.md; drivers/dma-buf/dma-buf-mapping.c
 * for the cases.
 */
import { EINVAL, Errno } from "../../../lib/errno.ts";
import type { Device } from "../../device.ts";
import { type P2pdmaProvider, p2pdmaMapType } from "../../pci/p2pdma.ts";
import type { DmaDirection } from "../attachment.ts";
import {
  dmaCutPhys,
  dmaIovaAlloc,
  dmaIovaCut,
  dmaIovaDestroy,
  dmaIovaLink,
  dmaMapPhys,
  dmaTranslated,
  dmaUnmapPhys,
  type IovaRun,
} from "../dma_map.ts";
import { type SgEntry, splitEntry } from "../mapping.ts";
import type { PhysRange } from "./contract.ts";
import { type HandleInit, MappingHandle } from "./handle.ts";

/** How the ranges were mapped for a device. */
export interface DeviceMapping {
  readonly dev: Device;
  readonly segments: readonly SgEntry[];
  /** Behind an IOMMU. */
  readonly run: IovaRun | undefined;
  /** Mapped range by range. */
  readonly each: readonly SgEntry[];
}

/** Maps all ranges for `dev`, or nothing and the errno: EINVAL where the topology forbids it, ENOMEM, EIO. */
export function mapForDevice(dev: Device, ranges: readonly PhysRange[], write: boolean): DeviceMapping | Errno {
  const dir: DmaDirection = write ? "bidirectional" : "to_device";
  const size = ranges.reduce((sum, r) => sum + r.len, 0n);
  const onBus = ranges.length > 0 && ranges.every((r) => r.provider !== undefined && p2pdmaMapType(r.provider, dev) === "bus_addr");
  if (onBus) {
    const segments = ranges.flatMap((r) => [...splitEntry(r.paddr + (r.provider?.busOffset ?? 0n), r.len)]);
    return { dev, segments, run: undefined, each: [] };
  }
  for (const r of ranges) if (r.provider !== undefined && p2pdmaMapType(r.provider, dev) === "not_supported") return EINVAL;
  const run = dmaIovaAlloc(dev, size);
  return run === undefined ? mapEach(dev, ranges, dir) : fillRun(run, ranges, size, dir);
}

function fillRun(run: IovaRun, ranges: readonly PhysRange[], size: bigint, dir: DmaDirection): DeviceMapping | Errno {
  let at = 0n;
  for (const r of ranges) {
    const e = dmaIovaLink(run, at, r.paddr, r.len, dir, r.kind === "mmio");
    if (e !== undefined) {
      dmaIovaDestroy(run);
      return e;
    }
    at += r.len;
  }
  return { dev: run.dev, segments: [...splitEntry(run.address, size)], run, each: [] };
}

function mapEach(dev: Device, ranges: readonly PhysRange[], dir: DmaDirection): DeviceMapping | Errno {
  const each: SgEntry[] = [];
  for (const r of ranges) {
    const address = dmaMapPhys(dev, r.paddr, r.len, dir, r.kind === "mmio");
    if (address instanceof Errno) {
      for (const m of each) dmaUnmapPhys(dev, m.address, m.length);
      return address;
    }
    each.push({ address, length: r.len });
  }
  return { dev, segments: each.flatMap((m) => [...splitEntry(m.address, m.length)]), run: undefined, each };
}

/** Would the core stand between `dev` and the provider's BAR, so that a mapping can be severed? */
export const severableFor = (dev: Device, provider: P2pdmaProvider): boolean =>
  p2pdmaMapType(provider, dev) !== "bus_addr" && dmaTranslated(dev);

/** What the importer's device may put on its bus, until the handle is released. */
export class DmaHandle extends MappingHandle {
  readonly #mapping: DeviceMapping;

  constructor(init: HandleInit, mapping: DeviceMapping) {
    super(init);
    this.#mapping = mapping;
  }

  get segments(): readonly SgEntry[] {
    return this.#mapping.segments;
  }

  sever(): boolean {
    const { dev, run, each } = this.#mapping;
    if (run !== undefined) dmaIovaCut(run);
    else if (each.length === 0 || !dmaTranslated(dev)) return false;
    for (const m of each) dmaCutPhys(dev, m.address, m.length);
    return true;
  }

  end(): void {
    const { dev, run, each } = this.#mapping;
    if (run !== undefined) dmaIovaDestroy(run);
    for (const m of each) dmaUnmapPhys(dev, m.address, m.length);
  }
}
