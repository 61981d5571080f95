/**
 * /dev/iommu (include/uapi/linux/iommufd.h).
 *
 * Every command's structure begins with its own `size`. A shorter one than the kernel knows is completed with zeros, down
 * to the command's least size; a longer one is accepted while the bytes beyond are zero (E2BIG). `__reserved` and unknown
 * flag bits must be zero (EOPNOTSUPP). Names that begin with `out_` are written by the kernel, all others are read, unless
 * the comment says both.
 *
 * A flag or number that belongs in a 64-bit member is a bigint here, all others are numbers.
 */
import { _IO } from "./ioctl.ts";
import { struct } from "./struct.ts";

export const IOMMUFD_TYPE = 0x3b; // ';', shared with VFIO, whose numbers begin at 100

export const IOMMUFD_CMD_BASE = 0x80;
export const IOMMUFD_CMD_DESTROY = 0x80;
export const IOMMUFD_CMD_IOAS_ALLOC = 0x81;
export const IOMMUFD_CMD_IOAS_ALLOW_IOVAS = 0x82;
export const IOMMUFD_CMD_IOAS_COPY = 0x83;
export const IOMMUFD_CMD_IOAS_IOVA_RANGES = 0x84;
export const IOMMUFD_CMD_IOAS_MAP = 0x85;
export const IOMMUFD_CMD_IOAS_UNMAP = 0x86;
export const IOMMUFD_CMD_OPTION = 0x87;
export const IOMMUFD_CMD_VFIO_IOAS = 0x88;
export const IOMMUFD_CMD_HWPT_ALLOC = 0x89;
export const IOMMUFD_CMD_GET_HW_INFO = 0x8a;
export const IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING = 0x8b;
export const IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP = 0x8c;
export const IOMMUFD_CMD_HWPT_INVALIDATE = 0x8d;
export const IOMMUFD_CMD_FAULT_QUEUE_ALLOC = 0x8e;
export const IOMMUFD_CMD_IOAS_MAP_FILE = 0x8f;
export const IOMMUFD_CMD_VIOMMU_ALLOC = 0x90;
export const IOMMUFD_CMD_VDEVICE_ALLOC = 0x91;
export const IOMMUFD_CMD_IOAS_CHANGE_PROCESS = 0x92;
export const IOMMUFD_CMD_VEVENTQ_ALLOC = 0x93;
export const IOMMUFD_CMD_HW_QUEUE_ALLOC = 0x94;
export const IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA = 0x95;

const command = (nr: number): number => _IO(IOMMUFD_TYPE, nr);

// Objects

/** Frees any object by its id; EBUSY while another object or a device uses it. */
export const IommuDestroy = struct("iommu_destroy", { size: "u32", id: "u32" });
export const IOMMU_DESTROY = command(IOMMUFD_CMD_DESTROY);

// I/O address spaces (IOAS)

/** A new, empty address space. */
export const IommuIoasAlloc = struct("iommu_ioas_alloc", { size: "u32", flags: "u32", out_ioas_id: "u32" });
export const IOMMU_IOAS_ALLOC = command(IOMMUFD_CMD_IOAS_ALLOC);

/** IOVAs `start` … `last`, both included. */
export const IommuIovaRange = struct("iommu_iova_range", { start: "u64", last: "u64" });

/**
 * The IOVAs that may be mapped now; attaching a device can make them fewer. `num_iovas` goes in as the room at
 * `allowed_iovas` (user pointer to iommu_iova_range) and comes out as the number there are, with EMSGSIZE if they did not fit.
 */
export const IommuIoasIovaRanges = struct("iommu_ioas_iova_ranges", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
  out_iova_alignment: "u64",
});
export const IOMMU_IOAS_IOVA_RANGES = command(IOMMUFD_CMD_IOAS_IOVA_RANGES);

/** Promises that these ranges stay mappable: a later attach which would reserve part of them fails instead. */
export const IommuIoasAllowIovas = struct("iommu_ioas_allow_iovas", {
  size: "u32",
  ioas_id: "u32",
  num_iovas: "u32",
  __reserved: "u32",
  allowed_iovas: "u64",
});
export const IOMMU_IOAS_ALLOW_IOVAS = command(IOMMUFD_CMD_IOAS_ALLOW_IOVAS);

