/**
 * Reset of everything behind one slot or bus.
 *
 * Every function that the reset reaches must be a VFIO device of the set and
 * belong to the caller: to its iommufd, or, where the caller opened its device
 * through a group, to one of the groups whose descriptors it gives. ML of each is only tried, never waited for:
 * taking several would deadlock against a task that holds one. A device that is
 * busy ends it with EBUSY; those before it are restored, but what their
 * importers had mapped stays dead.
 *
 * Lock order: dev_set->lock → ML(W, trylock) of each → reservation.
 * Source: vfio_pci_dev_set_hot_reset and its callers in vfio_pci_core.c; spec §6.
 */
import { EBADF, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, EPERM, Errno } from "../../../lib/errno.ts";
import { KernelBug } from "../../../lib/kernel_bug.ts";
import type { Step } from "../../../sched/task.ts";
import * as V from "../../../uapi/vfio.ts";
import type { File } from "../../fs/file.ts";
import type { IommufdCtx } from "../../iommufd/ctx.ts";
import { copyFromUser, copyToUser } from "../../mm/user_memory.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import type { VfioDeviceSet } from "../device_set.ts";
import { type VfioGroup, vfioGroupFromFile } from "../group.ts";
import { vfioIommufdDeviceCtx, vfioIommufdGetDevId } from "../iommufd.ts";
import type { VfioDevice } from "../vfio_main.ts";
import { PCI_D0, VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciDmaBufRevokeLocked, vfioPciDmaBufSettle } from "./vfio_pci_dmabuf.ts";

/** VFIO_DEVICE_GET_PCI_HOT_RESET_INFO. ENODEV: neither slot nor bus can be reset; ENOSPC: `count` says how many fit not. */
export function* vfioPciIoctlGetHotResetInfo(vdev: VfioPciCoreDevice, arg: bigint): Step<number | Errno> {
  const k = vdev.kernel;
  const minsz = V.VfioPciHotResetInfo.size;
  const hdr = V.VfioPciHotResetInfo.alloc();
  if (copyFromUser(k, hdr.bytes, arg) !== 0) return EFAULT;
  if (hdr.argsz < minsz) return EINVAL;
  hdr.flags = 0;
  if (!(yield* canReset(vdev.pdev))) return ENODEV;
  const affected = reached(vdev.pdev);
  const each = V.VfioPciDependentDevice.size;
  if (affected.length > Math.floor((hdr.argsz - minsz) / each)) {
    hdr.count = affected.length;
    return copyToUser(k, arg, hdr.bytes) !== 0 ? EFAULT : ENOSPC;
  }
  if (k.fault.slab("devices", affected.length * each)) return ENOMEM;
  const devices = new Uint8Array(affected.length * each);
  const byNode = vdev.vdev.cdevOpened;
  let flags = byNode ? V.VFIO_PCI_HOT_RESET_FLAG_DEV_ID | V.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED : 0;
  const { devSet } = vdev.vdev;
  yield* devSet.lock.lock();
  try {
    for (const [i, pdev] of affected.entries()) {
      const out = V.VfioPciDependentDevice.over(devices, i * each);
      if (byNode) {
        out.devid = ownedId(devSet.find(pdev), vfioIommufdDeviceCtx(vdev.vdev));
        if (out.devid === V.VFIO_PCI_DEVID_NOT_OWNED) flags &= ~V.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
      } else {
        if (pdev.iommuGroup === undefined) return EPERM;
        out.group_id = pdev.iommuGroup.id;
      }
      out.segment = Number.parseInt(pdev.name.split(":")[0] ?? "0", 16);
      out.bus = pdev.pciBus.number;
      out.devfn = pdev.devfn;
    }
  } finally {
    devSet.lock.unlock();
  }
  if (copyToUser(k, arg + BigInt(minsz), devices) !== 0) return EFAULT;
  hdr.count = affected.length;
  hdr.flags = flags;
  return copyToUser(k, arg, hdr.bytes) !== 0 ? EFAULT : 0;
}

function ownedId(vdev: VfioDevice | undefined, ctx: IommufdCtx | undefined): number {
  if (vdev === undefined) return V.VFIO_PCI_DEVID_NOT_OWNED;
  const id = vfioIommufdGetDevId(vdev, ctx);
  if (id === ENOENT) return V.VFIO_PCI_DEVID_OWNED;
  return id instanceof Errno ? V.VFIO_PCI_DEVID_NOT_OWNED : id;
}

/** Who may reset a device, as the caller proves it. */
type IsOwned = (vdev: VfioDevice) => boolean;

/** VFIO_DEVICE_PCI_HOT_RESET. A device opened by its node must come without descriptors, one opened by its group with some: EINVAL. */
export function* vfioPciIoctlHotReset(vdev: VfioPciCoreDevice, arg: bigint): Step<number | Errno> {
  const hdr = V.VfioPciHotReset.alloc();
  if (copyFromUser(vdev.kernel, hdr.bytes, arg) !== 0) return EFAULT;
  if (hdr.argsz < V.VfioPciHotReset.size || hdr.flags !== 0) return EINVAL;
  if ((hdr.count !== 0) === vdev.vdev.cdevOpened) return EINVAL;
  if (!(yield* canReset(vdev.pdev))) return ENODEV;
  if (hdr.count > 0) return yield* hotResetGroups(vdev, hdr.count, arg + BigInt(V.VfioPciHotReset.size));
  const ctx = vfioIommufdDeviceCtx(vdev.vdev);
  return (yield* hotReset(vdev.vdev.devSet, (v) => ownedId(v, ctx) !== V.VFIO_PCI_DEVID_NOT_OWNED)) ?? 0;
}

