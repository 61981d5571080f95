/**
 * PCI configuration space: the header and the capabilities of its first 256 bytes (include/uapi/linux/pci_regs.h).
 *
 * A register is its offset, and the names under it are its fields, as masks or as values in place. All registers are little
 * endian and at most 32 bits wide, so a mask that C writes as `~0x0fUL` has 32 bits here.
 */
export * from "./pci_ext_regs.ts";

// Sizes

export const PCI_CFG_SPACE_SIZE = 256;
export const PCI_CFG_SPACE_EXP_SIZE = 4096;

export const PCI_STD_HEADER_SIZEOF = 64;
export const PCI_STD_NUM_BARS = 6;

// The header: the part that every function has

export const PCI_VENDOR_ID = 0x00;
export const PCI_DEVICE_ID = 0x02;
export const PCI_COMMAND = 0x04;
export const PCI_COMMAND_IO = 0x1; // I/O BARs answer
export const PCI_COMMAND_MEMORY = 0x2; // memory BARs answer
export const PCI_COMMAND_MASTER = 0x4; // may issue DMA and MSI
export const PCI_COMMAND_SPECIAL = 0x8;
export const PCI_COMMAND_INVALIDATE = 0x10;
export const PCI_COMMAND_VGA_PALETTE = 0x20;
export const PCI_COMMAND_PARITY = 0x40;
export const PCI_COMMAND_WAIT = 0x80;
export const PCI_COMMAND_SERR = 0x100;
export const PCI_COMMAND_FAST_BACK = 0x200;
export const PCI_COMMAND_INTX_DISABLE = 0x400;

export const PCI_STATUS = 0x06;
export const PCI_STATUS_IMM_READY = 0x01; // no wait after a reset
export const PCI_STATUS_INTERRUPT = 0x08;
export const PCI_STATUS_CAP_LIST = 0x10; // PCI_CAPABILITY_LIST is meant
export const PCI_STATUS_66MHZ = 0x20;
export const PCI_STATUS_UDF = 0x40;
export const PCI_STATUS_FAST_BACK = 0x80;
export const PCI_STATUS_PARITY = 0x100;
export const PCI_STATUS_DEVSEL_MASK = 0x600;
export const PCI_STATUS_DEVSEL_FAST = 0x000;
export const PCI_STATUS_DEVSEL_MEDIUM = 0x200;
export const PCI_STATUS_DEVSEL_SLOW = 0x400;
export const PCI_STATUS_SIG_TARGET_ABORT = 0x800;
export const PCI_STATUS_REC_TARGET_ABORT = 0x1000;
export const PCI_STATUS_REC_MASTER_ABORT = 0x2000;
export const PCI_STATUS_SIG_SYSTEM_ERROR = 0x4000;
export const PCI_STATUS_DETECTED_PARITY = 0x8000;

export const PCI_CLASS_REVISION = 0x08; // class in the upper 24 bits
export const PCI_REVISION_ID = 0x08;
export const PCI_CLASS_PROG = 0x09;
export const PCI_CLASS_DEVICE = 0x0a;

export const PCI_CACHE_LINE_SIZE = 0x0c;
export const PCI_LATENCY_TIMER = 0x0d;
export const PCI_HEADER_TYPE = 0x0e;
export const PCI_HEADER_TYPE_MASK = 0x7f;
export const PCI_HEADER_TYPE_NORMAL = 0;
export const PCI_HEADER_TYPE_BRIDGE = 1;
export const PCI_HEADER_TYPE_CARDBUS = 2;
export const PCI_HEADER_TYPE_MFD = 0x80; // more functions than 0

export const PCI_BIST = 0x0f;
export const PCI_BIST_CODE_MASK = 0x0f;
export const PCI_BIST_START = 0x40;
export const PCI_BIST_CAPABLE = 0x80;

export const PCI_BASE_ADDRESS_0 = 0x10;
export const PCI_BASE_ADDRESS_1 = 0x14;
export const PCI_BASE_ADDRESS_2 = 0x18;
export const PCI_BASE_ADDRESS_3 = 0x1c;
export const PCI_BASE_ADDRESS_4 = 0x20;
export const PCI_BASE_ADDRESS_5 = 0x24;
export const PCI_BASE_ADDRESS_SPACE = 0x01;
export const PCI_BASE_ADDRESS_SPACE_IO = 0x01;
export const PCI_BASE_ADDRESS_SPACE_MEMORY = 0x00;
export const PCI_BASE_ADDRESS_MEM_TYPE_MASK = 0x06;
export const PCI_BASE_ADDRESS_MEM_TYPE_32 = 0x00;
export const PCI_BASE_ADDRESS_MEM_TYPE_1M = 0x02;
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x04;
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x08;
export const PCI_BASE_ADDRESS_MEM_MASK = 0xffff_fff0;
export const PCI_BASE_ADDRESS_IO_MASK = 0xffff_fffc;

// The header of a device (type 0)

export const PCI_CARDBUS_CIS = 0x28;
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_SUBSYSTEM_ID = 0x2e;
export const PCI_ROM_ADDRESS = 0x30;
export const PCI_ROM_ADDRESS_ENABLE = 0x01;

export const PCI_ROM_ADDRESS_MASK = 0xffff_f800;

export const PCI_CAPABILITY_LIST = 0x34;

export const PCI_INTERRUPT_LINE = 0x3c;
export const PCI_INTERRUPT_PIN = 0x3d;
export const PCI_MIN_GNT = 0x3e;
export const PCI_MAX_LAT = 0x3f;

// The header of a bridge (type 1)

export const PCI_PRIMARY_BUS = 0x18;
export const PCI_SECONDARY_BUS = 0x19;
export const PCI_SUBORDINATE_BUS = 0x1a;
export const PCI_SEC_LATENCY_TIMER = 0x1b;
export const PCI_PRIMARY_BUS_MASK = 0x0000_00ff;
export const PCI_SECONDARY_BUS_MASK = 0x0000_ff00;
export const PCI_SUBORDINATE_BUS_MASK = 0x00ff_0000;
export const PCI_SEC_LATENCY_TIMER_MASK = 0xff00_0000;

