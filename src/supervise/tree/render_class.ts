/**
 * Device nodes in /dev, the class devices behind them, and the modules.
 *
 * A node is in /dev as soon as the kernel has registered it, and its numbers
 * there, in `dev`, in `uevent` and in /sys/dev/char are the same.
 *
 * Modules look as where they are built as modules: a folder each, with the
 * parameters that programs look at.
 *
 * Source: drivers/vfio/{vfio_main,group,device_cdev}.c, drivers/base/{core,devtmpfs}.c, drivers/char/misc.c.
 */
import type { Kernel } from "../../kernel/kernel.ts";
import { vfioOf } from "../../kernel/vfio/vfio_main.ts";
import { moduleParameter, uevent } from "./bind_files.ts";
import type { TreeBuilder } from "./node.ts";
import { renderNoPower, sysfsPathOf } from "./render_pci.ts";
import type { TreeState } from "./state.ts";

interface NodeKind {
  /** Where the class device is. */
  readonly device: string;
  readonly class: string;
  /** Permissions when the driver names none. */
  readonly mode: number;
  /** The driver tells user space which permissions the node is to get. */
  readonly tellsMode: boolean;
}

const misc = (name: string, mode: number, tellsMode: boolean): NodeKind => ({
  device: `/sys/devices/virtual/misc/${name}`,
  class: "misc",
  mode,
  tellsMode,
});

const FIXED: ReadonlyMap<string, NodeKind> = new Map([
  ["/dev/iommu", misc("iommu", 0o660, true)],
  ["/dev/vfio/vfio", misc("vfio", 0o666, true)],
  ["/dev/udmabuf", misc("udmabuf", 0o600, false)],
]);

function kindOf(kernel: Kernel, path: string): NodeKind | undefined {
  const fixed = FIXED.get(path);
  if (fixed !== undefined) return fixed;
  const [, directory, name] = /^\/dev\/(vfio\/devices|vfio|dma_heap)\/([^/]+)$/.exec(path) ?? [];
  if (name === undefined) return undefined;
  if (directory === "vfio") return { device: `/sys/devices/virtual/vfio/${name}`, class: "vfio", mode: 0o600, tellsMode: false };
  if (directory === "dma_heap")
    return { device: `/sys/devices/virtual/dma_heap/${name}`, class: "dma_heap", mode: 0o600, tellsMode: false };
  for (const d of vfioOf(kernel).devices) {
    if (d.name !== name) continue;
    const pdev = kernel.pci.devices.get(d.dev.name);
    const parent = pdev === undefined ? `/sys/devices/virtual` : sysfsPathOf(pdev);
    return { device: `${parent}/vfio-dev/${name}`, class: "vfio-dev", mode: 0o600, tellsMode: false };
  }
  return undefined;
}

export function renderDevices(t: TreeBuilder, kernel: Kernel): void {
  t.dir("/sys/class/vfio");
  t.dir("/sys/class/vfio-dev");
  t.dir("/sys/devices/virtual/vfio");
  for (const [path, node] of kernel.fs.devices) {
    const kind = kindOf(kernel, path);
    if (kind === undefined) continue;
    const mode = node.mode ?? kind.mode;
    t.char(path, mode, node.major, node.minor);
    const { device } = kind;
    const number = `${node.major}:${node.minor}`;
    t.link(`/sys/class/${kind.class}/${device.slice(device.lastIndexOf("/") + 1)}`, device);
    t.link(`/sys/dev/char/${number}`, device);
    t.text(`${device}/dev`, () => `${number}\n`);
    const tail = kind.tellsMode ? `DEVMODE=0${mode.toString(8)}\n` : "";
    t.text(`${device}/uevent`, () => `MAJOR=${node.major}\nMINOR=${node.minor}\nDEVNAME=${path.slice(5)}\n${tail}`, uevent);
    t.link(`${device}/subsystem`, `/sys/class/${kind.class}`);
    if (kind.class === "vfio-dev" && !device.startsWith("/sys/devices/virtual/")) {
      t.link(`${device}/device`, device.slice(0, device.indexOf("/vfio-dev/")));
    }
    renderNoPower(t, device);
  }
}

type Parameters = Readonly<Record<string, string>>;

/** Module, as the kernel here calls it; its folder's name; its version; its parameters as they read. */
const MODULES: readonly (readonly [name: string, folder: string, version: string | undefined, parameters: Parameters])[] = [
  ["vfio", "vfio", "0.3", { enable_unsafe_noiommu_mode: "N" }],
  ["vfio-pci", "vfio_pci", undefined, { disable_denylist: "N", disable_idle_d3: "N", enable_sriov: "Y", nointxmask: "N" }],
  ["vfio_pci_core", "vfio_pci_core", undefined, {}],
  ["vfio_iommu_type1", "vfio_iommu_type1", "0.2", { allow_unsafe_interrupts: "N", disable_hugepages: "N", dma_entry_limit: "65535" }],
  ["iommufd", "iommufd", undefined, { allow_unsafe_interrupts: "N" }],
];

export function renderModules(t: TreeBuilder, kernel: Kernel, state: TreeState): void {
  for (const [name, folder, version, parameters] of MODULES) {
    // Type1 is there when its container is.
    if (!(name === "vfio_iommu_type1" ? kernel.fs.devices.has("/dev/vfio/vfio") : kernel.modules.has(name))) continue;
    const at = `/sys/module/${folder}`;
    t.dir(at);
    t.text(`${at}/refcnt`, () => `${kernel.modules.refcount(name)}\n`);
    t.text(`${at}/initstate`, () => "live\n");
    t.trigger(`${at}/uevent`, uevent);
    if (version !== undefined) t.text(`${at}/version`, () => `${version}\n`);
    for (const [parameter, value] of Object.entries(parameters)) {
      const key = `${folder}.${parameter}`;
      const show = (): string => `${state.parameters.get(key) ?? value}\n`;
      t.text(`${at}/parameters/${parameter}`, show, parameter === "disable_denylist" ? undefined : moduleParameter(state, key, value));
    }
    if (name === "vfio-pci") t.link(`${at}/drivers/pci:vfio-pci`, "/sys/bus/pci/drivers/vfio-pci");
  }
}
