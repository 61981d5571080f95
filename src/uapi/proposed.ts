/**
 * What the negotiated contract adds to user space's interface; not in Linux 7.3.
 * Answered only on a machine whose interconnect is negotiated (docs/negotiation.md).
 */
import { DMA_BUF_BASE } from "./dma_buf.ts";
import { _IOR } from "./ioctl.ts";
import { struct } from "./struct.ts";

/** The buffer can be mapped. */
export const DMA_BUF_STATE_LIVE = 0;
/** It was taken back, and may be live again. */
export const DMA_BUF_STATE_REVOKED = 1;
/** It was taken back for ever. */
export const DMA_BUF_STATE_DEAD = 2;

/**
 * `state`: DMA_BUF_STATE_*. `epoch`: revokes so far. `importers`: attachments.
 * `fenced`: mappings of importers that did not let go and that only the exporter
 * could make harmless; the buffer stays revoked while there are any.
 */
export const DmaBufQueryState = struct("dma_buf_query_state", {
  state: "u32",
  importers: "u32",
  fenced: "u32",
  __reserved: "u32",
  epoch: "u64",
});

/** The state now; POLLPRI on the descriptor says that it changed since it was last asked for. */
export const DMA_BUF_IOCTL_QUERY_STATE: number = _IOR(DMA_BUF_BASE, 0x10, DmaBufQueryState);

/** IOMMU_OPTION of an IOAS: 1, and mappings of dma-bufs made from then on come back after a temporary revoke. */
export const IOMMU_OPTION_DMABUF_REVALIDATE = 2;
