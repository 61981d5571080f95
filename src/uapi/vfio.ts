/**
 * VFIO (include/uapi/linux/vfio.h): the device's own descriptor (/dev/vfio/devices/vfioN), and the older group and container.
 *
 * Every command's structure begins with its own length, `argsz`, and `flags`. A kernel that has more to say than `argsz`
 * holds writes back the `argsz` it needs. What does not fit a fixed structure is a chain of capabilities after it: each
 * begins with vfio_info_cap_header, whose `next` counts from the start of the structure and is 0 at the end.
 *
 * The same command number means different things to different descriptors: VFIO_IOMMU_GET_INFO of a container is
 * VFIO_DEVICE_GET_PCI_HOT_RESET_INFO of a device.
 *
 * A flag or number that belongs in a 64-bit member is a bigint here, all others are numbers.
 */
import { _IO } from "./ioctl.ts";
import { struct } from "./struct.ts";

export const VFIO_API_VERSION = 0;

export const VFIO_TYPE = 0x3b; // ';'
export const VFIO_BASE = 100;

const command = (nr: number): number => _IO(VFIO_TYPE, VFIO_BASE + nr);

/** Heads every capability of an information chain. */
export const VfioInfoCapHeader = struct("vfio_info_cap_header", { id: "u16", version: "u16", next: "u32" });

// Container

/** Extensions to ask for with VFIO_CHECK_EXTENSION, and IOMMU models to choose with VFIO_SET_IOMMU. */
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_SPAPR_TCE_IOMMU = 2;
export const VFIO_TYPE1v2_IOMMU = 3;
/** Every device's DMA is cache coherent, so that a guest need not flush. */
export const VFIO_DMA_CC_IOMMU = 4;
export const VFIO_EEH = 5;
export const __VFIO_RESERVED_TYPE1_NESTING_IOMMU = 6;
export const VFIO_SPAPR_TCE_v2_IOMMU = 7;
export const VFIO_NOIOMMU_IOMMU = 8;
export const VFIO_UNMAP_ALL = 9;
export const VFIO_UPDATE_VADDR = 10;

export const VFIO_GET_API_VERSION = command(0);
export const VFIO_CHECK_EXTENSION = command(1);
export const VFIO_SET_IOMMU = command(2);

// Group

/** Every device of the group is bound to VFIO or to nothing. */
export const VFIO_GROUP_FLAGS_VIABLE = 1 << 0;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 1 << 1;

export const VfioGroupStatus = struct("vfio_group_status", { argsz: "u32", flags: "u32" });
export const VFIO_GROUP_GET_STATUS = command(3);
/** The argument points to the container's descriptor, or to an iommufd's. */
export const VFIO_GROUP_SET_CONTAINER = command(4);
export const VFIO_GROUP_UNSET_CONTAINER = command(5);
/** The argument points to the device's name; the result is its descriptor. */
export const VFIO_GROUP_GET_DEVICE_FD = command(6);

// Device: what it is

export const VFIO_DEVICE_FLAGS_RESET = 1 << 0;
export const VFIO_DEVICE_FLAGS_PCI = 1 << 1;
export const VFIO_DEVICE_FLAGS_PLATFORM = 1 << 2;
export const VFIO_DEVICE_FLAGS_AMBA = 1 << 3;
export const VFIO_DEVICE_FLAGS_CCW = 1 << 4;
export const VFIO_DEVICE_FLAGS_AP = 1 << 5;
export const VFIO_DEVICE_FLAGS_FSL_MC = 1 << 6;
/** `cap_offset` is meant. */
export const VFIO_DEVICE_FLAGS_CAPS = 1 << 7;
export const VFIO_DEVICE_FLAGS_CDX = 1 << 8;

export const VfioDeviceInfo = struct("vfio_device_info", {
  argsz: "u32",
  flags: "u32",
  num_regions: "u32",
  num_irqs: "u32",
  cap_offset: "u32",
  pad: "u32",
});
export const VFIO_DEVICE_GET_INFO = command(7);

