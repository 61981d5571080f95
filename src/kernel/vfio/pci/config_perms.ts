/**
 * Which bits of config space a user may write, and which are only made up.
 *
 * For each capability two masks as long as itself: `virt`, bits that live in
 * vconfig and not in the function; `write`, bits the user may change. A read
 * mixes function and vconfig by `virt`; a write reaches vconfig with
 * `write & virt` and the function with `write & ~virt`. Capabilities without a
 * row are readable, never writable, and their id and next pointer come from
 * vconfig, so that one can be taken out of the chain.
 *
 * The tables are shared by all functions; MSI's depends on the function.
 * Source: alloc_perm_bits and the init_pci_*_perm functions of
 * vfio_pci_config.c; register layouts: PCI 3.0 chapter 6, PCIe 6.0 chapter 7.
 */
import * as R from "../../../uapi/pci_regs.ts";

/** How a capability answers. The names are the behaviours of `vfio_pci_config.ts`. */
export type PermKind = "basic" | "default" | "direct" | "raw" | "pm" | "exp" | "af" | "vpd" | "msi" | "vendor";

export interface PermBits {
  readonly kind: PermKind;
  readonly virt: Uint8Array;
  readonly write: Uint8Array;
}

/** In a config map: no capability here. No real id reaches it. */
export const CAP_INVALID = 0xff;
/** The header, as if it were capability 0. */
export const CAP_BASIC = 0;

class Masks implements PermBits {
  readonly kind: PermKind;
  readonly virt: Uint8Array;
  readonly write: Uint8Array;

  constructor(kind: PermKind, size: number) {
    this.kind = kind;
    const rounded = (size + 3) & ~3;
    this.virt = new Uint8Array(rounded);
    this.write = new Uint8Array(rounded);
  }

  set(offset: number, size: 1 | 2 | 4, virt: number, write: number): this {
    for (let i = 0; i < size; i++) {
      this.virt[offset + i] = virt >>> (8 * i);
      this.write[offset + i] = write >>> (8 * i);
    }
    return this;
  }
}

const ALL = 0xffff_ffff;
const NONE = 0;
const NEXT = 1;

function basicPerm(): PermBits {
  const p = new Masks("basic", R.PCI_STD_HEADER_SIZEOF)
    // A virtual function reads ffff here; the core knows better.
    .set(R.PCI_VENDOR_ID, 2, ALL, NONE)
    .set(R.PCI_DEVICE_ID, 2, ALL, NONE)
    // DisINTx is how the kernel masks; the user's own is emulated.
    .set(R.PCI_COMMAND, 2, R.PCI_COMMAND_INTX_DISABLE, ALL)
    .set(R.PCI_STATUS, 2, R.PCI_STATUS_CAP_LIST, NONE)
    .set(R.PCI_CACHE_LINE_SIZE, 1, NONE, ALL)
    .set(R.PCI_LATENCY_TIMER, 1, NONE, ALL)
    .set(R.PCI_BIST, 1, NONE, ALL)
    .set(R.PCI_ROM_ADDRESS, 4, ALL, ALL)
    .set(R.PCI_CAPABILITY_LIST, 1, ALL, NONE)
    .set(R.PCI_INTERRUPT_LINE, 1, ALL, ALL)
    .set(R.PCI_INTERRUPT_PIN, 1, ALL, NONE);
  for (let bar = 0; bar < 6; bar++) p.set(R.PCI_BASE_ADDRESS_0 + 4 * bar, 4, ALL, ALL);
  return p;
}

const pmPerm = (): PermBits =>
  new Masks("pm", R.PCI_PM_SIZEOF)
    .set(NEXT, 1, ALL, NONE)
    // Wake events go to the host: the user sees none.
    .set(R.PCI_PM_PMC, 2, R.PCI_PM_CAP_PME_MASK, NONE)
    .set(
      R.PCI_PM_CTRL,
      4,
      R.PCI_PM_CTRL_PME_ENABLE | R.PCI_PM_CTRL_PME_STATUS,
      ~(R.PCI_PM_CTRL_PME_ENABLE | R.PCI_PM_CTRL_PME_STATUS | R.PCI_PM_CTRL_STATE_MASK),
    );

const vpdPerm = (): PermBits => new Masks("vpd", 8).set(NEXT, 1, ALL, NONE).set(2, 2, ALL, ALL).set(4, 4, ALL, ALL);

/** PCI-X, version 2's length; version 0 uses the first eight bytes. */
const pcixPerm = (): PermBits => new Masks("default", 24).set(NEXT, 1, ALL, NONE).set(2, 2, NONE, ALL).set(8, 4, NONE, ALL);

