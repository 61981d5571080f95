/** What chance alone rarely sets up: several calls that lead to one deep state, each of which may be spoilt or fail. */
import * as u from "../../src/uapi/index.ts";
import * as hwpt from "./hwpt_calls.ts";
import * as ioas from "./ioas_calls.ts";
import * as selftest from "./selftest_calls.ts";
import type { Context, Hwpt, Mock, World } from "./world.ts";

const newest = (c: Context, wanted: (h: Hwpt) => boolean): Hwpt | undefined => c.hwpts.filter(wanted).at(-1);

function mockOf(w: World, c: Context, wanted: (m: Mock) => boolean): Mock | undefined {
  for (let tries = 0; tries < 4 && !c.mocks.some(wanted); tries++) selftest.mockDomain(w, c);
  return w.some(c.mocks.filter(wanted));
}

/** A device with PASIDs on a table that PASIDs can share. */
export function pasids(w: World, c: Context): boolean {
  const m = mockOf(w, c, (x) => x.pasid);
  const s = w.some(c.ioases);
  if (m === undefined || s === undefined || c.kind === "mixed") return false;
  hwpt.paging(w, c, { idev: m.idev, mock: true }, s, u.IOMMU_HWPT_ALLOC_PASID);
  const h = newest(c, (x) => x.pasid && !x.nested);
  if (h === undefined) return false;
  selftest.replaceWith(w, c, m, h.ref);
  for (let n = 3; n > 0; n--) selftest.pasid(w, c);
  return true;
}

/** A device under a virtual IOMMU, with its nested table and queues. */
export function virtual(w: World, c: Context): boolean {
  const m = mockOf(w, c, () => true);
  const s = w.some(c.ioases);
  if (m === undefined || s === undefined || c.kind === "mixed") return false;
  if (!c.hwpts.some((h) => h.nestParent)) hwpt.paging(w, c, { idev: m.idev, mock: true }, s, u.IOMMU_HWPT_ALLOC_NEST_PARENT);
  hwpt.viommuAlloc(w, c);
  const v = c.viommus.at(-1);
  if (v === undefined) return false;
  hwpt.vdeviceAlloc(w, c);
  hwpt.nested(w, c, { idev: m.idev }, v);
  const h = newest(c, (x) => x.nested);
  if (h !== undefined) selftest.replaceWith(w, c, m, h.ref);
  hwpt.veventqAlloc(w, c);
  selftest.vevent(w, c);
  if (w.chance(0.5)) ioas.map(w, c);
  hwpt.hwQueueAlloc(w, c);
  if (w.chance(0.5)) hwpt.mapContext(w, c);
  return true;
}

/** Page requests of a device, taken and answered. */
export function faults(w: World, c: Context): boolean {
  if (c.faults.length === 0) hwpt.faultAlloc(w, c);
  const [m, s, f] = [mockOf(w, c, () => true), w.some(c.ioases), w.some(c.faults)];
  if (m === undefined || s === undefined || f === undefined || c.kind === "mixed") return false;
  if (!c.hwpts.some((h) => h.nestParent)) hwpt.paging(w, c, { idev: m.idev, mock: true }, s, u.IOMMU_HWPT_ALLOC_NEST_PARENT);
  const parent = w.some(c.hwpts.filter((h) => h.nestParent));
  if (parent === undefined) return false;
  if (!c.hwpts.some((h) => h.nested && h.faults)) hwpt.nested(w, c, { idev: m.idev }, parent, f.id);
  const h = newest(c, (x) => x.faults);
  if (h !== undefined) selftest.replaceWith(w, c, m, h.ref);
  for (let n = 1 + w.rng.below(3); n > 0; n--) selftest.iopf(w, c);
  for (let n = 2; n > 0; n--) hwpt.queueIo(w, c);
  return true;
}

/** A table whose dirty bits are kept, some set and then read. */
export function dirty(w: World, c: Context): boolean {
  const m = mockOf(w, c, (x) => x.dirty);
  const s = w.some(c.ioases.filter((x) => x.small));
  if (m === undefined || s === undefined || c.kind === "mixed") return false;
  if (!c.hwpts.some((h) => h.dirty && h.ioas.small)) hwpt.paging(w, c, { idev: m.idev, mock: true }, s, u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  if (!c.hwpts.some((h) => h.tracking)) hwpt.setDirty(w, c);
  if (w.chance(0.5)) ioas.map(w, c);
  selftest.dirty(w, c);
  for (let n = 2; n > 0; n--) hwpt.getDirty(w, c);
  return true;
}

/** The type1 calls have a space to act on. */
export function compat(w: World, c: Context): boolean {
  ioas.vfioIoas(w, c);
  for (let n = 3; n > 0; n--) ioas.compat(w, c);
  return true;
}
