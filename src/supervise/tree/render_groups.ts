/**
 * /sys/kernel/iommu_groups, and the translation units in /sys/class/iommu.
 *
 * Source: drivers/iommu/{iommu,iommu-sysfs}.c, drivers/iommu/intel/iommu.c, drivers/iommu/amd/init.c.
 */
import type { IommuGroup } from "../../kernel/iommu/group.ts";
import type { ReservedRegion, ReservedRegionType } from "../../kernel/iommu/resv.ts";
import type { IommuUnit } from "../../kernel/iommu/unit.ts";
import type { Kernel } from "../../kernel/kernel.ts";
import { PciDev } from "../../kernel/pci/pci_dev.ts";
import { IOMMU_HW_INFO_TYPE_AMD, IOMMU_HW_INFO_TYPE_INTEL_VTD, IommuHwInfoAmd, IommuHwInfoVtd } from "../../uapi/iommufd.ts";
import { groupType, uevent } from "./bind_files.ts";
import type { TreeBuilder } from "./node.ts";
import { renderNoPower, sysfsPathOf } from "./render_pci.ts";
import type { TreeState } from "./state.ts";

/** Where the first VT-d unit of a PC has its registers. */
const FIRST_UNIT_ADDRESS = 0xfed9_0000n;

export function renderGroups(t: TreeBuilder, kernel: Kernel, state: TreeState): void {
  const { iommu } = kernel;
  t.dir("/sys/kernel/iommu_groups");
  for (const group of iommu.groups.values()) {
    const at = `/sys/kernel/iommu_groups/${group.id}`;
    t.dir(`${at}/devices`);
    for (const d of group.devices) if (d instanceof PciDev) t.link(`${at}/devices/${d.name}`, sysfsPathOf(d));
    t.text(`${at}/reserved_regions`, () => reservedRegions(group));
    t.text(
      `${at}/type`,
      () => `${state.groupTypes.get(group.id) ?? (iommu.passthrough ? "identity" : "DMA-FQ")}\n`,
      groupType(group, state),
    );
  }
  t.dir("/sys/class/iommu");
  iommu.units.forEach((unit, i) => {
    renderUnit(t, unit, i);
  });
}

function renderUnit(t: TreeBuilder, unit: IommuUnit, index: number): void {
  const at = `/sys/devices/virtual/iommu/${unit.name}`;
  t.link(`/sys/class/iommu/${unit.name}`, at);
  t.link(`${at}/subsystem`, "/sys/class/iommu");
  t.text(`${at}/uevent`, () => "", uevent);
  renderNoPower(t, at);
  t.dir(`${at}/devices`);
  const devices = [...unit.requesters.values()].map((r) => r.device).filter((d) => d instanceof PciDev);
  for (const d of devices) t.link(`${at}/devices/${d.name}`, sysfsPathOf(d));
  const first = devices[0];
  const info = first === undefined ? undefined : unit.hwInfo(first);
  if (info === undefined || !("data" in info)) return;
  if (info.type === IOMMU_HW_INFO_TYPE_INTEL_VTD) {
    const vtd = IommuHwInfoVtd.over(info.data);
    t.text(`${at}/intel-iommu/version`, () => "1:0\n");
    t.text(`${at}/intel-iommu/address`, () => `${(FIRST_UNIT_ADDRESS + (BigInt(index) << 12n)).toString(16)}\n`);
    t.text(`${at}/intel-iommu/cap`, () => `${vtd.cap_reg.toString(16)}\n`);
    t.text(`${at}/intel-iommu/ecap`, () => `${vtd.ecap_reg.toString(16)}\n`);
    t.text(`${at}/intel-iommu/domains_supported`, () => `${domainsSupported(vtd.cap_reg)}\n`);
  } else if (info.type === IOMMU_HW_INFO_TYPE_AMD) {
    const amd = IommuHwInfoAmd.over(info.data);
    t.text(`${at}/amd-iommu/cap`, () => "0\n");
    t.text(`${at}/amd-iommu/features`, () => `${amd.efr2.toString(16)}:${amd.efr.toString(16)}\n`);
  }
}

/** CAP_REG.ND: 16 domains, or 64, 256 … 65,536. */
const domainsSupported = (cap: bigint): number => 1 << (4 + 2 * Number(cap & 7n));

const TYPE_NAMES: Readonly<Record<ReservedRegionType, string>> = {
  direct: "direct",
  "direct-relaxable": "direct-relaxable",
  reserved: "reserved",
  msi: "msi",
  "sw-msi": "msi",
};

/** The regions of all devices of the group: each once, by address. */
function reservedRegions(group: IommuGroup): string {
  const all = new Map<string, ReservedRegion>();
  for (const d of group.devices) for (const r of group.reservedRegions(d)) all.set(`${r.start}.${r.length}.${r.type}`, r);
  return [...all.values()]
    .sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))
    .map((r) => `${hex16(r.start)} ${hex16(r.start + r.length - 1n)} ${TYPE_NAMES[r.type]}\n`)
    .join("");
}

const hex16 = (n: bigint): string => `0x${n.toString(16).padStart(16, "0")}`;