const expPerm = (): PermBits =>
  new Masks("exp", R.PCI_CAP_EXP_ENDPOINT_SIZEOF_V2)
    .set(NEXT, 1, ALL, NONE)
    .set(R.PCI_EXP_DEVCTL, 2, R.PCI_EXP_DEVCTL_BCR_FLR | R.PCI_EXP_DEVCTL_PAYLOAD | R.PCI_EXP_DEVCTL_READRQ, ~R.PCI_EXP_DEVCTL_PHANTOM)
    .set(R.PCI_EXP_DEVCTL2, 2, NONE, ~R.PCI_EXP_DEVCTL2_ARI);

const afPerm = (): PermBits =>
  new Masks("af", R.PCI_CAP_AF_SIZEOF).set(NEXT, 1, ALL, NONE).set(R.PCI_AF_CTRL, 1, R.PCI_AF_CTRL_FLR, R.PCI_AF_CTRL_FLR);

/** Writable bits of AER: uncorrectable (status, mask, severity), correctable (status, mask), control. */
const AER_UNCORRECTABLE = 0x03ff_f031;
const AER_CORRECTABLE = 0x0000_f1c1;
const AER_CONTROL = 0x0000_0140;

const errPerm = (): PermBits =>
  new Masks("default", 0x2c)
    .set(0, 4, ALL, NONE)
    .set(0x04, 4, NONE, AER_UNCORRECTABLE)
    .set(0x08, 4, NONE, AER_UNCORRECTABLE)
    .set(0x0c, 4, NONE, AER_UNCORRECTABLE)
    .set(0x10, 4, NONE, AER_CORRECTABLE)
    .set(0x14, 4, NONE, AER_CORRECTABLE)
    .set(0x18, 4, NONE, AER_CONTROL);

/** Power budgeting: the data selector may be written. */
const pwrPerm = (): PermBits => new Masks("default", 16).set(0, 4, ALL, NONE).set(8, 1, NONE, ALL);

const direct: PermBits = new Masks("direct", 0);
/** Between capabilities: straight to the function, both ways. */
export const UNASSIGNED: PermBits = new Masks("raw", 0);
/** Read as `direct`, write as `raw`. */
const vendor: PermBits = new Masks("vendor", 0);

const capPerms: ReadonlyMap<number, PermBits> = new Map([
  [CAP_BASIC, basicPerm()],
  [R.PCI_CAP_ID_PM, pmPerm()],
  [R.PCI_CAP_ID_VPD, vpdPerm()],
  [R.PCI_CAP_ID_PCIX, pcixPerm()],
  [R.PCI_CAP_ID_VNDR, vendor],
  [R.PCI_CAP_ID_EXP, expPerm()],
  [R.PCI_CAP_ID_AF, afPerm()],
]);

const extCapPerms: ReadonlyMap<number, PermBits> = new Map([
  [R.PCI_EXT_CAP_ID_ERR, errPerm()],
  [R.PCI_EXT_CAP_ID_PWR, pwrPerm()],
  [R.PCI_EXT_CAP_ID_VNDR, vendor],
  [R.PCI_EXT_CAP_ID_DVSEC, vendor],
]);

export const capPerm = (id: number): PermBits => capPerms.get(id) ?? direct;
export const extCapPerm = (id: number): PermBits => extCapPerms.get(id) ?? direct;

/** Length of the MSI capability with these control flags: 10, 14, 20 or 24 bytes. */
export function msiCapLength(flags: number): number {
  return 10 + ((flags & R.PCI_MSI_FLAGS_64BIT) !== 0 ? 4 : 0) + ((flags & R.PCI_MSI_FLAGS_MASKBIT) !== 0 ? 10 : 0);
}

/** Address, data and enable are emulated: interrupts are set up by SET_IRQS alone. */
export function msiPerm(flags: number): PermBits {
  const p = new Masks("msi", msiCapLength(flags))
    .set(NEXT, 1, ALL, NONE)
    .set(R.PCI_MSI_FLAGS, 1, ALL, ALL)
    .set(R.PCI_MSI_ADDRESS_LO, 4, ALL, ALL);
  const is64 = (flags & R.PCI_MSI_FLAGS_64BIT) !== 0;
  if (is64) p.set(R.PCI_MSI_ADDRESS_HI, 4, ALL, ALL);
  p.set(is64 ? R.PCI_MSI_DATA_64 : R.PCI_MSI_DATA_32, 2, ALL, ALL);
  if ((flags & R.PCI_MSI_FLAGS_MASKBIT) !== 0) {
    const mask = is64 ? R.PCI_MSI_MASK_64 : R.PCI_MSI_MASK_32;
    p.set(mask, 4, NONE, ALL).set(mask + 4, 4, NONE, ALL);
  }
  return p;
}
