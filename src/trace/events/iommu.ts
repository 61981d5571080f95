/** Events of iommu. `type` is `iommu.<what>`; addresses and lengths are bytes, `last` is inclusive. */
export type IommuEvent =
  | { readonly type: "iommu.device"; readonly device: string; readonly group: number; readonly unit: string }
  | { readonly type: "iommu.domain_alloc"; readonly domain: number; readonly unit: string; readonly device: string; readonly flags: number }
  | { readonly type: "iommu.domain_free"; readonly domain: number }
  /** The device's requests now go through this domain; `pasid` 0 is every request without one. */
  | {
      readonly type: "iommu.attach";
      readonly device: string;
      readonly domain: number;
      readonly kind: string;
      readonly pasid: number;
      readonly errno: string | undefined;
    }
  | { readonly type: "iommu.detach"; readonly device: string; readonly domain: number; readonly pasid: number }
  /** DMA ownership of a group; `count` is the number of claims after it. */
  | { readonly type: "iommu.claim"; readonly group: number; readonly count: number; readonly errno: string | undefined }
  | { readonly type: "iommu.release"; readonly group: number; readonly count: number }
  | {
      readonly type: "iommu.map";
      readonly domain: number;
      readonly iova: bigint;
      readonly pa: bigint;
      readonly length: bigint;
      readonly prot: number;
      readonly errno: string | undefined;
    }
  | { readonly type: "iommu.unmap"; readonly domain: number; readonly iova: bigint; readonly length: bigint; readonly unmapped: bigint }
  /** Cached translations of [start, last] are gone; `dropped` counts those that were there. */
  | { readonly type: "iommu.flush"; readonly domain: number; readonly start: bigint; readonly last: bigint; readonly dropped: number }
  | { readonly type: "iommu.snoop"; readonly domain: number; readonly enforced: boolean }
  | { readonly type: "iommu.dirty_tracking"; readonly domain: number; readonly enable: boolean }
  /** A device asks for a page to be made present; `grpid` gathers requests, of which the one with `last` wants an answer for all. */
  | {
      readonly type: "iommu.page_request";
      readonly device: string;
      readonly pasid: number;
      readonly grpid: number;
      readonly addr: bigint;
      readonly perm: number;
      readonly last: boolean;
    }
  /** The answer to a group of page requests. */
  | {
      readonly type: "iommu.page_response";
      readonly device: string;
      readonly pasid: number;
      readonly grpid: number;
      readonly code: "success" | "invalid" | "failure";
    }
  /** A device's access was refused; `text` is the line of the kernel's log. */
  | {
      readonly type: "iommu.fault";
      readonly device: string;
      readonly iova: bigint;
      readonly write: boolean;
      readonly domain: number;
      readonly reason: number;
      readonly why: string;
      readonly text: string;
    };