/** `iova` is given; otherwise the kernel picks one and writes it back. */
export const IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0;
export const IOMMU_IOAS_MAP_WRITEABLE = 1 << 1;
export const IOMMU_IOAS_MAP_READABLE = 1 << 2;

/** Maps the caller's memory; `iova` is read or written, see IOMMU_IOAS_MAP_FIXED_IOVA. */
export const IommuIoasMap = struct("iommu_ioas_map", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  __reserved: "u32",
  user_va: "u64",
  length: "u64",
  iova: "u64",
});
export const IOMMU_IOAS_MAP = command(IOMMUFD_CMD_IOAS_MAP);

/**
 * The physical address behind `iova`, for devices without an IOMMU only. `length` goes in as the most bytes of interest and comes
 * out as how many of them are contiguous.
 */
export const IommuIoasNoiommuGetPa = struct("iommu_ioas_noiommu_get_pa", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  __reserved: "u32",
  iova: "u64",
  length: "u64",
  out_phys: "u64",
});
export const IOMMU_IOAS_NOIOMMU_GET_PA = command(IOMMUFD_CMD_IOAS_NOIOMMU_GET_PA);

/** Maps bytes of a file, a memfd or a dma-buf, from its byte `start` on. Flags as for IOMMU_IOAS_MAP. */
export const IommuIoasMapFile = struct("iommu_ioas_map_file", {
  size: "u32",
  flags: "u32",
  ioas_id: "u32",
  fd: "s32",
  start: "u64",
  length: "u64",
  iova: "u64",
});
export const IOMMU_IOAS_MAP_FILE = command(IOMMUFD_CMD_IOAS_MAP_FILE);

/** Maps in one address space what another (or the same) has at `src_iova`, sharing the pinned pages. */
export const IommuIoasCopy = struct("iommu_ioas_copy", {
  size: "u32",
  flags: "u32",
  dst_ioas_id: "u32",
  src_ioas_id: "u32",
  length: "u64",
  dst_iova: "u64",
  src_iova: "u64",
});
export const IOMMU_IOAS_COPY = command(IOMMUFD_CMD_IOAS_COPY);

/** Unmaps whole mappings; 0 … 2^64 - 1 means all of them. `length` comes back as the bytes unmapped. */
export const IommuIoasUnmap = struct("iommu_ioas_unmap", { size: "u32", ioas_id: "u32", iova: "u64", length: "u64" });
export const IOMMU_IOAS_UNMAP = command(IOMMUFD_CMD_IOAS_UNMAP);

/** Whose locked memory pinned pages count as: 0 the user's, 1 the process's. Of the whole context, object_id 0. */
export const IOMMU_OPTION_RLIMIT_MODE = 0;
/** Whether pages next to each other may become one large IOMMU entry: 1, or never: 0. Of an IOAS. */
export const IOMMU_OPTION_HUGE_PAGES = 1;

export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_OP_GET = 1;

/** Reads or changes an option; `val64` goes in with SET and out with GET. */
export const IommuOption = struct("iommu_option", {
  size: "u32",
  option_id: "u32",
  op: "u16",
  __reserved: "u16",
  object_id: "u32",
  val64: "u64",
});
export const IOMMU_OPTION = command(IOMMUFD_CMD_OPTION);

export const IOMMU_VFIO_IOAS_GET = 0;
export const IOMMU_VFIO_IOAS_SET = 1;
export const IOMMU_VFIO_IOAS_CLEAR = 2;

/** The address space that VFIO's type 1 calls on this descriptor work on; `ioas_id` goes in with SET and out with GET. */
export const IommuVfioIoas = struct("iommu_vfio_ioas", { size: "u32", ioas_id: "u32", op: "u16", __reserved: "u16" });
export const IOMMU_VFIO_IOAS = command(IOMMUFD_CMD_VFIO_IOAS);

