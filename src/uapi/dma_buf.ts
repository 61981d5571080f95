/**
 * A dma-buf's own descriptor (include/uapi/linux/dma-buf.h). Flags of dma_buf_sync are bigints, as its member has 64 bits.
 */
import { _IOW, _IOWR } from "./ioctl.ts";
import { struct } from "./struct.ts";

export const DMA_BUF_SYNC_READ = 1n << 0n;
export const DMA_BUF_SYNC_WRITE = 2n << 0n;
export const DMA_BUF_SYNC_RW = DMA_BUF_SYNC_READ | DMA_BUF_SYNC_WRITE;
export const DMA_BUF_SYNC_START = 0n << 2n;
export const DMA_BUF_SYNC_END = 1n << 2n;
export const DMA_BUF_SYNC_VALID_FLAGS_MASK = DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END;

/** Room for a name and its zero byte. */
export const DMA_BUF_NAME_LEN = 32;

/** The CPU begins or ends an access through a mapping. */
export const DmaBufSync = struct("dma_buf_sync", { flags: "u64" });

/** A sync_file of the fences that an access of the kind in `flags` (DMA_BUF_SYNC_RW bits) would wait for. */
export const DmaBufExportSyncFile = struct("dma_buf_export_sync_file", { flags: "u32", fd: "s32" });

/** Adds the fence of a sync_file to the buffer, as one of the kind in `flags`. */
export const DmaBufImportSyncFile = struct("dma_buf_import_sync_file", { flags: "u32", fd: "s32" });

export const DMA_BUF_BASE = 0x62; // 'b'
export const DMA_BUF_IOCTL_SYNC = _IOW(DMA_BUF_BASE, 0, DmaBufSync);
/** The argument points to the name. The command was once encoded with a pointer's size, so the kernel knows two. */
export const DMA_BUF_SET_NAME = _IOW(DMA_BUF_BASE, 1, 8);
export const DMA_BUF_SET_NAME_A = _IOW(DMA_BUF_BASE, 1, 4);
export const DMA_BUF_SET_NAME_B = _IOW(DMA_BUF_BASE, 1, 8);
export const DMA_BUF_IOCTL_EXPORT_SYNC_FILE = _IOWR(DMA_BUF_BASE, 2, DmaBufExportSyncFile);
export const DMA_BUF_IOCTL_IMPORT_SYNC_FILE = _IOW(DMA_BUF_BASE, 3, DmaBufImportSyncFile);