/** What `vfio_dev/…/device_api` says of mediated devices. */
export const VFIO_DEVICE_API_PCI_STRING = "vfio-pci";
export const VFIO_DEVICE_API_PLATFORM_STRING = "vfio-platform";
export const VFIO_DEVICE_API_AMBA_STRING = "vfio-amba";
export const VFIO_DEVICE_API_CCW_STRING = "vfio-ccw";
export const VFIO_DEVICE_API_AP_STRING = "vfio-ap";

export const VFIO_DEVICE_INFO_CAP_ZPCI_BASE = 1;
export const VFIO_DEVICE_INFO_CAP_ZPCI_GROUP = 2;
export const VFIO_DEVICE_INFO_CAP_ZPCI_UTIL = 3;
export const VFIO_DEVICE_INFO_CAP_ZPCI_PFIP = 4;
export const VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP = 5;

export const VFIO_PCI_ATOMIC_COMP32 = 1 << 0;
export const VFIO_PCI_ATOMIC_COMP64 = 1 << 1;
export const VFIO_PCI_ATOMIC_COMP128 = 1 << 2;

/** Widths of atomic operations that the device's root port completes. */
export const VfioDeviceInfoCapPciAtomicComp = struct("vfio_device_info_cap_pci_atomic_comp", {
  header: VfioInfoCapHeader,
  flags: "u32",
  reserved: "u32",
});

// Device: regions

export const VFIO_REGION_INFO_FLAG_READ = 1 << 0;
export const VFIO_REGION_INFO_FLAG_WRITE = 1 << 1;
export const VFIO_REGION_INFO_FLAG_MMAP = 1 << 2;
/** `cap_offset` is meant. */
export const VFIO_REGION_INFO_FLAG_CAPS = 1 << 3;

/** `offset` is where in the device's descriptor the region begins. */
export const VfioRegionInfo = struct("vfio_region_info", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  cap_offset: "u32",
  size: "u64",
  offset: "u64",
});
export const VFIO_DEVICE_GET_REGION_INFO = command(8);

export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;

/** Bytes of the region, `offset` from its start. */
export const VfioRegionSparseMmapArea = struct("vfio_region_sparse_mmap_area", { offset: "u64", size: "u64" });

/** Only these parts of the region can be mapped. */
export const VfioRegionInfoCapSparseMmap = struct("vfio_region_info_cap_sparse_mmap", {
  header: VfioInfoCapHeader,
  nr_areas: "u32",
  reserved: "u32",
  areas: [VfioRegionSparseMmapArea, "tail"],
});

export const VFIO_REGION_INFO_CAP_TYPE = 2;

/** What a region beyond those with fixed numbers is. */
export const VfioRegionInfoCapType = struct("vfio_region_info_cap_type", { header: VfioInfoCapHeader, type: "u32", subtype: "u32" });

/** Set in `type` when the low 16 bits are a PCI vendor. */
export const VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 0x8000_0000;
export const VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xffff;
export const VFIO_REGION_TYPE_GFX = 1;
export const VFIO_REGION_TYPE_CCW = 2;
export const VFIO_REGION_TYPE_MIGRATION_DEPRECATED = 3;

export const VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION = 1;
export const VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG = 2;
export const VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG = 3;
export const VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = 1;
export const VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD = 1;
export const VFIO_REGION_SUBTYPE_GFX_EDID = 1;
export const VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD = 1;
export const VFIO_REGION_SUBTYPE_CCW_SCHIB = 2;
export const VFIO_REGION_SUBTYPE_CCW_CRW = 3;
export const VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED = 1;

export const VFIO_DEVICE_GFX_LINK_STATE_UP = 1;
export const VFIO_DEVICE_GFX_LINK_STATE_DOWN = 2;

/** The start of a GFX EDID region. */
export const VfioRegionGfxEdid = struct("vfio_region_gfx_edid", {
  edid_offset: "u32",
  edid_max_size: "u32",
  edid_size: "u32",
  max_xres: "u32",
  max_yres: "u32",
  link_state: "u32",
});

/** Bits of the first migration protocol, which no driver speaks any more. */
export const VFIO_DEVICE_STATE_V1_STOP = 0;
export const VFIO_DEVICE_STATE_V1_RUNNING = 1 << 0;
export const VFIO_DEVICE_STATE_V1_SAVING = 1 << 1;
export const VFIO_DEVICE_STATE_V1_RESUMING = 1 << 2;
export const VFIO_DEVICE_STATE_MASK = VFIO_DEVICE_STATE_V1_RUNNING | VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING;

