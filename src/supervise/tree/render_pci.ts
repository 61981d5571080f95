/**
 * The PCI part of sysfs: functions, their attributes, and the bus with its drivers.
 *
 * Ports show the driver that Linux always gives them, pcieport, though nothing
 * here runs for it. Left out, because nothing stands behind them: ACPI's
 * firmware_node, wakeup sources, link states, and power/autosuspend_delay_ms
 * (which cannot be read on Linux either).
 *
 * Source: drivers/pci/pci-sysfs.c, drivers/pci/iov.c, drivers/base/{bus,dd}.c,
 * drivers/base/power/sysfs.c.
 */

import type { Kernel } from "../../kernel/kernel.ts";
import type { PciDev } from "../../kernel/pci/pci_dev.ts";
import type { PciResource } from "../../kernel/pci/resource.ts";
import { EPERM } from "../../lib/errno.ts";
import { PCI_INTERRUPT_LINE } from "../../uapi/pci_regs.ts";
import * as store from "./bind_files.ts";
import type { TreeBuilder } from "./node.ts";
import { attributesOf, type TreeState } from "./state.ts";

/** What Linux calls the driver of PCI Express ports. */
const PORT_DRIVER = "pcieport";
const hex = (n: number | bigint, digits: number): string => n.toString(16).padStart(digits, "0");
const HEX = (n: number, digits: number): string => hex(n, digits).toUpperCase();

/** `/sys/devices/pci0000:00/…` of a function. */
export function sysfsPathOf(dev: PciDev): string {
  const above = dev.upstreamBridge;
  return `${above === undefined ? `/sys/devices/pci${dev.name.slice(0, 7)}` : sysfsPathOf(above)}/${dev.name}`;
}

/** The name of what drives a function, in the eyes of user space. */
export function driverNameOf(dev: PciDev): string | undefined {
  return dev.driver?.name ?? (dev.isBridge ? PORT_DRIVER : undefined);
}

export function renderPci(t: TreeBuilder, kernel: Kernel, state: TreeState): void {
  const { pci } = kernel;
  t.dir("/sys/bus/pci/devices");
  t.dir("/sys/bus/pci/slots");
  t.dir("/sys/devices/pci0000:00");
  const drivers = new Set([PORT_DRIVER, ...[...pci.drivers].map((d) => d.name)]);
  for (const dev of pci.devices.values()) {
    const path = sysfsPathOf(dev);
    t.link(`/sys/bus/pci/devices/${dev.name}`, path);
    renderFunction(t, dev, path, state);
    const driver = driverNameOf(dev);
    if (driver === undefined) continue;
    drivers.add(driver);
    t.link(`/sys/bus/pci/drivers/${driver}/${dev.name}`, path);
    t.link(`${path}/driver`, `/sys/bus/pci/drivers/${driver}`);
  }
  for (const name of drivers) renderDriver(t, kernel, name);
  t.file({
    path: "/sys/bus/pci/drivers_autoprobe",
    mode: 0o644,
    size: 4096,
    binary: false,
    show: () => (state.autoprobe ? "1\n" : "0\n"),
    store: store.driversAutoprobe(state),
  });
  t.trigger("/sys/bus/pci/drivers_probe", store.driversProbe(kernel));
  t.trigger("/sys/bus/pci/rescan", store.rescan(kernel));
  t.trigger("/sys/bus/pci/uevent", store.uevent);
  t.text("/sys/bus/pci/resource_alignment", () => state.resourceAlignment, store.resourceAlignment(state));
}

function renderDriver(t: TreeBuilder, kernel: Kernel, name: string): void {
  const at = `/sys/bus/pci/drivers/${name}`;
  t.trigger(`${at}/bind`, store.bind(kernel, name));
  t.trigger(`${at}/unbind`, store.unbind(kernel, name));
  t.trigger(`${at}/new_id`, store.newId(kernel, name));
  t.trigger(`${at}/remove_id`, store.removeId(kernel, name));
  t.trigger(`${at}/uevent`, store.uevent);
  if (name === "vfio-pci") t.link(`${at}/module`, "/sys/module/vfio_pci");
}

