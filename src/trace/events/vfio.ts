/** Events of vfio. `type` is `vfio.<what>`; addresses and lengths are bytes. */
export type VfioEvent = { readonly type: "vfio.note"; readonly text: string };