export const PCI_IO_BASE = 0x1c;
export const PCI_IO_LIMIT = 0x1d;
export const PCI_IO_RANGE_TYPE_MASK = 0x0f;
export const PCI_IO_RANGE_TYPE_16 = 0x00;
export const PCI_IO_RANGE_TYPE_32 = 0x01;
export const PCI_IO_RANGE_MASK = 0xffff_fff0;
export const PCI_IO_1K_RANGE_MASK = 0xffff_fffc;

export const PCI_SEC_STATUS = 0x1e;
export const PCI_MEMORY_BASE = 0x20;
export const PCI_MEMORY_LIMIT = 0x22;
export const PCI_MEMORY_RANGE_TYPE_MASK = 0x0f;
export const PCI_MEMORY_RANGE_MASK = 0xffff_fff0;

export const PCI_PREF_MEMORY_BASE = 0x24;
export const PCI_PREF_MEMORY_LIMIT = 0x26;
export const PCI_PREF_RANGE_TYPE_MASK = 0x0f;
export const PCI_PREF_RANGE_TYPE_32 = 0x00;
export const PCI_PREF_RANGE_TYPE_64 = 0x01;
export const PCI_PREF_RANGE_MASK = 0xffff_fff0;

export const PCI_PREF_BASE_UPPER32 = 0x28;
export const PCI_PREF_LIMIT_UPPER32 = 0x2c;
export const PCI_IO_BASE_UPPER16 = 0x30;
export const PCI_IO_LIMIT_UPPER16 = 0x32;
export const PCI_ROM_ADDRESS1 = 0x38; // of a type 1 header
export const PCI_BRIDGE_CONTROL = 0x3e;
export const PCI_BRIDGE_CTL_PARITY = 0x01;
export const PCI_BRIDGE_CTL_SERR = 0x02;
export const PCI_BRIDGE_CTL_ISA = 0x04;
export const PCI_BRIDGE_CTL_VGA = 0x08;
export const PCI_BRIDGE_CTL_MASTER_ABORT = 0x20;
export const PCI_BRIDGE_CTL_BUS_RESET = 0x40; // resets what is behind, while set
export const PCI_BRIDGE_CTL_FAST_BACK = 0x80;

// The header of a CardBus bridge (type 2)

export const PCI_CB_CAPABILITY_LIST = 0x14;
export const PCI_CB_SEC_STATUS = 0x16;
export const PCI_CB_PRIMARY_BUS = 0x18;
export const PCI_CB_CARD_BUS = 0x19;
export const PCI_CB_SUBORDINATE_BUS = 0x1a;
export const PCI_CB_LATENCY_TIMER = 0x1b;
export const PCI_CB_MEMORY_BASE_0 = 0x1c;
export const PCI_CB_MEMORY_LIMIT_0 = 0x20;
export const PCI_CB_MEMORY_BASE_1 = 0x24;
export const PCI_CB_MEMORY_LIMIT_1 = 0x28;
export const PCI_CB_IO_BASE_0 = 0x2c;
export const PCI_CB_IO_BASE_0_HI = 0x2e;
export const PCI_CB_IO_LIMIT_0 = 0x30;
export const PCI_CB_IO_LIMIT_0_HI = 0x32;
export const PCI_CB_IO_BASE_1 = 0x34;
export const PCI_CB_IO_BASE_1_HI = 0x36;
export const PCI_CB_IO_LIMIT_1 = 0x38;
export const PCI_CB_IO_LIMIT_1_HI = 0x3a;
export const PCI_CB_IO_RANGE_MASK = 0xffff_fffc;

export const PCI_CB_BRIDGE_CONTROL = 0x3e;
export const PCI_CB_BRIDGE_CTL_PARITY = 0x01;
export const PCI_CB_BRIDGE_CTL_SERR = 0x02;
export const PCI_CB_BRIDGE_CTL_ISA = 0x04;
export const PCI_CB_BRIDGE_CTL_VGA = 0x08;
export const PCI_CB_BRIDGE_CTL_MASTER_ABORT = 0x20;
export const PCI_CB_BRIDGE_CTL_CB_RESET = 0x40;
export const PCI_CB_BRIDGE_CTL_16BIT_INT = 0x80;
export const PCI_CB_BRIDGE_CTL_PREFETCH_MEM0 = 0x100;
export const PCI_CB_BRIDGE_CTL_PREFETCH_MEM1 = 0x200;
export const PCI_CB_BRIDGE_CTL_POST_WRITES = 0x400;

export const PCI_CB_SUBSYSTEM_VENDOR_ID = 0x40;
export const PCI_CB_SUBSYSTEM_ID = 0x42;
export const PCI_CB_LEGACY_MODE_BASE = 0x44;

// Capabilities: a list through the first 256 bytes, from PCI_CAPABILITY_LIST on; offsets below are from a capability's start

export const PCI_CAP_ID_MASK = 0x00ff;
export const PCI_CAP_LIST_NEXT_MASK = 0xff00;

