/**
 * Choosing a mapping type: a pure function of two lists.
 *
 * The exporter's list is the outer loop (it knows what its memory is best at),
 * the importer's the inner one. A pair of one type passes when the importer
 * lets go well enough, when the type's own rule holds, and when the exporter
 * does not veto. The first pair that passes is the agreement. "Not this one"
 * goes on to the next pair, any other errno ends the attach.
 *
 * No lock is held and nothing is touched: no pin, no migration, no power
 * reference, no reservation. What is looked at (offers, the provider, the
 * topology) does not change while the buffer's file lives; a device that is
 * being closed is found out later, by the map, which does hold the reservation.
 *
 * Source: docs/negotiation.md.
 */
import { EOPNOTSUPP, type Errno } from "../../../lib/errno.ts";
import type { Device } from "../../device.ts";
import { type P2pdmaProvider, p2pdmaMapType } from "../../pci/p2pdma.ts";
import type { Agreement, ExporterOffer, ImporterOffer } from "./contract.ts";

/** What the rules of the types look at beside the offers. */
export interface MatchView {
  /** The importers that may be given physical addresses, by name; a closed list in the core. */
  readonly trusted: ReadonlySet<string>;
  readonly importerName: string;
}

/** The first pair that both sides and the type agree on; EOPNOTSUPP when there is none, or the errno of who aborted. */
export function matchMapping(exporter: readonly ExporterOffer[], importer: readonly ImporterOffer[], view: MatchView): Agreement | Errno {
  for (const e of exporter) {
    for (const i of importer) {
      if (i.type !== e.type || i.level < e.minLevel) continue;
      const no = typeRule(e, i, view) ?? e.veto?.(i);
      if (no === undefined) return { type: e.type, exporter: e, importer: i };
      if (no !== EOPNOTSUPP) return no;
    }
  }
  return EOPNOTSUPP;
}

function typeRule(e: ExporterOffer, i: ImporterOffer, view: MatchView): Errno | undefined {
  const providers = e.providers ?? [];
  switch (i.type) {
    case "dma":
      if (providers.length === 0) return undefined;
      return i.peer2peer && providers.every((p) => reaches(i.dev, p)) ? undefined : EOPNOTSUPP;
    case "iommu":
      return providers.every((p) => allReach(i.requesters?.() ?? [], p)) ? undefined : EOPNOTSUPP;
    case "phys":
      return view.trusted.has(view.importerName) ? undefined : EOPNOTSUPP;
    case "private":
      return i.uuid === e.uuid ? undefined : EOPNOTSUPP;
  }
}

/** Does what `dev` sends arrive at the provider's BAR? A device on no bus (a mock) has no ports in its way. */
export function reaches(dev: Device, provider: P2pdmaProvider): boolean {
  return dev.bus !== "pci" || dev === provider.owner || p2pdmaMapType(provider, dev) !== "not_supported";
}

const allReach = (devs: Iterable<Device>, provider: P2pdmaProvider): boolean => {
  for (const d of devs) if (!reaches(d, provider)) return false;
  return true;
};
