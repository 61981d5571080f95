/**
 * Which IOMMU group a function belongs to.
 *
 * Functions that can reach each other without the IOMMU share a group: below a
 * port that does not redirect peer traffic, and functions of one device that do
 * not isolate themselves from each other. Groups are found in order of
 * discovery: a function joins the group of the first relative that has one.
 *
 * Source: drivers/iommu/iommu.c (pci_device_group). DMA aliases (PCIe-to-PCI
 * bridges, quirks) do not occur here.
 */
import type { IommuGroup } from "../iommu/group.ts";
import { acsEnabled, acsPathEnabled, REQ_ACS_FLAGS } from "./acs.ts";
import type { PciDev } from "./pci_dev.ts";

/** The group `dev` must join, by what `groupOf` says of others; undefined: a new one. */
export function relativeGroup<G>(dev: PciDev, groupOf: (d: PciDev) => G | undefined): G | undefined {
  let top = dev;
  // Up to the point from which everything is redirected to the root.
  for (let bridge = dev.upstreamBridge; bridge !== undefined; bridge = bridge.upstreamBridge) {
    if (acsPathEnabled(bridge, REQ_ACS_FLAGS)) break;
    top = bridge;
    const group = groupOf(top);
    if (group !== undefined) return group;
  }
  const own = groupOf(top);
  if (own !== undefined) return own;
  if (!top.multifunction || acsEnabled(top, REQ_ACS_FLAGS)) return undefined;
  for (const other of top.pciBus.devices) {
    if (other === top || other.devfn >> 3 !== top.devfn >> 3 || acsEnabled(other, REQ_ACS_FLAGS)) continue;
    const group = groupOf(other);
    if (group !== undefined) return group;
  }
  return undefined;
}

/** Puts a new function behind the machine's IOMMU; nothing happens without one. */
export function joinIommuGroup(dev: PciDev): void {
  const iommu = dev.kernel.iommu;
  if (iommu.units.length === 0) return;
  iommu.addDevice(
    dev,
    relativeGroup<IommuGroup>(dev, (d) => d.iommuGroup),
  );
}
