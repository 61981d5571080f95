/**
 * Access Control Services: what the kernel enables, and what it takes for
 * isolation.
 *
 * Source: drivers/pci/pci.c (pci_enable_acs, pci_acs_enabled,
 * pci_acs_path_enabled).
 */
import { PCI_ACS_CAP, PCI_ACS_CR, PCI_ACS_CTRL, PCI_ACS_EC, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_UF } from "../../uapi/pci_regs.ts";
import type { PciDev } from "./pci_dev.ts";

/** What isolates devices from each other: source validation, request and completion redirect, upstream forwarding. */
export const REQ_ACS_FLAGS: number = PCI_ACS_SV | PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_UF;

/** Bits that redirect a peer's requests to the root. */
const REDIRECTS = PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_EC;

/** The control bits the kernel sets in a port with ACS capability `caps`. */
export function defaultAcsControl(caps: number, disableRedirect: boolean): number {
  const on = caps & REQ_ACS_FLAGS;
  return disableRedirect ? on & ~REDIRECTS : on;
}

/** pci_enable_acs; `pci=disable_acs_redir=` of the topology is honoured. */
export function enableAcs(dev: PciDev): void {
  const cap = dev.acsCap;
  if (cap === 0) return;
  const caps = dev.configRead(cap + PCI_ACS_CAP, 2);
  let ctrl = dev.configRead(cap + PCI_ACS_CTRL, 2);
  const policy = dev.kernel.pci.acsPolicy;
  if (policy.enable) ctrl |= caps & REQ_ACS_FLAGS;
  if (policy.disableRedirect.has(dev.name)) ctrl &= ~REDIRECTS;
  dev.configWrite(cap + PCI_ACS_CTRL, 2, ctrl);
}

/** The port redirects peer requests upstream, as p2pdma asks. */
export function redirectsPeers(dev: PciDev): boolean {
  return dev.acsCap !== 0 && (dev.configRead(dev.acsCap + PCI_ACS_CTRL, 2) & REDIRECTS) !== 0;
}

function flagsEnabled(dev: PciDev, flags: number): boolean {
  const cap = dev.acsCap;
  if (cap === 0) return false;
  // A control that is not implemented counts as wired on, but for egress control.
  const wanted = flags & (dev.configRead(cap + PCI_ACS_CAP, 2) | PCI_ACS_EC);
  return (dev.configRead(cap + PCI_ACS_CTRL, 2) & wanted) === wanted;
}

/** pci_acs_enabled: no peer traffic passes through or inside `dev` against `flags`. */
export function acsEnabled(dev: PciDev, flags: number): boolean {
  if (!dev.isPcie) return false;
  switch (dev.fn.template.port) {
    case "root-port":
    case "downstream-port":
      return flagsEnabled(dev, flags);
    default:
      // An endpoint or upstream port matters only for traffic between its own functions.
      return !dev.multifunction || flagsEnabled(dev, flags);
  }
}

/** pci_acs_path_enabled, to the root. */
export function acsPathEnabled(start: PciDev, flags: number): boolean {
  for (let dev: PciDev | undefined = start; dev !== undefined; dev = dev.upstreamBridge) if (!acsEnabled(dev, flags)) return false;
  return true;
}
