/**
 * The IOVAs that a type1 container may map: what every domain translates,
 * without what any device has reserved.
 *
 * A list of disjoint ranges in ascending order, both ends included. It is empty
 * only before the first group. Functions answer a new list.
 * Source: vfio_iommu_aper_* and vfio_iommu_resv_* (vfio_iommu_type1.c).
 */
import { maxN, minN } from "../../../lib/addr.ts";
import { EINVAL, type Errno } from "../../../lib/errno.ts";
import type { ReservedRegion } from "../../iommu/resv.ts";

export interface IovaRange {
  readonly start: bigint;
  readonly last: bigint;
}

/** Is something mapped in the range? */
export type IsMapped = (start: bigint, last: bigint) => boolean;

/** Would an aperture leave out what is mapped, or everything? */
export function apertureConflict(list: readonly IovaRange[], aperture: IovaRange, isMapped: IsMapped): boolean {
  const first = list[0];
  const end = list.at(-1);
  if (first === undefined || end === undefined) return false;
  if (aperture.start > end.last || aperture.last < first.start) return true;
  if (aperture.start > first.start && isMapped(first.start, aperture.start - 1n)) return true;
  return aperture.last < end.last && isMapped(aperture.last + 1n, end.last);
}

/** What of the list lies in the aperture; of an empty list, the aperture. */
export function clipToAperture(list: readonly IovaRange[], aperture: IovaRange): IovaRange[] {
  if (list.length === 0) return [aperture];
  const out: IovaRange[] = [];
  for (const r of list) {
    const start = maxN(r.start, aperture.start);
    const last = minN(r.last, aperture.last);
    if (start <= last) out.push({ start, last });
  }
  return out;
}

/** The list without the reserved regions. EINVAL when nothing is left. */
export function excludeReserved(list: readonly IovaRange[], reserved: readonly ReservedRegion[]): IovaRange[] | Errno {
  let out: IovaRange[] = [...list];
  for (const r of reserved) {
    if (r.type === "direct-relaxable") continue;
    const last = r.start + r.length - 1n;
    out = out.flatMap((n): IovaRange[] => {
      if (r.start > n.last || last < n.start) return [n];
      const rest: IovaRange[] = [];
      if (r.start > n.start) rest.push({ start: n.start, last: r.start - 1n });
      if (last < n.last) rest.push({ start: last + 1n, last: n.last });
      return rest;
    });
  }
  return out.length === 0 ? EINVAL : out;
}

/** Lies the range within one of the list? An empty list allows everything. */
export function isValid(list: readonly IovaRange[], start: bigint, last: bigint): boolean {
  return list.length === 0 || list.some((r) => start >= r.start && last <= r.last);
}
