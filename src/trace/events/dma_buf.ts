/**
 * Events of buffer sharing. `type` is `dma_buf.<what>`; addresses and lengths
 * are bytes, `ino` is the inode number that tells one buffer from another.
 */
export type DmaBufEvent =
  | { readonly type: "dma_buf.export"; readonly ino: number; readonly exporter: string; readonly size: bigint }
  | { readonly type: "dma_buf.fd"; readonly ino: number; readonly fd: number }
  | { readonly type: "dma_buf.get"; readonly ino: number; readonly fd: number }
  | { readonly type: "dma_buf.put"; readonly ino: number }
  | { readonly type: "dma_buf.release"; readonly ino: number }
  | {
      readonly type: "dma_buf.attach";
      readonly ino: number;
      readonly importer: string;
      readonly dynamic: boolean;
      readonly peer2peer: boolean;
    }
  | { readonly type: "dma_buf.attach_refused"; readonly ino: number; readonly importer: string; readonly errno: string }
  | { readonly type: "dma_buf.detach"; readonly ino: number; readonly importer: string }
  | { readonly type: "dma_buf.pin"; readonly ino: number; readonly importer: string; readonly errno: string | undefined }
  | { readonly type: "dma_buf.unpin"; readonly ino: number; readonly importer: string }
  | {
      readonly type: "dma_buf.map";
      readonly ino: number;
      readonly importer: string;
      readonly entries: readonly { readonly address: bigint; readonly length: bigint }[];
    }
  | { readonly type: "dma_buf.map_refused"; readonly ino: number; readonly importer: string; readonly errno: string }
  | { readonly type: "dma_buf.unmap"; readonly ino: number; readonly importer: string }
  | { readonly type: "dma_buf.invalidate"; readonly ino: number; readonly importer: string }
  | { readonly type: "dma_buf.wait_fences"; readonly ino: number; readonly pending: number }
  /** The private interconnect: an address handed out (`paddr`, `len`) or the reason it was not (`errno`). */
  | {
      readonly type: "dma_buf.private_map";
      readonly ino: number;
      readonly paddr: bigint;
      readonly len: bigint;
    }
  | { readonly type: "dma_buf.private_map_refused"; readonly ino: number; readonly errno: string }
  /** The steps of a revoke or un-revoke of one buffer of a VFIO device, in the order in which they happen. */
  | {
      readonly type: "dma_buf.revoke";
      readonly ino: number;
      readonly device: string;
      readonly step: "revoked" | "drain" | "drained" | "live" | "skipped" | "unchanged" | "cleaned_up";
    }
  /** A negotiated attach, and the mapping type that was agreed on. */
  | { readonly type: "dma_buf.negotiated"; readonly ino: number; readonly importer: string; readonly mapping: string }
  /** A negotiated mapping is made, and given back; `epoch` counts the buffer's revokes. */
  | { readonly type: "dma_buf.acquire"; readonly ino: number; readonly importer: string; readonly epoch: number }
  | { readonly type: "dma_buf.give_back"; readonly ino: number; readonly importer: string; readonly epoch: number }
  /** A negotiated buffer becomes live, revoked or dead. */
  | { readonly type: "dma_buf.state"; readonly ino: number; readonly state: string; readonly epoch: number }
  /** Importers that did not let go; mappings that were taken from them, and those that the exporter had to fence. */
  | {
      readonly type: "dma_buf.contract_broken";
      readonly ino: number;
      readonly importers: readonly string[];
      readonly severed: number;
      readonly fenced: number;
    };