export const PCI_CAP_LIST_ID = 0;
export const PCI_CAP_ID_PM = 0x01;
export const PCI_CAP_ID_AGP = 0x02;
export const PCI_CAP_ID_VPD = 0x03;
export const PCI_CAP_ID_SLOTID = 0x04;
export const PCI_CAP_ID_MSI = 0x05;
export const PCI_CAP_ID_CHSWP = 0x06;
export const PCI_CAP_ID_PCIX = 0x07;
export const PCI_CAP_ID_HT = 0x08;
export const PCI_CAP_ID_VNDR = 0x09;
export const PCI_CAP_ID_DBG = 0x0a;
export const PCI_CAP_ID_CCRC = 0x0b;
export const PCI_CAP_ID_SHPC = 0x0c;
export const PCI_CAP_ID_SSVID = 0x0d;
export const PCI_CAP_ID_AGP3 = 0x0e;
export const PCI_CAP_ID_SECDEV = 0x0f;
export const PCI_CAP_ID_EXP = 0x10;
export const PCI_CAP_ID_MSIX = 0x11;
export const PCI_CAP_ID_SATA = 0x12;
export const PCI_CAP_ID_AF = 0x13;
export const PCI_CAP_ID_EA = 0x14;
export const PCI_CAP_ID_MAX = PCI_CAP_ID_EA;

export const PCI_CAP_LIST_NEXT = 1;
export const PCI_CAP_FLAGS = 2;
export const PCI_CAP_SIZEOF = 4;

// Power management

export const PCI_PM_PMC = 2;
export const PCI_PM_CAP_VER_MASK = 0x0007;
export const PCI_PM_CAP_PME_CLOCK = 0x0008;
export const PCI_PM_CAP_RESERVED = 0x0010;
export const PCI_PM_CAP_DSI = 0x0020;
export const PCI_PM_CAP_AUX_POWER = 0x01c0;
export const PCI_PM_CAP_D1 = 0x0200; // D1 is supported
export const PCI_PM_CAP_D2 = 0x0400; // D2 is supported
export const PCI_PM_CAP_PME = 0x0800;
export const PCI_PM_CAP_PME_MASK = 0xf800;
export const PCI_PM_CAP_PME_D0 = 0x0800;
export const PCI_PM_CAP_PME_D1 = 0x1000;
export const PCI_PM_CAP_PME_D2 = 0x2000;
export const PCI_PM_CAP_PME_D3hot = 0x4000;
export const PCI_PM_CAP_PME_D3cold = 0x8000;
export const PCI_PM_CAP_PME_SHIFT = 11;

export const PCI_PM_CTRL = 4;
export const PCI_PM_CTRL_STATE_MASK = 0x0003; // D0 … D3hot
export const PCI_PM_CTRL_NO_SOFT_RESET = 0x0008; // D3hot to D0 keeps the state
export const PCI_PM_CTRL_PME_ENABLE = 0x0100;
export const PCI_PM_CTRL_DATA_SEL_MASK = 0x1e00;
export const PCI_PM_CTRL_DATA_SCALE_MASK = 0x6000;
export const PCI_PM_CTRL_PME_STATUS = 0x8000;

export const PCI_PM_PPB_EXTENSIONS = 6;
export const PCI_PM_PPB_B2_B3 = 0x40;
export const PCI_PM_BPCC_ENABLE = 0x80;

export const PCI_PM_DATA_REGISTER = 7;
export const PCI_PM_SIZEOF = 8;

// Accelerated graphics port

export const PCI_AGP_VERSION = 2;
export const PCI_AGP_RFU = 3;
export const PCI_AGP_STATUS = 4;
export const PCI_AGP_STATUS_RQ_MASK = 0xff00_0000;
export const PCI_AGP_STATUS_SBA = 0x0200;
export const PCI_AGP_STATUS_64BIT = 0x0020;
export const PCI_AGP_STATUS_FW = 0x0010;
export const PCI_AGP_STATUS_RATE4 = 0x0004;
export const PCI_AGP_STATUS_RATE2 = 0x0002;
export const PCI_AGP_STATUS_RATE1 = 0x0001;

export const PCI_AGP_COMMAND = 8;
export const PCI_AGP_COMMAND_RQ_MASK = 0xff00_0000;
export const PCI_AGP_COMMAND_SBA = 0x0200;
export const PCI_AGP_COMMAND_AGP = 0x0100;
export const PCI_AGP_COMMAND_64BIT = 0x0020;
export const PCI_AGP_COMMAND_FW = 0x0010;
export const PCI_AGP_COMMAND_RATE4 = 0x0004;
export const PCI_AGP_COMMAND_RATE2 = 0x0002;
export const PCI_AGP_COMMAND_RATE1 = 0x0001;

export const PCI_AGP_SIZEOF = 12;

// Vital product data: write an address, wait for PCI_VPD_ADDR_F to turn over, take the data

export const PCI_VPD_ADDR = 2;
export const PCI_VPD_ADDR_MASK = 0x7fff;
export const PCI_VPD_ADDR_F = 0x8000;

export const PCI_VPD_DATA = 4;
export const PCI_CAP_VPD_SIZEOF = 8;

// Slot identification

export const PCI_SID_ESR = 2;
export const PCI_SID_ESR_NSLOTS = 0x1f;
export const PCI_SID_ESR_FIC = 0x20; // first in chassis

export const PCI_SID_CHASSIS_NR = 3;

// MSI: what follows the address depends on PCI_MSI_FLAGS_64BIT and PCI_MSI_FLAGS_MASKBIT

export const PCI_MSI_FLAGS = 0x02;
export const PCI_MSI_FLAGS_ENABLE = 0x0001;
export const PCI_MSI_FLAGS_QMASK = 0x000e; // log2 of vectors wanted
export const PCI_MSI_FLAGS_QSIZE = 0x0070; // log2 of vectors granted
export const PCI_MSI_FLAGS_64BIT = 0x0080;
export const PCI_MSI_FLAGS_MASKBIT = 0x0100;

export const PCI_MSI_RFU = 3;
export const PCI_MSI_ADDRESS_LO = 0x04;
export const PCI_MSI_ADDRESS_HI = 0x08;
export const PCI_MSI_DATA_32 = 0x08;
export const PCI_MSI_MASK_32 = 0x0c;
export const PCI_MSI_PENDING_32 = 0x10;
export const PCI_MSI_DATA_64 = 0x0c;
export const PCI_MSI_MASK_64 = 0x10;
export const PCI_MSI_PENDING_64 = 0x14;