/** Charges the calling process with the locked memory of every mapping of the context; EINVAL unless all are of files. */
export const IommuIoasChangeProcess = struct("iommu_ioas_change_process", { size: "u32", __reserved: "u32" });
export const IOMMU_IOAS_CHANGE_PROCESS = command(IOMMUFD_CMD_IOAS_CHANGE_PROCESS);

// Hardware page tables (HWPT)

/** The table may be the second stage under a nested one. */
export const IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0;
/** Only devices whose IOMMU can track dirty pages may attach. */
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 1 << 1;
/** `fault_id` is set. */
export const IOMMU_HWPT_FAULT_ID_VALID = 1 << 2;
/** The table may be attached to a PASID. */
export const IOMMU_HWPT_ALLOC_PASID = 1 << 3;

/** Supervisor requests are let through. */
export const IOMMU_VTD_S1_SRE = 1n << 0n;
/** The extended accessed bit is kept. */
export const IOMMU_VTD_S1_EAFE = 1n << 1n;
/** Supervisor writes honour the write bit. */
export const IOMMU_VTD_S1_WPE = 1n << 2n;

/** Data of a nested VT-d table: where the guest's first stage lies. */
export const IommuHwptVtdS1 = struct("iommu_hwpt_vtd_s1", {
  flags: "u64",
  pgtbl_addr: "u64",
  addr_width: "u32",
  __reserved: "u32",
});

/** Data of a nested SMMUv3 table: the first two words of the guest's stream table entry. */
export const IommuHwptArmSmmuv3 = struct("iommu_hwpt_arm_smmuv3", { ste: ["u64", 2] });

/** Data of a nested AMD table: the guest's device table entry. */
export const IommuHwptAmdGuest = struct("iommu_hwpt_amd_guest", { dte: ["u64", 4] });

export const IOMMU_HWPT_DATA_NONE = 0;
export const IOMMU_HWPT_DATA_VTD_S1 = 1;
export const IOMMU_HWPT_DATA_ARM_SMMUV3 = 2;
export const IOMMU_HWPT_DATA_AMD_GUEST = 3;

/** A page table on `pt_id`: an IOAS, or a table or vIOMMU to nest in. */
export const IommuHwptAlloc = struct("iommu_hwpt_alloc", {
  size: "u32",
  flags: "u32",
  dev_id: "u32",
  pt_id: "u32",
  out_hwpt_id: "u32",
  __reserved: "u32",
  data_type: "u32",
  data_len: "u32",
  data_uptr: "u64",
  fault_id: "u32",
  __reserved2: "u32",
});
export const IOMMU_HWPT_ALLOC = command(IOMMUFD_CMD_HWPT_ALLOC);

/** Erratum 772415: a nested parent must not have read-only mappings. */
export const IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0;

export const IommuHwInfoVtd = struct("iommu_hw_info_vtd", { flags: "u32", __reserved: "u32", cap_reg: "u64", ecap_reg: "u64" });

/** TLB and configuration invalidations have to be issued twice. */
export const IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI = 1 << 0;

export const IommuHwInfoArmSmmuv3 = struct("iommu_hw_info_arm_smmuv3", {
  flags: "u32",
  __reserved: "u32",
  idr: ["u32", 6],
  iidr: "u32",
  aidr: "u32",
});

export const IommuHwInfoTegra241Cmdqv = struct("iommu_hw_info_tegra241_cmdqv", {
  flags: "u32",
  version: "u8",
  log2vcmdqs: "u8",
  log2vsids: "u8",
  __reserved: "u8",
});

export const IommuHwInfoAmd = struct("iommu_hw_info_amd", { efr: "u64", efr2: "u64" });

export const IOMMU_HW_INFO_TYPE_NONE = 0;
export const IOMMU_HW_INFO_TYPE_DEFAULT = 0;
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
export const IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2;
export const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3;
export const IOMMU_HW_INFO_TYPE_AMD = 4;

