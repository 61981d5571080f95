/**
 * The ioctls and features of a PCI function that are answered on the spot, and
 * the way to those that have modules of their own.
 * Source: vfio_pci_core_ioctl and vfio_pci_core_ioctl_feature in vfio_pci_core.c.
 */
import { EFAULT, EINVAL, EIO, ENOMEM, ENOTTY, Errno } from "../../../lib/errno.ts";
import type { Step } from "../../../sched/task.ts";
import * as V from "../../../uapi/vfio.ts";
import { copyFromUser, copyToUser } from "../../mm/user_memory.ts";
import type { InfoCaps } from "../info_caps.ts";
import type { RegionInfo } from "../vfio_main.ts";
import { vfioPciIoctlGetHotResetInfo, vfioPciIoctlHotReset } from "./hot_reset.ts";
import { vfioPciIoctlIoeventfd } from "./ioeventfd.ts";
import { vfioPciCorePmEntry, vfioPciCorePmEntryWithWakeup, vfioPciCorePmExit } from "./low_power.ts";
import { vfioPciFeatureToken } from "./vf_token.ts";
import { vfioPciConfigRw } from "./vfio_pci_config.ts";
import { NO_MSIX_BAR, PCI_D0, REGION_MASK, type VfioPciCoreDevice } from "./vfio_pci_core.ts";
import { vfioPciCoreFeatureDmaBuf, vfioPciDmaBufMove, vfioPciDmaBufSettle } from "./vfio_pci_dmabuf.ts";
import { vfioPciIrqCount, vfioPciSetIrqs } from "./vfio_pci_intrs.ts";
import { vfioPciBarRw } from "./vfio_pci_rdwr.ts";

export function* vfioPciCoreIoctl(vdev: VfioPciCoreDevice, cmd: number, arg: bigint): Step<number | Errno> {
  switch (cmd) {
    case V.VFIO_DEVICE_GET_INFO:
      return getInfo(vdev, arg);
    case V.VFIO_DEVICE_GET_IRQ_INFO:
      return getIrqInfo(vdev, arg);
    case V.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
      return yield* vfioPciIoctlGetHotResetInfo(vdev, arg);
    case V.VFIO_DEVICE_IOEVENTFD:
      return yield* vfioPciIoctlIoeventfd(vdev, arg);
    case V.VFIO_DEVICE_PCI_HOT_RESET:
      return yield* vfioPciIoctlHotReset(vdev, arg);
    case V.VFIO_DEVICE_RESET:
      return yield* reset(vdev);
    case V.VFIO_DEVICE_SET_IRQS:
      return yield* setIrqs(vdev, arg);
    default:
      return ENOTTY;
  }
}

export function* vfioPciCoreFeature(vdev: VfioPciCoreDevice, flags: number, arg: bigint, argsz: number): Step<number | Errno> {
  switch (flags & V.VFIO_DEVICE_FEATURE_MASK) {
    case V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY:
      return yield* vfioPciCorePmEntry(vdev, flags, argsz);
    case V.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP:
      return yield* vfioPciCorePmEntryWithWakeup(vdev, flags, arg, argsz);
    case V.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT:
      return yield* vfioPciCorePmExit(vdev, flags, argsz);
    case V.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN:
      return yield* vfioPciFeatureToken(vdev, flags, arg, argsz);
    case V.VFIO_DEVICE_FEATURE_DMA_BUF:
      return yield* vfioPciCoreFeatureDmaBuf(vdev, flags, arg, argsz);
    default:
      return ENOTTY;
  }
}

/** Reads and writes of the device file. Bytes moved; EINVAL: no such region; EIO: the device cannot be woken. */
export function* vfioPciRw(vdev: VfioPciCoreDevice, buf: bigint, count: number, pos: bigint, isWrite: boolean): Step<number | Errno> {
  if (count === 0) return 0;
  const index = vdev.regionAt(pos);
  if (index < 0 || index >= V.VFIO_PCI_NUM_REGIONS) return EINVAL;
  if ((yield* vdev.pdev.pmRuntimeResumeAndGet()) instanceof Errno) return EIO;
  try {
    if (index === V.VFIO_PCI_CONFIG_REGION_INDEX) return yield* vfioPciConfigRw(vdev, buf, count, Number(pos & REGION_MASK), isWrite);
    // No function here is VGA.
    if (index === V.VFIO_PCI_VGA_REGION_INDEX) return EINVAL;
    if (index === V.VFIO_PCI_ROM_REGION_INDEX && isWrite) return EINVAL;
    return yield* vfioPciBarRw(vdev, buf, count, pos, isWrite);
  } finally {
    vdev.pdev.pmRuntimePut();
  }
}

function getInfo(vdev: VfioPciCoreDevice, arg: bigint): number | Errno {
  const minsz = V.VfioDeviceInfo.endOf("num_irqs");
  const info = V.VfioDeviceInfo.alloc();
  if (copyFromUser(vdev.kernel, info.bytes.subarray(0, minsz), arg) !== 0) return EFAULT;
  if (info.argsz < minsz) return EINVAL;
  const out = Math.min(info.argsz, V.VfioDeviceInfo.size);
  info.flags = V.VFIO_DEVICE_FLAGS_PCI | (vdev.resetWorks ? V.VFIO_DEVICE_FLAGS_RESET : 0);
  info.num_regions = V.VFIO_PCI_NUM_REGIONS;
  info.num_irqs = V.VFIO_PCI_NUM_IRQS;
  return copyToUser(vdev.kernel, arg, info.bytes.subarray(0, out)) !== 0 ? EFAULT : 0;
}

