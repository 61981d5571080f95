/**
 * The driver "vfio-pci": puts a PCI function into the hands of user space.
 *
 * A probe refuses bridges, physical functions whose VFs are on, and functions
 * behind no IOMMU; then it lets the idle function sleep and puts its node into
 * /dev/vfio/devices. A removal waits until every user has let go.
 *
 * Source: drivers/vfio/pci/vfio_pci.c, vfio_pci_core_register_device.
 */
import { EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import { PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET } from "../../../uapi/pci_regs.ts";
import { exportPrivateMap } from "../../dma_buf/interconnect.ts";
import type { Kernel } from "../../kernel.ts";
import type { PciDriver } from "../../pci/driver.ts";
import { disableSriov, enableSriov } from "../../pci/iov.ts";
import { p2pdmaRelease, pcimP2pdmaInit } from "../../pci/p2pdma.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import { vfioContainerInit } from "../container.ts";
import { vfioRegisterGroupDev } from "../register.ts";
import { type VfioDeviceOps, vfioOf } from "../vfio_main.ts";
import { vfioPciCloseDevice, vfioPciOpenDevice } from "./enable.ts";
import { vfioPciCoreFeature, vfioPciCoreIoctl, vfioPciGetRegionInfo, vfioPciRw } from "./ioctl.ts";
import { vfioPciCoreRuntimeResume, vfioPciCoreRuntimeSuspend } from "./low_power.ts";
import { vfioPciMatch } from "./match.ts";
import { initialToken, VfToken, vfioPciMatchToken } from "./vf_token.ts";
import { PCI_D0, VfioPciCoreDevice, type VfioPciOps } from "./vfio_pci_core.ts";
import { vfioPciCoreGetDmabufPhys } from "./vfio_pci_dmabuf.ts";
import { vfioPciRequest } from "./vfio_pci_intrs.ts";
import { vfioPciCoreMmap } from "./vfio_pci_mmap.ts";

/** The module's parameters. */
export interface VfioPciParams {
  /** Keep idle functions in D0. */
  readonly disableIdleD3?: boolean;
  /** Never mask INTx in the function's COMMAND register. */
  readonly nointxmask?: boolean;
  /** Let a physical function's VFs be enabled. */
  readonly enableSriov?: boolean;
  /**
   * Added to a region's number in file offsets; 0 by default, as in Linux. A
   * program may not rely on it: it asks for a region's offset.
   */
  readonly regionOffsetBase?: number;
  /**
   * False: only BARs that are plain memory can be mapped, which GET_REGION_INFO
   * tells; registers are then read and written by calls. True by default, as in
   * Linux.
   */
  readonly mapRegisters?: boolean;
}

const PLAIN: VfioPciOps = { getDmabufPhys: vfioPciCoreGetDmabufPhys };

/** Loads VFIO: its state, and what must be gone when all is closed. */
export function vfioInit(kernel: Kernel): void {
  kernel.modules.load("vfio");
  const state = vfioOf(kernel);
  vfioContainerInit(kernel);
  kernel.leakChecks.set("vfio type1 mapping", () => state.liveDmas);
  kernel.leakChecks.set("vfio open devices", () => {
    let n = 0;
    for (const d of state.devices) n += d.openCount;
    return n;
  });
  kernel.leakChecks.set("vfio registrations beyond the driver's own", () => {
    let n = 0;
    for (const d of state.devices) n += Math.max(d.registrations - 1, 0);
    return n;
  });
}

/** Loads vfio-pci: the driver, to be bound by `kernel.pci.bind("vfio-pci", bdf)`. */
export function vfioPciInit(kernel: Kernel, params: VfioPciParams = {}): void {
  kernel.modules.load("vfio_pci_core");
  kernel.modules.load("vfio-pci");
  exportPrivateMap(kernel);
  kernel.pci.registerDriver(vfioPciDriver("vfio-pci", params, PLAIN));
}

/** A driver of the vfio-pci family; a variant differs in its `pciOps`. */
export function vfioPciDriver(name: string, params: VfioPciParams, pciOps: VfioPciOps): PciDriver {
  return {
    name,
    ids: [{ overrideOnly: true }],
    driverManagedDma: true,
    probe: (dev) => probe(dev, name, params, pciOps),
    remove,
    sriovConfigure: (dev, n) => sriovConfigure(dev, n, params),
    runtimeSuspend: (dev) => vfioPciCoreRuntimeSuspend(coreOf(dev)),
    runtimeResume: (dev) => vfioPciCoreRuntimeResume(coreOf(dev)),
  };
}

const coreOf = (dev: PciDev): VfioPciCoreDevice => dev.driverData as VfioPciCoreDevice;

function deviceOps(name: string): (vdev: VfioPciCoreDevice) => VfioDeviceOps {
  return (vdev) => ({
    name,
    openDevice: () => vfioPciOpenDevice(vdev),
    closeDevice: () => vfioPciCloseDevice(vdev),
    ioctl: (cmd, arg) => vfioPciCoreIoctl(vdev, cmd, arg),
    getRegionInfoCaps: (info, caps) => vfioPciGetRegionInfo(vdev, info, caps),
    deviceFeature: (flags, arg, argsz) => vfioPciCoreFeature(vdev, flags, arg, argsz),
    read: (buf, count, pos) => vfioPciRw(vdev, buf, count, pos, false),
    write: (buf, count, pos) => vfioPciRw(vdev, buf, count, pos, true),
    mmap: (vma) => vfioPciCoreMmap(vdev, vma),
    sysfsPath: () => sysfsPath(vdev.pdev),
    request: (count) => vfioPciRequest(vdev, count),
    match: (text) => vfioPciMatch(vdev, text),
    matchTokenUuid: (uuid) => vfioPciMatchToken(vdev, uuid),
    pmRuntimeResumeAndGet: () => vdev.pdev.pmRuntimeResumeAndGet(),
    pmRuntimePut: () => vdev.pdev.pmRuntimePut(),
  });
}

function sysfsPath(pdev: PciDev): string {
  const parent = pdev.upstreamBridge;
  return `${parent === undefined ? `/sys/devices/pci${pdev.name.slice(0, 7)}` : sysfsPath(parent)}/${pdev.name}`;
}

/** What is made for a device that is bound: its object, its number, its set, its group with a node of its own, its node. */
const PARTS_OF_A_DEVICE: readonly string[] = [
  "vfio_device",
  "inode",
  "entry of device_ida",
  "name",
  "vfio_device_set",
  "vfio_group",
  "cdev",
];

function* probe(pdev: PciDev, name: string, params: VfioPciParams, pciOps: VfioPciOps): Step<Errno | undefined> {
  const { fault } = pdev.kernel;
  if (PARTS_OF_A_DEVICE.some((part) => fault.slab(part))) return ENOMEM;
  if (pdev.isPhysfn && fault.slab("vf_token")) return ENOMEM;
  const vdev = new VfioPciCoreDevice(pdev.kernel, pdev, deviceOps(name), pciOps, params.regionOffsetBase);
  vdev.disableIdleD3 = params.disableIdleD3 === true;
  vdev.nointxmask = params.nointxmask === true;
  vdev.mapRegisters = params.mapRegisters !== false;
  const p2p = pcimP2pdmaInit(pdev);
  const error = p2p !== undefined && p2p !== EOPNOTSUPP ? p2p : yield* register(vdev);
  if (error === undefined) return undefined;
  pdev.driverData = undefined;
  vdev.vdev.release();
  p2pdmaRelease(pdev);
  return error;
}

function* register(vdev: VfioPciCoreDevice): Step<Errno | undefined> {
  const { pdev } = vdev;
  pdev.driverData = vdev;
  if (pdev.isBridge) return EINVAL;
  if (pdev.numVf > 0) {
    pdev.kernel.printk(`vfio-pci ${pdev.name}: Cannot bind to PF with SR-IOV enabled`);
    return EBUSY;
  }
  joinSet(vdev);
  const pf = pdev.physfn?.driverData;
  if (pf instanceof VfioPciCoreDevice && pf.sriovConfigured) vdev.sriovPf = pf;
  if (pdev.isPhysfn) vdev.vfToken = new VfToken(pdev.kernel, initialToken(pdev.rid));
  vdev.needsPmRestore = pdev.pmCap !== 0 && (pdev.configRead(pdev.pmCap + PCI_PM_CTRL, 2) & PCI_PM_CTRL_NO_SOFT_RESET) === 0;
  yield* vdev.setPowerState(PCI_D0);
  pdev.pm.allow();
  if (!vdev.disableIdleD3) pdev.pmRuntimePut();
  // Checked last, as there: a function without a group, or whose IOMMU lets devices bypass the caches.
  if (pdev.iommuGroup !== undefined && pdev.iommuUnit?.capable("cache-coherency") === true) {
    yield* vfioRegisterGroupDev(vdev.vdev);
    return undefined;
  }
  if (!vdev.disableIdleD3) pdev.pmRuntimeGetNoresume();
  yield* pdev.pm.forbid();
  return EINVAL;
}

/** A function that resets alone is a set of its own; others share their slot's or their bus's. */
function joinSet(vdev: VfioPciCoreDevice): void {
  const { pdev } = vdev;
  if (pdev.pciBus.isRoot || pdev.isVirtfn) vdev.vdev.assignDeviceSet(vdev);
  // A slot that resets by itself holds all that is on the bus behind its port.
  else vdev.vdev.assignDeviceSet(pdev.pciBus);
}

function* remove(pdev: PciDev): Step<void> {
  const vdev = coreOf(pdev);
  yield* sriovOff(vdev);
  yield* vdev.vdev.unregister();
  vdev.vfToken = undefined;
  if (!vdev.disableIdleD3) pdev.pmRuntimeGetNoresume();
  yield* pdev.pm.forbid();
  vdev.vdev.release();
  p2pdmaRelease(pdev);
}

/** ENOENT: the module was not told to allow it; EINVAL: VFs are on already. */
function* sriovConfigure(pdev: PciDev, n: number, params: VfioPciParams): Step<number | Errno> {
  if (params.enableSriov !== true) return ENOENT;
  const vdev = coreOf(pdev);
  if (n === 0) {
    yield* sriovOff(vdev);
    return 0;
  }
  if (vdev.sriovConfigured) return EINVAL;
  vdev.sriovConfigured = true;
  const awake = yield* pdev.pmRuntimeResumeAndGet();
  if (awake instanceof Errno) {
    vdev.sriovConfigured = false;
    return awake;
  }
  // A function in D3 has no VFs: it is brought back, and cannot leave D0 again while they are on.
  yield* vdev.memoryLock.downWrite();
  yield* vdev.setPowerState(PCI_D0);
  vdev.sriovActive = true;
  vdev.memoryLock.upWrite();
  const error = yield* enableSriov(pdev, n);
  if (error !== undefined) {
    pdev.pmRuntimePut();
    vdev.sriovActive = false;
    vdev.sriovConfigured = false;
    return error;
  }
  // Only this driver may have them.
  for (const vf of pdev.kernel.pci.devices.values()) if (vf.physfn === pdev) vf.driverOverride = vdev.vdev.ops.name;
  return n;
}

function* sriovOff(vdev: VfioPciCoreDevice): Step<void> {
  if (vdev.pdev.numVf > 0) {
    yield* disableSriov(vdev.pdev);
    vdev.pdev.pmRuntimePut();
  }
  vdev.sriovActive = false;
  vdev.sriovConfigured = false;
}
