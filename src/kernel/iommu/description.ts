/** What a machine says about its translation unit. */

/**
 * `intel-legacy`: second-stage tables, no PASIDs. `intel-scalable`: second-stage tables under scalable mode.
 * `intel-first-stage`: scalable mode, CPU-shaped tables. `amd`: AMD-Vi, version 1 tables.
 */
export type IommuKind = "intel-legacy" | "intel-scalable" | "intel-first-stage" | "amd";

export interface IommuDescription {
  readonly kind: IommuKind;
  /** Bits of an IOVA; default 48. Intel: 39, 48 or 57. AMD: 48 or 64 (the firmware's limit). */
  readonly addressWidth?: 39 | 48 | 57 | 64;
  /** Intel: accesses can be made to snoop whatever the device asks (ECAP.SC); default false. AMD always does. */
  readonly snoopControl?: boolean;
  /** Intel: the walker snoops the CPU's caches (ECAP.C; under scalable mode ECAP.SMPWC); default false. */
  readonly coherentWalk?: boolean;
  /** Leaves of 2 MiB; default true. */
  readonly pages2m?: boolean;
  /** Leaves of 1 GiB; default true. */
  readonly pages1g?: boolean;
  /** The unit sets dirty bits (Intel: ECAP.SSADS, scalable second stage with a coherent walk; AMD: EFR.HDSup); default false. */
  readonly dirtyTracking?: boolean;
  /** Domains can be parents of nested ones (Intel: ECAP.NEST, scalable; AMD: GIOSup and GCR3TRPMode); default false. */
  readonly nesting?: boolean;
  /** Requests may carry PASIDs (Intel: scalable modes); default false. */
  readonly pasid?: boolean;
  /** Interrupts are remapped; default true. */
  readonly interruptRemapping?: boolean;
  /** The firmware asks for protection before the OS runs; default false. */
  readonly preBootProtection?: boolean;
  /** VT-d: the unit emulates for a hypervisor and caches entries that are not present (CAP.CM); default false. */
  readonly cachingMode?: boolean;
}