export const IOMMU_HW_CAP_DIRTY_TRACKING = 1n << 0n;
/** The device's PASIDs may ask to execute; only where a PASID width is given. */
export const IOMMU_HW_CAP_PCI_PASID_EXEC = 1n << 1n;
/** The device's PASIDs may run privileged; only where a PASID width is given. */
export const IOMMU_HW_CAP_PCI_PASID_PRIV = 1n << 2n;
/** ATS cannot be used with this device, whatever its configuration space says. */
export const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1n << 3n;

/** `in_data_type` asks for one kind of data. */
export const IOMMU_HW_INFO_FLAG_INPUT_TYPE = 1 << 0;

/** What the device's IOMMU can do. `data_len` comes back as the length the kernel has; what is beyond it is zeroed. */
export const IommuHwInfo = struct(
  "iommu_hw_info",
  {
    size: "u32",
    flags: "u32",
    dev_id: "u32",
    data_len: "u32",
    data_uptr: "u64",
    in_data_type: "u32",
    out_data_type: "u32",
    out_max_pasid_log2: "u8",
    __reserved: ["u8", 3],
    out_capabilities: "u64",
  },
  { union: ["in_data_type", "out_data_type"] },
);
export const IOMMU_GET_HW_INFO = command(IOMMUFD_CMD_GET_HW_INFO);

export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 1;

export const IommuHwptSetDirtyTracking = struct("iommu_hwpt_set_dirty_tracking", {
  size: "u32",
  flags: "u32",
  hwpt_id: "u32",
  __reserved: "u32",
});
export const IOMMU_HWPT_SET_DIRTY_TRACKING = command(IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING);

/** Reads the dirty bits and leaves them, and so leaves the IOTLB alone; for the last read before unmapping. */
export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 1;

/** Sets, in the caller's bitmap at `data`, the bit of every `page_size` bytes written since the last read. */
export const IommuHwptGetDirtyBitmap = struct("iommu_hwpt_get_dirty_bitmap", {
  size: "u32",
  hwpt_id: "u32",
  flags: "u32",
  __reserved: "u32",
  iova: "u64",
  length: "u64",
  page_size: "u64",
  data: "u64",
});
export const IOMMU_HWPT_GET_DIRTY_BITMAP = command(IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP);

export const IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0;
export const IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1;

/** Only leaf entries changed, so cached upper levels may stay. */
export const IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0;

/** All of the table when `addr` is 0 and `npages` is 2^64 - 1. */
export const IommuHwptVtdS1Invalidate = struct("iommu_hwpt_vtd_s1_invalidate", {
  addr: "u64",
  npages: "u64",
  flags: "u32",
  __reserved: "u32",
});

/** A command of the guest's SMMUv3 command queue. */
export const IommuViommuArmSmmuv3Invalidate = struct("iommu_viommu_arm_smmuv3_invalidate", { cmd: ["u64", 2] });

/** `entry_num` requests of `entry_len` bytes each; comes back as the number carried out, also on failure. */
export const IommuHwptInvalidate = struct("iommu_hwpt_invalidate", {
  size: "u32",
  hwpt_id: "u32",
  data_uptr: "u64",
  data_type: "u32",
  entry_len: "u32",
  entry_num: "u32",
  __reserved: "u32",
});
export const IOMMU_HWPT_INVALIDATE = command(IOMMUFD_CMD_HWPT_INVALIDATE);

// I/O page faults

export const IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0;
/** The last fault of its group. */
export const IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1;

export const IOMMU_PGFAULT_PERM_READ = 1 << 0;
export const IOMMU_PGFAULT_PERM_WRITE = 1 << 1;
export const IOMMU_PGFAULT_PERM_EXEC = 1 << 2;
export const IOMMU_PGFAULT_PERM_PRIV = 1 << 3;

/** A fault, as read from a fault queue's descriptor; `length` is a hint of the bytes wanted. */
export const IommuHwptPgfault = struct("iommu_hwpt_pgfault", {
  flags: "u32",
  dev_id: "u32",
  pasid: "u32",
  grpid: "u32",
  perm: "u32",
  __reserved: "u32",
  addr: "u64",
  length: "u32",
  cookie: "u32",
});

