/** Events of dma_buf. `type` is `dma_buf.<what>`; addresses and lengths are bytes. */
export type DmaBufEvent = { readonly type: "dma_buf.note"; readonly text: string };
