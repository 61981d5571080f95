/** What the kernel's selftest adds: mock devices, accesses, buffers, and looks behind the tables. */
import * as u from "../../src/uapi/index.ts";
import { type DraftOptions, ioctl, LIST, LIST_OFFSET, type Members, OUT } from "./draft.ts";
import { DATA } from "./program.ts";
import { iova, length, P, va } from "./values.ts";
import type { Context, Hwpt, Mock, Ref, World } from "./world.ts";

/** One operation; `op` itself is never spoilt, it could become one that is to be avoided. */
function test(w: World, c: Context, op: number, id: number | Ref, members: Members, o: DraftOptions = {}): boolean {
  return ioctl(w, c, c.fd, u.IOMMU_TEST_CMD, u.IommuTestCmd, { op, id, ...members }, { ...o, fixed: ["op", ...(o.fixed ?? [])] });
}

export function mockDomain(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined || c.mocks.length >= 6) return false;
  const [stdev, idev, hwpt] = [w.slot(), w.slot(), w.slot()];
  const flags = w.chance(0.03) ? 2 : w.pick([0, 0, u.MOCK_FLAGS_DEVICE_NO_DIRTY, u.MOCK_FLAGS_DEVICE_PASID, u.MOCK_FLAGS_DEVICE_PASID]);
  const m: Mock = {
    stdev,
    idev,
    hwpt,
    dirty: (flags & u.MOCK_FLAGS_DEVICE_NO_DIRTY) === 0,
    pasid: (flags & u.MOCK_FLAGS_DEVICE_PASID) !== 0,
    pasids: new Set(),
  };
  const on = w.some(c.hwpts.filter((h) => !h.nested || w.chance(0.3)));
  const pt = on !== undefined && w.chance(0.25) ? on.ref : s.ref;
  const keep = (name: string): DraftOptions => ({
    keeps: { [`${name}.out_stdev_id`]: stdev, [`${name}.out_hwpt_id`]: hwpt, [`${name}.out_idev_id`]: idev },
  });
  const ok =
    flags === 0
      ? test(w, c, u.IOMMU_TEST_OP_MOCK_DOMAIN, pt, {}, keep("mock_domain"))
      : test(w, c, u.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt, { "mock_domain_flags.dev_flags": flags }, keep("mock_domain_flags"));
  if (!ok) return false;
  c.mocks.push(m);
  if (pt === s.ref) s.attached = true;
  return true;
}

function anyTable(w: World, c: Context): Ref | undefined {
  return w.some([...c.ioases.map((s) => s.ref), ...c.hwpts.map((h) => h.ref), ...c.mocks.map((m) => m.hwpt)]);
}

const mockTable = (w: World, c: Context): Ref | undefined => w.some([...c.hwpts.map((h) => h.ref), ...c.mocks.map((m) => m.hwpt)]);

export function mockReplace(w: World, c: Context): boolean {
  const [m, pt] = [w.some(c.mocks), anyTable(w, c)];
  if (m === undefined || pt === undefined || c.kind === "mixed") return false;
  return replaceWith(w, c, m, pt);
}

/** Not in a mixed context. */
export function replaceWith(w: World, c: Context, m: Mock, pt: Ref, o: DraftOptions = {}): boolean {
  const now = w.slot();
  const keeps = { "mock_domain_replace.pt_id": now };
  if (test(w, c, u.IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, m.stdev, { "mock_domain_replace.pt_id": pt }, { ...o, keeps })) m.hwpt = now;
  return true;
}

/** Detaches whatever PASID the device may have, which its end does not do. */
export function detachAll(w: World, c: Context, m: Mock): boolean {
  for (const pasid of m.pasids)
    test(w, c, u.IOMMU_TEST_OP_PASID_DETACH, m.stdev, { "pasid_detach.pasid": pasid }, { good: true, needed: true });
  m.pasids.clear();
  return true;
}

/** Before a context goes, by whatever way. */
export function detachPasids(w: World, c: Context): boolean {
  for (const m of c.mocks) detachAll(w, c, m);
  return true;
}