/** Resuming goes with nothing else. 0 or 1, as a C condition. */
export const VFIO_DEVICE_STATE_VALID = (state: number): number =>
  Number((state & VFIO_DEVICE_STATE_V1_RESUMING) === 0 || (state & VFIO_DEVICE_STATE_MASK) === VFIO_DEVICE_STATE_V1_RESUMING);
export const VFIO_DEVICE_STATE_IS_ERROR = (state: number): number =>
  Number((state & VFIO_DEVICE_STATE_MASK) === (VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING));
export const VFIO_DEVICE_STATE_SET_ERROR = (state: number): number =>
  ((state & ~VFIO_DEVICE_STATE_MASK) | VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING) >>> 0;

/** The start of the first protocol's migration region. */
export const VfioDeviceMigrationInfo = struct("vfio_device_migration_info", {
  device_state: "u32",
  reserved: "u32",
  pending_bytes: "u64",
  data_offset: "u64",
  data_size: "u64",
});

/** The page of the MSI-X table may be mapped; a capability without data. */
export const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3;

export const VFIO_REGION_INFO_CAP_NVLINK2_SSATGT = 4;
export const VfioRegionInfoCapNvlink2Ssatgt = struct("vfio_region_info_cap_nvlink2_ssatgt", {
  header: VfioInfoCapHeader,
  tgt: "u64",
});

export const VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD = 5;
export const VfioRegionInfoCapNvlink2Lnkspd = struct("vfio_region_info_cap_nvlink2_lnkspd", {
  header: VfioInfoCapHeader,
  link_speed: "u32",
  __pad: "u32",
});

// Device: interrupts

export const VFIO_IRQ_INFO_EVENTFD = 1 << 0;
export const VFIO_IRQ_INFO_MASKABLE = 1 << 1;
/** The kernel masks it when it fires, and the user unmasks it. */
export const VFIO_IRQ_INFO_AUTOMASKED = 1 << 2;
/** The number of vectors in use changes only by switching the index off first. */
export const VFIO_IRQ_INFO_NORESIZE = 1 << 3;

export const VfioIrqInfo = struct("vfio_irq_info", { argsz: "u32", flags: "u32", index: "u32", count: "u32" });
export const VFIO_DEVICE_GET_IRQ_INFO = command(9);

/** Exactly one DATA flag (what `data` holds for each of the vectors) and one ACTION flag. */
export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

/** `data`: with DATA_BOOL a byte, with DATA_EVENTFD an s32 (-1 takes the eventfd away) for each of `count` vectors. */
export const VfioIrqSet = struct("vfio_irq_set", {
  argsz: "u32",
  flags: "u32",
  index: "u32",
  start: "u32",
  count: "u32",
  data: ["u8", "tail"],
});
export const VFIO_DEVICE_SET_IRQS = command(10);

export const VFIO_DEVICE_RESET = command(11);

export const VFIO_PCI_BAR0_REGION_INDEX = 0;
export const VFIO_PCI_BAR1_REGION_INDEX = 1;
export const VFIO_PCI_BAR2_REGION_INDEX = 2;
export const VFIO_PCI_BAR3_REGION_INDEX = 3;
export const VFIO_PCI_BAR4_REGION_INDEX = 4;
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
export const VFIO_PCI_ROM_REGION_INDEX = 6;
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_VGA_REGION_INDEX = 8;
/** Fixed regions; a device's own ones are numbered from here. */
export const VFIO_PCI_NUM_REGIONS = 9;

export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
/** Signalled when the kernel wants the device back. */
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
export const VFIO_PCI_NUM_IRQS = 5;

export const VFIO_CCW_CONFIG_REGION_INDEX = 0;
export const VFIO_CCW_NUM_REGIONS = 1;

export const VFIO_CCW_IO_IRQ_INDEX = 0;
export const VFIO_CCW_CRW_IRQ_INDEX = 1;
export const VFIO_CCW_REQ_IRQ_INDEX = 2;
export const VFIO_CCW_NUM_IRQS = 3;

