/**
 * The words in which an exporter and an importer agree, before either holds
 * anything of the other's.
 *
 * An agreement has two halves. The *mapping type* says what the importer gets
 * for the memory: addresses of its own device (DMA), pages in an I/O page table
 * (IOMMU), physical ranges (PHYS), or whatever two drivers of one family have
 * between themselves (PRIVATE). The *revoke level* says how the importer gives
 * it back when the exporter asks: not at all, within a bound, or before the
 * question returns.
 *
 * Both sides offer; `match.ts` picks. Nothing here has a side effect.
 *
 * Source: this design; docs/negotiation.md.
 */
import type { PhysAddr } from "../../../lib/addr.ts";
import type { Errno } from "../../../lib/errno.ts";
import type { Device } from "../../device.ts";
import type { P2pdmaProvider } from "../../pci/p2pdma.ts";

/** How an importer lets go, from worst to best; an exporter states the least that it accepts. */
export const RevokeLevel = {
  /** It does not, before it detaches of its own accord. */
  none: 0,
  /** It is told, and has unmapped `boundNs` later. */
  bounded: 1,
  /** It has unmapped when `invalidate` returns. */
  sync: 2,
} as const;
export type RevokeLevel = (typeof RevokeLevel)[keyof typeof RevokeLevel];

/** Why: a temporary revoke may be followed by `revalidate`, a permanent one never is. */
export type RevokeReason = "temporary" | "permanent";

/** May the buffer be mapped? `dead` is for ever. */
export type BufferState = "live" | "revoked" | "dead";

/** How the processor and a snooping device may cache a range. */
export type CacheMode = "uncached" | "write-combined" | "cached";

/** A run of physical memory that an exporter hands to the core, bytes. */
export interface PhysRange {
  readonly paddr: PhysAddr;
  readonly len: bigint;
  /** RAM, or the BAR of a device. */
  readonly kind: "mmio" | "ram";
  readonly cache: CacheMode;
  /** Whose BAR: what tells whether a peer's transactions arrive. Undefined for RAM, and for memory no bus lies before. */
  readonly provider: P2pdmaProvider | undefined;
}

export type MappingType = "dma" | "iommu" | "phys" | "private";

/** What an importer can use, best first in its list. */
export type ImporterOffer = {
  readonly level: RevokeLevel /** Longest time from `invalidate` to the unmap, ns; for `bounded`. */;
  readonly boundNs?: number;
} & (
  | {
      readonly type: "dma";
      /** Who will put the addresses on a bus. */
      readonly dev: Device;
      /** It may be given addresses of another device's memory. */
      readonly peer2peer: boolean;
    }
  | {
      readonly type: "iommu";
      /** Devices that translate through a domain of the importer now; more may come (`NegotiatedAttachment.reaches`). */
      readonly requesters?: () => Iterable<Device>;
    }
  | { readonly type: "phys" }
  | { readonly type: "private"; readonly uuid: string; readonly args?: unknown }
);

/** What an exporter can give, in its order of preference: of two types that both sides know, the exporter's first is taken. */
export interface ExporterOffer {
  readonly type: MappingType;
  /** The least revoke level of an importer that gets this type. */
  readonly minLevel: RevokeLevel;
  /** The BARs that the memory may lie in under this offer; none: RAM. Whoever gets it must reach them. */
  readonly providers?: readonly P2pdmaProvider[];
  /** For `private`: who understands it. */
  readonly uuid?: string;
  /**
   * The exporter's own word on an importer of this type. Undefined: yes.
   * EOPNOTSUPP: not this type, try the next. Any other: the attach fails with it.
   * Called without any lock; it must not change anything, nor look at what a revoke changes.
   */
  readonly veto?: (importer: ImporterOffer) => Errno | undefined;
}

/** The agreement. */
export interface Agreement {
  readonly type: MappingType;
  readonly exporter: ExporterOffer;
  readonly importer: ImporterOffer;
}

/** What came of a revoke: who did not keep the contract, and what was done about it. */
export interface RevokeReport {
  /** Importers that answered with an error, or were not done in time. */
  readonly broken: readonly string[];
  /** Mappings that the core took away from them. */
  readonly severed: number;
  /** Mappings that only the exporter could make harmless; they keep the buffer revoked until they are given back. */
  readonly fenced: number;
}