/** The fault is handled: the device may try again. */
export const IOMMUFD_PAGE_RESP_SUCCESS = 0;
/** The fault cannot be handled: the device must not try again. */
export const IOMMUFD_PAGE_RESP_INVALID = 1;

/** The answer to a fault group, as written to a fault queue's descriptor. */
export const IommuHwptPageResponse = struct("iommu_hwpt_page_response", { cookie: "u32", code: "u32" });

export const IommuFaultAlloc = struct("iommu_fault_alloc", {
  size: "u32",
  flags: "u32",
  out_fault_id: "u32",
  out_fault_fd: "u32",
});
export const IOMMU_FAULT_QUEUE_ALLOC = command(IOMMUFD_CMD_FAULT_QUEUE_ALLOC);

// Virtual IOMMUs

export const IOMMU_VIOMMU_TYPE_DEFAULT = 0;
export const IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2;

/** Where in the iommufd's descriptor the register page of the queues can be mapped. */
export const IommuViommuTegra241Cmdqv = struct("iommu_viommu_tegra241_cmdqv", {
  out_vintf_mmap_offset: "u64",
  out_vintf_mmap_length: "u64",
});

/** A guest's slice of the IOMMU before `dev_id`, on the nesting parent `hwpt_id`. */
export const IommuViommuAlloc = struct("iommu_viommu_alloc", {
  size: "u32",
  flags: "u32",
  type: "u32",
  dev_id: "u32",
  hwpt_id: "u32",
  out_viommu_id: "u32",
  data_len: "u32",
  __reserved: "u32",
  data_uptr: "u64",
});
export const IOMMU_VIOMMU_ALLOC = command(IOMMUFD_CMD_VIOMMU_ALLOC);

/** Tells a virtual IOMMU that the guest calls the device `virt_id`. */
export const IommuVdeviceAlloc = struct("iommu_vdevice_alloc", {
  size: "u32",
  viommu_id: "u32",
  dev_id: "u32",
  out_vdevice_id: "u32",
  virt_id: "u64",
});
export const IOMMU_VDEVICE_ALLOC = command(IOMMUFD_CMD_VDEVICE_ALLOC);

/** Events were lost because the queue was full; such a header has no event after it. */
export const IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 1 << 0;

/** Comes before every event; `sequence` leaves a gap as wide as the number of events lost. */
export const IommufdVeventHeader = struct("iommufd_vevent_header", { flags: "u32", sequence: "u32" });

export const IOMMU_VEVENTQ_TYPE_DEFAULT = 0;
export const IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1;
export const IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2;

/** An SMMUv3 event record, the stream ID replaced by the guest's. */
export const IommuVeventArmSmmuv3 = struct("iommu_vevent_arm_smmuv3", { evt: ["u64", 4] });

export const IommuVeventTegra241Cmdqv = struct("iommu_vevent_tegra241_cmdqv", { lvcmdq_err_map: ["u64", 2] });

export const IommuVeventqAlloc = struct("iommu_veventq_alloc", {
  size: "u32",
  flags: "u32",
  viommu_id: "u32",
  type: "u32",
  veventq_depth: "u32",
  out_veventq_id: "u32",
  out_veventq_fd: "u32",
  __reserved: "u32",
});
export const IOMMU_VEVENTQ_ALLOC = command(IOMMUFD_CMD_VEVENTQ_ALLOC);

export const IOMMU_HW_QUEUE_TYPE_DEFAULT = 0;
export const IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1;

/** Hands hardware queue number `index` of a virtual IOMMU to the guest, with its memory at `nesting_parent_iova`. */
export const IommuHwQueueAlloc = struct("iommu_hw_queue_alloc", {
  size: "u32",
  flags: "u32",
  viommu_id: "u32",
  type: "u32",
  index: "u32",
  out_hw_queue_id: "u32",
  nesting_parent_iova: "u64",
  length: "u64",
});
export const IOMMU_HW_QUEUE_ALLOC = command(IOMMUFD_CMD_HW_QUEUE_ALLOC);
