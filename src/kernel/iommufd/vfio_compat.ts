/**
 * An iommufd in the place of a VFIO container: the type1 calls on one IOAS, the
 * compatibility IOAS, which a program names or a group makes.
 *
 * What differs from a container: mappings are charged and refused as any other
 * of the IOAS; device memory cannot be mapped; there are no dirty pages and no
 * new addresses; the limit on mappings is 2^32 - 1. Version 1 may unmap within a
 * mapping: it never maps large pages, and cuts areas.
 *
 * Source: drivers/iommu/iommufd/vfio_compat.c.
 */
import { maxN, PAGE_MASK_N, PAGE_SIZE_N, U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, ENODEV, ENOTTY, EOPNOTSUPP, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { IOMMU_VFIO_IOAS_CLEAR, IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, type IommuVfioIoas } from "../../uapi/iommufd.ts";
import type { ViewOf } from "../../uapi/struct.ts";
import * as V from "../../uapi/vfio.ts";
import { copyFromUser, copyToUser, putUserU32 } from "../mm/user_memory.ts";
import type { IommufdCtx } from "./ctx.ts";
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import { IommufdIoas } from "./ioas.ts";
import { holes } from "./iova_alloc.ts";
import { allocObject, finalizeObject, getObject, lockObject, putObject } from "./object.ts";
import { allocUserPages } from "./pages_alloc.ts";
import { respond, type Ucmd } from "./ucmd.ts";

const MAP_FLAGS = V.VFIO_DMA_MAP_FLAG_READ | V.VFIO_DMA_MAP_FLAG_WRITE;
const U32_MAX = 0xffff_ffff;

/** The compatibility IOAS with a reference; ENODEV when there is none. */
function compatIoas(ctx: IommufdCtx): IommufdIoas | Errno {
  const ioas = ctx.vfioIoas;
  return ioas instanceof IommufdIoas && lockObject(ioas) ? ioas : ENODEV;
}

/** Its id; ENODEV. For VFIO. */
export function iommufdVfioCompatIoasGetId(ctx: IommufdCtx): number | Errno {
  const ioas = compatIoas(ctx);
  if (ioas instanceof Errno) return ioas;
  putObject(ctx, ioas);
  return ioas.id;
}

/** Sees to it that there is one: a group was given this context for a container. ENOMEM. */
export function iommufdVfioCompatIoasCreate(ctx: IommufdCtx): Errno | undefined {
  const there = compatIoas(ctx);
  if (!(there instanceof Errno)) {
    putObject(ctx, there);
    return undefined;
  }
  const ioas = allocObject(ctx, new IommufdIoas(ctx));
  if (ioas instanceof Errno) return ioas;
  ctx.vfioIoas = ioas;
  finalizeObject(ctx, ioas);
  return undefined;
}

/** IOMMU_VFIO_IOAS: names the IOAS, asks for it, or forgets it. ENODEV, ENOENT; EOPNOTSUPP: an unknown operation. */
export function* vfioIoas({ ctx, ...rest }: Ucmd, cmd: ViewOf<typeof IommuVfioIoas>): Step<Errno | undefined> {
  if (cmd.__reserved !== 0) return EOPNOTSUPP;
  switch (cmd.op) {
    case IOMMU_VFIO_IOAS_GET: {
      const id = iommufdVfioCompatIoasGetId(ctx);
      if (id instanceof Errno) return id;
      cmd.ioas_id = id;
      return respond({ ctx, ...rest }, cmd);
    }
    case IOMMU_VFIO_IOAS_SET: {
      const ioas = getObject(ctx, cmd.ioas_id, IommufdIoas);
      if (ioas instanceof Errno) return ioas;
      ctx.vfioIoas = ioas;
      putObject(ctx, ioas);
      return undefined;
    }
    case IOMMU_VFIO_IOAS_CLEAR:
      ctx.vfioIoas = undefined;
      return undefined;
    default:
      return EOPNOTSUPP;
  }
}

/** A command that is none of iommufd's own. ENOTTY: nor a container's. */
export function* iommufdVfioIoctl(ctx: IommufdCtx, cmd: number, arg: bigint): Step<number | Errno> {
  switch (cmd) {
    case V.VFIO_GET_API_VERSION:
      return V.VFIO_API_VERSION;
    case V.VFIO_CHECK_EXTENSION:
      return yield* checkExtension(ctx, arg);
    case V.VFIO_SET_IOMMU:
      return yield* withIoas(ctx, setIommuKind(arg), (ioas) => setIommu(ioas, arg));
    case V.VFIO_IOMMU_GET_INFO:
      return yield* getInfo(ctx, arg);
    case V.VFIO_IOMMU_MAP_DMA:
      return yield* mapDma(ctx, arg);
    case V.VFIO_IOMMU_UNMAP_DMA:
      return yield* unmapDma(ctx, arg);
    default:
      return ENOTTY;
  }
}

/** Runs `body` with the compatibility IOAS; `bad` is what was wrong before it was looked for. */
function* withIoas<T>(ctx: IommufdCtx, bad: Errno | undefined, body: (ioas: IommufdIoas) => Step<T | Errno>): Step<T | Errno> {
  if (bad !== undefined) return bad;
  const ioas = compatIoas(ctx);
  if (ioas instanceof Errno) return ioas;
  try {
    return yield* body(ioas);
  } finally {
    putObject(ctx, ioas);
  }
}

function* checkExtension(ctx: IommufdCtx, type: bigint): Step<number | Errno> {
  switch (Number(type)) {
    case V.VFIO_TYPE1_IOMMU:
    case V.VFIO_TYPE1v2_IOMMU:
    case V.VFIO_UNMAP_ALL:
    // Built with it, as the recorded kernel is; such a group can only never be there.
    case V.VFIO_NOIOMMU_IOMMU:
      return 1;
    case V.VFIO_DMA_CC_IOMMU:
      return yield* withIoas(ctx, undefined, function* (ioas): Step<number> {
        yield* ioas.mutex.lock();
        const coherent = ioas.hwpts.every((h) => h.enforceCacheCoherency);
        ioas.mutex.unlock();
        return coherent ? 1 : 0;
      });
    default:
      return 0;
  }
}

const setIommuKind = (type: bigint): Errno | undefined =>
  type === BigInt(V.VFIO_TYPE1_IOMMU) || type === BigInt(V.VFIO_TYPE1v2_IOMMU) ? undefined : EINVAL;

function* setIommu(ioas: IommufdIoas, type: bigint): Step<number | Errno> {
  if (type !== BigInt(V.VFIO_TYPE1_IOMMU)) return 0;
  return (yield* ioas.iopt.setLargePages(false)) ?? 0;
}

function* mapDma(ctx: IommufdCtx, arg: bigint): Step<number | Errno> {
  const map = V.VfioIommuType1DmaMap.alloc();
  if (copyFromUser(ctx.kernel, map.bytes, arg) !== 0) return EFAULT;
  const bad = map.argsz < V.VfioIommuType1DmaMap.size || (map.flags & ~MAP_FLAGS) !== 0 ? EINVAL : undefined;
  return yield* withIoas(ctx, bad, function* (ioas): Step<number | Errno> {
    let prot = IOMMU_CACHE;
    if ((map.flags & V.VFIO_DMA_MAP_FLAG_READ) !== 0) prot |= IOMMU_READ;
    if ((map.flags & V.VFIO_DMA_MAP_FLAG_WRITE) !== 0) prot |= IOMMU_WRITE;
    const slice = allocUserPages(ctx, map.vaddr, map.size, (prot & IOMMU_WRITE) !== 0);
    if (slice instanceof Errno) return slice;
    const iova = yield* ioas.iopt.mapPages([slice], map.size, map.iova, prot);
    return iova instanceof Errno ? iova : 0;
  });
}

function* unmapDma(ctx: IommufdCtx, arg: bigint): Step<number | Errno> {
  const unmap = V.VfioIommuType1DmaUnmap.alloc();
  if (copyFromUser(ctx.kernel, unmap.bytes, arg) !== 0) return EFAULT;
  const bad = unmap.argsz < V.VfioIommuType1DmaUnmap.size || (unmap.flags & ~V.VFIO_DMA_UNMAP_FLAG_ALL) !== 0 ? EINVAL : undefined;
  return yield* withIoas(ctx, bad, function* (ioas): Step<number | Errno> {
    const r = yield* unmapRange(ioas, unmap.flags !== 0, unmap.iova, unmap.size);
    if (r === undefined) return EINVAL;
    // How much was unmapped is told even when it failed, but for the cut.
    if (r.cut !== undefined) return r.cut;
    unmap.size = r.told;
    if (copyToUser(ctx.kernel, arg, unmap.bytes) !== 0) return EFAULT;
    return r.result instanceof Errno ? r.result : 0;
  });
}

/** Undefined: all, with a range. */
function* unmapRange(
  ioas: IommufdIoas,
  all: boolean,
  iova: bigint,
  size: bigint,
): Step<{ cut?: Errno; result: bigint | Errno; told: bigint } | undefined> {
  const { iopt } = ioas;
  const told = { bytes: 0n };
  if (all) {
    if (iova !== 0n || size !== 0n) return undefined;
    const result = yield* iopt.unmapAll(told);
    return { result, told: told.bytes };
  }
  if (iopt.disableLargePages) {
    const u64 = (n: bigint): bigint => BigInt.asUintN(64, n);
    const e = yield* iopt.cut(iova === 0n ? [u64(iova + size - 1n)] : [u64(iova + size - 1n), iova - 1n]);
    if (e !== undefined) return { cut: e, result: 0n, told: 0n };
  }
  const result = yield* iopt.unmapIova(iova, size, told);
  return { result, told: told.bytes };
}

function* getInfo(ctx: IommufdCtx, arg: bigint): Step<number | Errno> {
  const info = V.VfioIommuType1Info.alloc();
  const minsz = V.VfioIommuType1Info.endOf("iova_pgsizes");
  if (copyFromUser(ctx.kernel, info.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  return yield* withIoas(ctx, info.argsz < minsz ? EINVAL : undefined, (ioas) => fillInfo(ioas, info, arg));
}

function* fillInfo(ioas: IommufdIoas, info: ViewOf<typeof V.VfioIommuType1Info>, arg: bigint): Step<number | Errno> {
  const { iopt } = ioas;
  const { kernel } = ioas.ctx;
  const { argsz } = info;
  info.flags = V.VFIO_IOMMU_INFO_PGSIZES | V.VFIO_IOMMU_INFO_CAPS;
  yield* iopt.domainsSem.downRead();
  let sizes = U64_MAX;
  for (const d of iopt.domains) sizes &= d.pgsizeBitmap;
  iopt.domainsSem.upRead();
  if ((sizes & PAGE_MASK_N) !== 0n) sizes = (sizes & ~PAGE_MASK_N) | PAGE_SIZE_N;
  info.iova_pgsizes = maxN(sizes, iopt.iovaAlignment);
  yield* iopt.iovaSem.downRead();
  try {
    let total = V.VfioIommuType1Info.size;
    let last: bigint | undefined;
    for (const bytes of capabilities(ioas)) {
      const at = arg + BigInt(total);
      if (writeCapability(ioas, at, bytes, argsz - total) !== undefined) return EFAULT;
      // The one before learns where this one is.
      if (last !== undefined && argsz >= total && putUserU32(kernel, last + 4n, total) !== undefined) return EFAULT;
      last = at;
      total += (bytes.length + 7) & ~7;
    }
    if (argsz >= total) info.cap_offset = V.VfioIommuType1Info.size;
    info.argsz = total;
    return copyToUser(kernel, arg, info.bytes.subarray(0, Math.min(argsz, V.VfioIommuType1Info.size))) !== 0 ? EFAULT : 0;
  } finally {
    iopt.iovaSem.upRead();
  }
}

/** The capabilities whole: how many mappings may be made, and where. */
function capabilities({ iopt }: IommufdIoas): Uint8Array[] {
  const avail = V.VfioIommuType1InfoDmaAvail.alloc({ avail: U32_MAX });
  Object.assign(avail.header, { id: V.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version: 1 });
  const ranges = [...holes(iopt.reserved)];
  const head = V.VfioIommuType1InfoCapIovaRange.size;
  const bytes = new Uint8Array(head + ranges.length * V.VfioIovaRange.size);
  const cap = V.VfioIommuType1InfoCapIovaRange.over(bytes);
  Object.assign(cap.header, { id: V.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version: 1 });
  cap.nr_iovas = ranges.length;
  ranges.forEach(([start, end], i) => {
    bytes.set(V.VfioIovaRange.alloc({ start, end }).bytes, head + i * V.VfioIovaRange.size);
  });
  return [avail.bytes, bytes];
}

/** As much as fits: the whole, or the ranges that do, without their head. */
function writeCapability({ ctx }: IommufdIoas, at: bigint, bytes: Uint8Array, room: number): Errno | undefined {
  const head = V.VfioIommuType1InfoCapIovaRange.size;
  if (room >= bytes.length) return copyToUser(ctx.kernel, at, bytes) !== 0 ? EFAULT : undefined;
  if (bytes.length <= head) return undefined;
  const n = Math.floor((room - head) / V.VfioIovaRange.size);
  if (n <= 0) return undefined;
  return copyToUser(ctx.kernel, at + BigInt(head), bytes.subarray(head, head + n * V.VfioIovaRange.size)) !== 0 ? EFAULT : undefined;
}