export function mockDestroy(w: World, c: Context): boolean {
  const m = w.take(c.mocks);
  if (m === undefined) return false;
  detachAll(w, c, m);
  if (!ioctl(w, c, c.fd, u.IOMMU_DESTROY, u.IommuDestroy, { id: m.stdev }, { good: true })) c.mocks.push(m);
  return true;
}

export function pasid(w: World, c: Context): boolean {
  const m = w.some(c.mocks.filter((x) => x.pasid || w.chance(0.2)));
  if (m === undefined || c.kind === "mixed") return false;
  const fit = w.some(c.hwpts.filter((h) => h.pasid));
  const pt = fit !== undefined && w.chance(0.7) ? fit.ref : anyTable(w, c);
  if (pt === undefined) return false;
  const number = w.chance(0.8)
    ? 1 + w.rng.below(3)
    : w.pick([u.IOMMU_TEST_PASID_RESERVED, (1 << u.MOCK_PASID_WIDTH) - 1, 1 << u.MOCK_PASID_WIDTH, 0x100]);
  switch (w.rng.below(5)) {
    case 0:
    case 1:
      m.pasids.add(number);
      return test(w, c, u.IOMMU_TEST_OP_PASID_ATTACH, m.stdev, { "pasid_attach.pasid": number, "pasid_attach.pt_id": pt }, { good: true });
    case 2:
      m.pasids.add(number);
      return test(
        w,
        c,
        u.IOMMU_TEST_OP_PASID_REPLACE,
        m.stdev,
        { "pasid_replace.pasid": number, "pasid_replace.pt_id": pt },
        { good: true },
      );
    case 3:
      return test(w, c, u.IOMMU_TEST_OP_PASID_DETACH, m.stdev, { "pasid_detach.pasid": number }, { good: true });
    default: {
      const members = { "pasid_check.pasid": number, "pasid_check.hwpt_id": w.chance(0.7) ? pt : 0 };
      return test(w, c, u.IOMMU_TEST_OP_PASID_CHECK_HWPT, m.stdev, members);
    }
  }
}

export function accessCreate(w: World, c: Context): boolean {
  const s = w.some(c.ioases.filter((x) => x.areas.length > 0)) ?? w.some(c.ioases);
  if (s === undefined || c.accesses.length >= 4) return false;
  const fd = w.slot();
  const pins = w.chance(0.6);
  const members = { "create_access.flags": w.chance(0.96) ? Number(pins) : 2 };
  const o = { keeps: { "create_access.out_access_fd": fd } };
  if (test(w, c, u.IOMMU_TEST_OP_CREATE_ACCESS, s.ref, members, o)) c.accesses.push({ fd, pins, ioas: s, items: [] });
  return true;
}

export function accessPages(w: World, c: Context): boolean {
  const a = w.some(c.accesses.filter((x) => x.pins || w.chance(0.05)));
  if (a === undefined) return accessCreate(w, c);
  const area = w.some(a.ioas.areas);
  const exact = area !== undefined && w.chance(0.8);
  const syz = w.chance(0.15);
  const members = {
    "access_pages.flags": w.pick([0, 1]) | (syz ? u.MOCK_FLAGS_ACCESS_SYZ : 0),
    "access_pages.iova": syz ? BigInt(w.rng.below(4)) | (BigInt(w.rng.below(4)) << 44n) : exact ? area.iova : iova(w, c),
    "access_pages.length": exact && w.chance(0.7) ? (area.length > P && w.chance(0.5) ? P : area.length) : length(w, c),
    "access_pages.uptr": exact && area.va !== undefined && w.chance(0.6) ? area.va : w.chance(0.7) ? 0n : va(w, c),
  };
  // An access is named by its descriptor, which a wrong id must not turn into something that is not one.
  const id = w.slot();
  const o = { fixed: ["id"], keeps: { "access_pages.out_access_pages_id": id } };
  if (test(w, c, u.IOMMU_TEST_OP_ACCESS_PAGES, a.fd, members, o)) a.items.push(id);
  return true;
}

export function accessRelease(w: World, c: Context): boolean {
  const a = w.some(c.accesses.filter((x) => x.items.length > 0 || w.chance(0.1)));
  if (a === undefined) return false;
  const id = w.take(a.items) ?? w.rng.below(6);
  return test(w, c, u.IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, a.fd, { "destroy_access_pages.access_pages_id": id }, { fixed: ["id"] });
}

