/** Events of mm. `type` is `mm.<what>`; addresses and lengths are bytes. */
export type MmEvent = { readonly type: "mm.note"; readonly text: string };
