/**
 * Commands by their numbers, for traces and error messages.
 */
import * as dmaBuf from "./dma_buf.ts";
import * as dmaHeap from "./dma_heap.ts";
import { _IOC_DIR, _IOC_NR, _IOC_READ, _IOC_SIZE, _IOC_TYPE, _IOC_WRITE } from "./ioctl.ts";
import * as iommufd from "./iommufd.ts";
import * as selftest from "./iommufd_test.ts";
import type { AnyStruct } from "./struct.ts";
import * as syncFile from "./sync_file.ts";
import * as udmabuf from "./udmabuf.ts";
import * as vfio from "./vfio.ts";

/** What a descriptor is of. VFIO gives one number to several commands, which only this tells apart. */
export type DescriptorKind =
  | "iommufd"
  | "vfio-device"
  | "vfio-group"
  | "vfio-container"
  | "vfio-migration"
  | "dma-buf"
  | "dma-heap"
  | "udmabuf"
  | "sync-file";

/** A constant, and the structure that belongs to it; none where there is no data, or not in a structure. */
export interface Named {
  readonly name: string;
  readonly struct?: AnyStruct;
}

/** `struct` is what the command's argument points to. */
export interface IoctlDescription extends Named {
  readonly kind: DescriptorKind;
}

/**
 * Constants of `module` by their values, each with the structure that belongs to it, or null. The keys are names which the module
 * exports, so that none can be misspelt.
 */
function byValue<Module>(module: Module, names: { readonly [Name in keyof Module]?: AnyStruct | null }): Map<number, Named> {
  const entries = Object.entries(names) as [keyof Module & string, AnyStruct | null][];
  return new Map(entries.map(([name, struct]) => [module[name] as number, { name, ...(struct !== null && { struct }) }]));
}

