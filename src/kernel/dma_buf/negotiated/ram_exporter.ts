/**
 * The contract of an exporter whose memory is RAM and stays where it is:
 * nothing ever has to be revoked, so that any importer will do.
 *
 * Source: this design; docs/negotiation.md.
 */
import type { Step } from "../../../sched/task.ts";
import type { DmaBuf } from "../buffer.ts";
import type { PhysVec } from "../mapping.ts";
import type { NegotiatedExporter } from "./buffer.ts";
import { type ExporterOffer, type PhysRange, RevokeLevel } from "./contract.ts";

const OFFERS: readonly ExporterOffer[] = [
  { type: "iommu", minLevel: RevokeLevel.none },
  { type: "phys", minLevel: RevokeLevel.none },
  { type: "dma", minLevel: RevokeLevel.none },
];

/** `runs` answers where a buffer's memory is, in order. */
export function ramExporter(runs: (dmabuf: DmaBuf) => readonly PhysVec[]): NegotiatedExporter {
  return {
    offers: () => OFFERS,
    *place(dmabuf): Step<readonly PhysRange[]> {
      return runs(dmabuf).map(({ paddr, len }) => ({ paddr, len, kind: "ram", cache: "cached", provider: undefined }));
    },
  };
}
