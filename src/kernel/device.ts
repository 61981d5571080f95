/**
 * The device model's base: what buses, the IOMMU layer and drivers share.
 *
 * A bus derives from it (`pci/pci_dev.ts`); the IOMMU layer hangs a group and a
 * translating unit on it at boot. Source: struct device, struct dev_iommu.
 */
import type { IommuGroup } from "./iommu/group.ts";
import type { FaultParam } from "./iommu/io_pagefault.ts";
import type { IommuUnit } from "./iommu/unit.ts";

export class Device {
  /** As sysfs names it, `0000:01:00.0`. */
  readonly name: string;
  readonly bus: "pci" | "misc" | "mock";
  /** Requester id on the bus (bus << 8 | device << 3 | function); what the IOMMU sees. */
  readonly rid: number;
  /** Undefined for a device behind no IOMMU. */
  iommuGroup: IommuGroup | undefined = undefined;
  /** The unit that translates its DMA. */
  iommuUnit: IommuUnit | undefined = undefined;
  /** What is kept of its page requests, while it is in a queue for them. */
  faultParam: FaultParam | undefined = undefined;
  /** Mask of the addresses it can put on the bus. */
  dmaMask = 0xffff_ffff_ffff_ffffn;

  constructor(name: string, bus: "pci" | "misc" | "mock", rid: number) {
    this.name = name;
    this.bus = bus;
    this.rid = rid;
  }
}