const COMMANDS: Readonly<Record<DescriptorKind, ReadonlyMap<number, Named>>> = {
  iommufd: new Map([
    ...byValue(iommufd, {
      IOMMU_DESTROY: iommufd.IommuDestroy,
      IOMMU_IOAS_ALLOC: iommufd.IommuIoasAlloc,
      IOMMU_IOAS_ALLOW_IOVAS: iommufd.IommuIoasAllowIovas,
      IOMMU_IOAS_COPY: iommufd.IommuIoasCopy,
      IOMMU_IOAS_IOVA_RANGES: iommufd.IommuIoasIovaRanges,
      IOMMU_IOAS_MAP: iommufd.IommuIoasMap,
      IOMMU_IOAS_UNMAP: iommufd.IommuIoasUnmap,
      IOMMU_OPTION: iommufd.IommuOption,
      IOMMU_VFIO_IOAS: iommufd.IommuVfioIoas,
      IOMMU_HWPT_ALLOC: iommufd.IommuHwptAlloc,
      IOMMU_GET_HW_INFO: iommufd.IommuHwInfo,
      IOMMU_HWPT_SET_DIRTY_TRACKING: iommufd.IommuHwptSetDirtyTracking,
      IOMMU_HWPT_GET_DIRTY_BITMAP: iommufd.IommuHwptGetDirtyBitmap,
      IOMMU_HWPT_INVALIDATE: iommufd.IommuHwptInvalidate,
      IOMMU_FAULT_QUEUE_ALLOC: iommufd.IommuFaultAlloc,
      IOMMU_IOAS_MAP_FILE: iommufd.IommuIoasMapFile,
      IOMMU_VIOMMU_ALLOC: iommufd.IommuViommuAlloc,
      IOMMU_VDEVICE_ALLOC: iommufd.IommuVdeviceAlloc,
      IOMMU_IOAS_CHANGE_PROCESS: iommufd.IommuIoasChangeProcess,
      IOMMU_VEVENTQ_ALLOC: iommufd.IommuVeventqAlloc,
      IOMMU_HW_QUEUE_ALLOC: iommufd.IommuHwQueueAlloc,
      IOMMU_IOAS_NOIOMMU_GET_PA: iommufd.IommuIoasNoiommuGetPa,
    }),
    ...byValue(selftest, { IOMMU_TEST_CMD: selftest.IommuTestCmd }),
  ]),
  "vfio-device": byValue(vfio, {
    VFIO_DEVICE_GET_INFO: vfio.VfioDeviceInfo,
    VFIO_DEVICE_GET_REGION_INFO: vfio.VfioRegionInfo,
    VFIO_DEVICE_GET_IRQ_INFO: vfio.VfioIrqInfo,
    VFIO_DEVICE_SET_IRQS: vfio.VfioIrqSet,
    VFIO_DEVICE_RESET: null,
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: vfio.VfioPciHotResetInfo,
    VFIO_DEVICE_PCI_HOT_RESET: vfio.VfioPciHotReset,
    VFIO_DEVICE_QUERY_GFX_PLANE: vfio.VfioDeviceGfxPlaneInfo,
    VFIO_DEVICE_GET_GFX_DMABUF: null,
    VFIO_DEVICE_IOEVENTFD: vfio.VfioDeviceIoeventfd,
    VFIO_DEVICE_FEATURE: vfio.VfioDeviceFeature,
    VFIO_DEVICE_BIND_IOMMUFD: vfio.VfioDeviceBindIommufd,
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: vfio.VfioDeviceAttachIommufdPt,
    VFIO_DEVICE_DETACH_IOMMUFD_PT: vfio.VfioDeviceDetachIommufdPt,
  }),
  "vfio-group": byValue(vfio, {
    VFIO_GROUP_GET_STATUS: vfio.VfioGroupStatus,
    VFIO_GROUP_SET_CONTAINER: null,
    VFIO_GROUP_UNSET_CONTAINER: null,
    VFIO_GROUP_GET_DEVICE_FD: null,
  }),
  // On POWER, the numbers of GET_INFO and DIRTY_PAGES are SPAPR_TCE_GET_INFO and SPAPR_REGISTER_MEMORY.
  "vfio-container": byValue(vfio, {
    VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY: vfio.VfioIommuSpaprRegisterMemory,
    VFIO_IOMMU_SPAPR_TCE_CREATE: vfio.VfioIommuSpaprTceCreate,
    VFIO_IOMMU_SPAPR_TCE_REMOVE: vfio.VfioIommuSpaprTceRemove,
    VFIO_EEH_PE_OP: vfio.VfioEehPeOp,
    VFIO_GET_API_VERSION: null,
    VFIO_CHECK_EXTENSION: null,
    VFIO_SET_IOMMU: null,
    VFIO_IOMMU_GET_INFO: vfio.VfioIommuType1Info,
    VFIO_IOMMU_MAP_DMA: vfio.VfioIommuType1DmaMap,
    VFIO_IOMMU_UNMAP_DMA: vfio.VfioIommuType1DmaUnmap,
    VFIO_IOMMU_ENABLE: null,
    VFIO_IOMMU_DISABLE: null,
    VFIO_IOMMU_DIRTY_PAGES: vfio.VfioIommuType1DirtyBitmap,
  }),
  "vfio-migration": byValue(vfio, { VFIO_MIG_GET_PRECOPY_INFO: vfio.VfioPrecopyInfo }),
  "dma-buf": byValue(dmaBuf, {
    DMA_BUF_IOCTL_SYNC: dmaBuf.DmaBufSync,
    DMA_BUF_SET_NAME_A: null,
    DMA_BUF_SET_NAME_B: null,
    DMA_BUF_IOCTL_EXPORT_SYNC_FILE: dmaBuf.DmaBufExportSyncFile,
    DMA_BUF_IOCTL_IMPORT_SYNC_FILE: dmaBuf.DmaBufImportSyncFile,
  }),
  "dma-heap": byValue(dmaHeap, { DMA_HEAP_IOCTL_ALLOC: dmaHeap.DmaHeapAllocationData }),
  udmabuf: byValue(udmabuf, { UDMABUF_CREATE: udmabuf.UdmabufCreate, UDMABUF_CREATE_LIST: udmabuf.UdmabufCreateList }),
  "sync-file": byValue(syncFile, {
    SYNC_IOC_MERGE: syncFile.SyncMergeData,
    SYNC_IOC_FILE_INFO: syncFile.SyncFileInfo,
    SYNC_IOC_SET_DEADLINE: syncFile.SyncSetDeadline,
  }),
};

