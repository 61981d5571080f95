/**
 * The calls on an open device file.
 *
 * Order of checks of an ioctl: BIND first of all; not bound → EINVAL; the
 * device cannot be woken → EIO; then the command's own. Reads, writes and maps
 * of an unbound file answer EINVAL.
 * Source: vfio_device_fops in drivers/vfio/vfio_main.c.
 */
import { EFAULT, EINVAL, EIO, ENOMEM, ENOTTY, Errno } from "../../lib/errno.ts";
import type { Step } from "../../sched/task.ts";
import * as V from "../../uapi/vfio.ts";
import type { File, FileOps } from "../fs/file.ts";
import { copyFromUser, copyToUser } from "../mm/user_memory.ts";
import type { Vma } from "../mm/vma.ts";
import { vfioCdevClose, vfioIoctlAttachPt, vfioIoctlBindIommufd, vfioIoctlDetachPt } from "./device_cdev.ts";
import { vfioDfGroupClose } from "./device_open.ts";
import { InfoCaps } from "./info_caps.ts";
import { type RegionInfo, type VfioDevice, VfioDeviceFile } from "./vfio_main.ts";

const fileOf = (f: File): VfioDeviceFile => {
  if (!(f.privateData instanceof VfioDeviceFile)) throw new TypeError("not a VFIO device file");
  return f.privateData;
};

export const vfioDeviceFops: FileOps = {
  name: "vfio-device",

  *ioctl(f: File, cmd: number, arg: bigint): Step<number | Errno> {
    const df = fileOf(f);
    if (cmd === V.VFIO_DEVICE_BIND_IOMMUFD) return yield* vfioIoctlBindIommufd(df, arg);
    if (!df.accessGranted) return EINVAL;
    const { device } = df;
    if ((yield* device.ops.pmRuntimeResumeAndGet()) instanceof Errno) return EIO;
    try {
      // Only a file of the device's own node has page tables to choose from.
      if (df.group === undefined && cmd === V.VFIO_DEVICE_ATTACH_IOMMUFD_PT) return yield* vfioIoctlAttachPt(df, arg);
      if (df.group === undefined && cmd === V.VFIO_DEVICE_DETACH_IOMMUFD_PT) return yield* vfioIoctlDetachPt(df, arg);
      switch (cmd) {
        case V.VFIO_DEVICE_FEATURE:
          return yield* ioctlFeature(device, arg);
        case V.VFIO_DEVICE_GET_REGION_INFO:
          return ioctlRegionInfo(device, arg);
        default:
          return yield* device.ops.ioctl(cmd, arg);
      }
    } finally {
      device.ops.pmRuntimePut();
    }
  },

  *read(f: File, buf: bigint, count: number, pos: bigint): Step<number | Errno> {
    const df = fileOf(f);
    return df.accessGranted ? yield* df.device.ops.read(buf, count, pos) : EINVAL;
  },

  *write(f: File, buf: bigint, count: number, pos: bigint): Step<number | Errno> {
    const df = fileOf(f);
    return df.accessGranted ? yield* df.device.ops.write(buf, count, pos) : EINVAL;
  },

  mmap(f: File, vma: Vma): Errno | undefined {
    const df = fileOf(f);
    return df.accessGranted ? df.device.ops.mmap(vma) : EINVAL;
  },

  *release(f: File): Step<void> {
    const df = fileOf(f);
    yield* df.group === undefined ? vfioCdevClose(df) : vfioDfGroupClose(df);
    df.device.putRegistration();
  },

  fdinfo(f: File): string[] {
    return [`vfio-device-syspath: ${fileOf(f).device.ops.sysfsPath()}`];
  },
};

const KNOWN_FLAGS = V.VFIO_DEVICE_FEATURE_MASK | V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_GET | V.VFIO_DEVICE_FEATURE_PROBE;

function* ioctlFeature(device: VfioDevice, arg: bigint): Step<number | Errno> {
  const minsz = V.VfioDeviceFeature.size;
  const feature = V.VfioDeviceFeature.alloc();
  if (copyFromUser(device.kernel, feature.bytes, arg) !== 0) return EFAULT;
  const { argsz, flags } = feature;
  if (argsz < minsz) return EINVAL;
  if ((flags & ~KNOWN_FLAGS) !== 0) return EINVAL;
  const both = V.VFIO_DEVICE_FEATURE_SET | V.VFIO_DEVICE_FEATURE_GET;
  if ((flags & V.VFIO_DEVICE_FEATURE_PROBE) === 0 && (flags & both) === both) return EINVAL;
  switch (flags & V.VFIO_DEVICE_FEATURE_MASK) {
    case V.VFIO_DEVICE_FEATURE_MIGRATION:
    case V.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
    case V.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
    case V.VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
    case V.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
    case V.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
      // No driver here migrates or logs DMA.
      return ENOTTY;
    case V.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2:
      return EINVAL;
    default:
      return yield* device.ops.deviceFeature(flags, arg + BigInt(minsz), argsz - minsz);
  }
}

function ioctlRegionInfo(device: VfioDevice, arg: bigint): number | Errno {
  const { kernel } = device;
  const size = V.VfioRegionInfo.size;
  const out = V.VfioRegionInfo.alloc();
  if (copyFromUser(kernel, out.bytes, arg) !== 0) return EFAULT;
  if (out.argsz < size) return EINVAL;
  const info: RegionInfo = { index: out.index, flags: out.flags, size: out.size, offset: out.offset };
  const caps = new InfoCaps();
  const error = device.ops.getRegionInfoCaps(info, caps);
  if (error !== undefined) return error;
  if (caps.lacksMemory(kernel)) return ENOMEM;
  out.flags = info.flags;
  out.size = info.size;
  out.offset = info.offset;
  if (caps.size > 0) {
    out.flags |= V.VFIO_REGION_INFO_FLAG_CAPS;
    if (out.argsz < size + caps.size) {
      out.argsz = size + caps.size;
      out.cap_offset = 0;
    } else {
      if (copyToUser(kernel, arg + BigInt(size), caps.bytesAt(size)) !== 0) return EFAULT;
      out.cap_offset = size;
    }
  }
  return copyToUser(kernel, arg, out.bytes) !== 0 ? EFAULT : 0;
}