// MSI-X

export const PCI_MSIX_FLAGS = 2;
export const PCI_MSIX_FLAGS_QSIZE = 0x07ff; // vectors - 1
export const PCI_MSIX_FLAGS_MASKALL = 0x4000;
export const PCI_MSIX_FLAGS_ENABLE = 0x8000;

export const PCI_MSIX_TABLE = 4;
export const PCI_MSIX_TABLE_BIR = 0x0000_0007; // BAR number
export const PCI_MSIX_TABLE_OFFSET = 0xffff_fff8;

export const PCI_MSIX_PBA = 8;
export const PCI_MSIX_PBA_BIR = 0x0000_0007; // BAR number
export const PCI_MSIX_PBA_OFFSET = 0xffff_fff8;

export const PCI_MSIX_FLAGS_BIRMASK = PCI_MSIX_PBA_BIR;
export const PCI_CAP_MSIX_SIZEOF = 12;

// An entry of the MSI-X table, which lies in a BAR

export const PCI_MSIX_ENTRY_SIZE = 16;
export const PCI_MSIX_ENTRY_LOWER_ADDR = 0x0;
export const PCI_MSIX_ENTRY_UPPER_ADDR = 0x4;
export const PCI_MSIX_ENTRY_DATA = 0x8;
export const PCI_MSIX_ENTRY_VECTOR_CTRL = 0xc;
export const PCI_MSIX_ENTRY_CTRL_MASKBIT = 0x0000_0001;
export const PCI_MSIX_ENTRY_CTRL_ST = 0xffff_0000;

// CompactPCI hot swap

export const PCI_CHSWP_CSR = 2;
export const PCI_CHSWP_DHA = 0x01; // device hiding
export const PCI_CHSWP_EIM = 0x02; // ENUM# masked
export const PCI_CHSWP_PIE = 0x04; // insertion or extraction pending
export const PCI_CHSWP_LOO = 0x08; // LED
export const PCI_CHSWP_PI = 0x30; // programming interface
export const PCI_CHSWP_EXT = 0x40; // extracted
export const PCI_CHSWP_INS = 0x80; // inserted

// Advanced features: function level reset for conventional PCI

export const PCI_AF_LENGTH = 2;
export const PCI_AF_CAP = 3;
export const PCI_AF_CAP_TP = 0x01; // PCI_AF_STATUS_TP is kept
export const PCI_AF_CAP_FLR = 0x02;

export const PCI_AF_CTRL = 4;
export const PCI_AF_CTRL_FLR = 0x01;

export const PCI_AF_STATUS = 5;
export const PCI_AF_STATUS_TP = 0x01; // transactions pending

export const PCI_CAP_AF_SIZEOF = 6;

// Enhanced allocation: fixed addresses instead of BARs

export const PCI_EA_NUM_ENT = 2;
export const PCI_EA_NUM_ENT_MASK = 0x3f;

export const PCI_EA_FIRST_ENT = 4;
export const PCI_EA_FIRST_ENT_BRIDGE = 8;
export const PCI_EA_ES = 0x0000_0007;
export const PCI_EA_BEI = 0x0000_00f0;

export const PCI_EA_SEC_BUS_MASK = 0xff;
export const PCI_EA_SUB_BUS_MASK = 0xff00;
export const PCI_EA_SUB_BUS_SHIFT = 8;

export const PCI_EA_BEI_BAR0 = 0;
export const PCI_EA_BEI_BAR5 = 5;
export const PCI_EA_BEI_BRIDGE = 6;
export const PCI_EA_BEI_ENI = 7;
export const PCI_EA_BEI_ROM = 8;
export const PCI_EA_BEI_VF_BAR0 = 9;
export const PCI_EA_BEI_VF_BAR5 = 14;
export const PCI_EA_BEI_RESERVED = 15;
export const PCI_EA_PP = 0x0000_ff00;
export const PCI_EA_SP = 0x00ff_0000;
export const PCI_EA_P_MEM = 0x00;
export const PCI_EA_P_MEM_PREFETCH = 0x01;
export const PCI_EA_P_IO = 0x02;
export const PCI_EA_P_VF_MEM_PREFETCH = 0x03;
export const PCI_EA_P_VF_MEM = 0x04;
export const PCI_EA_P_BRIDGE_MEM = 0x05;
export const PCI_EA_P_BRIDGE_MEM_PREFETCH = 0x06;
export const PCI_EA_P_BRIDGE_IO = 0x07;
export const PCI_EA_P_MEM_RESERVED = 0xfd;
export const PCI_EA_P_IO_RESERVED = 0xfe;
export const PCI_EA_P_UNAVAILABLE = 0xff;
export const PCI_EA_WRITABLE = 0x4000_0000;
export const PCI_EA_ENABLE = 0x8000_0000;

export const PCI_EA_BASE = 4;
export const PCI_EA_MAX_OFFSET = 8;
export const PCI_EA_IS_64 = 0x0000_0002;
export const PCI_EA_FIELD_MASK = 0xffff_fffc;

// PCI-X, of a device

export const PCI_X_CMD = 2;
export const PCI_X_CMD_DPERR_E = 0x0001;
export const PCI_X_CMD_ERO = 0x0002;
export const PCI_X_CMD_READ_512 = 0x0000;
export const PCI_X_CMD_READ_1K = 0x0004;
export const PCI_X_CMD_READ_2K = 0x0008;
export const PCI_X_CMD_READ_4K = 0x000c;
export const PCI_X_CMD_MAX_READ = 0x000c;
export const PCI_X_CMD_SPLIT_1 = 0x0000;
export const PCI_X_CMD_SPLIT_2 = 0x0010;
export const PCI_X_CMD_SPLIT_3 = 0x0020;
export const PCI_X_CMD_SPLIT_4 = 0x0030;
export const PCI_X_CMD_SPLIT_8 = 0x0040;
export const PCI_X_CMD_SPLIT_12 = 0x0050;
export const PCI_X_CMD_SPLIT_16 = 0x0060;
export const PCI_X_CMD_SPLIT_32 = 0x0070;
export const PCI_X_CMD_MAX_SPLIT = 0x0070;
export const PCI_X_CMD_VERSION = (x: number): number => (x >> 12) & 3;

