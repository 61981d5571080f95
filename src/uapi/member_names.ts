/**
 * Members of structures in words, as strace prints them; for traces and error messages.
 */
import * as dmaBuf from "./dma_buf.ts";
import * as fcntl from "./fcntl.ts";
import { describeFeature } from "./ioctl_names.ts";
import * as iommufd from "./iommufd.ts";
import * as selftest from "./iommufd_test.ts";
import type { AnyStruct, FieldType, StructView } from "./struct.ts";
import * as udmabuf from "./udmabuf.ts";
import * as vfio from "./vfio.ts";

/** How a member reads: one name for the bits in `mask` (all that are no flags), then the flags that are set. */
interface Vocabulary {
  readonly values: ReadonlyMap<bigint, string>;
  readonly flags: readonly (readonly [bit: bigint, name: string])[];
  readonly mask: bigint;
}

const NO_VALUES: ReadonlyMap<bigint, string> = new Map();

/** The constants of `module` with these names; a name it does not export does not compile. */
function named<Module>(module: Module, names: readonly (keyof Module & string)[]): [bigint, string][] {
  return names.map((name) => [BigInt(module[name] as number | bigint), name]);
}

function flags<Module>(module: Module, ...names: readonly (keyof Module & string)[]): Vocabulary {
  return { values: NO_VALUES, flags: named(module, names), mask: 0n };
}

function values<Module>(module: Module, ...names: readonly (keyof Module & string)[]): Vocabulary {
  return { values: new Map(named(module, names)), flags: [], mask: -1n };
}

const mapFlags = flags(iommufd, "IOMMU_IOAS_MAP_FIXED_IOVA", "IOMMU_IOAS_MAP_WRITEABLE", "IOMMU_IOAS_MAP_READABLE");
const hwptData = values(
  iommufd,
  "IOMMU_HWPT_DATA_NONE",
  "IOMMU_HWPT_DATA_VTD_S1",
  "IOMMU_HWPT_DATA_ARM_SMMUV3",
  "IOMMU_HWPT_DATA_AMD_GUEST",
);
const hwInfoType = values(
  iommufd,
  "IOMMU_HW_INFO_TYPE_DEFAULT",
  "IOMMU_HW_INFO_TYPE_NONE",
  "IOMMU_HW_INFO_TYPE_INTEL_VTD",
  "IOMMU_HW_INFO_TYPE_ARM_SMMUV3",
  "IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV",
  "IOMMU_HW_INFO_TYPE_AMD",
);
const openFlags: Vocabulary = {
  ...flags(fcntl, "O_NONBLOCK", "O_CLOEXEC"),
  values: new Map(named(fcntl, ["O_RDONLY", "O_WRONLY", "O_RDWR"])),
  mask: BigInt(fcntl.O_ACCMODE),
};
const syncFlags = flags(dmaBuf, "DMA_BUF_SYNC_READ", "DMA_BUF_SYNC_WRITE", "DMA_BUF_SYNC_END");
const pciRegion = values(
  vfio,
  "VFIO_PCI_BAR0_REGION_INDEX",
  "VFIO_PCI_BAR1_REGION_INDEX",
  "VFIO_PCI_BAR2_REGION_INDEX",
  "VFIO_PCI_BAR3_REGION_INDEX",
  "VFIO_PCI_BAR4_REGION_INDEX",
  "VFIO_PCI_BAR5_REGION_INDEX",
  "VFIO_PCI_ROM_REGION_INDEX",
  "VFIO_PCI_CONFIG_REGION_INDEX",
  "VFIO_PCI_VGA_REGION_INDEX",
);
const pciIrq = values(
  vfio,
  "VFIO_PCI_INTX_IRQ_INDEX",
  "VFIO_PCI_MSI_IRQ_INDEX",
  "VFIO_PCI_MSIX_IRQ_INDEX",
  "VFIO_PCI_ERR_IRQ_INDEX",
  "VFIO_PCI_REQ_IRQ_INDEX",
);
const features = new Map(
  Array.from({ length: vfio.VFIO_DEVICE_FEATURE_ZPCI_ERROR + 1 }, (_, i) => [BigInt(i), describeFeature(i)?.name ?? String(i)]),
);