function renderFunction(t: TreeBuilder, dev: PciDev, path: string, state: TreeState): void {
  const at = (name: string): string => `${path}/${name}`;
  const attributes = attributesOf(dev);
  t.text(at("vendor"), () => `0x${hex(dev.vendor, 4)}\n`);
  t.text(at("device"), () => `0x${hex(dev.device, 4)}\n`);
  t.text(at("subsystem_vendor"), () => `0x${hex(dev.subsystemVendor, 4)}\n`);
  t.text(at("subsystem_device"), () => `0x${hex(dev.subsystemDevice, 4)}\n`);
  t.text(at("revision"), () => `0x${hex(dev.revision, 2)}\n`);
  t.text(at("class"), () => `0x${hex(dev.class, 6)}\n`);
  t.text(at("modalias"), () => `${modalias(dev)}\n`);
  t.text(at("uevent"), () => ueventOf(dev), store.uevent);
  t.text(at("resource"), () => resourceLines(dev));
  t.text(at("irq"), () => `${dev.configRead(PCI_INTERRUPT_LINE, 1)}\n`);
  t.text(at("numa_node"), () => "-1\n", store.numaNode);
  t.text(at("local_cpus"), () => "1\n");
  t.text(at("local_cpulist"), () => "0\n");
  t.text(at("dma_mask_bits"), () => `${dmaMaskBits(dev)}\n`);
  t.text(at("consistent_dma_mask_bits"), () => `${dmaMaskBits(dev)}\n`);
  t.text(at("enable"), () => (dev.enabled || dev.isBridge ? "1\n" : "0\n"), store.enable(dev));
  t.text(
    at("broken_parity_status"),
    () => (attributes.brokenParity ? "1\n" : "0\n"),
    store.flag((on) => {
      attributes.brokenParity = on;
    }),
  );
  t.text(
    at("msi_bus"),
    () => (attributes.msiAllowed ? "1\n" : "0\n"),
    store.flag((on) => {
      attributes.msiAllowed = on;
    }),
  );
  t.text(
    at("d3cold_allowed"),
    () => (attributes.d3coldAllowed ? "1\n" : "0\n"),
    store.flag((on) => {
      attributes.d3coldAllowed = on;
    }),
  );
  t.text(at("ari_enabled"), () => "0\n");
  t.text(at("power_state"), () => `${["D0", "D1", "D2", "D3hot", "D3cold"][dev.currentState] ?? "unknown"}\n`);
  t.text(at("driver_override"), () => `${dev.driverOverride ?? "(null)"}\n`, store.driverOverride(dev));
  t.trigger(at("remove"), store.remove(dev), 0o220);
  t.trigger(at("rescan"), store.rescan(dev.kernel));
  t.link(at("subsystem"), "/sys/bus/pci");
  renderConfig(t, dev, path);
  renderResources(t, dev, path);
  renderPower(t, dev, path);
  if (dev.resetFunctionSupported || attributes.resetMethodsCleared) {
    t.trigger(at("reset"), store.reset(dev));
    t.text(
      at("reset_method"),
      () => (dev.resetMethods.length === 0 ? "" : `${dev.resetMethods.join(" ")}\n`),
      store.resetMethod(dev, attributes),
    );
  }
  const { subordinate } = dev;
  if (subordinate !== undefined) {
    t.text(at("secondary_bus_number"), () => `${subordinate.number}\n`);
    t.text(
      at("subordinate_bus_number"),
      () => `${Math.max(subordinate.number, ...[...subordinate.subtree()].map((d) => d.pciBus.number))}\n`,
    );
    t.trigger(at("reset_subordinate"), store.resetSubordinate(dev));
  }
  if (dev.iommuGroup !== undefined) t.link(at("iommu_group"), `/sys/kernel/iommu_groups/${dev.iommuGroup.id}`);
  if (dev.iommuUnit !== undefined) t.link(at("iommu"), `/sys/devices/virtual/iommu/${dev.iommuUnit.name}`);
  renderSriov(t, dev, path, state);
}

/** Config space as user space reads it: through the function's own access, held back by nothing but the bus. */
function renderConfig(t: TreeBuilder, dev: PciDev, path: string): void {
  t.file({
    path: `${path}/config`,
    mode: 0o644,
    size: dev.cfgSize,
    binary: true,
    show: () => {
      const bytes = new Uint8Array(dev.cfgSize);
      const view = new DataView(bytes.buffer);
      for (let off = 0; off < bytes.length; off += 4) view.setUint32(off, dev.configRead(off, 4), true);
      return bytes;
    },
    // Not while a reset keeps config space closed.
    *ready() {
      yield* dev.userConfigRead(0, 4);
    },
    store: store.config(dev),
  });
}

function renderResources(t: TreeBuilder, dev: PciDev, path: string): void {
  dev.resources.forEach((r, i) => {
    if (r.length === 0n) return;
    // Mapping a BAR here would go past VFIO and the model: refused as on a locked-down kernel.
    t.file({
      path: r.flags.rom ? `${path}/rom` : `${path}/resource${i}`,
      mode: 0o600,
      size: Number(r.length),
      binary: true,
      refuse: EPERM,
    });
  });
}

function renderPower(t: TreeBuilder, dev: PciDev, path: string): void {
  t.text(`${path}/power/control`, () => (dev.pm.forbidden ? "on\n" : "auto\n"), store.powerControl(dev));
  t.text(`${path}/power/runtime_status`, () => `${dev.pm.status}\n`);
}

/** A device that knows nothing of power: `power/` of a cdev, a class device. */
export function renderNoPower(t: TreeBuilder, path: string): void {
  t.text(`${path}/power/control`, () => "auto\n", store.powerControlFixed);
  t.text(`${path}/power/runtime_active_time`, () => "0\n");
  t.text(`${path}/power/runtime_status`, () => "unsupported\n");
  t.text(`${path}/power/runtime_suspended_time`, () => "0\n");
}