/** The groups stay open during the reset. EINVAL: more groups than functions, or no group; EBADF. */
function* hotResetGroups(vdev: VfioPciCoreDevice, count: number, fds: bigint): Step<number | Errno> {
  const k = vdev.kernel;
  if (count > reached(vdev.pdev).length) return EINVAL;
  if (k.fault.slab("group_fds", 4 * count) || k.fault.slab("files", 8 * count)) return ENOMEM;
  const bytes = new Uint8Array(4 * count);
  if (copyFromUser(k, bytes, fds) !== 0) return EFAULT;
  const view = new DataView(bytes.buffer);
  const files: File[] = [];
  const groups = new Set<VfioGroup>();
  try {
    for (let i = 0; i < count; i++) {
      const file = k.current.files.fget(view.getInt32(4 * i, true));
      if (file instanceof Errno) return EBADF;
      files.push(file);
      const group = vfioGroupFromFile(file);
      if (group === undefined) return EINVAL;
      groups.add(group);
    }
    return (yield* hotReset(vdev.vdev.devSet, (v) => v.group !== undefined && groups.has(v.group))) ?? 0;
  } finally {
    for (const file of files.reverse()) k.fs.fput(file);
  }
}

function* hotReset(set: VfioDeviceSet, isOwned: IsOwned): Step<Errno | undefined> {
  yield* set.lock.lock();
  try {
    const pdev = yield* resettable(set);
    if (pdev === undefined) return EINVAL;
    const all = set.devices.map(vfioPciCoreOf);
    const awake = yield* resumeAll(all);
    if (awake !== undefined) return awake;
    const locked: VfioPciCoreDevice[] = [];
    let error: Errno | undefined;
    try {
      error = yield* lockAndRevoke(all, isOwned, locked);
      if (error === undefined) {
        for (const v of all) yield* v.setPowerState(PCI_D0);
        error = yield* pdev.resetBus();
      }
    } finally {
      for (const v of locked.reverse()) {
        if (v.vdev.openCount > 0) yield* vfioPciDmaBufSettle(v);
        v.memoryLock.upWrite();
      }
      for (const v of all) v.pdev.pmRuntimePut();
    }
    const { trace } = pdev.kernel;
    if (trace.on) trace.emit({ type: "vfio.hot_reset", device: pdev.name, devices: all.map((v) => v.pdev.name), error: error?.name });
    return error;
  } finally {
    set.lock.unlock();
  }
}

/** Takes ML of each in order, noting in `locked` those that were taken. */
function* lockAndRevoke(all: readonly VfioPciCoreDevice[], isOwned: IsOwned, locked: VfioPciCoreDevice[]): Step<Errno | undefined> {
  for (const v of all) {
    if (!isOwned(v.vdev)) return EINVAL;
    if (!(yield* v.memoryLock.tryDownWrite())) return EBUSY;
    locked.push(v);
    yield* vfioPciDmaBufRevokeLocked(v);
    v.zapBars();
  }
  return undefined;
}

/** After a close: resets the whole set if nobody uses it and a device of it was left without a reset. dev_set->lock held. */
export function* vfioPciDevSetTryReset(set: VfioDeviceSet): Step<void> {
  const all = set.devices.map(vfioPciCoreOf);
  // The device that is being closed still counts.
  if (set.openCount > 1 || !all.some((v) => v.needsReset)) return;
  const pdev = yield* resettable(set);
  if (pdev === undefined) return;
  if ((yield* resumeAll(all)) !== undefined) return;
  const error = yield* pdev.resetBus();
  for (const v of all) {
    if (error === undefined) v.needsReset = false;
    v.pdev.pmRuntimePut();
  }
}

/** A function to reset the set by: undefined unless all that the reset reaches is in the set. */
function* resettable(set: VfioDeviceSet): Step<PciDev | undefined> {
  const first = set.devices[0];
  if (first === undefined) return undefined;
  const { pdev } = vfioPciCoreOf(first);
  if (!(yield* canReset(pdev))) return undefined;
  return reached(pdev).every((d) => set.find(d) !== undefined) ? pdev : undefined;
}

function* canReset(pdev: PciDev): Step<boolean> {
  if ((yield* pdev.probeResetSlot()) === undefined) return true;
  return (yield* pdev.probeResetBus()) === undefined;
}

/** Functions on its bus and below. A slot that resets by itself fills the bus behind its port. */
const reached = (pdev: PciDev): PciDev[] => [...pdev.pciBus.subtree()];

/** Wakes all or none. */
function* resumeAll(all: readonly VfioPciCoreDevice[]): Step<Errno | undefined> {
  for (const [i, v] of all.entries()) {
    const error = yield* v.pdev.pmRuntimeResumeAndGet();
    if (error instanceof Errno) {
      for (const w of all.slice(0, i)) w.pdev.pmRuntimePut();
      return error;
    }
  }
  return undefined;
}

/** The PCI side of a VFIO device; all devices of a set here are PCI functions. */
function vfioPciCoreOf(device: VfioDevice): VfioPciCoreDevice {
  const core = (device.dev as PciDev).driverData;
  if (!(core instanceof VfioPciCoreDevice)) throw new KernelBug(`${device.name} is no PCI function`);
  return core;
}