export const PCI_X_STATUS = 4;
export const PCI_X_STATUS_DEVFN = 0x0000_00ff;
export const PCI_X_STATUS_BUS = 0x0000_ff00;
export const PCI_X_STATUS_64BIT = 0x0001_0000;
export const PCI_X_STATUS_133MHZ = 0x0002_0000;
export const PCI_X_STATUS_SPL_DISC = 0x0004_0000;
export const PCI_X_STATUS_UNX_SPL = 0x0008_0000;
export const PCI_X_STATUS_COMPLEX = 0x0010_0000;
export const PCI_X_STATUS_MAX_READ = 0x0060_0000;
export const PCI_X_STATUS_MAX_SPLIT = 0x0380_0000;
export const PCI_X_STATUS_MAX_CUM = 0x1c00_0000;
export const PCI_X_STATUS_SPL_ERR = 0x2000_0000;
export const PCI_X_STATUS_266MHZ = 0x4000_0000;
export const PCI_X_STATUS_533MHZ = 0x8000_0000;

export const PCI_X_ECC_CSR = 8;
export const PCI_CAP_PCIX_SIZEOF_V0 = 8;
export const PCI_CAP_PCIX_SIZEOF_V1 = 24;
export const PCI_CAP_PCIX_SIZEOF_V2 = PCI_CAP_PCIX_SIZEOF_V1;

// PCI-X, of a bridge

export const PCI_X_BRIDGE_SSTATUS = 2;
export const PCI_X_SSTATUS_64BIT = 0x0001;
export const PCI_X_SSTATUS_133MHZ = 0x0002;
export const PCI_X_SSTATUS_FREQ = 0x03c0;
export const PCI_X_SSTATUS_VERS = 0x3000;
export const PCI_X_SSTATUS_V1 = 0x1000;
export const PCI_X_SSTATUS_V2 = 0x2000;
export const PCI_X_SSTATUS_266MHZ = 0x4000;
export const PCI_X_SSTATUS_533MHZ = 0x8000;

export const PCI_X_BRIDGE_STATUS = 4;

// Subsystem of a bridge

export const PCI_SSVID_VENDOR_ID = 4;
export const PCI_SSVID_DEVICE_ID = 6;

// PCI Express

export const PCI_EXP_FLAGS = 0x02;
export const PCI_EXP_FLAGS_VERS = 0x000f;
export const PCI_EXP_FLAGS_TYPE = 0x00f0;
export const PCI_EXP_TYPE_ENDPOINT = 0x0;
export const PCI_EXP_TYPE_LEG_END = 0x1; // legacy endpoint
export const PCI_EXP_TYPE_ROOT_PORT = 0x4;
export const PCI_EXP_TYPE_UPSTREAM = 0x5;
export const PCI_EXP_TYPE_DOWNSTREAM = 0x6;
export const PCI_EXP_TYPE_PCI_BRIDGE = 0x7; // PCI Express to PCI
export const PCI_EXP_TYPE_PCIE_BRIDGE = 0x8; // PCI to PCI Express
export const PCI_EXP_TYPE_RC_END = 0x9; // endpoint in the root complex
export const PCI_EXP_TYPE_RC_EC = 0xa; // event collector in the root complex
export const PCI_EXP_FLAGS_SLOT = 0x0100; // a slot is behind the port
export const PCI_EXP_FLAGS_IRQ = 0x3e00;
export const PCI_EXP_FLAGS_FLIT = 0x8000;

export const PCI_EXP_DEVCAP = 0x04;
export const PCI_EXP_DEVCAP_PAYLOAD = 0x0000_0007; // 128 << n bytes
export const PCI_EXP_DEVCAP_PHANTOM = 0x0000_0018;
export const PCI_EXP_DEVCAP_EXT_TAG = 0x0000_0020;
export const PCI_EXP_DEVCAP_L0S = 0x0000_01c0;
export const PCI_EXP_DEVCAP_L1 = 0x0000_0e00;
export const PCI_EXP_DEVCAP_ATN_BUT = 0x0000_1000;
export const PCI_EXP_DEVCAP_ATN_IND = 0x0000_2000;
export const PCI_EXP_DEVCAP_PWR_IND = 0x0000_4000;
export const PCI_EXP_DEVCAP_RBER = 0x0000_8000; // role-based error reporting
export const PCI_EXP_DEVCAP_PWR_VAL = 0x03fc_0000;
export const PCI_EXP_DEVCAP_PWR_SCL = 0x0c00_0000;
export const PCI_EXP_DEVCAP_FLR = 0x1000_0000; // function level reset
export const PCI_EXP_DEVCAP_TEE = 0x4000_0000; // TEE I/O

