/** /dev/dma_heap/NAME: dma-bufs of kernel memory (include/uapi/linux/dma-heap.h). */
import { O_ACCMODE, O_CLOEXEC } from "./fcntl.ts";
import { _IOWR } from "./ioctl.ts";
import { struct } from "./struct.ts";

export const DMA_HEAP_VALID_FD_FLAGS = O_CLOEXEC | O_ACCMODE;
/** There are none yet. A bigint, as its member has 64 bits. */
export const DMA_HEAP_VALID_HEAP_FLAGS = 0n;

/** `fd` is written: a dma-buf of `len` bytes, rounded up to pages. */
export const DmaHeapAllocationData = struct("dma_heap_allocation_data", {
  len: "u64",
  fd: "u32",
  fd_flags: "u32",
  heap_flags: "u64",
});

export const DMA_HEAP_IOC_MAGIC = 0x48; // 'H'
export const DMA_HEAP_IOCTL_ALLOC = _IOWR(DMA_HEAP_IOC_MAGIC, 0x0, DmaHeapAllocationData);
