/** Address spaces: what maps, copies, unmaps and limits them, and the type1 calls on the same. */
import * as u from "../../src/uapi/index.ts";
import { ioctl, LIST, LIST_OFFSET, OUT, u32Bytes, u64Bytes } from "./draft.ts";
import { iova, length, P, va } from "./values.ts";
import type { Context, Ioas, OpenFile, World } from "./world.ts";

const FIXED = u.IOMMU_IOAS_MAP_FIXED_IOVA;

const rights = (w: World): number =>
  w.chance(0.8)
    ? u.IOMMU_IOAS_MAP_READABLE | u.IOMMU_IOAS_MAP_WRITEABLE
    : w.pick([u.IOMMU_IOAS_MAP_READABLE, u.IOMMU_IOAS_MAP_WRITEABLE, u.IOMMU_IOAS_MAP_READABLE, 0]);

export function ioasAlloc(w: World, c: Context): boolean {
  const ref = w.slot();
  if (!ioctl(w, c, c.fd, u.IOMMU_IOAS_ALLOC, u.IommuIoasAlloc, {}, { keeps: { out_ioas_id: ref } })) return false;
  const s: Ioas = { ref, areas: [], attached: false, small: false };
  c.ioases.push(s);
  if (w.chance(0.3)) hugePages(w, c, s, u.IOMMU_OPTION_OP_SET, 0n);
  return true;
}

function hugePages(w: World, c: Context, s: Ioas, op: number, value: bigint): boolean {
  const m = { option_id: u.IOMMU_OPTION_HUGE_PAGES, op, object_id: s.ref, val64: value };
  const o = { fixed: ["option_id", "op", "object_id", "val64"] };
  if (ioctl(w, c, c.fd, u.IOMMU_OPTION, u.IommuOption, m, o) && op === u.IOMMU_OPTION_OP_SET) s.small = value === 0n;
  return true;
}

/** Where a call that maps puts it; without a device the kernel would choose what none can have. */
function target(w: World, c: Context, s: Ioas): { flags: number; iova: bigint; chosen: boolean } {
  const chosen = w.chance(s.attached ? 0.25 : 0.01);
  return { flags: rights(w) | (chosen ? 0 : FIXED), iova: chosen ? w.rng.u64() : iova(w, c), chosen };
}

function remember(w: World, s: Ioas, t: { iova: bigint; chosen: boolean }, slot: { slot: number }, length: bigint, at?: bigint): boolean {
  s.areas.push({ iova: t.chosen ? slot : t.iova, length, ...(at === undefined ? {} : { va: at }) });
  if (s.areas.length > 24) s.areas.splice(w.rng.below(s.areas.length), 1);
  return true;
}

export function map(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined) return ioasAlloc(w, c);
  if (w.filesOnly) return mapFile(w, c);
  const t = target(w, c, s);
  const [bytes, at, slot] = [length(w, c), va(w, c), w.slot()];
  const m = { flags: t.flags, ioas_id: s.ref, user_va: at, length: bytes, iova: t.iova };
  if (ioctl(w, c, c.fd, u.IOMMU_IOAS_MAP, u.IommuIoasMap, m, { keeps: t.chosen ? { iova: slot } : {} })) remember(w, s, t, slot, bytes, at);
  return true;
}

/** Bytes `start` and `length` of the file, mostly within it. */
function part(w: World, f: OpenFile): { start: bigint; bytes: bigint } {
  if (w.chance(0.1))
    return { start: w.pick([0n, f.size, f.size - 1n, 0xffff_ffff_ffff_f000n, 1n]), bytes: w.pick([f.size, f.size + 1n, P, 0n]) };
  const pages = Number(f.size / P > 512n ? 512n : f.size / P);
  const first = w.rng.below(Math.max(1, pages));
  const count = 1 + w.rng.below(Math.max(1, Math.min(16, pages - first)));
  const odd = w.chance(0.1) ? 0x800n : 0n;
  return { start: BigInt(first) * P + odd, bytes: BigInt(count) * P - odd };
}

export function mapFile(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  const f = w.some(w.files);
  if (s === undefined || f === undefined) return !w.filesOnly && map(w, c);
  const t = target(w, c, s);
  const { start, bytes } = part(w, f);
  const slot = w.slot();
  const wild = w.chance(0.03);
  const m = { flags: t.flags, ioas_id: s.ref, fd: wild ? w.pick([-1, 200, -2147483648]) : f.fd, start, length: bytes, iova: t.iova };
  const o = { keeps: t.chosen ? { iova: slot } : {}, fixed: ["fd"] };
  if (ioctl(w, c, c.fd, u.IOMMU_IOAS_MAP_FILE, u.IommuIoasMapFile, m, o) && !wild) remember(w, s, t, slot, bytes);
  return true;
}

