/** ACS controls: their letters as bits. */
import { PCI_ACS_CR, PCI_ACS_DT, PCI_ACS_EC, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_TB, PCI_ACS_UF } from "../../uapi/pci_regs.ts";
import type { AcsFlag } from "./pci_model.ts";

const BITS: Readonly<Record<AcsFlag, number>> = {
  SV: PCI_ACS_SV,
  TB: PCI_ACS_TB,
  RR: PCI_ACS_RR,
  CR: PCI_ACS_CR,
  UF: PCI_ACS_UF,
  EC: PCI_ACS_EC,
  DT: PCI_ACS_DT,
};

export function acsBits(flags: readonly AcsFlag[]): number {
  let bits = 0;
  for (const f of flags) bits |= BITS[f];
  return bits;
}