export function accessRw(w: World, c: Context): boolean {
  const a = w.some(c.accesses);
  if (a === undefined) return accessCreate(w, c);
  const area = w.some(a.ioas.areas);
  const syz = w.chance(0.1);
  const offset = BigInt(w.rng.below(64)) * (w.chance(0.5) ? 0x40n : 1n);
  const at = area !== undefined && w.chance(0.85) ? (typeof area.iova === "bigint" ? area.iova + offset : area.iova) : iova(w, c);
  const members = {
    "access_rw.iova": syz ? BigInt(w.rng.below(4)) | (offset << 32n) : at,
    "access_rw.length": w.chance(0.9)
      ? BigInt(1 + w.rng.below(w.chance(0.5) ? 64 : 3000))
      : w.pick([0n, P, 3n * P, 0x100_0001n, 1n << 40n]),
    "access_rw.uptr": w.chance(0.9) ? OUT : va(w, c),
    "access_rw.flags": w.pick([0, 0, 0, 1, 1, 4, 5, w.chance(0.2) ? 2 : 0]) | (syz ? u.MOCK_FLAGS_ACCESS_SYZ : 0),
  };
  return test(w, c, u.IOMMU_TEST_OP_ACCESS_RW, a.fd, members, { fixed: ["id"] });
}

export function accessReplace(w: World, c: Context): boolean {
  const [a, s] = [w.some(c.accesses), w.some(c.ioases)];
  if (a === undefined || s === undefined) return false;
  if (!test(w, c, u.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, a.fd, { "access_replace_ioas.ioas_id": s.ref }, { fixed: ["id"] })) return false;
  c.accesses[c.accesses.indexOf(a)] = { ...a, ioas: s };
  return true;
}

export function accessClose(w: World, c: Context): boolean {
  const a = w.take(c.accesses);
  if (a !== undefined) w.push({ op: "close", fd: a.fd, n: [] });
  return true;
}

export function checkMap(w: World, c: Context): boolean {
  const h: Hwpt | undefined = w.some(c.hwpts.filter((x) => !x.nested && x.ioas.areas.length > 0));
  const id = h?.ref ?? mockTable(w, c);
  if (id === undefined) return false;
  const area = w.some(h?.ioas.areas.filter((a) => a.va !== undefined) ?? []);
  const members = {
    "check_map.iova": area?.iova ?? iova(w, c),
    "check_map.length": w.chance(0.7) ? (area?.length ?? P) : w.pick([P, 0x800n, 2n * P]),
    "check_map.uptr": area?.va ?? va(w, c),
  };
  return test(w, c, u.IOMMU_TEST_OP_MD_CHECK_MAP, id, members, { fixed: ["check_map.length"] });
}

export function checkRefs(w: World, c: Context): boolean {
  const members = {
    "check_refs.length": w.pick([P, 2n * P, 4n * P, 0x800n, 0n]),
    "check_refs.uptr": DATA + BigInt(w.rng.below(60)) * P,
    "check_refs.refs": w.pick([0, 0, 1, 1, 2]),
  };
  return test(w, c, u.IOMMU_TEST_OP_MD_CHECK_REFS, 0, members, { fixed: ["check_refs.length"] });
}

export function addReserved(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined) return false;
  return test(w, c, u.IOMMU_TEST_OP_ADD_RESERVED, s.ref, { "add_reserved.start": iova(w, c), "add_reserved.length": length(w, c) });
}

export function memoryLimit(w: World, c: Context): boolean {
  return test(w, c, u.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0, { "memory_limit.limit": w.pick([65536, 65536, 4096, 128, 16, 12, 11, 0]) });
}