/** By structure and member, as in C. */
const VOCABULARY: Readonly<Record<string, Vocabulary>> = {
  "iommu_ioas_map.flags": mapFlags,
  "iommu_ioas_map_file.flags": mapFlags,
  "iommu_ioas_copy.flags": mapFlags,
  "iommu_option.option_id": values(iommufd, "IOMMU_OPTION_RLIMIT_MODE", "IOMMU_OPTION_HUGE_PAGES"),
  "iommu_option.op": values(iommufd, "IOMMU_OPTION_OP_SET", "IOMMU_OPTION_OP_GET"),
  "iommu_vfio_ioas.op": values(iommufd, "IOMMU_VFIO_IOAS_GET", "IOMMU_VFIO_IOAS_SET", "IOMMU_VFIO_IOAS_CLEAR"),
  "iommu_hwpt_alloc.flags": flags(
    iommufd,
    "IOMMU_HWPT_ALLOC_NEST_PARENT",
    "IOMMU_HWPT_ALLOC_DIRTY_TRACKING",
    "IOMMU_HWPT_FAULT_ID_VALID",
    "IOMMU_HWPT_ALLOC_PASID",
  ),
  "iommu_hwpt_alloc.data_type": hwptData,
  "iommu_hw_info.flags": flags(iommufd, "IOMMU_HW_INFO_FLAG_INPUT_TYPE"),
  "iommu_hw_info.in_data_type": hwInfoType,
  "iommu_hw_info.out_data_type": hwInfoType,
  "iommu_hw_info.out_capabilities": flags(
    iommufd,
    "IOMMU_HW_CAP_DIRTY_TRACKING",
    "IOMMU_HW_CAP_PCI_PASID_EXEC",
    "IOMMU_HW_CAP_PCI_PASID_PRIV",
    "IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED",
  ),
  "iommu_hw_info_vtd.flags": flags(iommufd, "IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17"),
  "iommu_hwpt_set_dirty_tracking.flags": flags(iommufd, "IOMMU_HWPT_DIRTY_TRACKING_ENABLE"),
  "iommu_hwpt_get_dirty_bitmap.flags": flags(iommufd, "IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR"),
  "iommu_hwpt_vtd_s1.flags": flags(iommufd, "IOMMU_VTD_S1_SRE", "IOMMU_VTD_S1_EAFE", "IOMMU_VTD_S1_WPE"),
  "iommu_hwpt_vtd_s1_invalidate.flags": flags(iommufd, "IOMMU_VTD_INV_FLAGS_LEAF"),
  "iommu_hwpt_pgfault.flags": flags(iommufd, "IOMMU_PGFAULT_FLAGS_PASID_VALID", "IOMMU_PGFAULT_FLAGS_LAST_PAGE"),
  "iommu_hwpt_pgfault.perm": flags(
    iommufd,
    "IOMMU_PGFAULT_PERM_READ",
    "IOMMU_PGFAULT_PERM_WRITE",
    "IOMMU_PGFAULT_PERM_EXEC",
    "IOMMU_PGFAULT_PERM_PRIV",
  ),
  "iommu_hwpt_page_response.code": values(iommufd, "IOMMUFD_PAGE_RESP_SUCCESS", "IOMMUFD_PAGE_RESP_INVALID"),
  "iommu_viommu_alloc.type": values(
    iommufd,
    "IOMMU_VIOMMU_TYPE_DEFAULT",
    "IOMMU_VIOMMU_TYPE_ARM_SMMUV3",
    "IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV",
  ),
  "iommu_veventq_alloc.type": values(
    iommufd,
    "IOMMU_VEVENTQ_TYPE_DEFAULT",
    "IOMMU_VEVENTQ_TYPE_ARM_SMMUV3",
    "IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV",
  ),
  "iommu_hw_queue_alloc.type": values(iommufd, "IOMMU_HW_QUEUE_TYPE_DEFAULT", "IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV"),
  "iommufd_vevent_header.flags": flags(iommufd, "IOMMU_VEVENTQ_FLAG_LOST_EVENTS"),

  "vfio_group_status.flags": flags(vfio, "VFIO_GROUP_FLAGS_VIABLE", "VFIO_GROUP_FLAGS_CONTAINER_SET"),
  "vfio_device_info.flags": flags(
    vfio,
    "VFIO_DEVICE_FLAGS_RESET",
    "VFIO_DEVICE_FLAGS_PCI",
    "VFIO_DEVICE_FLAGS_PLATFORM",
    "VFIO_DEVICE_FLAGS_AMBA",
    "VFIO_DEVICE_FLAGS_CCW",
    "VFIO_DEVICE_FLAGS_AP",
    "VFIO_DEVICE_FLAGS_FSL_MC",
    "VFIO_DEVICE_FLAGS_CAPS",
    "VFIO_DEVICE_FLAGS_CDX",
  ),
  "vfio_region_info.flags": flags(
    vfio,
    "VFIO_REGION_INFO_FLAG_READ",
    "VFIO_REGION_INFO_FLAG_WRITE",
    "VFIO_REGION_INFO_FLAG_MMAP",
    "VFIO_REGION_INFO_FLAG_CAPS",
  ),
  "vfio_region_info.index": pciRegion,
  "vfio_irq_info.flags": flags(
    vfio,
    "VFIO_IRQ_INFO_EVENTFD",
    "VFIO_IRQ_INFO_MASKABLE",
    "VFIO_IRQ_INFO_AUTOMASKED",
    "VFIO_IRQ_INFO_NORESIZE",
  ),
  "vfio_irq_info.index": pciIrq,
  "vfio_irq_set.flags": flags(
    vfio,
    "VFIO_IRQ_SET_DATA_NONE",
    "VFIO_IRQ_SET_DATA_BOOL",
    "VFIO_IRQ_SET_DATA_EVENTFD",
    "VFIO_IRQ_SET_ACTION_MASK",
    "VFIO_IRQ_SET_ACTION_UNMASK",
    "VFIO_IRQ_SET_ACTION_TRIGGER",
  ),
  "vfio_irq_set.index": pciIrq,
  "vfio_pci_hot_reset_info.flags": flags(vfio, "VFIO_PCI_HOT_RESET_FLAG_DEV_ID", "VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED"),
  "vfio_device_ioeventfd.flags": flags(
    vfio,
    "VFIO_DEVICE_IOEVENTFD_8",
    "VFIO_DEVICE_IOEVENTFD_16",
    "VFIO_DEVICE_IOEVENTFD_32",
    "VFIO_DEVICE_IOEVENTFD_64",
  ),
  "vfio_device_feature.flags": {
    ...flags(vfio, "VFIO_DEVICE_FEATURE_GET", "VFIO_DEVICE_FEATURE_SET", "VFIO_DEVICE_FEATURE_PROBE"),
    values: features,
    mask: BigInt(vfio.VFIO_DEVICE_FEATURE_MASK),
  },
  "vfio_device_feature_migration.flags": flags(vfio, "VFIO_MIGRATION_STOP_COPY", "VFIO_MIGRATION_P2P", "VFIO_MIGRATION_PRE_COPY"),
  "vfio_device_feature_mig_state.device_state": values(
    vfio,
    "VFIO_DEVICE_STATE_ERROR",
    "VFIO_DEVICE_STATE_STOP",
    "VFIO_DEVICE_STATE_RUNNING",
    "VFIO_DEVICE_STATE_STOP_COPY",
    "VFIO_DEVICE_STATE_RESUMING",
    "VFIO_DEVICE_STATE_RUNNING_P2P",
    "VFIO_DEVICE_STATE_PRE_COPY",
    "VFIO_DEVICE_STATE_PRE_COPY_P2P",
  ),
  "vfio_device_feature_bus_master.op": values(vfio, "VFIO_DEVICE_FEATURE_CLEAR_MASTER", "VFIO_DEVICE_FEATURE_SET_MASTER"),
  "vfio_device_feature_dma_buf.region_index": pciRegion,
  "vfio_device_feature_dma_buf.open_flags": openFlags,
  "vfio_device_bind_iommufd.flags": flags(vfio, "VFIO_DEVICE_BIND_FLAG_TOKEN"),
  "vfio_device_attach_iommufd_pt.flags": flags(vfio, "VFIO_DEVICE_ATTACH_PASID"),
  "vfio_device_detach_iommufd_pt.flags": flags(vfio, "VFIO_DEVICE_DETACH_PASID"),
  "vfio_precopy_info.flags": flags(vfio, "VFIO_PRECOPY_INFO_REINIT"),
  "vfio_iommu_type1_info.flags": flags(vfio, "VFIO_IOMMU_INFO_PGSIZES", "VFIO_IOMMU_INFO_CAPS"),
  "vfio_iommu_type1_dma_map.flags": flags(vfio, "VFIO_DMA_MAP_FLAG_READ", "VFIO_DMA_MAP_FLAG_WRITE", "VFIO_DMA_MAP_FLAG_VADDR"),
  "vfio_iommu_type1_dma_unmap.flags": flags(
    vfio,
    "VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP",
    "VFIO_DMA_UNMAP_FLAG_ALL",
    "VFIO_DMA_UNMAP_FLAG_VADDR",
  ),
  "vfio_iommu_type1_dirty_bitmap.flags": flags(
    vfio,
    "VFIO_IOMMU_DIRTY_PAGES_FLAG_START",
    "VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP",
    "VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP",
  ),

  "dma_buf_sync.flags": syncFlags,
  "dma_buf_export_sync_file.flags": syncFlags,
  "dma_buf_import_sync_file.flags": syncFlags,
  "dma_heap_allocation_data.fd_flags": openFlags,
  "udmabuf_create.flags": flags(udmabuf, "UDMABUF_FLAGS_CLOEXEC"),
  "udmabuf_create_list.flags": flags(udmabuf, "UDMABUF_FLAGS_CLOEXEC"),
  "iommu_test_cmd.op": values(
    selftest,
    ...(Object.keys(selftest).filter((name) => name.startsWith("IOMMU_TEST_OP_")) as (keyof typeof selftest)[]),
  ),
};