/** Every kind of descriptor that has commands. */
export const DESCRIPTOR_KINDS: readonly DescriptorKind[] = Object.keys(COMMANDS) as DescriptorKind[];

/** The commands of a kind, by number. */
export const commandsOf = (kind: DescriptorKind): ReadonlyMap<number, Named> => COMMANDS[kind];

/** An iommufd in place of a container understands the container's commands, too. */
const FALLBACK: { readonly [Kind in DescriptorKind]?: DescriptorKind } = { iommufd: "vfio-container" };

/**
 * The command with this number: of the descriptor's kind where that is given, else the first in the order of DescriptorKind.
 * Undefined when there is none.
 */
export function describeIoctl(cmd: number, kind?: DescriptorKind): IoctlDescription | undefined {
  const kinds = kind === undefined ? (Object.keys(COMMANDS) as DescriptorKind[]) : [kind, FALLBACK[kind] ?? kind];
  for (const candidate of kinds) {
    const command = COMMANDS[candidate].get(cmd);
    if (command !== undefined) return { ...command, kind: candidate };
  }
  return undefined;
}

/** The command's name; one that is not known prints as its parts, `_IOC(_IOC_WRITE, 0x62, 0x9, 8)`. */
export function ioctlName(cmd: number, kind?: DescriptorKind): string {
  const known = describeIoctl(cmd, kind);
  if (known !== undefined) return known.name;
  const dir = _IOC_DIR(cmd);
  const directions = [...(dir & _IOC_READ ? ["_IOC_READ"] : []), ...(dir & _IOC_WRITE ? ["_IOC_WRITE"] : [])];
  const hex = (value: number): string => `0x${value.toString(16)}`;
  return `_IOC(${directions.join("|") || "_IOC_NONE"}, ${hex(_IOC_TYPE(cmd))}, ${hex(_IOC_NR(cmd))}, ${_IOC_SIZE(cmd)})`;
}

/** What `data` of VFIO_DEVICE_FEATURE is, for each feature. */
export const FEATURES: ReadonlyMap<number, Named> = byValue(vfio, {
  VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: null,
  VFIO_DEVICE_FEATURE_MIGRATION: vfio.VfioDeviceFeatureMigration,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: vfio.VfioDeviceFeatureMigState,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: null,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: vfio.VfioDeviceLowPowerEntryWithWakeup,
  VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: null,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START: vfio.VfioDeviceFeatureDmaLoggingControl,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: null,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: vfio.VfioDeviceFeatureDmaLoggingReport,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: vfio.VfioDeviceFeatureMigDataSize,
  VFIO_DEVICE_FEATURE_BUS_MASTER: vfio.VfioDeviceFeatureBusMaster,
  VFIO_DEVICE_FEATURE_DMA_BUF: vfio.VfioDeviceFeatureDmaBuf,
  VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: null,
  VFIO_DEVICE_FEATURE_ZPCI_ERROR: vfio.VfioDeviceFeatureZpciErr,
});

/** The feature that `flags` of VFIO_DEVICE_FEATURE names, and the structure of its data. */
export function describeFeature(flags: number): Named | undefined {
  return FEATURES.get(flags & vfio.VFIO_DEVICE_FEATURE_MASK);
}