export function dirty(w: World, c: Context): boolean {
  const h = w.some(c.hwpts.filter((x) => x.tracking && x.ioas.small)) ?? w.some(c.hwpts.filter((x) => x.dirty && !x.tracking));
  const id = h?.ref;
  if (id === undefined) return false;
  const area = h === undefined ? undefined : w.some(h.ioas.areas);
  const known = area !== undefined && typeof area.iova === "bigint" ? area.iova : 0x100_0000n;
  const members = {
    "dirty.iova": known,
    "dirty.length": w.chance(0.9) ? BigInt(1 + w.rng.below(8)) * P : w.pick([0n, 0x800n, 1n, 1n << 40n]),
    "dirty.page_size": w.chance(0.9) ? w.pick([0x800n, P]) : w.pick([0n, 0x1001n, 1n]),
    "dirty.uptr": w.chance(0.95) ? LIST : 0n,
  };
  const more = [{ at: LIST_OFFSET, bytes: Uint8Array.from({ length: 8 }, () => w.rng.below(256)) }];
  return test(w, c, u.IOMMU_TEST_OP_DIRTY, id, members, { more, fixed: ["id", "dirty.iova", "dirty.length", "dirty.page_size"] });
}

export function iotlb(w: World, c: Context): boolean {
  const h = w.some(c.hwpts.filter((x) => x.nested || w.chance(0.05)));
  if (h === undefined) return false;
  const members = { "check_iotlb.id": w.rng.below(5), "check_iotlb.iotlb": w.pick([u.IOMMU_TEST_IOTLB_DEFAULT, 0]) };
  return test(w, c, u.IOMMU_TEST_OP_MD_CHECK_IOTLB, h.ref, members);
}

export function cache(w: World, c: Context): boolean {
  const m = w.some(c.mocks);
  if (m === undefined || c.kind !== "mock") return false;
  const members = { "check_dev_cache.id": w.rng.below(5), "check_dev_cache.cache": w.pick([u.IOMMU_TEST_DEV_CACHE_DEFAULT, 0]) };
  return test(w, c, u.IOMMU_TEST_OP_DEV_CHECK_CACHE, m.idev, members);
}

export function vevent(w: World, c: Context): boolean {
  const m = w.some(c.mocks);
  if (m === undefined || c.kind !== "mock") return false;
  return test(w, c, u.IOMMU_TEST_OP_TRIGGER_VEVENT, 0, { "trigger_vevent.dev_id": m.idev });
}

export function iopf(w: World, c: Context): boolean {
  const m = w.some(c.mocks);
  if (m === undefined) return false;
  const members = {
    "trigger_iopf.dev_id": m.idev,
    "trigger_iopf.pasid": w.pick([0, 0, 1, 2]),
    "trigger_iopf.grpid": w.rng.below(4),
    "trigger_iopf.perm": w.rng.below(16),
    "trigger_iopf.addr": iova(w, c),
  };
  return test(w, c, u.IOMMU_TEST_OP_TRIGGER_IOPF, 0, members);
}

export function bufferGet(w: World, c: Context): boolean {
  if (w.files.length >= 8) return false;
  const fd = w.slot();
  const bytes = w.chance(0.9) ? (1 + w.rng.below(16)) * 0x1000 : w.pick([0, 1, 0x1001, 0x20_0000, 0x20_0001, 0xffff_ffff]);
  const members = { "dmabuf_get.length": bytes, "dmabuf_get.open_flags": w.pick([0, 2, 0o2000000]) };
  if (test(w, c, u.IOMMU_TEST_OP_DMABUF_GET, 0, members, { fixed: ["dmabuf_get.open_flags"], save: fd }))
    w.files.push({ fd, kind: "testbuf", size: BigInt(Math.ceil(bytes / 0x1000)) * P });
  return true;
}

export function bufferRevoke(w: World, c: Context): boolean {
  const f = w.some(w.files.filter((x) => x.kind === "testbuf" || w.chance(0.1)));
  if (f === undefined) return bufferGet(w, c);
  const members = { "dmabuf_revoke.dmabuf_fd": f.fd, "dmabuf_revoke.revoked": w.pick([1, 1, 0]) };
  return test(w, c, u.IOMMU_TEST_OP_DMABUF_REVOKE, 0, members, { fixed: ["dmabuf_revoke.dmabuf_fd"] });
}

export function unknownOp(w: World, c: Context): boolean {
  return test(w, c, w.pick([0, 24, 25, 0xffff_ffff]), 0, {});
}