function renderSriov(t: TreeBuilder, dev: PciDev, path: string, state: TreeState): void {
  const { iov, physfn } = dev;
  if (physfn !== undefined) t.link(`${path}/physfn`, sysfsPathOf(physfn));
  if (iov === undefined) return;
  const attributes = attributesOf(dev);
  t.text(`${path}/sriov_totalvfs`, () => `${iov.capability.totalVfs}\n`);
  t.text(`${path}/sriov_numvfs`, () => `${iov.numVfs}\n`, store.sriovNumvfs(dev, state));
  t.text(`${path}/sriov_offset`, () => `${iov.capability.vfOffset}\n`);
  t.text(`${path}/sriov_stride`, () => `${iov.capability.vfStride}\n`);
  t.text(`${path}/sriov_vf_device`, () => `${hex(iov.capability.vf.device, 0)}\n`);
  t.text(`${path}/sriov_vf_total_msix`, () => "0\n");
  t.text(
    `${path}/sriov_drivers_autoprobe`,
    () => (attributes.vfAutoprobe ? "1\n" : "0\n"),
    store.boolean((on) => {
      attributes.vfAutoprobe = on;
    }),
  );
  iov.vfs.forEach((vf, i) => {
    t.link(`${path}/virtfn${i}`, sysfsPathOf(vf));
  });
}

function modalias(dev: PciDev): string {
  const c = dev.class;
  return (
    `pci:v${HEX(dev.vendor, 8)}d${HEX(dev.device, 8)}sv${HEX(dev.subsystemVendor, 8)}sd${HEX(dev.subsystemDevice, 8)}` +
    `bc${HEX(c >> 16, 2)}sc${HEX((c >> 8) & 0xff, 2)}i${HEX(c & 0xff, 2)}`
  );
}

function ueventOf(dev: PciDev): string {
  const driver = driverNameOf(dev);
  return (
    `${driver === undefined ? "" : `DRIVER=${driver}\n`}PCI_CLASS=${HEX(dev.class, 4)}\nPCI_ID=${HEX(dev.vendor, 4)}:${HEX(dev.device, 4)}\n` +
    `PCI_SUBSYS_ID=${HEX(dev.subsystemVendor, 4)}:${HEX(dev.subsystemDevice, 4)}\nPCI_SLOT_NAME=${dev.name}\nMODALIAS=${modalias(dev)}\n`
  );
}

const dmaMaskBits = (dev: PciDev): number =>
  dev.driver === undefined || dev.driver.driverManagedDma === true ? 32 : dev.dmaMask.toString(2).length;

// struct resource's flags, as much of them as user space looks at.
const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;
const IORESOURCE_PREFETCH = 0x2000;
const IORESOURCE_READONLY = 0x4000;
const IORESOURCE_SIZEALIGN = 0x4_0000;
const IORESOURCE_MEM_64 = 0x10_0000;

function resourceFlags(r: PciResource): number {
  const f = r.flags;
  if (f.rom) return IORESOURCE_SIZEALIGN | IORESOURCE_READONLY | IORESOURCE_PREFETCH | IORESOURCE_MEM;
  // The low bits are those of the BAR itself.
  if (f.io) return IORESOURCE_SIZEALIGN | IORESOURCE_IO | 1;
  let flags = IORESOURCE_SIZEALIGN | IORESOURCE_MEM;
  if (f.mem64) flags |= IORESOURCE_MEM_64 | 4;
  if (f.prefetch) flags |= IORESOURCE_PREFETCH | 8;
  return flags;
}

const line = (start: bigint, last: bigint, flags: number): string => `0x${hex(start, 16)} 0x${hex(last, 16)} 0x${hex(flags, 16)}\n`;
const NONE = line(0n, 0n, 0);
const resourceLine = (r: PciResource | undefined): string =>
  r === undefined || r.length === 0n || r.start === 0n ? NONE : line(r.start, r.start + r.length - 1n, resourceFlags(r));

/** Seven of the function, six of its VFs, and four windows of a bridge. */
function resourceLines(dev: PciDev): string {
  let out = "";
  for (let i = 0; i < 7; i++) out += resourceLine(dev.resources[i]);
  for (let i = 0; i < 6; i++) out += resourceLine(dev.iov?.resources[i]);
  if (dev.subordinate === undefined) return out;
  const [mem, prefetch] = dev.subordinate.windows;
  out += NONE;
  out += mem === undefined || mem.last < mem.start ? NONE : line(mem.start, mem.last, IORESOURCE_MEM);
  out +=
    prefetch === undefined || prefetch.last < prefetch.start
      ? NONE
      : line(prefetch.start, prefetch.last, IORESOURCE_MEM_64 | IORESOURCE_PREFETCH | IORESOURCE_MEM | 1);
  return out + NONE;
}