export function copy(w: World, c: Context): boolean {
  const [from, to] = [w.some(c.ioases.filter((x) => x.areas.length > 0)), w.some(c.ioases)];
  const a = from === undefined ? undefined : w.some(from.areas);
  if (from === undefined || to === undefined || a === undefined) return map(w, c);
  const t = target(w, c, to);
  const slot = w.slot();
  // A part of the area, where it is known where that lies.
  const skip = typeof a.iova === "bigint" && a.length > P && w.chance(0.3) ? P : 0n;
  // As a fuzzer says it to a kernel built for tests: the number of an area, and an offset in it.
  const syz = w.chance(0.05);
  const bytes = w.chance(0.05) ? length(w, c) : a.length - skip - (a.length - skip > P && w.chance(0.2) ? P : 0n);
  const m = {
    flags: t.flags | (syz ? u.MOCK_FLAGS_ACCESS_SYZ : 0),
    dst_ioas_id: to.ref,
    src_ioas_id: from.ref,
    length: bytes,
    dst_iova: t.iova,
    src_iova: syz ? BigInt(w.rng.below(4)) | (skip << 32n) : typeof a.iova === "bigint" ? a.iova + skip : a.iova,
  };
  if (ioctl(w, c, c.fd, u.IOMMU_IOAS_COPY, u.IommuIoasCopy, m, { keeps: t.chosen ? { dst_iova: slot } : {} }))
    remember(w, to, t, slot, bytes, a.va === undefined ? undefined : a.va + skip);
  return true;
}

export function unmap(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined) return ioasAlloc(w, c);
  const a = w.chance(0.8) ? w.take(s.areas) : undefined;
  const all = a === undefined && w.chance(0.15);
  if (all) s.areas.length = 0;
  const m = {
    ioas_id: s.ref,
    iova: all ? 0n : (a?.iova ?? iova(w, c)),
    length: all ? 0xffff_ffff_ffff_ffffn : w.chance(0.1) ? length(w, c) * 3n : (a?.length ?? length(w, c)),
  };
  const done = ioctl(w, c, c.fd, u.IOMMU_IOAS_UNMAP, u.IommuIoasUnmap, m);
  if (!done && a !== undefined) s.areas.push(a);
  return true;
}

/** Up to four ranges, mostly ascending and apart. */
function ranges(w: World, c: Context): bigint[] {
  const out: bigint[] = [];
  let at = w.chance(0.7) ? 0n : iova(w, c);
  for (let n = w.rng.below(4); n >= 0; n--) {
    const last = w.chance(0.5) ? at + BigInt(w.rng.below(64)) * 0x100_0000n + 0xfffn : at + BigInt(w.rng.below(256)) * P - 1n;
    out.push(at, last);
    at = w.chance(0.1) ? iova(w, c) : last + 1n + BigInt(w.rng.below(16)) * P;
  }
  return out;
}

export function allowIovas(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined) return false;
  const r = w.chance(0.4) ? [] : ranges(w, c);
  const m = { ioas_id: s.ref, num_iovas: r.length / 2, allowed_iovas: LIST };
  return ioctl(w, c, c.fd, u.IOMMU_IOAS_ALLOW_IOVAS, u.IommuIoasAllowIovas, m, {
    more: [{ at: LIST_OFFSET, bytes: u64Bytes(...r) }],
    fixed: ["num_iovas"],
  });
}

export function iovaRanges(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  if (s === undefined) return false;
  const m = { ioas_id: s.ref, num_iovas: w.pick([0, 1, 2, 16, 64]), allowed_iovas: w.chance(0.9) ? OUT : 0n };
  return ioctl(w, c, c.fd, u.IOMMU_IOAS_IOVA_RANGES, u.IommuIoasIovaRanges, m);
}

export function option(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  const op = w.pick([u.IOMMU_OPTION_OP_GET, u.IOMMU_OPTION_OP_SET, u.IOMMU_OPTION_OP_SET, 2]);
  const value = w.pick([0n, 1n, 0n, 1n, 2n]);
  if (s !== undefined && w.chance(0.7)) return hugePages(w, c, s, op, value);
  const m = {
    option_id: w.pick([u.IOMMU_OPTION_RLIMIT_MODE, u.IOMMU_OPTION_RLIMIT_MODE, 2]),
    op,
    object_id: w.chance(0.9) ? 0 : 1,
    val64: value,
  };
  return ioctl(w, c, c.fd, u.IOMMU_OPTION, u.IommuOption, m, { fixed: ["option_id"] });
}

export function vfioIoas(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  const m = {
    ioas_id: s?.ref ?? 0,
    op: w.pick([u.IOMMU_VFIO_IOAS_GET, u.IOMMU_VFIO_IOAS_SET, u.IOMMU_VFIO_IOAS_SET, u.IOMMU_VFIO_IOAS_CLEAR, 3]),
  };
  return ioctl(w, c, c.fd, u.IOMMU_VFIO_IOAS, u.IommuVfioIoas, m, { min: u.IommuVfioIoas.endOf("__reserved") });
}