export const PCI_EXP_DEVCTL = 0x08;
export const PCI_EXP_DEVCTL_CERE = 0x0001; // report: correctable
export const PCI_EXP_DEVCTL_NFERE = 0x0002; // report: non-fatal
export const PCI_EXP_DEVCTL_FERE = 0x0004; // report: fatal
export const PCI_EXP_DEVCTL_URRE = 0x0008; // report: unsupported request
export const PCI_EXP_DEVCTL_RELAX_EN = 0x0010;
export const PCI_EXP_DEVCTL_PAYLOAD = 0x00e0;
export const PCI_EXP_DEVCTL_PAYLOAD_128B = 0x0000;
export const PCI_EXP_DEVCTL_PAYLOAD_256B = 0x0020;
export const PCI_EXP_DEVCTL_PAYLOAD_512B = 0x0040;
export const PCI_EXP_DEVCTL_PAYLOAD_1024B = 0x0060;
export const PCI_EXP_DEVCTL_PAYLOAD_2048B = 0x0080;
export const PCI_EXP_DEVCTL_PAYLOAD_4096B = 0x00a0;
export const PCI_EXP_DEVCTL_EXT_TAG = 0x0100;
export const PCI_EXP_DEVCTL_PHANTOM = 0x0200;
export const PCI_EXP_DEVCTL_AUX_PME = 0x0400;
export const PCI_EXP_DEVCTL_NOSNOOP_EN = 0x0800;
export const PCI_EXP_DEVCTL_READRQ = 0x7000;
export const PCI_EXP_DEVCTL_READRQ_128B = 0x0000;
export const PCI_EXP_DEVCTL_READRQ_256B = 0x1000;
export const PCI_EXP_DEVCTL_READRQ_512B = 0x2000;
export const PCI_EXP_DEVCTL_READRQ_1024B = 0x3000;
export const PCI_EXP_DEVCTL_READRQ_2048B = 0x4000;
export const PCI_EXP_DEVCTL_READRQ_4096B = 0x5000;
export const PCI_EXP_DEVCTL_BCR_FLR = 0x8000; // starts a function level reset; of a bridge, lets configuration retries through

export const PCI_EXP_DEVSTA = 0x0a;
export const PCI_EXP_DEVSTA_CED = 0x0001; // seen: correctable
export const PCI_EXP_DEVSTA_NFED = 0x0002; // seen: non-fatal
export const PCI_EXP_DEVSTA_FED = 0x0004; // seen: fatal
export const PCI_EXP_DEVSTA_URD = 0x0008; // seen: unsupported request
export const PCI_EXP_DEVSTA_AUXPD = 0x0010;
export const PCI_EXP_DEVSTA_TRPND = 0x0020; // transactions pending

export const PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V1 = 12;
export const PCI_EXP_LNKCAP = 0x0c;
export const PCI_EXP_LNKCAP_SLS = 0x0000_000f;
export const PCI_EXP_LNKCAP_SLS_2_5GB = 0x0000_0001;
export const PCI_EXP_LNKCAP_SLS_5_0GB = 0x0000_0002;
export const PCI_EXP_LNKCAP_SLS_8_0GB = 0x0000_0003;
export const PCI_EXP_LNKCAP_SLS_16_0GB = 0x0000_0004;
export const PCI_EXP_LNKCAP_SLS_32_0GB = 0x0000_0005;
export const PCI_EXP_LNKCAP_SLS_64_0GB = 0x0000_0006;
export const PCI_EXP_LNKCAP_MLW = 0x0000_03f0;
export const PCI_EXP_LNKCAP_ASPMS = 0x0000_0c00;
export const PCI_EXP_LNKCAP_ASPM_L0S = 0x0000_0400;
export const PCI_EXP_LNKCAP_ASPM_L1 = 0x0000_0800;
export const PCI_EXP_LNKCAP_L0SEL = 0x0000_7000;
export const PCI_EXP_LNKCAP_L1EL = 0x0003_8000;
export const PCI_EXP_LNKCAP_CLKPM = 0x0004_0000;
export const PCI_EXP_LNKCAP_SDERC = 0x0008_0000;
export const PCI_EXP_LNKCAP_DLLLARC = 0x0010_0000;
export const PCI_EXP_LNKCAP_LBNC = 0x0020_0000;
export const PCI_EXP_LNKCAP_PN = 0xff00_0000;

export const PCI_EXP_LNKCTL = 0x10;
export const PCI_EXP_LNKCTL_ASPMC = 0x0003;
export const PCI_EXP_LNKCTL_ASPM_L0S = 0x0001;
export const PCI_EXP_LNKCTL_ASPM_L1 = 0x0002;
export const PCI_EXP_LNKCTL_RCB = 0x0008;
export const PCI_EXP_LNKCTL_LD = 0x0010; // disable
export const PCI_EXP_LNKCTL_RL = 0x0020; // retrain
export const PCI_EXP_LNKCTL_CCC = 0x0040;
export const PCI_EXP_LNKCTL_ES = 0x0080;
export const PCI_EXP_LNKCTL_CLKREQ_EN = 0x0100;
export const PCI_EXP_LNKCTL_HAWD = 0x0200;
export const PCI_EXP_LNKCTL_LBMIE = 0x0400;
export const PCI_EXP_LNKCTL_LABIE = 0x0800;

export const PCI_EXP_LNKSTA = 0x12;
export const PCI_EXP_LNKSTA_CLS = 0x000f;
export const PCI_EXP_LNKSTA_CLS_2_5GB = 0x0001;
export const PCI_EXP_LNKSTA_CLS_5_0GB = 0x0002;
export const PCI_EXP_LNKSTA_CLS_8_0GB = 0x0003;
export const PCI_EXP_LNKSTA_CLS_16_0GB = 0x0004;
export const PCI_EXP_LNKSTA_CLS_32_0GB = 0x0005;
export const PCI_EXP_LNKSTA_CLS_64_0GB = 0x0006;
export const PCI_EXP_LNKSTA_NLW = 0x03f0;
export const PCI_EXP_LNKSTA_NLW_X1 = 0x0010;
export const PCI_EXP_LNKSTA_NLW_X2 = 0x0020;
export const PCI_EXP_LNKSTA_NLW_X4 = 0x0040;
export const PCI_EXP_LNKSTA_NLW_X8 = 0x0080;
export const PCI_EXP_LNKSTA_NLW_SHIFT = 4;
export const PCI_EXP_LNKSTA_LT = 0x0800;
export const PCI_EXP_LNKSTA_SLC = 0x1000;
export const PCI_EXP_LNKSTA_DLLLA = 0x2000;
export const PCI_EXP_LNKSTA_LBMS = 0x4000;
export const PCI_EXP_LNKSTA_LABS = 0x8000;