export function vfioPciGetRegionInfo(vdev: VfioPciCoreDevice, info: RegionInfo, caps: InfoCaps): Errno | undefined {
  const { pdev } = vdev;
  const rw = V.VFIO_REGION_INFO_FLAG_READ | V.VFIO_REGION_INFO_FLAG_WRITE;
  const { index } = info;
  if (index >= V.VFIO_PCI_VGA_REGION_INDEX) return EINVAL;
  info.offset = vdev.regionOffset(index);
  if (index === V.VFIO_PCI_CONFIG_REGION_INDEX) {
    info.size = BigInt(pdev.cfgSize);
    info.flags = rw;
  } else if (index === V.VFIO_PCI_ROM_REGION_INDEX) {
    // Shown when its image can be read; no function here carries one.
    info.size = 0n;
    info.flags = 0;
  } else {
    info.size = pdev.resources[index]?.length ?? 0n;
    info.flags = info.size === 0n ? 0 : rw;
    if (info.size !== 0n && vdev.barMmapSupported[index] === true) {
      info.flags |= V.VFIO_REGION_INFO_FLAG_MMAP;
      if (index === vdev.msixBar) caps.add(V.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1);
    }
  }
  return undefined;
}

function getIrqInfo(vdev: VfioPciCoreDevice, arg: bigint): number | Errno {
  const info = V.VfioIrqInfo.alloc();
  if (copyFromUser(vdev.kernel, info.bytes, arg) !== 0) return EFAULT;
  if (info.argsz < V.VfioIrqInfo.size || info.index >= V.VFIO_PCI_NUM_IRQS) return EINVAL;
  info.flags = V.VFIO_IRQ_INFO_EVENTFD;
  info.count = vfioPciIrqCount(vdev, info.index);
  if (info.index === V.VFIO_PCI_INTX_IRQ_INDEX) info.flags |= V.VFIO_IRQ_INFO_MASKABLE | V.VFIO_IRQ_INFO_AUTOMASKED;
  // MSI-X vectors can be added one by one while others are in use.
  else if (info.index !== V.VFIO_PCI_MSIX_IRQ_INDEX || vdev.msixBar === NO_MSIX_BAR) info.flags |= V.VFIO_IRQ_INFO_NORESIZE;
  return copyToUser(vdev.kernel, arg, info.bytes) !== 0 ? EFAULT : 0;
}

const DATA_AND_ACTION = V.VFIO_IRQ_SET_DATA_TYPE_MASK | V.VFIO_IRQ_SET_ACTION_TYPE_MASK;
const U32_MAX = 0xffff_ffff;

function* setIrqs(vdev: VfioPciCoreDevice, arg: bigint): Step<number | Errno> {
  const minsz = V.VfioIrqSet.size;
  const hdr = V.VfioIrqSet.alloc();
  if (copyFromUser(vdev.kernel, hdr.bytes, arg) !== 0) return EFAULT;
  const { argsz, flags, index, start, count } = hdr;
  const max = vfioPciIrqCount(vdev, index);
  if (argsz < minsz || index >= V.VFIO_PCI_NUM_IRQS || count >= U32_MAX - start || (flags & ~DATA_AND_ACTION) !== 0) return EINVAL;
  if (start >= max || start + count > max) return EINVAL;
  let each: number;
  switch (flags & V.VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case V.VFIO_IRQ_SET_DATA_NONE:
      each = 0;
      break;
    case V.VFIO_IRQ_SET_DATA_BOOL:
      each = 1;
      break;
    case V.VFIO_IRQ_SET_DATA_EVENTFD:
      each = 4;
      break;
    default:
      return EINVAL;
  }
  if (argsz - minsz < count * each) return EINVAL;
  if (count * each > 0 && vdev.kernel.fault.slab("data", count * each)) return ENOMEM;
  const data = new Uint8Array(count * each);
  if (data.length > 0 && copyFromUser(vdev.kernel, data, arg + BigInt(minsz)) !== 0) return EFAULT;
  yield* vdev.igate.lock();
  try {
    return (yield* vfioPciSetIrqs(vdev, { flags, index, start, count, data })) ?? 0;
  } finally {
    vdev.igate.unlock();
  }
}

/** VFIO_DEVICE_RESET. EINVAL: the function could not be reset at open. The buffers come back even when the reset fails. */
function* reset(vdev: VfioPciCoreDevice): Step<number | Errno> {
  if (!vdev.resetWorks) return EINVAL;
  yield* vdev.zapAndDownWriteMemoryLock();
  try {
    yield* vdev.setPowerState(PCI_D0);
    yield* vfioPciDmaBufMove(vdev, true);
    const error = yield* vdev.pdev.tryResetFunction();
    if (vdev.kernel.trace.on) vdev.kernel.trace.emit({ type: "vfio.reset", device: vdev.pdev.name, how: "ioctl", error: error?.name });
    yield* vfioPciDmaBufSettle(vdev);
    return error ?? 0;
  } finally {
    vdev.memoryLock.upWrite();
  }
}
