/**
 * Saving and restoring config space around a reset or a sleep.
 *
 * Saved are the 64 header bytes and the PCIe control registers; MSI, MSI-X and
 * SR-IOV are programmed again from what the kernel knows, and ACS is enabled
 * again. BARs are written before COMMAND, so that nothing decodes at a wrong
 * address.
 *
 * Source: drivers/pci/pci.c (pci_save_state, pci_restore_state).
 */
import { PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2, PCI_EXP_LNKCTL, PCI_EXP_LNKCTL2 } from "../../uapi/pci_regs.ts";
import { enableAcs } from "./acs.ts";
import type { PciDev } from "./pci_dev.ts";

const HEADER_DWORDS = 16;
const PCIE_REGISTERS = [PCI_EXP_DEVCTL, PCI_EXP_LNKCTL, PCI_EXP_DEVCTL2, PCI_EXP_LNKCTL2];

/** A copy that outlives the next save; see `PciDev.storeSavedState`. */
export interface PciSavedState {
  readonly header: readonly number[];
  readonly pcie: readonly number[];
}

/** What `saveState` last saved. */
export class SavedConfig {
  /** state_saved: saved since the last restore. */
  valid = false;
  header: readonly number[] = [];
  pcie: readonly number[] = [];
}

export function saveState(dev: PciDev): void {
  const header: number[] = [];
  for (let i = 0; i < HEADER_DWORDS; i++) header.push(dev.configRead(4 * i, 4));
  dev.saved.header = header;
  dev.saved.pcie = dev.isPcie ? PCIE_REGISTERS.map((r) => dev.configRead(dev.pcieCap + r, 2)) : [];
  dev.saved.valid = true;
}

export function restoreState(dev: PciDev): void {
  const s = dev.saved;
  s.pcie.forEach((v, i) => {
    dev.configWrite(dev.pcieCap + (PCIE_REGISTERS[i] as number), 2, v);
  });
  if (dev.isBridge) {
    restoreRange(dev, 12, 15, false);
    restoreRange(dev, 9, 11, true);
    restoreRange(dev, 0, 8, false);
  } else {
    restoreRange(dev, 10, 15, false);
    restoreRange(dev, 4, 9, false);
    restoreRange(dev, 0, 3, false);
  }
  dev.irqs.restore();
  enableAcs(dev);
  dev.iov?.restore();
  s.valid = false;
}

function restoreRange(dev: PciDev, first: number, last: number, force: boolean): void {
  for (let i = last; i >= first; i--) {
    const v = dev.saved.header[i];
    if (v === undefined) continue;
    if (force || dev.configRead(4 * i, 4) !== v) dev.configWrite(4 * i, 4, v);
  }
}

export function storeSavedState(dev: PciDev): PciSavedState | undefined {
  return dev.saved.valid ? { header: dev.saved.header, pcie: dev.saved.pcie } : undefined;
}

/** pci_load_saved_state; undefined: nothing is saved from now on. */
export function loadSavedState(dev: PciDev, state: PciSavedState | undefined): void {
  dev.saved.valid = state !== undefined;
  if (state === undefined) return;
  dev.saved.header = state.header;
  dev.saved.pcie = state.pcie;
}