export const PCI_CAP_EXP_ENDPOINT_SIZEOF_V1 = 20;
export const PCI_EXP_SLTCAP = 0x14;
export const PCI_EXP_SLTCAP_ABP = 0x0000_0001;
export const PCI_EXP_SLTCAP_PCP = 0x0000_0002;
export const PCI_EXP_SLTCAP_MRLSP = 0x0000_0004;
export const PCI_EXP_SLTCAP_AIP = 0x0000_0008;
export const PCI_EXP_SLTCAP_PIP = 0x0000_0010;
export const PCI_EXP_SLTCAP_HPS = 0x0000_0020;
export const PCI_EXP_SLTCAP_HPC = 0x0000_0040;
export const PCI_EXP_SLTCAP_SPLV = 0x0000_7f80;
export const PCI_EXP_SLTCAP_SPLS = 0x0001_8000;
export const PCI_EXP_SLTCAP_EIP = 0x0002_0000;
export const PCI_EXP_SLTCAP_NCCS = 0x0004_0000;
export const PCI_EXP_SLTCAP_PSN = 0xfff8_0000;

export const PCI_EXP_SLTCTL = 0x18;
export const PCI_EXP_SLTCTL_ABPE = 0x0001;
export const PCI_EXP_SLTCTL_PFDE = 0x0002;
export const PCI_EXP_SLTCTL_MRLSCE = 0x0004;
export const PCI_EXP_SLTCTL_PDCE = 0x0008;
export const PCI_EXP_SLTCTL_CCIE = 0x0010;
export const PCI_EXP_SLTCTL_HPIE = 0x0020;
export const PCI_EXP_SLTCTL_AIC = 0x00c0;
export const PCI_EXP_SLTCTL_ATTN_IND_SHIFT = 6;
export const PCI_EXP_SLTCTL_ATTN_IND_ON = 0x0040;
export const PCI_EXP_SLTCTL_ATTN_IND_BLINK = 0x0080;
export const PCI_EXP_SLTCTL_ATTN_IND_OFF = 0x00c0;
export const PCI_EXP_SLTCTL_PIC = 0x0300;
export const PCI_EXP_SLTCTL_PWR_IND_ON = 0x0100;
export const PCI_EXP_SLTCTL_PWR_IND_BLINK = 0x0200;
export const PCI_EXP_SLTCTL_PWR_IND_OFF = 0x0300;
export const PCI_EXP_SLTCTL_PCC = 0x0400;
export const PCI_EXP_SLTCTL_PWR_ON = 0x0000;
export const PCI_EXP_SLTCTL_PWR_OFF = 0x0400;
export const PCI_EXP_SLTCTL_EIC = 0x0800;
export const PCI_EXP_SLTCTL_DLLSCE = 0x1000;
export const PCI_EXP_SLTCTL_ASPL_DISABLE = 0x2000;
export const PCI_EXP_SLTCTL_IBPD_DISABLE = 0x4000;

export const PCI_EXP_SLTSTA = 0x1a;
export const PCI_EXP_SLTSTA_ABP = 0x0001;
export const PCI_EXP_SLTSTA_PFD = 0x0002;
export const PCI_EXP_SLTSTA_MRLSC = 0x0004;
export const PCI_EXP_SLTSTA_PDC = 0x0008;
export const PCI_EXP_SLTSTA_CC = 0x0010;
export const PCI_EXP_SLTSTA_MRLSS = 0x0020;
export const PCI_EXP_SLTSTA_PDS = 0x0040;
export const PCI_EXP_SLTSTA_EIS = 0x0080;
export const PCI_EXP_SLTSTA_DLLSC = 0x0100;

export const PCI_EXP_RTCTL = 0x1c;
export const PCI_EXP_RTCTL_SECEE = 0x0001;
export const PCI_EXP_RTCTL_SENFEE = 0x0002;
export const PCI_EXP_RTCTL_SEFEE = 0x0004;
export const PCI_EXP_RTCTL_PMEIE = 0x0008;
export const PCI_EXP_RTCTL_RRS_SVE = 0x0010; // software sees configuration retries
export const PCI_EXP_RTCTL_CRSSVE = PCI_EXP_RTCTL_RRS_SVE;

export const PCI_EXP_RTCAP = 0x1e;
export const PCI_EXP_RTCAP_RRS_SV = 0x0001;
export const PCI_EXP_RTCAP_CRSVIS = PCI_EXP_RTCAP_RRS_SV;

export const PCI_EXP_RTSTA = 0x20;
export const PCI_EXP_RTSTA_PME_RQ_ID = 0x0000_ffff;
export const PCI_EXP_RTSTA_PME = 0x0001_0000;
export const PCI_EXP_RTSTA_PENDING = 0x0002_0000;

export const PCI_EXP_DEVCAP2 = 0x24;
export const PCI_EXP_DEVCAP2_COMP_TMOUT_DIS = 0x0000_0010;
export const PCI_EXP_DEVCAP2_ARI = 0x0000_0020;
export const PCI_EXP_DEVCAP2_ATOMIC_ROUTE = 0x0000_0040;
export const PCI_EXP_DEVCAP2_ATOMIC_COMP32 = 0x0000_0080;
export const PCI_EXP_DEVCAP2_ATOMIC_COMP64 = 0x0000_0100;
export const PCI_EXP_DEVCAP2_ATOMIC_COMP128 = 0x0000_0200;
export const PCI_EXP_DEVCAP2_LTR = 0x0000_0800;
export const PCI_EXP_DEVCAP2_TPH_COMP_MASK = 0x0000_3000;
export const PCI_EXP_DEVCAP2_OBFF_MASK = 0x000c_0000;
export const PCI_EXP_DEVCAP2_OBFF_MSG = 0x0004_0000;
export const PCI_EXP_DEVCAP2_OBFF_WAKE = 0x0008_0000;
export const PCI_EXP_DEVCAP2_EE_PREFIX = 0x0020_0000;
export const PCI_EXP_DEVCAP2_EE_PREFIX_MAX = 0x00c0_0000;

