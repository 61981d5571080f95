/** Events of pci. `type` is `pci.<what>`; addresses and lengths are bytes. */
export type PciEvent = { readonly type: "pci.note"; readonly text: string };