export const VFIO_AP_REQ_IRQ_INDEX = 0;
export const VFIO_AP_CFG_CHG_IRQ_INDEX = 1;
export const VFIO_AP_NUM_IRQS = 2;

// Device: hot reset

/** A `devid` of a device that is not bound to the caller's iommufd, but shares an IOMMU group with one that is. */
export const VFIO_PCI_DEVID_OWNED = 0;
/** A `devid` of a device that stands in the way of the reset; C's -1, as stored. */
export const VFIO_PCI_DEVID_NOT_OWNED = 0xffff_ffff;

/** A device that resets together with this one. `devid` instead of `group_id` with VFIO_PCI_HOT_RESET_FLAG_DEV_ID. */
export const VfioPciDependentDevice = struct(
  "vfio_pci_dependent_device",
  { group_id: "u32", devid: "u32", segment: "u16", bus: "u8", devfn: "u8" },
  { union: ["group_id", "devid"] },
);

export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1 << 0;
/** No device listed has VFIO_PCI_DEVID_NOT_OWNED. */
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 1 << 1;

export const VfioPciHotResetInfo = struct("vfio_pci_hot_reset_info", {
  argsz: "u32",
  flags: "u32",
  count: "u32",
  devices: [VfioPciDependentDevice, "tail"],
});
export const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = command(12);

/** Resets the slot or bus; `group_fds` prove that the caller owns all of it, none are needed with an iommufd. */
export const VfioPciHotReset = struct("vfio_pci_hot_reset", {
  argsz: "u32",
  flags: "u32",
  count: "u32",
  group_fds: ["s32", "tail"],
});
export const VFIO_DEVICE_PCI_HOT_RESET = command(13);

// Device: a mediated graphics device's picture

export const VFIO_GFX_PLANE_TYPE_PROBE = 1 << 0;
export const VFIO_GFX_PLANE_TYPE_DMABUF = 1 << 1;
export const VFIO_GFX_PLANE_TYPE_REGION = 1 << 2;

export const VfioDeviceGfxPlaneInfo = struct(
  "vfio_device_gfx_plane_info",
  {
    argsz: "u32",
    flags: "u32",
    drm_plane_type: "u32",
    drm_format: "u32",
    drm_format_mod: "u64",
    width: "u32",
    height: "u32",
    stride: "u32",
    size: "u32",
    x_pos: "u32",
    y_pos: "u32",
    x_hot: "u32",
    y_hot: "u32",
    region_index: "u32",
    dmabuf_id: "u32",
    reserved: "u32",
  },
  { union: ["region_index", "dmabuf_id"] },
);
export const VFIO_DEVICE_QUERY_GFX_PLANE = command(14);
/** The argument points to a `dmabuf_id`; the result is a descriptor. */
export const VFIO_DEVICE_GET_GFX_DMABUF = command(15);

// Device: an eventfd that writes to a region

export const VFIO_DEVICE_IOEVENTFD_8 = 1 << 0;
export const VFIO_DEVICE_IOEVENTFD_16 = 1 << 1;
export const VFIO_DEVICE_IOEVENTFD_32 = 1 << 2;
export const VFIO_DEVICE_IOEVENTFD_64 = 1 << 3;
export const VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xf;

/** Each signal of `fd` writes `data` at `offset` of the device's descriptor; `fd` -1 ends it. */
export const VfioDeviceIoeventfd = struct("vfio_device_ioeventfd", {
  argsz: "u32",
  flags: "u32",
  offset: "u64",
  data: "u64",
  fd: "s32",
  reserved: "u32",
});
export const VFIO_DEVICE_IOEVENTFD = command(16);

// Device: iommufd

/** `token_uuid_ptr` points to the 16 bytes of the VF token. */
export const VFIO_DEVICE_BIND_FLAG_TOKEN = 1 << 0;

/** Until it is bound, a device descriptor answers nothing else. */
export const VfioDeviceBindIommufd = struct("vfio_device_bind_iommufd", {
  argsz: "u32",
  flags: "u32",
  iommufd: "s32",
  out_devid: "u32",
  token_uuid_ptr: "u64",
});
export const VFIO_DEVICE_BIND_IOMMUFD = command(18);

