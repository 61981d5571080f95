/** Events of iommufd. `type` is `iommufd.<what>`; addresses and lengths are bytes. */
export type IommufdEvent = { readonly type: "iommufd.note"; readonly text: string };
