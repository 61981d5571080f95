/**
 * Reserved regions: IOVAs that a device must not have mapped, or must have
 * mapped one to one. Source: enum iommu_resv_type, iommu_get_resv_regions().
 */

/**
 * `direct`: must be mapped one to one at all times (firmware uses it).
 * `direct-relaxable`: the same, but may be given up for assignment to a user.
 * `reserved`: never reaches memory. `msi`: a write is an interrupt, translated
 * by the interrupt remapper alone. `sw-msi`: the window software picks for MSI.
 */
export type ReservedRegionType = "direct" | "direct-relaxable" | "reserved" | "msi" | "sw-msi";

export interface ReservedRegion {
  /** First byte. */
  readonly start: bigint;
  /** Bytes. */
  readonly length: bigint;
  readonly type: ReservedRegionType;
}

/** x86: writes here are interrupt messages, whatever the page table says. */
export const MSI_WINDOW_START = 0xfee0_0000n;
export const MSI_WINDOW_LAST = 0xfeef_ffffn;

/** The interrupt window of x86. */
export const X86_MSI_WINDOW: ReservedRegion = {
  start: MSI_WINDOW_START,
  length: MSI_WINDOW_LAST - MSI_WINDOW_START + 1n,
  type: "msi",
};

/** HyperTransport's special addresses, 0xfd_0000_0000 – 0xff_ffff_ffff; below AMD family 0x1a, and in virtual machines. */
export const AMD_HT_RANGE: ReservedRegion = { start: 0xfd_0000_0000n, length: 0x3_0000_0000n, type: "reserved" };
