/** Events of iommufd. `type` is `iommufd.<what>`; addresses and lengths are bytes. */
export type IommufdEvent =
  /** A command ended; `errno` is absent for success. */
  | { readonly type: "iommufd.ioctl"; readonly ctx: number; readonly command: string; readonly errno: string | undefined }
  /** An object can be found by its id. */
  | { readonly type: "iommufd.object"; readonly ctx: number; readonly id: number; readonly object: string }
  /** An object is freed. */
  | { readonly type: "iommufd.destroy"; readonly ctx: number; readonly id: number; readonly object: string }
  /** A device belongs to a context. */
  | { readonly type: "iommufd.bind"; readonly device: string; readonly id: number }
  /** A device is on, moves to, or leaves a hardware page table. */
  | { readonly type: "iommufd.attach"; readonly what: "attach" | "detach" | "replace"; readonly device: string; readonly hwpt: number }
  | { readonly type: "iommufd.map"; readonly ioas: number; readonly iova: bigint; readonly length: bigint; readonly addr: bigint }
  | {
      readonly type: "iommufd.map_file";
      readonly ioas: number;
      readonly iova: bigint;
      readonly length: bigint;
      /** Byte of the file or of the dma-buf. */
      readonly start: bigint;
      readonly kind: "user" | "file" | "dmabuf";
    }
  | {
      readonly type: "iommufd.copy";
      readonly src: number;
      readonly dst: number;
      readonly from: bigint;
      readonly iova: bigint;
      readonly length: bigint;
      readonly areas: number;
    }
  | { readonly type: "iommufd.unmap"; readonly ioas: number; readonly iova: bigint; readonly length: bigint; readonly unmapped: bigint }
  /** An exporter takes its memory back: so many mappings of it are gone for good. */
  | { readonly type: "iommufd.revoke"; readonly dmabuf: number; readonly mappings: number };