export const PCI_EXP_DEVCTL2 = 0x28;
export const PCI_EXP_DEVCTL2_COMP_TIMEOUT = 0x000f;
export const PCI_EXP_DEVCTL2_COMP_TMOUT_DIS = 0x0010;
export const PCI_EXP_DEVCTL2_ARI = 0x0020; // forwarding
export const PCI_EXP_DEVCTL2_ATOMIC_REQ = 0x0040;
export const PCI_EXP_DEVCTL2_ATOMIC_EGRESS_BLOCK = 0x0080;
export const PCI_EXP_DEVCTL2_IDO_REQ_EN = 0x0100;
export const PCI_EXP_DEVCTL2_IDO_CMP_EN = 0x0200;
export const PCI_EXP_DEVCTL2_LTR_EN = 0x0400;
export const PCI_EXP_DEVCTL2_OBFF_MSGA_EN = 0x2000;
export const PCI_EXP_DEVCTL2_OBFF_MSGB_EN = 0x4000;
export const PCI_EXP_DEVCTL2_OBFF_WAKE_EN = 0x6000;

export const PCI_EXP_DEVSTA2 = 0x2a;
export const PCI_CAP_EXP_RC_ENDPOINT_SIZEOF_V2 = 0x2c;
export const PCI_EXP_LNKCAP2 = 0x2c;
export const PCI_EXP_LNKCAP2_SLS = 0x0000_00fe;
export const PCI_EXP_LNKCAP2_SLS_2_5GB = 0x0000_0002;
export const PCI_EXP_LNKCAP2_SLS_5_0GB = 0x0000_0004;
export const PCI_EXP_LNKCAP2_SLS_8_0GB = 0x0000_0008;
export const PCI_EXP_LNKCAP2_SLS_16_0GB = 0x0000_0010;
export const PCI_EXP_LNKCAP2_SLS_32_0GB = 0x0000_0020;
export const PCI_EXP_LNKCAP2_SLS_64_0GB = 0x0000_0040;
export const PCI_EXP_LNKCAP2_CROSSLINK = 0x0000_0100;

export const PCI_EXP_LNKCTL2 = 0x30;
export const PCI_EXP_LNKCTL2_TLS = 0x000f;
export const PCI_EXP_LNKCTL2_TLS_2_5GT = 0x0001;
export const PCI_EXP_LNKCTL2_TLS_5_0GT = 0x0002;
export const PCI_EXP_LNKCTL2_TLS_8_0GT = 0x0003;
export const PCI_EXP_LNKCTL2_TLS_16_0GT = 0x0004;
export const PCI_EXP_LNKCTL2_TLS_32_0GT = 0x0005;
export const PCI_EXP_LNKCTL2_TLS_64_0GT = 0x0006;
export const PCI_EXP_LNKCTL2_ENTER_COMP = 0x0010;
export const PCI_EXP_LNKCTL2_TX_MARGIN = 0x0380;
export const PCI_EXP_LNKCTL2_HASD = 0x0020;

export const PCI_EXP_LNKSTA2 = 0x32;
export const PCI_EXP_LNKSTA2_FLIT = 0x0400;

export const PCI_CAP_EXP_ENDPOINT_SIZEOF_V2 = 0x34;
export const PCI_EXP_SLTCAP2 = 0x34;
export const PCI_EXP_SLTCAP2_IBPD = 0x0000_0001;

export const PCI_EXP_SLTCTL2 = 0x38;
export const PCI_EXP_SLTSTA2 = 0x3a;

// HyperTransport: the kind is in the top three or five bits of the second flags byte

export const HT_3BIT_CAP_MASK = 0xe0;
export const HT_CAPTYPE_SLAVE = 0x00;
export const HT_CAPTYPE_HOST = 0x20;

export const HT_5BIT_CAP_MASK = 0xf8;
export const HT_CAPTYPE_IRQ = 0x80;
export const HT_CAPTYPE_REMAPPING_40 = 0xa0;
export const HT_CAPTYPE_REMAPPING_64 = 0xa2;
export const HT_CAPTYPE_UNITID_CLUMP = 0x90;
export const HT_CAPTYPE_EXTCONF = 0x98;
export const HT_CAPTYPE_MSI_MAPPING = 0xa8;
export const HT_MSI_FLAGS = 0x02;
export const HT_MSI_FLAGS_ENABLE = 0x1;
export const HT_MSI_FLAGS_FIXED = 0x2;
export const HT_MSI_FIXED_ADDR = 0xfee0_0000;
export const HT_MSI_ADDR_LO = 0x04;
export const HT_MSI_ADDR_LO_MASK = 0xfff0_0000;
export const HT_MSI_ADDR_HI = 0x08;

export const HT_CAPTYPE_DIRECT_ROUTE = 0xb0;
export const HT_CAPTYPE_VCSET = 0xb8;
export const HT_CAPTYPE_ERROR_RETRY = 0xc0;
export const HT_CAPTYPE_GEN3 = 0xd0;
export const HT_CAPTYPE_PM = 0xe0;
export const HT_CAP_SIZEOF_LONG = 28;
export const HT_CAP_SIZEOF_SHORT = 24;

// SATA index and data registers

export const PCI_SATA_REGS = 4;
export const PCI_SATA_REGS_MASK = 0xf;
export const PCI_SATA_REGS_INLINE = 0xf;

export const PCI_SATA_SIZEOF_SHORT = 8;
export const PCI_SATA_SIZEOF_LONG = 16;
