/**
 * The calls on a container with a type1 IOMMU: GET_INFO, MAP_DMA, UNMAP_DMA,
 * DIRTY_PAGES. Checks stand in Linux's order.
 *
 * Dirty pages: no device tells which pages it wrote, so every page that is
 * mapped counts as dirty. That is Linux's answer for such devices, too.
 * Source: vfio_iommu_type1_ioctl (vfio_iommu_type1.c).
 */
import { U64_MAX } from "../../../lib/addr.ts";
import { EACCES, EFAULT, EINVAL, ENOMEM, ENOTTY, EOVERFLOW, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import type { ViewOf } from "../../../uapi/struct.ts";
import * as V from "../../../uapi/vfio.ts";
import { TASK_SIZE } from "../../mm/address_space.ts";
import { copyFromUser, copyToUser } from "../../mm/user_memory.ts";
import { InfoCaps } from "../info_caps.ts";
import type { Dma } from "./dma.ts";
import type { Type1Iommu } from "./iommu.ts";

/** 2^31 bits: no bitmap is longer. */
const DIRTY_BITMAP_SIZE_MAX = 1n << 28n;
const MAP_FLAGS = V.VFIO_DMA_MAP_FLAG_READ | V.VFIO_DMA_MAP_FLAG_WRITE | V.VFIO_DMA_MAP_FLAG_VADDR;
const UNMAP_FLAGS = V.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | V.VFIO_DMA_UNMAP_FLAG_VADDR | V.VFIO_DMA_UNMAP_FLAG_ALL;
const DIRTY_FLAGS = V.VFIO_IOMMU_DIRTY_PAGES_FLAG_START | V.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP | V.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;

export function* type1Ioctl(iommu: Type1Iommu, cmd: number, arg: bigint): Step<number | Errno> {
  switch (cmd) {
    case V.VFIO_IOMMU_GET_INFO:
      return yield* getInfo(iommu, arg);
    case V.VFIO_IOMMU_MAP_DMA:
      return yield* mapDma(iommu, arg);
    case V.VFIO_IOMMU_UNMAP_DMA:
      return yield* unmapDma(iommu, arg);
    case V.VFIO_IOMMU_DIRTY_PAGES:
      return yield* dirtyPages(iommu, arg);
    default:
      return ENOTTY;
  }
}

function* getInfo(iommu: Type1Iommu, arg: bigint): Step<number | Errno> {
  const { kernel } = iommu;
  const info = V.VfioIommuType1Info.alloc();
  const { size } = V.VfioIommuType1Info;
  const minsz = V.VfioIommuType1Info.endOf("iova_pgsizes");
  if (copyFromUser(kernel, info.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  const { argsz } = info;
  if (argsz < minsz) return EINVAL;
  const caps = new InfoCaps();
  yield* iommu.lock.lock();
  info.flags = V.VFIO_IOMMU_INFO_PGSIZES | V.VFIO_IOMMU_INFO_CAPS;
  info.iova_pgsizes = iommu.pgsizeBitmap;
  addCaps(iommu, caps);
  iommu.lock.unlock();
  if (caps.lacksMemory(kernel)) return ENOMEM;
  if (argsz < size + caps.size) {
    info.argsz = size + caps.size;
  } else {
    if (copyToUser(kernel, arg + BigInt(size), caps.bytesAt(size)) !== 0) return EFAULT;
    info.cap_offset = size;
  }
  return copyToUser(kernel, arg, info.bytes.subarray(0, Math.min(argsz, size))) !== 0 ? EFAULT : 0;
}

function addCaps(iommu: Type1Iommu, caps: InfoCaps): void {
  const body = (view: { readonly bytes: Uint8Array }): Uint8Array => view.bytes.subarray(V.VfioInfoCapHeader.size);
  const migration = { pgsize_bitmap: iommu.pgsize, max_dirty_bitmap_size: DIRTY_BITMAP_SIZE_MAX };
  caps.add(V.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 1, body(V.VfioIommuType1InfoCapMigration.alloc(migration)));
  caps.add(V.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, body(V.VfioIommuType1InfoDmaAvail.alloc({ avail: iommu.dmaAvail })));
  if (iommu.iovaList.length === 0) return;
  const head = V.VfioIommuType1InfoCapIovaRange.size;
  const ranges = new Uint8Array(head + iommu.iovaList.length * V.VfioIovaRange.size);
  V.VfioIommuType1InfoCapIovaRange.over(ranges).nr_iovas = iommu.iovaList.length;
  iommu.iovaList.forEach((r, i) => {
    ranges.set(V.VfioIovaRange.alloc({ start: r.start, end: r.last }).bytes, head + i * V.VfioIovaRange.size);
  });
  caps.add(V.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, body({ bytes: ranges }));
}

function* mapDma(iommu: Type1Iommu, arg: bigint): Step<number | Errno> {
  const map = V.VfioIommuType1DmaMap.alloc();
  if (copyFromUser(iommu.kernel, map.bytes, arg) !== 0) return EFAULT;
  if (map.argsz < V.VfioIommuType1DmaMap.size || (map.flags & ~MAP_FLAGS) !== 0) return EINVAL;
  return (yield* iommu.map(map.iova, map.vaddr, map.size, map.flags)) ?? 0;
}

function* unmapDma(iommu: Type1Iommu, arg: bigint): Step<number | Errno> {
  const { kernel } = iommu;
  const unmap = V.VfioIommuType1DmaUnmap.alloc();
  const minsz = V.VfioIommuType1DmaUnmap.size;
  if (copyFromUser(kernel, unmap.bytes, arg) !== 0) return EFAULT;
  const { argsz, flags, iova, size } = unmap;
  if (argsz < minsz || (flags & ~UNMAP_FLAGS) !== 0) return EINVAL;
  const all = (flags & V.VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
  const vaddr = (flags & V.VFIO_DMA_UNMAP_FLAG_VADDR) !== 0;
  let bitmap: ViewOf<typeof V.VfioBitmap> | undefined;
  if ((flags & V.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) !== 0) {
    if (all || vaddr) return EINVAL;
    if (argsz < minsz + V.VfioBitmap.size) return EINVAL;
    bitmap = V.VfioBitmap.alloc();
    if (copyFromUser(kernel, bitmap.bytes, arg + BigInt(minsz)) !== 0) return EFAULT;
    const bad = checkBitmap(bitmap, size);
    if (bad !== undefined) return bad;
  }
  const dirty =
    bitmap === undefined ? undefined : { pgsize: bitmap.pgsize, report: (dma: Dma) => reportAllDirty(iommu, dma, iova, bitmap.data) };
  const r = yield* iommu.unmap({ iova, size, all, vaddr, dirty });
  if (r instanceof Errno) return r;
  unmap.size = r;
  return copyToUser(kernel, arg, unmap.bytes) !== 0 ? EFAULT : 0;
}

/** EINVAL: not an address, or too small or too large for `length` bytes of IOVA. */
function checkBitmap({ pgsize, size, data }: ViewOf<typeof V.VfioBitmap>, length: bigint): Errno | undefined {
  if (data + size > TASK_SIZE || pgsize === 0n) return EINVAL;
  const npages = length / (pgsize & -pgsize);
  return npages === 0n || size === 0n || size > DIRTY_BITMAP_SIZE_MAX || size < bitmapBytes(npages) ? EINVAL : undefined;
}

/** Whole words of 64 bits. */
const bitmapBytes = (bits: bigint): bigint => ((bits + 63n) / 64n) * 8n;

/** Sets the bits of a mapping in the caller's bitmap, whose bit 0 stands for `base`. What shares a word with it before stays, what comes after is cleared. */
function reportAllDirty({ kernel, pgsize }: Type1Iommu, dma: Dma, base: bigint, bitmap: bigint): Errno | undefined {
  const first = (dma.start - base) / pgsize;
  const shift = Number(first % 64n);
  const at = bitmap + (first / 64n) * 8n;
  const nbits = Number(dma.size / pgsize);
  const bytes = new Uint8Array(Number(bitmapBytes(BigInt(nbits + shift))));
  for (let i = shift; i < shift + nbits; i++) bytes[i >> 3] = (bytes[i >> 3] as number) | (1 << (i & 7));
  if (shift > 0) {
    const before = new Uint8Array(8);
    if (copyFromUser(kernel, before, at) !== 0) return EFAULT;
    for (let i = 0; i < shift; i++) bytes[i >> 3] = (bytes[i >> 3] as number) | ((before[i >> 3] as number) & (1 << (i & 7)));
  }
  return copyToUser(kernel, at, bytes) !== 0 ? EFAULT : undefined;
}

function* dirtyPages(iommu: Type1Iommu, arg: bigint): Step<number | Errno> {
  if (!iommu.v2) return EACCES;
  const dirty = V.VfioIommuType1DirtyBitmap.alloc();
  const minsz = V.VfioIommuType1DirtyBitmap.size;
  if (copyFromUser(iommu.kernel, dirty.bytes, arg) !== 0) return EFAULT;
  const { argsz, flags } = dirty;
  if (argsz < minsz || (flags & ~DIRTY_FLAGS) !== 0) return EINVAL;
  switch (flags) {
    case V.VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
    case V.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
      yield* iommu.lock.lock();
      iommu.dirtyTracking = flags === V.VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
      iommu.lock.unlock();
      return 0;
    case V.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
      return argsz - minsz < V.VfioIommuType1DirtyBitmapGet.size ? EINVAL : yield* getBitmap(iommu, arg + BigInt(minsz));
    default:
      return EINVAL;
  }
}

function* getBitmap(iommu: Type1Iommu, arg: bigint): Step<number | Errno> {
  const range = V.VfioIommuType1DirtyBitmapGet.alloc();
  if (copyFromUser(iommu.kernel, range.bytes, arg) !== 0) return EFAULT;
  const { iova, size, bitmap } = range;
  if (size === 0n) return EINVAL;
  const last = iova + size - 1n;
  if (last > U64_MAX) return EOVERFLOW;
  const bad = checkBitmap(bitmap, size);
  if (bad !== undefined) return bad;
  yield* iommu.lock.lock();
  try {
    const { pgsize } = iommu;
    if (bitmap.pgsize !== pgsize || ((iova | size) & (pgsize - 1n)) !== 0n) return EINVAL;
    if (!iommu.dirtyTracking || iommu.cuts(iova, last)) return EINVAL;
    for (const dma of iommu.dmas.overlaps(iova, last)) {
      const e = reportAllDirty(iommu, dma, iova, bitmap.data);
      if (e !== undefined) return e;
    }
    return 0;
  } finally {
    iommu.lock.unlock();
  }
}
