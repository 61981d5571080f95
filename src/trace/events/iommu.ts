/** Events of iommu. `type` is `iommu.<what>`; addresses and lengths are bytes. */
export type IommuEvent = { readonly type: "iommu.note"; readonly text: string };
