/** struct resource, as much of it as a BAR needs. Plain data, shared between boots of one machine. */
export interface PciResourceFlags {
  readonly io: boolean;
  readonly mem: boolean;
  readonly prefetch: boolean;
  readonly mem64: boolean;
  /** The expansion ROM: decoded only when `enabled`. */
  readonly rom: boolean;
  readonly enabled: boolean;
}

export interface PciResource {
  /** CPU address (I/O: port number); 0 when nothing was assigned. */
  readonly start: bigint;
  /** Bytes; 0 when the function has no such BAR. */
  readonly length: bigint;
  readonly flags: PciResourceFlags;
}

const NO_FLAGS: PciResourceFlags = { io: false, mem: false, prefetch: false, mem64: false, rom: false, enabled: false };

/** Where a function has no BAR. */
export const NO_RESOURCE: PciResource = { start: 0n, length: 0n, flags: NO_FLAGS };

/** Index of the expansion ROM among a function's resources. */
export const ROM_RESOURCE = 6;

/** BARs of a type 0 header. */
export const NUM_BARS = 6;
