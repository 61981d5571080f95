/** Hardware page tables, dirty bits, fault queues, and what a virtual IOMMU has. */
import * as u from "../../src/uapi/index.ts";
import { ioctl, LIST, LIST_OFFSET, type Members, OUT, u32Bytes } from "./draft.ts";
import { SHARED } from "./program.ts";
import { iova, P } from "./values.ts";
import type { Context, Hwpt, Ioas, Ref, Viommu, World } from "./world.ts";

const DEFAULT_IOTLB = u.IOMMU_TEST_IOTLB_DEFAULT;

function anyDevice(w: World, c: Context): { idev: Ref; mock: boolean } | undefined {
  const m = w.some(c.mocks);
  const d = w.some(c.devices);
  if (m !== undefined && (d === undefined || w.chance(0.7))) return { idev: m.idev, mock: true };
  return d === undefined ? undefined : { idev: d.devid, mock: false };
}

export function hwptAlloc(w: World, c: Context): boolean {
  const [dev, s] = [anyDevice(w, c), w.some(c.ioases)];
  if (dev === undefined || s === undefined) return false;
  const parents = c.hwpts.filter((h) => h.nestParent);
  const parent = w.chance(0.35) ? w.some<Hwpt | Viommu>([...parents, ...c.viommus]) : undefined;
  if (parent === undefined) paging(w, c, dev, s);
  else nested(w, c, dev, parent);
  return true;
}