export function changeProcess(w: World, c: Context): boolean {
  return ioctl(w, c, c.fd, u.IOMMU_IOAS_CHANGE_PROCESS, u.IommuIoasChangeProcess, {});
}

export function noiommuGetPa(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  const a = s === undefined ? undefined : w.some(s.areas);
  const m = { ioas_id: s?.ref ?? 0, iova: a?.iova ?? iova(w, c), length: a?.length ?? length(w, c) };
  return ioctl(w, c, c.fd, u.IOMMU_IOAS_NOIOMMU_GET_PA, u.IommuIoasNoiommuGetPa, m);
}

/** Type1 calls on the iommufd itself; they act on the space that VFIO_IOAS has set. */
export function compat(w: World, c: Context): boolean {
  const s = w.some(c.ioases);
  const RW = u.VFIO_DMA_MAP_FLAG_READ | u.VFIO_DMA_MAP_FLAG_WRITE;
  switch (w.rng.below(6)) {
    case 0: {
      const m = {
        flags: w.pick([RW, RW, u.VFIO_DMA_MAP_FLAG_READ, u.VFIO_DMA_MAP_FLAG_WRITE, 4, 8]),
        vaddr: va(w, c),
        iova: iova(w, c),
        size: length(w, c),
      };
      return ioctl(w, c, c.fd, u.VFIO_IOMMU_MAP_DMA, u.VfioIommuType1DmaMap, m, { fixed: ["flags"] });
    }
    case 1:
    case 2: {
      const a = s === undefined ? undefined : w.some(s.areas);
      const whole = w.chance(0.1);
      const m = {
        flags: whole ? u.VFIO_DMA_UNMAP_FLAG_ALL : w.pick([0, 0, 0, 1, 4]),
        iova: whole ? 0n : (a?.iova ?? iova(w, c)),
        size: whole ? 0n : (a?.length ?? length(w, c)),
      };
      return ioctl(w, c, c.fd, u.VFIO_IOMMU_UNMAP_DMA, u.VfioIommuType1DmaUnmap, m);
    }
    case 3:
      return ioctl(w, c, c.fd, u.VFIO_IOMMU_GET_INFO, u.VfioIommuType1Info, {}, { min: 16, tail: new Uint8Array(w.pick([0, 64, 256])) });
    case 4:
      return w.push({ op: "ioctl", fd: c.fd, n: [BigInt(u.VFIO_CHECK_EXTENSION)], data: bare(BigInt(w.rng.below(14))) });
    default:
      return w.push({
        op: "ioctl",
        fd: c.fd,
        n: [BigInt(w.pick([u.VFIO_GET_API_VERSION, u.VFIO_SET_IOMMU]))],
        data: bare(BigInt(w.rng.below(12))),
      });
  }
}

/** An argument that is no structure. */
const bare = (at: bigint) => ({ at, bytes: new Uint8Array(0), patches: [], keeps: [], more: [] });

/** A number that no command has, or one with other bits of an ioctl. */
export function unknown(w: World, c: Context): boolean {
  const number = 0x80 + w.rng.below(0x40);
  const cmd = w.chance(0.5)
    ? (w.pick([0x4000, 0x8000, 0x1_0000, 0x4000_0000, 0x8000_0000]) | 0x3b00 | (0x80 + w.rng.below(0x16))) >>> 0
    : 0x3b00 | number;
  const known = (cmd >= 0x3b80 && cmd <= 0x3b95) || cmd === 0x3ba0;
  if (known) return false;
  return w.push({
    op: "ioctl",
    fd: c.fd,
    n: [BigInt(cmd)],
    data: { ...bare(LIST), bytes: u32Bytes(64, ...Array.from({ length: 15 }, () => 0)) },
  });
}

/** Any object, mostly one that is believed to be in no use. */
export function destroy(w: World, c: Context): boolean {
  const spare = w.some([
    ...c.hwpts.map((x) => x.ref),
    ...c.vdevices,
    ...c.veventqs.map((x) => x.id),
    ...c.queues,
    ...c.viommus.map((x) => x.ref),
    ...c.faults.map((x) => x.id),
    ...c.ioases.slice(2).map((x) => x.ref),
  ]);
  const id = w.chance(0.7) ? spare : w.some(w.ids(c).filter((x) => !c.mocks.some((m) => m.stdev === x)));
  if (id === undefined) return false;
  const keep = <T>(list: T[], of: (x: T) => { slot: number }): void => {
    const i = list.findIndex((x) => of(x) === id);
    if (i >= 0) list.splice(i, 1);
  };
  // A device of the selftest goes in `selftest_calls.ts`, so no bit of the id is flipped into one.
  if (!ioctl(w, c, c.fd, u.IOMMU_DESTROY, u.IommuDestroy, { id }, { fixed: ["id"] })) return false;
  keep(c.hwpts, (x) => x.ref);
  keep(c.vdevices, (x) => x);
  keep(c.veventqs, (x) => x.id);
  keep(c.queues, (x) => x);
  keep(c.viommus, (x) => x.ref);
  return true;
}