/** `pasid` is meant, not the device as a whole. */
export const VFIO_DEVICE_ATTACH_PASID = 1 << 0;

/** `pt_id` goes in as an IOAS or a page table and comes out as the page table attached; a second attach replaces the first. */
export const VfioDeviceAttachIommufdPt = struct("vfio_device_attach_iommufd_pt", {
  argsz: "u32",
  flags: "u32",
  pt_id: "u32",
  pasid: "u32",
});
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = command(19);

export const VFIO_DEVICE_DETACH_PASID = 1 << 0;

export const VfioDeviceDetachIommufdPt = struct("vfio_device_detach_iommufd_pt", { argsz: "u32", flags: "u32", pasid: "u32" });
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = command(20);

// Device: features

/** The feature's number, in `flags`. */
export const VFIO_DEVICE_FEATURE_MASK = 0xffff;
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
/** Only asks whether the feature, with the GET and SET named beside it, is there. */
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;

/** `data` is the structure of the feature. */
export const VfioDeviceFeature = struct("vfio_device_feature", { argsz: "u32", flags: "u32", data: ["u8", "tail"] });
export const VFIO_DEVICE_FEATURE = command(17);

/** SET: the 16-byte UUID that whoever opens a VF has to show. */
export const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0;

export const VFIO_MIGRATION_STOP_COPY = 1n << 0n;
export const VFIO_MIGRATION_P2P = 1n << 1n;
export const VFIO_MIGRATION_PRE_COPY = 1n << 2n;

/** GET: which parts of the migration protocol there are. */
export const VFIO_DEVICE_FEATURE_MIGRATION = 1;
export const VfioDeviceFeatureMigration = struct("vfio_device_feature_migration", { flags: "u64" });

/** GET, SET: the migration state; `data_fd` is a new stream where the change began one, otherwise -1. */
export const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2;
export const VfioDeviceFeatureMigState = struct("vfio_device_feature_mig_state", { device_state: "u32", data_fd: "s32" });

export const VFIO_DEVICE_STATE_ERROR = 0;
export const VFIO_DEVICE_STATE_STOP = 1;
export const VFIO_DEVICE_STATE_RUNNING = 2;
export const VFIO_DEVICE_STATE_STOP_COPY = 3;
export const VFIO_DEVICE_STATE_RESUMING = 4;
export const VFIO_DEVICE_STATE_RUNNING_P2P = 5;
export const VFIO_DEVICE_STATE_PRE_COPY = 6;
export const VFIO_DEVICE_STATE_PRE_COPY_P2P = 7;
export const VFIO_DEVICE_STATE_NR = 8;

/** There is new initial data in the stream; only after VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 was set. */
export const VFIO_PRECOPY_INFO_REINIT = 1 << 0;

/** Estimates of what the stream still holds; asked of the migration stream's descriptor. */
export const VfioPrecopyInfo = struct("vfio_precopy_info", {
  argsz: "u32",
  flags: "u32",
  initial_bytes: "u64",
  dirty_bytes: "u64",
});
export const VFIO_MIG_GET_PRECOPY_INFO = command(21);

/** SET: the device may be put into a low power state until it is next touched. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3;

/** SET: likewise, and `wakeup_eventfd` is signalled when the device wakes by itself. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4;
export const VfioDeviceLowPowerEntryWithWakeup = struct("vfio_device_low_power_entry_with_wakeup", {
  wakeup_eventfd: "s32",
  reserved: "u32",
});

/** SET: the device is to stay powered again. */
export const VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5;

/** SET: the device itself is to record what it writes, within `ranges` (user pointer). */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6;
export const VfioDeviceFeatureDmaLoggingControl = struct("vfio_device_feature_dma_logging_control", {
  page_size: "u64",
  num_ranges: "u32",
  __reserved: "u32",
  ranges: "u64",
});
export const VfioDeviceFeatureDmaLoggingRange = struct("vfio_device_feature_dma_logging_range", { iova: "u64", length: "u64" });

/** SET */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7;

