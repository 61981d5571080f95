/**
 * /dev/dma_heap/system: pages of RAM as a buffer for devices.
 *
 * A buffer is allocated in blocks of 1 MiB, 64 KiB and 4 KiB, as large as fit,
 * and stays where it is; mapping it for a device maps each block by itself.
 * The machine is coherent, so a CPU access needs nothing but its fences.
 *
 * The ioctl's size and direction come from the command the caller used, as in
 * Linux: a number above the last is EINVAL, never ENOTTY.
 *
 * Source: drivers/dma-buf/dma-heap.c, drivers/dma-buf/heaps/system_heap.c.
 */
import { alignUp, PAGE_SIZE_N, type Pfn, physOfPfn, U64_MAX } from "../../lib/addr.ts";
import { EFAULT, EINVAL, ENOMEM, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import { DMA_HEAP_IOCTL_ALLOC, DMA_HEAP_VALID_FD_FLAGS, DMA_HEAP_VALID_HEAP_FLAGS, DmaHeapAllocationData } from "../../uapi/index.ts";
import type { FileOps } from "../fs/file.ts";
import type { Kernel } from "../kernel.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { DmaBuf, DmaBufOps } from "./buffer.ts";
import { dmaBufExport, dmaBufFdInstall, dmaBufPut } from "./dma_buf.ts";
import { freeRamSgt, type PhysVec, ramToSgt, type SgTable } from "./mapping.ts";
import { ramExporter } from "./negotiated/ram_exporter.ts";

const MODULE = "system_heap";
const NAME = "system";
/** Block sizes tried, largest first, as powers of two of pages. */
const ORDERS = [8, 4, 0] as const;

class HeapBuffer {
  /** Blocks in order; each is contiguous. */
  readonly blocks: readonly PhysVec[];
  readonly pages: readonly Pfn[];

  constructor(blocks: readonly PhysVec[], pages: readonly Pfn[]) {
    this.blocks = blocks;
    this.pages = pages;
  }
}

const heapOf = (dmabuf: DmaBuf): HeapBuffer => dmabuf.priv as HeapBuffer;

const systemHeapOps: DmaBufOps = {
  *mapDmaBuf(att, dir): Step<SgTable | Errno> {
    return ramToSgt(att.dev, heapOf(att.dmabuf).blocks, dir);
  },

  *unmapDmaBuf(att, sgt): Step<void> {
    freeRamSgt(att.dev, sgt);
  },

  negotiated: ramExporter((dmabuf) => heapOf(dmabuf).blocks),

  *release(dmabuf): Step<void> {
    for (const pfn of heapOf(dmabuf).pages) dmabuf.kernel.frames.put(pfn);
  },

  mmap(dmabuf, vma) {
    const { blocks, pages } = heapOf(dmabuf);
    // A private mapping is mapped in one piece or not at all.
    if (!vma.shared && !inOneBlock(blocks, vma.offset, vma.length)) return EINVAL;
    vma.ops = {
      fault(_vma, pageOffset) {
        const pfn = pages[pageOffset];
        return pfn === undefined ? "SIGBUS" : physOfPfn(pfn);
      },
    };
    return undefined;
  },
};

function inOneBlock(blocks: readonly PhysVec[], offset: bigint, length: bigint): boolean {
  let at = offset;
  for (const b of blocks) {
    if (at < b.len) return at + length <= b.len;
    at -= b.len;
  }
  return false;
}

/** Frames for `length` bytes, whole pages; ENOMEM, and then none is kept. */
function allocBlocks(kernel: Kernel, length: bigint): HeapBuffer | Errno {
  const { frames } = kernel;
  if (length / PAGE_SIZE_N > BigInt(Number.MAX_SAFE_INTEGER)) return ENOMEM;
  const blocks: PhysVec[] = [];
  const pages: Pfn[] = [];
  let maxOrder: number = ORDERS[0];
  for (let left = Number(length / PAGE_SIZE_N); left > 0; ) {
    let first: Pfn | Errno = ENOMEM;
    let order = 0;
    for (const o of ORDERS) {
      if (o > maxOrder || left < 1 << o) continue;
      first = frames.allocContiguous(o);
      order = o;
      if (!(first instanceof Errno)) break;
    }
    if (first instanceof Errno) {
      for (const pfn of pages) frames.put(pfn);
      return first;
    }
    const n = 1 << order;
    for (let i = 0; i < n; i++) pages.push((first + i) as Pfn);
    blocks.push({ paddr: physOfPfn(first), len: BigInt(n) * PAGE_SIZE_N });
    left -= n;
    // What could not be had once is not asked for again.
    maxOrder = order;
  }
  if (kernel.fault.slab("sg_table")) {
    for (const pfn of pages) frames.put(pfn);
    return ENOMEM;
  }
  return new HeapBuffer(blocks, pages);
}

/** A buffer of `length` bytes, with one reference. ENOMEM. */
export function systemHeapAllocate(kernel: Kernel, length: bigint, flags: number): DmaBuf | Errno {
  if (kernel.fault.slab("system_heap_buffer")) return ENOMEM;
  const priv = allocBlocks(kernel, length);
  if (priv instanceof Errno) return priv;
  const dmabuf = dmaBufExport(kernel, { expName: NAME, owner: MODULE, ops: systemHeapOps, size: length, flags, priv });
  if (dmabuf instanceof Errno) for (const pfn of priv.pages) kernel.frames.put(pfn);
  return dmabuf;
}

/** Sizes of what goes in and out, as the command's own bits say. */
function sizesOf(cmd: number): { input: number; output: number; size: number } {
  const size = (cmd >>> 16) & 0x3fff;
  const common = (cmd & DMA_HEAP_IOCTL_ALLOC) >>> 30;
  const input = (common & 1) !== 0 ? size : 0;
  const output = (common & 2) !== 0 ? size : 0;
  return { input, output, size: Math.max(input, output, DmaHeapAllocationData.size) };
}

function ioctl(kernel: Kernel, cmd: number, arg: bigint): number | Errno {
  if ((cmd & 0xff) !== 0) return EINVAL;
  const { input, output, size } = sizesOf(cmd);
  const bytes = new Uint8Array(size);
  if (copyFromUser(kernel, bytes.subarray(0, input), arg) !== 0) return EFAULT;
  const data = DmaHeapAllocationData.over(bytes);
  if (data.fd !== 0) return EINVAL;
  if ((data.fd_flags & ~DMA_HEAP_VALID_FD_FLAGS) !== 0) return EINVAL;
  if ((data.heap_flags & ~DMA_HEAP_VALID_HEAP_FLAGS) !== 0n) return EINVAL;
  const length = alignUp(data.len, PAGE_SIZE_N);
  if (length === 0n || length > U64_MAX) return EINVAL;
  const dmabuf = systemHeapAllocate(kernel, length, data.fd_flags);
  if (dmabuf instanceof Errno) return dmabuf;
  const { files } = kernel.current;
  const fd = files.getUnused(data.fd_flags);
  if (fd instanceof Errno) {
    dmaBufPut(dmabuf);
    return fd;
  }
  data.fd = fd;
  if (copyToUser(kernel, arg, bytes.subarray(0, output)) !== 0) {
    files.putUnused(fd);
    dmaBufPut(dmabuf);
    return EFAULT;
  }
  dmaBufFdInstall(kernel.current, dmabuf, fd);
  return 0;
}

/** Loads the module: the heap appears. */
export function systemHeapInit(kernel: Kernel): void {
  const ops: FileOps = {
    name: "dma_heap",
    *ioctl(_f, cmd, arg): Step<number | Errno> {
      return ioctl(kernel, cmd, arg);
    },
  };
  kernel.modules.load(MODULE);
  kernel.fs.registerDevice("/dev/dma_heap/system", { major: 251, minor: 0, ops });
}