const hex = (value: bigint): string => `0x${value.toString(16)}`;

/** A member's value in its constants, `A|B|0x40` with the bits that have none; undefined where a member is a plain number. */
export function describeMember(struct: AnyStruct, member: string, value: number | bigint): string | undefined {
  const words = VOCABULARY[`${struct.name}.${member}`];
  if (words === undefined) return undefined;
  let rest = BigInt(value);
  const names: string[] = [];
  const valuePart = rest & words.mask;
  const valueName = words.values.get(valuePart);
  if (valueName !== undefined) {
    names.push(valueName);
    rest -= valuePart;
  }
  for (const [bit, name] of words.flags) {
    if ((rest & bit) === bit) {
      names.push(name);
      rest -= bit;
    }
  }
  if (rest !== 0n || names.length === 0) names.push(rest === 0n ? "0" : hex(rest));
  return names.join("|");
}

/** Elements of an array that are printed. */
const SHOWN = 16;
/** Left out while zero. */
const RESERVED = /^(__)?(reserved\d*|pad|resv\d*)$/;

/**
 * A structure in one line, `{size=56, flags=IOMMU_IOAS_MAP_READABLE, iova=0x1000}`: 64-bit members in hexadecimal, others in
 * decimal; of members that lie over each other the one that the command means, where that can be told, else the first.
 */