/** GET: sets bits, in the caller's `bitmap`, for what was written since the last report. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8;
export const VfioDeviceFeatureDmaLoggingReport = struct("vfio_device_feature_dma_logging_report", {
  iova: "u64",
  length: "u64",
  page_size: "u64",
  bitmap: "u64",
});

/** GET: an estimate of the bytes of the whole migration stream. */
export const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9;
export const VfioDeviceFeatureMigDataSize = struct("vfio_device_feature_mig_data_size", { stop_copy_length: "u64" });

/** SET: bus mastering on or off, for devices without a configuration space. */
export const VFIO_DEVICE_FEATURE_BUS_MASTER = 10;
export const VfioDeviceFeatureBusMaster = struct("vfio_device_feature_bus_master", { op: "u32" });
export const VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0;
export const VFIO_DEVICE_FEATURE_SET_MASTER = 1;

/** GET: a dma-buf made of ranges of one region; its descriptor, opened with `open_flags`, is the result of the call. */
export const VFIO_DEVICE_FEATURE_DMA_BUF = 11;
export const VfioRegionDmaRange = struct("vfio_region_dma_range", { offset: "u64", length: "u64" });
export const VfioDeviceFeatureDmaBuf = struct("vfio_device_feature_dma_buf", {
  region_index: "u32",
  open_flags: "u32",
  flags: "u32",
  nr_ranges: "u32",
  dma_ranges: [VfioRegionDmaRange, "tail"],
});

/** SET: VFIO_PRECOPY_INFO_REINIT is understood. */
export const VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 = 12;

/** GET: what the firmware of an s390 says of the device's error state. */
export const VFIO_DEVICE_FEATURE_ZPCI_ERROR = 13;
export const VfioDeviceFeatureZpciErr = struct("vfio_device_feature_zpci_err", { data: "u64" });

// Container with a type 1 IOMMU

export const VFIO_IOMMU_INFO_PGSIZES = 1 << 0;
export const VFIO_IOMMU_INFO_CAPS = 1 << 1;

export const VfioIommuType1Info = struct("vfio_iommu_type1_info", {
  argsz: "u32",
  flags: "u32",
  iova_pgsizes: "u64",
  cap_offset: "u32",
  pad: "u32",
});
export const VFIO_IOMMU_GET_INFO = command(12);

export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;

/** `end` is the last IOVA, included, in spite of its name. */
export const VfioIovaRange = struct("vfio_iova_range", { start: "u64", end: "u64" });

export const VfioIommuType1InfoCapIovaRange = struct("vfio_iommu_type1_info_cap_iova_range", {
  header: VfioInfoCapHeader,
  nr_iovas: "u32",
  reserved: "u32",
  iova_ranges: [VfioIovaRange, "tail"],
});

export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2;
export const VfioIommuType1InfoCapMigration = struct("vfio_iommu_type1_info_cap_migration", {
  header: VfioInfoCapHeader,
  flags: "u32",
  pgsize_bitmap: "u64",
  max_dirty_bitmap_size: "u64",
});

/** How many more mappings may be made. */
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;
export const VfioIommuType1InfoDmaAvail = struct("vfio_iommu_type1_info_dma_avail", { header: VfioInfoCapHeader, avail: "u32" });

export const VFIO_DMA_MAP_FLAG_READ = 1 << 0;
export const VFIO_DMA_MAP_FLAG_WRITE = 1 << 1;
/** Gives an existing mapping a new address in the process. */
export const VFIO_DMA_MAP_FLAG_VADDR = 1 << 2;

export const VfioIommuType1DmaMap = struct("vfio_iommu_type1_dma_map", {
  argsz: "u32",
  flags: "u32",
  vaddr: "u64",
  iova: "u64",
  size: "u64",
});
export const VFIO_IOMMU_MAP_DMA = command(13);

/** `data` is a user pointer. */
export const VfioBitmap = struct("vfio_bitmap", { pgsize: "u64", size: "u64", data: "u64" });

/** `data` is a vfio_bitmap. */
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
/** Leaves the mapping and forgets its address in the process. */
export const VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2;