export function paging(w: World, c: Context, dev: { idev: Ref; mock: boolean }, s: Ioas, wanted = 0): boolean {
  const flag = (f: number, p: number): number => ((wanted & f) !== 0 || w.chance(p) ? f : 0);
  const faulty = w.chance(0.15) ? w.some(c.faults) : undefined;
  const flags =
    flag(u.IOMMU_HWPT_ALLOC_NEST_PARENT, dev.mock ? 0.4 : 0.1) |
    flag(u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING, dev.mock ? 0.35 : 0.1) |
    flag(u.IOMMU_HWPT_ALLOC_PASID, dev.mock ? 0.3 : 0.1) |
    (faulty === undefined ? 0 : u.IOMMU_HWPT_FAULT_ID_VALID);
  const ref = w.slot();
  // A page table of the mock can be told to have large pages.
  const huge = dev.mock && w.chance(0.15);
  const data: Members = huge ? { data_type: u.IOMMU_HWPT_DATA_SELFTEST, data_len: 8, data_uptr: LIST } : {};
  const m = { flags, dev_id: dev.idev, pt_id: s.ref, ...(faulty === undefined ? {} : { fault_id: faulty.id }), ...data };
  const more = [{ at: LIST_OFFSET, bytes: u32Bytes(DEFAULT_IOTLB, w.pick([u.MOCK_IOMMUPT_HUGE, u.MOCK_IOMMUPT_DEFAULT, 2])) }];
  const o = { keeps: { out_hwpt_id: ref }, min: 24, more: huge ? more : [] };
  if (!ioctl(w, c, c.fd, u.IOMMU_HWPT_ALLOC, u.IommuHwptAlloc, m, o)) return false;
  c.hwpts.push({
    ref,
    ioas: s,
    nested: false,
    nestParent: (flags & u.IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0,
    dirty: (flags & u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0,
    pasid: (flags & u.IOMMU_HWPT_ALLOC_PASID) !== 0,
    faults: faulty !== undefined,
    tracking: false,
  });
  return true;
}

export function nested(w: World, c: Context, dev: { idev: Ref }, parent: Hwpt | Viommu, queue?: Ref): boolean {
  const faulty = queue !== undefined ? { id: queue } : w.chance(0.4) ? w.some(c.faults) : undefined;
  const pasid = w.chance(0.3);
  const flags = (faulty === undefined ? 0 : u.IOMMU_HWPT_FAULT_ID_VALID) | (pasid ? u.IOMMU_HWPT_ALLOC_PASID : 0);
  const ref = w.slot();
  const m = {
    flags: w.chance(0.03) ? u.IOMMU_HWPT_ALLOC_DIRTY_TRACKING : flags,
    dev_id: dev.idev,
    pt_id: parent.ref,
    data_type: w.chance(0.95) ? u.IOMMU_HWPT_DATA_SELFTEST : w.pick([u.IOMMU_HWPT_DATA_NONE, u.IOMMU_HWPT_DATA_VTD_S1]),
    data_len: w.chance(0.9) ? 4 : w.pick([0, 2, 8, 16]),
    data_uptr: LIST,
    ...(faulty === undefined ? {} : { fault_id: faulty.id }),
  };
  const o = {
    keeps: { out_hwpt_id: ref },
    min: 24,
    more: [{ at: LIST_OFFSET, bytes: u32Bytes(DEFAULT_IOTLB, 0, 0, 0) }],
    fixed: ["data_len"],
  };
  if (!ioctl(w, c, c.fd, u.IOMMU_HWPT_ALLOC, u.IommuHwptAlloc, m, o)) return false;
  const { ioas } = "hwpt" in parent ? parent.hwpt : parent;
  c.hwpts.push({ ref, ioas, nested: true, nestParent: false, dirty: false, pasid, faults: faulty !== undefined, tracking: false });
  return true;
}

const anyHwpt = (w: World, c: Context): Ref | undefined => w.some([...c.hwpts.map((h) => h.ref), ...c.mocks.map((m) => m.hwpt)]);

export function hwInfo(w: World, c: Context): boolean {
  const dev = anyDevice(w, c);
  if (dev === undefined) return false;
  const typed = w.chance(0.3);
  const m = {
    flags: typed ? u.IOMMU_HW_INFO_FLAG_INPUT_TYPE : 0,
    dev_id: dev.idev,
    data_len: w.pick([0, 4, 8, 16, 24, 64, 256]),
    data_uptr: w.chance(0.95) ? OUT : 0n,
    ...(typed ? { in_data_type: w.pick([u.IOMMU_HW_INFO_TYPE_SELFTEST, 0, 1, 2, 4]) } : {}),
  };
  return ioctl(w, c, c.fd, u.IOMMU_GET_HW_INFO, u.IommuHwInfo, m, { min: u.IommuHwInfo.endOf("__reserved"), fixed: ["data_len"] });
}

export function setDirty(w: World, c: Context): boolean {
  const dirty = w.some(c.hwpts.filter((h) => h.dirty));
  const t = dirty !== undefined && w.chance(0.9) ? dirty : undefined;
  const id = t?.ref ?? anyHwpt(w, c);
  if (id === undefined) return false;
  const flags = w.pick([1, 1, 1, 1, 0, 2]);
  const done = ioctl(w, c, c.fd, u.IOMMU_HWPT_SET_DIRTY_TRACKING, u.IommuHwptSetDirtyTracking, { flags, hwpt_id: id });
  if (done && t !== undefined) t.tracking = flags === 1;
  return true;
}

/** Mostly over an area of the table's space. */
export function getDirty(w: World, c: Context): boolean {
  const dirty = w.some(c.hwpts.filter((h) => h.tracking)) ?? w.some(c.hwpts.filter((h) => h.dirty));
  const id = dirty !== undefined && w.chance(0.9) ? dirty.ref : anyHwpt(w, c);
  if (id === undefined) return false;
  const a = dirty === undefined ? undefined : w.some(dirty.ioas.areas);
  const exact = a !== undefined && w.chance(0.7);
  const m = {
    hwpt_id: id,
    flags: w.pick([0, 0, 0, u.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR, 2]),
    iova: exact ? a.iova : 0x100_0000n + BigInt(w.rng.below(32)) * P,
    length: exact ? a.length : w.pick([0x800n, P, 16n * P, 64n * P, 0x40_0000n, 0n, 1n]),
    page_size: w.chance(0.9) ? w.pick([0x800n, 0x1000n, 0x2000n]) : w.pick([0n, 1n, 0x400n, 0x1001n, 1n << 30n]),
    data: w.chance(0.95) ? OUT + BigInt(w.rng.below(4)) * 8n : w.pick([0n, 1n]),
  };
  return ioctl(w, c, c.fd, u.IOMMU_HWPT_GET_DIRTY_BITMAP, u.IommuHwptGetDirtyBitmap, m, { fixed: ["iova", "length", "page_size"] });
}

export function invalidate(w: World, c: Context): boolean {
  const t = w.some<Hwpt | Viommu>([...c.hwpts.filter((h) => h.nested || w.chance(0.03)), ...c.viommus]);
  if (t === undefined) return false;
  const viommu = "hwpt" in t;
  const size = viommu ? 12 : 8;
  const n = w.rng.below(4);
  const words: number[] = [];
  for (let i = 0; i < n; i++) {
    words.push(w.pick([0, 0, 1, 2]));
    if (viommu) words.push(w.rng.below(5));
    words.push(w.pick([0, 1, 2, 3, 3, 4]));
  }
  const m = {
    hwpt_id: t.ref,
    data_uptr: LIST,
    data_type: w.chance(0.9) ? u.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST : w.pick([u.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID, 0, 1]),
    entry_len: w.chance(0.9) ? size : w.pick([0, 4, 16, 20]),
    entry_num: n,
  };
  const more = [{ at: LIST_OFFSET, bytes: u32Bytes(...words) }];
  return ioctl(w, c, c.fd, u.IOMMU_HWPT_INVALIDATE, u.IommuHwptInvalidate, m, { more, fixed: ["entry_num", "entry_len"] });
}

export function faultAlloc(w: World, c: Context): boolean {
  const [id, fd] = [w.slot(), w.slot()];
  const keeps = { out_fault_id: id, out_fault_fd: fd };
  if (ioctl(w, c, c.fd, u.IOMMU_FAULT_QUEUE_ALLOC, u.IommuFaultAlloc, {}, { keeps })) c.faults.push({ id, fd });
  return true;
}

export function viommuAlloc(w: World, c: Context): boolean {
  const [dev, parent] = [anyDevice(w, c), w.some(c.hwpts.filter((h) => h.nestParent || w.chance(0.1)))];
  if (dev === undefined || parent === undefined) return hwptAlloc(w, c);
  const ref = w.slot();
  const data = w.chance(0.5);
  const m = {
    type: w.chance(0.95) ? u.IOMMU_VIOMMU_TYPE_SELFTEST : w.pick([0, 1, 2]),
    dev_id: dev.idev,
    hwpt_id: parent.ref,
    ...(data ? { data_len: w.pick([24, 24, 24, 8, 4]), data_uptr: LIST } : {}),
  };
  const more = [{ at: LIST_OFFSET, bytes: u32Bytes(w.rng.u32(), 0, 0, 0, 0, 0) }];
  const o = { keeps: { out_viommu_id: ref }, more: data ? more : [], fixed: ["data_len"] };
  if (ioctl(w, c, c.fd, u.IOMMU_VIOMMU_ALLOC, u.IommuViommuAlloc, m, o)) c.viommus.push({ ref, hwpt: parent, queues: 0 });
  return true;
}

export function vdeviceAlloc(w: World, c: Context): boolean {
  const [v, dev] = [w.some(c.viommus), anyDevice(w, c)];
  if (v === undefined || dev === undefined) return false;
  const ref = w.slot();
  const m = { viommu_id: v.ref, dev_id: dev.idev, virt_id: BigInt(w.chance(0.95) ? 1 + w.rng.below(4) : 0) };
  if (ioctl(w, c, c.fd, u.IOMMU_VDEVICE_ALLOC, u.IommuVdeviceAlloc, m, { keeps: { out_vdevice_id: ref } })) c.vdevices.push(ref);
  return true;
}

export function veventqAlloc(w: World, c: Context): boolean {
  const v = w.some(c.viommus);
  if (v === undefined) return false;
  const [id, fd] = [w.slot(), w.slot()];
  const m = {
    viommu_id: v.ref,
    type: w.chance(0.95) ? u.IOMMU_VEVENTQ_TYPE_SELFTEST : w.pick([0, 1]),
    veventq_depth: w.pick([1, 2, 3, 8, 0, 1 << 19]),
  };
  const keeps = { out_veventq_id: id, out_veventq_fd: fd };
  if (ioctl(w, c, c.fd, u.IOMMU_VEVENTQ_ALLOC, u.IommuVeventqAlloc, m, { keeps })) c.veventqs.push({ id, fd });
  return true;
}

export function hwQueueAlloc(w: World, c: Context): boolean {
  const v = w.some(c.viommus);
  if (v === undefined) return false;
  const ref = w.slot();
  const at = w.some(v.hwpt.ioas.areas)?.iova ?? iova(w, c);
  // No more than a page: whether two are neighbours in memory is chance.
  const within = typeof at === "bigint" && (at & (P - 1n)) === 0n && w.chance(0.7) ? P : 0x800n;
  const m = {
    viommu_id: v.ref,
    type: w.chance(0.95) ? u.IOMMU_HW_QUEUE_TYPE_SELFTEST : w.pick([0, 1]),
    index: w.chance(0.8) ? v.queues % 3 : w.rng.below(4),
    nesting_parent_iova: at,
    length: w.chance(0.05) ? 0n : within,
  };
  const o = { keeps: { out_hw_queue_id: ref }, fixed: ["nesting_parent_iova", "length"] };
  if (!ioctl(w, c, c.fd, u.IOMMU_HW_QUEUE_ALLOC, u.IommuHwQueueAlloc, m, o)) return false;
  v.queues++;
  c.queues.push(ref);
  return true;
}

/** Reads what a queue has, or answers a fault. */
export function queueIo(w: World, c: Context): boolean {
  const q = w.some([...c.faults, ...c.veventqs]);
  if (q === undefined) return false;
  const data = (bytes: Uint8Array) => ({ at: OUT, bytes, patches: [], keeps: [], more: [] });
  switch (w.rng.below(4)) {
    case 0:
    case 1:
      return w.push({ op: "read", fd: q.fd, n: [BigInt(w.pick([40, 80, 12, 16, 24, 8, 7, 0, 400]))], data: data(new Uint8Array(0)) });
    case 2:
      return w.push({ op: "poll", fd: q.fd, n: [0x5n] });
    default: {
      const cookie = w.rng.below(4);
      const bytes = u32Bytes(cookie, w.pick([0, 0, 1, 2]), ...(w.chance(0.2) ? [cookie + 1, 0] : []));
      return w.push({ op: "write", fd: q.fd, n: [], data: data(w.chance(0.9) ? bytes : bytes.subarray(0, w.pick([0, 4, 7]))) });
    }
  }
}

/** The pages of a virtual IOMMU, mapped through the context: mostly at an offset that nothing has. */
export function mapContext(w: World, c: Context): boolean {
  const pages = BigInt(w.pick([1, 2, 2, 2, 3])) * P;
  const prot = w.pick([3, 3, 1, 7]);
  const at = SHARED + 0x10_0000n + BigInt(w.rng.below(3)) * 0x1_0000n;
  const flags = BigInt(u.MAP_SHARED | u.MAP_FIXED);
  if (!w.push({ op: "mmap", fd: c.fd, n: [at, pages, BigInt(prot), flags, BigInt(w.rng.below(4)) * P] })) return false;
  w.push({ op: "look", n: [at, pages] });
  if (w.chance(0.3)) w.push({ op: "poke", n: [at, 64n, 7n] });
  if (w.chance(0.7)) w.push({ op: "munmap", n: [at, pages] });
  return true;
}