export function formatStruct(struct: AnyStruct, view: StructView): string {
  const members = view as unknown as Readonly<Record<string, unknown>>;
  const meant = meantOfUnion(struct, members);
  const parts: string[] = [];
  for (const [name, type] of Object.entries(struct.fields)) {
    const value = members[name];
    if (struct.union.includes(name) && name !== meant) continue;
    if (RESERVED.test(name) && isZero(value)) continue;
    parts.push(`${name}=${describeFeatureData(struct, name, members) ?? formatValue(struct, name, type, value)}`);
  }
  return `{${parts.join(", ")}}`;
}

function formatValue(struct: AnyStruct, name: string, type: FieldType, value: unknown): string {
  if (typeof value === "number") return describeMember(struct, name, value) ?? String(value);
  if (typeof value === "bigint") return describeMember(struct, name, value) ?? hex(value);
  const element = (Array.isArray(type) ? type[0] : type) as AnyStruct | string;
  const one = (item: unknown): string =>
    typeof element === "string" ? formatScalar(item as number | bigint) : formatStruct(element, item as StructView);
  if (!Array.isArray(type)) return one(value);
  const items = [...(value as Iterable<unknown>)];
  return `[${items.slice(0, SHOWN).map(one).join(", ")}${items.length > SHOWN ? ", …" : ""}]`;
}

const formatScalar = (value: number | bigint): string => (typeof value === "bigint" ? hex(value) : String(value));

function isZero(value: unknown): boolean {
  if (value instanceof Uint8Array) return value.every((byte) => byte === 0);
  return value === 0 || value === 0n;
}

/** The data of a VFIO feature as the structure that the flags beside it say it is. */
function describeFeatureData(struct: AnyStruct, name: string, members: Readonly<Record<string, unknown>>): string | undefined {
  if (struct !== vfio.VfioDeviceFeature || name !== "data") return undefined;
  const layout = describeFeature(members.flags as number)?.struct;
  const data = members.data as Uint8Array;
  return layout === undefined || data.length < layout.size ? undefined : formatStruct(layout, layout.over(data));
}

/** Which member of the selftests' command an operation takes, where the two are not called the same. */
const TEST_MEMBER: ReadonlyMap<number, string> = new Map([
  [selftest.IOMMU_TEST_OP_MD_CHECK_MAP, "check_map"],
  [selftest.IOMMU_TEST_OP_MD_CHECK_REFS, "check_refs"],
  [selftest.IOMMU_TEST_OP_MD_CHECK_IOTLB, "check_iotlb"],
  [selftest.IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, "memory_limit"],
  [selftest.IOMMU_TEST_OP_DEV_CHECK_CACHE, "check_dev_cache"],
  [selftest.IOMMU_TEST_OP_PASID_CHECK_HWPT, "pasid_check"],
]);

function meantOfUnion(struct: AnyStruct, members: Readonly<Record<string, unknown>>): string | undefined {
  return struct === selftest.IommuTestCmd ? testMember(members.op as number) : struct.union[0];
}

/** The member of IommuTestCmd's union that an operation takes; undefined: none. */
export function testMember(op: number): string | undefined {
  const struct = selftest.IommuTestCmd;
  const sameName = describeMember(struct, "op", op)?.replace("IOMMU_TEST_OP_", "").toLowerCase() ?? "";
  return TEST_MEMBER.get(op) ?? (struct.union.includes(sameName) ? sameName : undefined);
}