/** `size` comes back as the bytes unmapped. */
export const VfioIommuType1DmaUnmap = struct("vfio_iommu_type1_dma_unmap", {
  argsz: "u32",
  flags: "u32",
  iova: "u64",
  size: "u64",
  data: ["u8", "tail"],
});
export const VFIO_IOMMU_UNMAP_DMA = command(14);

export const VFIO_IOMMU_ENABLE = command(15);
export const VFIO_IOMMU_DISABLE = command(16);

export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
/** `data` is a vfio_iommu_type1_dirty_bitmap_get. */
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;

export const VfioIommuType1DirtyBitmap = struct("vfio_iommu_type1_dirty_bitmap", {
  argsz: "u32",
  flags: "u32",
  data: ["u8", "tail"],
});
export const VfioIommuType1DirtyBitmapGet = struct("vfio_iommu_type1_dirty_bitmap_get", {
  iova: "u64",
  size: "u64",
  bitmap: VfioBitmap,
});
export const VFIO_IOMMU_DIRTY_PAGES = command(17);

// Container on POWER (sPAPR), and its error handling (EEH)

export const VfioIommuSpaprTceDdwInfo = struct("vfio_iommu_spapr_tce_ddw_info", {
  pgsizes: "u64",
  max_dynamic_windows_supported: "u32",
  levels: "u32",
});

/** `ddw` is meant: further windows can be made. */
export const VFIO_IOMMU_SPAPR_INFO_DDW = 1 << 0;

export const VfioIommuSpaprTceInfo = struct("vfio_iommu_spapr_tce_info", {
  argsz: "u32",
  flags: "u32",
  dma32_window_start: "u32",
  dma32_window_size: "u32",
  ddw: VfioIommuSpaprTceDdwInfo,
});
export const VFIO_IOMMU_SPAPR_TCE_GET_INFO = command(12);

export const VfioEehPeErr = struct("vfio_eeh_pe_err", { type: "u32", func: "u32", addr: "u64", mask: "u64" });

export const VfioEehPeOp = struct("vfio_eeh_pe_op", { argsz: "u32", flags: "u32", op: "u32", err: VfioEehPeErr });

export const VFIO_EEH_PE_DISABLE = 0;
export const VFIO_EEH_PE_ENABLE = 1;
export const VFIO_EEH_PE_UNFREEZE_IO = 2;
export const VFIO_EEH_PE_UNFREEZE_DMA = 3;
export const VFIO_EEH_PE_GET_STATE = 4;
export const VFIO_EEH_PE_STATE_NORMAL = 0;
export const VFIO_EEH_PE_STATE_RESET = 1;
export const VFIO_EEH_PE_STATE_STOPPED = 2;
export const VFIO_EEH_PE_STATE_STOPPED_DMA = 4;
export const VFIO_EEH_PE_STATE_UNAVAIL = 5;
export const VFIO_EEH_PE_RESET_DEACTIVATE = 5;
export const VFIO_EEH_PE_RESET_HOT = 6;
export const VFIO_EEH_PE_RESET_FUNDAMENTAL = 7;
export const VFIO_EEH_PE_CONFIGURE = 8;
export const VFIO_EEH_PE_INJECT_ERR = 9;
export const VFIO_EEH_PE_OP = command(21);

export const VfioIommuSpaprRegisterMemory = struct("vfio_iommu_spapr_register_memory", {
  argsz: "u32",
  flags: "u32",
  vaddr: "u64",
  size: "u64",
});
export const VFIO_IOMMU_SPAPR_REGISTER_MEMORY = command(17);
export const VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY = command(18);

export const VfioIommuSpaprTceCreate = struct("vfio_iommu_spapr_tce_create", {
  argsz: "u32",
  flags: "u32",
  page_shift: "u32",
  __resv1: "u32",
  window_size: "u64",
  levels: "u32",
  __resv2: "u32",
  start_addr: "u64",
});
export const VFIO_IOMMU_SPAPR_TCE_CREATE = command(19);

export const VfioIommuSpaprTceRemove = struct("vfio_iommu_spapr_tce_remove", { argsz: "u32", flags: "u32", start_addr: "u64" });
export const VFIO_IOMMU_SPAPR_TCE_REMOVE = command(20);
