/**
 * PCI configuration space: the extended capabilities, from byte 256 to byte 4095 (include/uapi/linux/pci_regs.h).
 * Offsets are from a capability's start. The conventions are those of pci_regs.ts, which exports this file too.
 */

// The header of an extended capability, 32 bits

export const PCI_EXT_CAP_ID = (header: number): number => header & 0xffff;
export const PCI_EXT_CAP_VER = (header: number): number => (header >> 16) & 0xf;
export const PCI_EXT_CAP_NEXT = (header: number): number => (header >> 20) & 0xffc;

// Extended capabilities: a list from PCI_CFG_SPACE_SIZE on

export const PCI_EXT_CAP_ID_ERR = 0x01;
export const PCI_EXT_CAP_ID_VC = 0x02;
export const PCI_EXT_CAP_ID_DSN = 0x03;
export const PCI_EXT_CAP_ID_PWR = 0x04;
export const PCI_EXT_CAP_ID_RCLD = 0x05;
export const PCI_EXT_CAP_ID_RCILC = 0x06;
export const PCI_EXT_CAP_ID_RCEC = 0x07;
export const PCI_EXT_CAP_ID_MFVC = 0x08;
export const PCI_EXT_CAP_ID_VC9 = 0x09;
export const PCI_EXT_CAP_ID_RCRB = 0x0a;
export const PCI_EXT_CAP_ID_VNDR = 0x0b;
export const PCI_EXT_CAP_ID_CAC = 0x0c;
export const PCI_EXT_CAP_ID_ACS = 0x0d;
export const PCI_EXT_CAP_ID_ARI = 0x0e;
export const PCI_EXT_CAP_ID_ATS = 0x0f;
export const PCI_EXT_CAP_ID_SRIOV = 0x10;
export const PCI_EXT_CAP_ID_MRIOV = 0x11;
export const PCI_EXT_CAP_ID_MCAST = 0x12;
export const PCI_EXT_CAP_ID_PRI = 0x13;
export const PCI_EXT_CAP_ID_AMD_XXX = 0x14;
export const PCI_EXT_CAP_ID_REBAR = 0x15;
export const PCI_EXT_CAP_ID_DPA = 0x16;
export const PCI_EXT_CAP_ID_TPH = 0x17;
export const PCI_EXT_CAP_ID_LTR = 0x18;
export const PCI_EXT_CAP_ID_SECPCI = 0x19;
export const PCI_EXT_CAP_ID_PMUX = 0x1a;
export const PCI_EXT_CAP_ID_PASID = 0x1b;
export const PCI_EXT_CAP_ID_DPC = 0x1d;
export const PCI_EXT_CAP_ID_L1SS = 0x1e;
export const PCI_EXT_CAP_ID_PTM = 0x1f;
export const PCI_EXT_CAP_ID_DVSEC = 0x23;
export const PCI_EXT_CAP_ID_VF_REBAR = 0x24;
export const PCI_EXT_CAP_ID_DLF = 0x25;
export const PCI_EXT_CAP_ID_PL_16GT = 0x26;
export const PCI_EXT_CAP_ID_NPEM = 0x29;
export const PCI_EXT_CAP_ID_PL_32GT = 0x2a;
export const PCI_EXT_CAP_ID_DOE = 0x2e;
export const PCI_EXT_CAP_ID_DEV3 = 0x2f;
export const PCI_EXT_CAP_ID_IDE = 0x30;
export const PCI_EXT_CAP_ID_PL_64GT = 0x31;
export const PCI_EXT_CAP_ID_MAX = PCI_EXT_CAP_ID_PL_64GT;

export const PCI_EXT_CAP_DSN_SIZEOF = 12;
export const PCI_EXT_CAP_MCAST_ENDPOINT_SIZEOF = 40;

// Advanced error reporting (AER)

export const PCI_ERR_UNCOR_STATUS = 0x04;
export const PCI_ERR_UNC_UND = 0x0000_0001;
export const PCI_ERR_UNC_DLP = 0x0000_0010;
export const PCI_ERR_UNC_SURPDN = 0x0000_0020;
export const PCI_ERR_UNC_POISON_TLP = 0x0000_1000;
export const PCI_ERR_UNC_FCP = 0x0000_2000;
export const PCI_ERR_UNC_COMP_TIME = 0x0000_4000;
export const PCI_ERR_UNC_COMP_ABORT = 0x0000_8000;
export const PCI_ERR_UNC_UNX_COMP = 0x0001_0000;
export const PCI_ERR_UNC_RX_OVER = 0x0002_0000;
export const PCI_ERR_UNC_MALF_TLP = 0x0004_0000;
export const PCI_ERR_UNC_ECRC = 0x0008_0000;
export const PCI_ERR_UNC_UNSUP = 0x0010_0000;
export const PCI_ERR_UNC_ACSV = 0x0020_0000;
export const PCI_ERR_UNC_INTN = 0x0040_0000;
export const PCI_ERR_UNC_MCBTLP = 0x0080_0000;
export const PCI_ERR_UNC_ATOMEG = 0x0100_0000;
export const PCI_ERR_UNC_TLPPRE = 0x0200_0000;
export const PCI_ERR_UNC_POISON_BLK = 0x0400_0000;
export const PCI_ERR_UNC_DMWR_BLK = 0x0800_0000;
export const PCI_ERR_UNC_IDE_CHECK = 0x1000_0000;
export const PCI_ERR_UNC_MISR_IDE = 0x2000_0000;
export const PCI_ERR_UNC_PCRC_CHECK = 0x4000_0000;
export const PCI_ERR_UNC_XLAT_BLK = 0x8000_0000;

export const PCI_ERR_UNCOR_MASK = 0x08;
export const PCI_ERR_UNCOR_SEVER = 0x0c;
export const PCI_ERR_COR_STATUS = 0x10;
export const PCI_ERR_COR_RCVR = 0x0000_0001;
export const PCI_ERR_COR_BAD_TLP = 0x0000_0040;
export const PCI_ERR_COR_BAD_DLLP = 0x0000_0080;
export const PCI_ERR_COR_REP_ROLL = 0x0000_0100;
export const PCI_ERR_COR_REP_TIMER = 0x0000_1000;
export const PCI_ERR_COR_ADV_NFAT = 0x0000_2000;
export const PCI_ERR_COR_INTERNAL = 0x0000_4000;
export const PCI_ERR_COR_LOG_OVER = 0x0000_8000;

export const PCI_ERR_COR_MASK = 0x14;
export const PCI_ERR_CAP = 0x18;
export const PCI_ERR_CAP_FEP = (x: number): number => x & 0x1f;
export const PCI_ERR_CAP_ECRC_GENC = 0x0000_0020;
export const PCI_ERR_CAP_ECRC_GENE = 0x0000_0040;
export const PCI_ERR_CAP_ECRC_CHKC = 0x0000_0080;
export const PCI_ERR_CAP_ECRC_CHKE = 0x0000_0100;
export const PCI_ERR_CAP_PREFIX_LOG_PRESENT = 0x0000_0800;
export const PCI_ERR_CAP_COMP_TIME_LOG = 0x0000_1000;
export const PCI_ERR_CAP_TLP_LOG_FLIT = 0x0004_0000;
export const PCI_ERR_CAP_TLP_LOG_SIZE = 0x00f8_0000;

export const PCI_ERR_HEADER_LOG = 0x1c;
export const PCI_ERR_ROOT_COMMAND = 0x2c;
export const PCI_ERR_ROOT_CMD_COR_EN = 0x0000_0001;
export const PCI_ERR_ROOT_CMD_NONFATAL_EN = 0x0000_0002;
export const PCI_ERR_ROOT_CMD_FATAL_EN = 0x0000_0004;

export const PCI_ERR_ROOT_STATUS = 0x30;
export const PCI_ERR_ROOT_COR_RCV = 0x0000_0001;
export const PCI_ERR_ROOT_MULTI_COR_RCV = 0x0000_0002;
export const PCI_ERR_ROOT_UNCOR_RCV = 0x0000_0004;
export const PCI_ERR_ROOT_MULTI_UNCOR_RCV = 0x0000_0008;
export const PCI_ERR_ROOT_FIRST_FATAL = 0x0000_0010;
export const PCI_ERR_ROOT_NONFATAL_RCV = 0x0000_0020;
export const PCI_ERR_ROOT_FATAL_RCV = 0x0000_0040;
export const PCI_ERR_ROOT_AER_IRQ = 0xf800_0000;

export const PCI_ERR_ROOT_ERR_SRC = 0x34;
export const PCI_ERR_PREFIX_LOG = 0x38;

// Virtual channels

export const PCI_VC_PORT_CAP1 = 0x04;
export const PCI_VC_CAP1_EVCC = 0x0000_0007;
export const PCI_VC_CAP1_LPEVCC = 0x0000_0070;
export const PCI_VC_CAP1_ARB_SIZE = 0x0000_0c00;

export const PCI_VC_PORT_CAP2 = 0x08;
export const PCI_VC_CAP2_32_PHASE = 0x0000_0002;
export const PCI_VC_CAP2_64_PHASE = 0x0000_0004;
export const PCI_VC_CAP2_128_PHASE = 0x0000_0008;
export const PCI_VC_CAP2_ARB_OFF = 0xff00_0000;

export const PCI_VC_PORT_CTRL = 0x0c;
export const PCI_VC_PORT_CTRL_LOAD_TABLE = 0x0000_0001;

export const PCI_VC_PORT_STATUS = 0x0e;
export const PCI_VC_PORT_STATUS_TABLE = 0x0000_0001;

export const PCI_VC_RES_CAP = 0x10;
export const PCI_VC_RES_CAP_32_PHASE = 0x0000_0002;
export const PCI_VC_RES_CAP_64_PHASE = 0x0000_0004;
export const PCI_VC_RES_CAP_128_PHASE = 0x0000_0008;
export const PCI_VC_RES_CAP_128_PHASE_TB = 0x0000_0010;
export const PCI_VC_RES_CAP_256_PHASE = 0x0000_0020;
export const PCI_VC_RES_CAP_ARB_OFF = 0xff00_0000;

export const PCI_VC_RES_CTRL = 0x14;
export const PCI_VC_RES_CTRL_LOAD_TABLE = 0x0001_0000;
export const PCI_VC_RES_CTRL_ARB_SELECT = 0x000e_0000;
export const PCI_VC_RES_CTRL_ID = 0x0700_0000;
export const PCI_VC_RES_CTRL_ENABLE = 0x8000_0000;

export const PCI_VC_RES_STATUS = 0x1a;
export const PCI_VC_RES_STATUS_TABLE = 0x0000_0001;
export const PCI_VC_RES_STATUS_NEGO = 0x0000_0002;

export const PCI_CAP_VC_BASE_SIZEOF = 0x10;
export const PCI_CAP_VC_PER_VC_SIZEOF = 0x0c;

// Power budgeting

export const PCI_PWR_DSR = 0x04;
export const PCI_PWR_DATA = 0x08;
export const PCI_PWR_DATA_BASE = (x: number): number => x & 0xff;
export const PCI_PWR_DATA_SCALE = (x: number): number => (x >> 8) & 3;
export const PCI_PWR_DATA_PM_SUB = (x: number): number => (x >> 10) & 7;
export const PCI_PWR_DATA_PM_STATE = (x: number): number => (x >> 13) & 3;
export const PCI_PWR_DATA_TYPE = (x: number): number => (x >> 15) & 7;
export const PCI_PWR_DATA_RAIL = (x: number): number => (x >> 18) & 7;
export const PCI_PWR_CAP = 0x0c;
export const PCI_PWR_CAP_BUDGET = (x: number): number => x & 1;
export const PCI_EXT_CAP_PWR_SIZEOF = 0x10;

// Endpoints of a root complex event collector

export const PCI_RCEC_RCIEP_BITMAP = 4;
export const PCI_RCEC_BUSN = 8;
export const PCI_RCEC_BUSN_REG_VER = 0x02;
export const PCI_RCEC_BUSN_NEXT = (x: number): number => (x >> 8) & 0xff;
export const PCI_RCEC_BUSN_LAST = (x: number): number => (x >> 16) & 0xff;

// Vendor-specific (VSEC)

export const PCI_VNDR_HEADER = 4;
export const PCI_VNDR_HEADER_ID = (x: number): number => x & 0xffff;
export const PCI_VNDR_HEADER_REV = (x: number): number => (x >> 16) & 0xf;
export const PCI_VNDR_HEADER_LEN = (x: number): number => (x >> 20) & 0xfff;

// Alternative routing-ID interpretation (ARI): 256 functions instead of 32 devices with 8

export const PCI_ARI_CAP = 0x04;
export const PCI_ARI_CAP_MFVC = 0x0001;
export const PCI_ARI_CAP_ACS = 0x0002;
export const PCI_ARI_CAP_NFN = (x: number): number => (x >> 8) & 0xff;

export const PCI_ARI_CTRL = 0x06;
export const PCI_ARI_CTRL_MFVC = 0x0001;
export const PCI_ARI_CTRL_ACS = 0x0002;
export const PCI_ARI_CTRL_FG = (x: number): number => (x >> 4) & 7;

export const PCI_EXT_CAP_ARI_SIZEOF = 8;

// Address translation service (ATS)

export const PCI_ATS_CAP = 0x04;
export const PCI_ATS_CAP_QDEP = (x: number): number => x & 0x1f;
export const PCI_ATS_MAX_QDEP = 32;
export const PCI_ATS_CAP_PAGE_ALIGNED = 0x0020;

export const PCI_ATS_CTRL = 0x06;
export const PCI_ATS_CTRL_ENABLE = 0x8000;
export const PCI_ATS_CTRL_STU = (x: number): number => x & 0x1f;
export const PCI_ATS_MIN_STU = 12; // a page of 4096 bytes

export const PCI_EXT_CAP_ATS_SIZEOF = 8;

// Page request interface (PRI)

export const PCI_PRI_CTRL = 0x04;
export const PCI_PRI_CTRL_ENABLE = 0x0001;
export const PCI_PRI_CTRL_RESET = 0x0002;

export const PCI_PRI_STATUS = 0x06;
export const PCI_PRI_STATUS_RF = 0x0001; // response failure
export const PCI_PRI_STATUS_UPRGI = 0x0002; // unexpected group index
export const PCI_PRI_STATUS_STOPPED = 0x0100;
export const PCI_PRI_STATUS_PASID = 0x8000; // responses carry the PASID

export const PCI_PRI_MAX_REQ = 0x08;
export const PCI_PRI_ALLOC_REQ = 0x0c;
export const PCI_EXT_CAP_PRI_SIZEOF = 16;

// Process address space IDs (PASID)

export const PCI_PASID_CAP = 0x04;
export const PCI_PASID_CAP_EXEC = 0x0002;
export const PCI_PASID_CAP_PRIV = 0x0004;
export const PCI_PASID_CAP_WIDTH = 0x1f00;

export const PCI_PASID_CTRL = 0x06;
export const PCI_PASID_CTRL_ENABLE = 0x0001;
export const PCI_PASID_CTRL_EXEC = 0x0002;
export const PCI_PASID_CTRL_PRIV = 0x0004;

export const PCI_EXT_CAP_PASID_SIZEOF = 8;

// Single root I/O virtualization (SR-IOV)

export const PCI_SRIOV_CAP = 0x04;
export const PCI_SRIOV_CAP_VFM = 0x0000_0001;
export const PCI_SRIOV_CAP_INTR = (x: number): number => x >>> 21;

export const PCI_SRIOV_CTRL = 0x08;
export const PCI_SRIOV_CTRL_VFE = 0x0001; // virtual functions exist
export const PCI_SRIOV_CTRL_VFM = 0x0002; // migration
export const PCI_SRIOV_CTRL_INTR = 0x0004; // migration interrupt
export const PCI_SRIOV_CTRL_MSE = 0x0008; // their memory answers
export const PCI_SRIOV_CTRL_ARI = 0x0010; // ARI-capable hierarchy

export const PCI_SRIOV_STATUS = 0x0a;
export const PCI_SRIOV_STATUS_VFM = 0x0001;

export const PCI_SRIOV_INITIAL_VF = 0x0c;
export const PCI_SRIOV_TOTAL_VF = 0x0e;
export const PCI_SRIOV_NUM_VF = 0x10;
export const PCI_SRIOV_FUNC_LINK = 0x12; // dependencies between PFs
export const PCI_SRIOV_VF_OFFSET = 0x14; // routing ID of the first, after the PF
export const PCI_SRIOV_VF_STRIDE = 0x16; // routing IDs between two
export const PCI_SRIOV_VF_DID = 0x1a; // device ID
export const PCI_SRIOV_SUP_PGSIZE = 0x1c;
export const PCI_SRIOV_SYS_PGSIZE = 0x20;
export const PCI_SRIOV_BAR = 0x24; // the first of six
export const PCI_SRIOV_NUM_BARS = 6;

export const PCI_SRIOV_VFM = 0x3c;
export const PCI_SRIOV_VFM_BIR = (x: number): number => x & 7;
export const PCI_SRIOV_VFM_OFFSET = (x: number): number => (x & ~7) >>> 0;
export const PCI_SRIOV_VFM_UA = 0x0;
export const PCI_SRIOV_VFM_MI = 0x1;
export const PCI_SRIOV_VFM_MO = 0x2;
export const PCI_SRIOV_VFM_AV = 0x3;

export const PCI_EXT_CAP_SRIOV_SIZEOF = 0x40;

// Latency tolerance reporting

export const PCI_LTR_MAX_SNOOP_LAT = 0x4;
export const PCI_LTR_MAX_NOSNOOP_LAT = 0x6;
export const PCI_LTR_VALUE_MASK = 0x0000_03ff;
export const PCI_LTR_SCALE_MASK = 0x0000_1c00;
export const PCI_LTR_SCALE_SHIFT = 10;
export const PCI_LTR_NOSNOOP_VALUE = 0x03ff_0000;
export const PCI_LTR_NOSNOOP_SCALE = 0x1c00_0000;

export const PCI_EXT_CAP_LTR_SIZEOF = 8;

// Access control services (ACS): the bits of PCI_ACS_CAP are also those of PCI_ACS_CTRL

export const PCI_ACS_CAP = 0x04;
export const PCI_ACS_SV = 0x0001; // source validation
export const PCI_ACS_TB = 0x0002; // translation blocking
export const PCI_ACS_RR = 0x0004; // requests between peers go to the root
export const PCI_ACS_CR = 0x0008; // completions between peers go to the root
export const PCI_ACS_UF = 0x0010; // upstream forwarding
export const PCI_ACS_EC = 0x0020; // egress control by PCI_ACS_EGRESS_CTL_V
export const PCI_ACS_DT = 0x0040; // translated requests between peers go direct

export const PCI_ACS_EGRESS_BITS = 0x05; // length of the vector
export const PCI_ACS_CTRL = 0x06;
export const PCI_ACS_EGRESS_CTL_V = 0x08;

// Resizable BARs

export const PCI_REBAR_CAP = 4;
export const PCI_REBAR_CAP_SIZES = 0xffff_fff0; // bit n: 2^(n + 16) bytes

export const PCI_REBAR_CTRL = 8;
export const PCI_REBAR_CTRL_BAR_IDX = 0x0000_0007;
export const PCI_REBAR_CTRL_NBAR_MASK = 0x0000_00e0;
export const PCI_REBAR_CTRL_NBAR_SHIFT = 5;
export const PCI_REBAR_CTRL_BAR_SIZE = 0x0000_1f00;
export const PCI_REBAR_CTRL_BAR_SHIFT = 8;

// Dynamic power allocation

export const PCI_DPA_CAP = 4;
export const PCI_DPA_CAP_SUBSTATE_MASK = 0x1f;

export const PCI_DPA_BASE_SIZEOF = 16;

// TLP processing hints: values of PCI_EXP_DEVCAP2_TPH_COMP_MASK

export const PCI_EXP_DEVCAP2_TPH_COMP_NONE = 0x0;
export const PCI_EXP_DEVCAP2_TPH_COMP_TPH_ONLY = 0x1;
export const PCI_EXP_DEVCAP2_TPH_COMP_EXT_TPH = 0x3;

// TLP processing hints, of a requester

export const PCI_TPH_CAP = 4;
export const PCI_TPH_CAP_ST_NS = 0x0000_0001;
export const PCI_TPH_CAP_ST_IV = 0x0000_0002;
export const PCI_TPH_CAP_ST_DS = 0x0000_0004;
export const PCI_TPH_CAP_EXT_TPH = 0x0000_0100;
export const PCI_TPH_CAP_LOC_MASK = 0x0000_0600;
export const PCI_TPH_LOC_NONE = 0x0000_0000;
export const PCI_TPH_LOC_CAP = 0x0000_0200;
export const PCI_TPH_LOC_MSIX = 0x0000_0400;
export const PCI_TPH_CAP_ST_MASK = 0x07ff_0000;
export const PCI_TPH_CAP_ST_SHIFT = 16;

export const PCI_TPH_BASE_SIZEOF = 0xc;

export const PCI_TPH_CTRL = 8;
export const PCI_TPH_CTRL_MODE_SEL_MASK = 0x0000_0007;
export const PCI_TPH_ST_NS_MODE = 0x0;
export const PCI_TPH_ST_IV_MODE = 0x1;
export const PCI_TPH_ST_DS_MODE = 0x2;
export const PCI_TPH_CTRL_REQ_EN_MASK = 0x0000_0300;
export const PCI_TPH_REQ_DISABLE = 0x0;
export const PCI_TPH_REQ_TPH_ONLY = 0x1;
export const PCI_TPH_REQ_EXT_TPH = 0x3;

// Downstream port containment

export const PCI_EXP_DPC_CAP = 0x04;
export const PCI_EXP_DPC_IRQ = 0x001f;
export const PCI_EXP_DPC_CAP_RP_EXT = 0x0020;
export const PCI_EXP_DPC_CAP_POISONED_TLP = 0x0040;
export const PCI_EXP_DPC_CAP_SW_TRIGGER = 0x0080;
export const PCI_EXP_DPC_RP_PIO_LOG_SIZE = 0x0f00;
export const PCI_EXP_DPC_CAP_DL_ACTIVE = 0x1000;
export const PCI_EXP_DPC_RP_PIO_LOG_SIZE4 = 0x2000;

export const PCI_EXP_DPC_CTL = 0x06;
export const PCI_EXP_DPC_CTL_EN_FATAL = 0x0001;
export const PCI_EXP_DPC_CTL_EN_NONFATAL = 0x0002;
export const PCI_EXP_DPC_CTL_INT_EN = 0x0008;

export const PCI_EXP_DPC_STATUS = 0x08;
export const PCI_EXP_DPC_STATUS_TRIGGER = 0x0001;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN = 0x0006;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_UNCOR = 0x0000;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_NFE = 0x0002;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_FE = 0x0004;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_IN_EXT = 0x0006;
export const PCI_EXP_DPC_STATUS_INTERRUPT = 0x0008;
export const PCI_EXP_DPC_RP_BUSY = 0x0010;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_EXT = 0x0060;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_RP_PIO = 0x0000;
export const PCI_EXP_DPC_STATUS_TRIGGER_RSN_SW_TRIGGER = 0x0020;
export const PCI_EXP_DPC_RP_PIO_FEP = 0x1f00;

export const PCI_EXP_DPC_SOURCE_ID = 0x0a;

export const PCI_EXP_DPC_RP_PIO_STATUS = 0x0c;
export const PCI_EXP_DPC_RP_PIO_MASK = 0x10;
export const PCI_EXP_DPC_RP_PIO_SEVERITY = 0x14;
export const PCI_EXP_DPC_RP_PIO_SYSERROR = 0x18;
export const PCI_EXP_DPC_RP_PIO_EXCEPTION = 0x1c;
export const PCI_EXP_DPC_RP_PIO_HEADER_LOG = 0x20;
export const PCI_EXP_DPC_RP_PIO_IMPSPEC_LOG = 0x30;
export const PCI_EXP_DPC_RP_PIO_TLPPREFIX_LOG = 0x34;

// Precision time measurement

export const PCI_PTM_CAP = 0x04;
export const PCI_PTM_CAP_REQ = 0x0000_0001;
export const PCI_PTM_CAP_RES = 0x0000_0002;
export const PCI_PTM_CAP_ROOT = 0x0000_0004;
export const PCI_PTM_GRANULARITY_MASK = 0x0000_ff00;

export const PCI_PTM_CTRL = 0x08;
export const PCI_PTM_CTRL_ENABLE = 0x0000_0001;
export const PCI_PTM_CTRL_ROOT = 0x0000_0002;

// Substates of link state L1

export const PCI_L1SS_CAP = 0x04;
export const PCI_L1SS_CAP_PCIPM_L1_2 = 0x0000_0001;
export const PCI_L1SS_CAP_PCIPM_L1_1 = 0x0000_0002;
export const PCI_L1SS_CAP_ASPM_L1_2 = 0x0000_0004;
export const PCI_L1SS_CAP_ASPM_L1_1 = 0x0000_0008;
export const PCI_L1SS_CAP_L1_PM_SS = 0x0000_0010;
export const PCI_L1SS_CAP_CM_RESTORE_TIME = 0x0000_ff00;
export const PCI_L1SS_CAP_P_PWR_ON_SCALE = 0x0003_0000;
export const PCI_L1SS_CAP_P_PWR_ON_VALUE = 0x00f8_0000;

export const PCI_L1SS_CTL1 = 0x08;
export const PCI_L1SS_CTL1_PCIPM_L1_2 = 0x0000_0001;
export const PCI_L1SS_CTL1_PCIPM_L1_1 = 0x0000_0002;
export const PCI_L1SS_CTL1_ASPM_L1_2 = 0x0000_0004;
export const PCI_L1SS_CTL1_ASPM_L1_1 = 0x0000_0008;
export const PCI_L1SS_CTL1_L1_2_MASK = 0x0000_0005;
export const PCI_L1SS_CTL1_L1SS_MASK = 0x0000_000f;
export const PCI_L1SS_CTL1_CM_RESTORE_TIME = 0x0000_ff00;
export const PCI_L1SS_CTL1_LTR_L12_TH_VALUE = 0x03ff_0000;
export const PCI_L1SS_CTL1_LTR_L12_TH_SCALE = 0xe000_0000;

export const PCI_L1SS_CTL2 = 0x0c;
export const PCI_L1SS_CTL2_T_PWR_ON_SCALE = 0x0000_0003;
export const PCI_L1SS_CTL2_T_PWR_ON_VALUE = 0x0000_00f8;

// Designated vendor-specific (DVSEC)

export const PCI_DVSEC_HEADER1 = 0x4;
export const PCI_DVSEC_HEADER1_VID = (x: number): number => x & 0xffff;
export const PCI_DVSEC_HEADER1_REV = (x: number): number => (x >> 16) & 0xf;
export const PCI_DVSEC_HEADER1_LEN = (x: number): number => (x >> 20) & 0xfff;
export const PCI_DVSEC_HEADER2 = 0x8;
export const PCI_DVSEC_HEADER2_ID = (x: number): number => x & 0xffff;

// Resizable BARs of virtual functions

export const PCI_VF_REBAR_CAP = PCI_REBAR_CAP;
export const PCI_VF_REBAR_CAP_SIZES = PCI_REBAR_CAP_SIZES;

export const PCI_VF_REBAR_CTRL = PCI_REBAR_CTRL;
export const PCI_VF_REBAR_CTRL_BAR_IDX = PCI_REBAR_CTRL_BAR_IDX;
export const PCI_VF_REBAR_CTRL_NBAR_MASK = PCI_REBAR_CTRL_NBAR_MASK;
export const PCI_VF_REBAR_CTRL_BAR_SIZE = PCI_REBAR_CTRL_BAR_SIZE;

// Data link features

export const PCI_DLF_CAP = 0x04;
export const PCI_DLF_EXCHANGE_ENABLE = 0x8000_0000;

// Lane equalization at 8, 16, 32 and 64 GT/s

export const PCI_SECPCI_LE_CTRL = 0x0c;

export const PCI_PL_16GT_LE_CTRL = 0x20;
export const PCI_PL_16GT_LE_CTRL_DSP_TX_PRESET_MASK = 0x0000_000f;
export const PCI_PL_16GT_LE_CTRL_USP_TX_PRESET_MASK = 0x0000_00f0;
export const PCI_PL_16GT_LE_CTRL_USP_TX_PRESET_SHIFT = 4;

export const PCI_PL_32GT_LE_CTRL = 0x20;

export const PCI_PL_64GT_LE_CTRL = 0x20;

// Enclosure management: indicators of a drive's slot

export const PCI_NPEM_CAP = 0x04;
export const PCI_NPEM_CAP_CAPABLE = 0x0000_0001;

export const PCI_NPEM_CTRL = 0x08;
export const PCI_NPEM_CTRL_ENABLE = 0x0000_0001;

export const PCI_NPEM_CMD_RESET = 0x0000_0002;
export const PCI_NPEM_IND_OK = 0x0000_0004;
export const PCI_NPEM_IND_LOCATE = 0x0000_0008;
export const PCI_NPEM_IND_FAIL = 0x0000_0010;
export const PCI_NPEM_IND_REBUILD = 0x0000_0020;
export const PCI_NPEM_IND_PFA = 0x0000_0040;
export const PCI_NPEM_IND_HOTSPARE = 0x0000_0080;
export const PCI_NPEM_IND_ICA = 0x0000_0100;
export const PCI_NPEM_IND_IFA = 0x0000_0200;
export const PCI_NPEM_IND_IDT = 0x0000_0400;
export const PCI_NPEM_IND_DISABLED = 0x0000_0800;
export const PCI_NPEM_IND_SPEC_0 = 0x0100_0000;
export const PCI_NPEM_IND_SPEC_1 = 0x0200_0000;
export const PCI_NPEM_IND_SPEC_2 = 0x0400_0000;
export const PCI_NPEM_IND_SPEC_3 = 0x0800_0000;
export const PCI_NPEM_IND_SPEC_4 = 0x1000_0000;
export const PCI_NPEM_IND_SPEC_5 = 0x2000_0000;
export const PCI_NPEM_IND_SPEC_6 = 0x4000_0000;
export const PCI_NPEM_IND_SPEC_7 = 0x8000_0000;

export const PCI_NPEM_STATUS = 0x0c;
export const PCI_NPEM_STATUS_CC = 0x0000_0001;

// Data object exchange: a mailbox

export const PCI_DOE_CAP = 0x04;
export const PCI_DOE_CAP_INT_SUP = 0x0000_0001;
export const PCI_DOE_CAP_INT_MSG_NUM = 0x0000_0ffe;

export const PCI_DOE_CTRL = 0x08;
export const PCI_DOE_CTRL_ABORT = 0x0000_0001;
export const PCI_DOE_CTRL_INT_EN = 0x0000_0002;
export const PCI_DOE_CTRL_GO = 0x8000_0000;

export const PCI_DOE_STATUS = 0x0c;
export const PCI_DOE_STATUS_BUSY = 0x0000_0001;
export const PCI_DOE_STATUS_INT_STATUS = 0x0000_0002;
export const PCI_DOE_STATUS_ERROR = 0x0000_0004;
export const PCI_DOE_STATUS_DATA_OBJECT_READY = 0x8000_0000;

export const PCI_DOE_WRITE = 0x10;
export const PCI_DOE_READ = 0x14;
export const PCI_DOE_CAP_SIZEOF = 0x18;

// Words of a data object, which are not registers

export const PCI_DOE_DATA_OBJECT_HEADER_1_VID = 0x0000_ffff;
export const PCI_DOE_DATA_OBJECT_HEADER_1_TYPE = 0x00ff_0000;
export const PCI_DOE_DATA_OBJECT_HEADER_2_LENGTH = 0x0003_ffff;

export const PCI_DOE_DATA_OBJECT_DISC_REQ_3_INDEX = 0x0000_00ff;
export const PCI_DOE_DATA_OBJECT_DISC_REQ_3_VER = 0x0000_ff00;
export const PCI_DOE_DATA_OBJECT_DISC_RSP_3_VID = 0x0000_ffff;
export const PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE = 0x00ff_0000;
export const PCI_DOE_DATA_OBJECT_DISC_RSP_3_NEXT_INDEX = 0xff00_0000;

export const PCI_DOE_DATA_OBJECT_DISC_RSP_3_PROTOCOL = PCI_DOE_DATA_OBJECT_DISC_RSP_3_TYPE;

// Device 3

export const PCI_DEV3_CAP = 0x04;
export const PCI_DEV3_CTL = 0x08;
export const PCI_DEV3_STA = 0x0c;
export const PCI_DEV3_STA_SEGMENT = 0x8;

// Integrity and data encryption (IDE)

export const PCI_IDE_CAP = 0x04;
export const PCI_IDE_CAP_LINK = 0x1;
export const PCI_IDE_CAP_SELECTIVE = 0x2;
export const PCI_IDE_CAP_FLOWTHROUGH = 0x4;
export const PCI_IDE_CAP_PARTIAL_HEADER_ENC = 0x8;
export const PCI_IDE_CAP_AGGREGATION = 0x10;
export const PCI_IDE_CAP_PCRC = 0x20;
export const PCI_IDE_CAP_IDE_KM = 0x40;
export const PCI_IDE_CAP_SEL_CFG = 0x80;
export const PCI_IDE_CAP_ALG = 0x1f00;
export const PCI_IDE_CAP_ALG_AES_GCM_256 = 0;
export const PCI_IDE_CAP_LINK_TC_NUM = 0xe000;
export const PCI_IDE_CAP_SEL_NUM = 0x00ff_0000;
export const PCI_IDE_CAP_TEE_LIMITED = 0x0100_0000;

export const PCI_IDE_CTL = 0x08;
export const PCI_IDE_CTL_FLOWTHROUGH_IDE = 0x4;

export const PCI_IDE_LINK_STREAM_0 = 0xc;
export const PCI_IDE_LINK_BLOCK_SIZE = 8;

export const PCI_IDE_LINK_CTL_0 = 0x00;
export const PCI_IDE_LINK_CTL_EN = 0x1;
export const PCI_IDE_LINK_CTL_TX_AGGR_NPR = 0xc;
export const PCI_IDE_LINK_CTL_TX_AGGR_PR = 0x30;
export const PCI_IDE_LINK_CTL_TX_AGGR_CPL = 0xc0;
export const PCI_IDE_LINK_CTL_PCRC_EN = 0x100;
export const PCI_IDE_LINK_CTL_PART_ENC = 0x3c00;
export const PCI_IDE_LINK_CTL_ALG = 0x0007_c000;
export const PCI_IDE_LINK_CTL_TC = 0x0038_0000;
export const PCI_IDE_LINK_CTL_ID = 0xff00_0000;

export const PCI_IDE_LINK_STS_0 = 0x4;
export const PCI_IDE_LINK_STS_STATE = 0xf;
export const PCI_IDE_LINK_STS_IDE_FAIL = 0x8000_0000;

export const PCI_IDE_SEL_CAP = 0x00;
export const PCI_IDE_SEL_CAP_ASSOC_NUM = 0xf;
export const PCI_IDE_SEL_CTL = 0x04;
export const PCI_IDE_SEL_CTL_EN = 0x1;
export const PCI_IDE_SEL_CTL_TX_AGGR_NPR = 0xc;
export const PCI_IDE_SEL_CTL_TX_AGGR_PR = 0x30;
export const PCI_IDE_SEL_CTL_TX_AGGR_CPL = 0xc0;
export const PCI_IDE_SEL_CTL_PCRC_EN = 0x100;
export const PCI_IDE_SEL_CTL_CFG_EN = 0x200;
export const PCI_IDE_SEL_CTL_PART_ENC = 0x3c00;
export const PCI_IDE_SEL_CTL_ALG = 0x0007_c000;
export const PCI_IDE_SEL_CTL_TC = 0x0038_0000;
export const PCI_IDE_SEL_CTL_DEFAULT = 0x0040_0000;
export const PCI_IDE_SEL_CTL_TEE_LIMITED = 0x0080_0000;
export const PCI_IDE_SEL_CTL_ID = 0xff00_0000;
export const PCI_IDE_SEL_CTL_ID_MAX = 255;
export const PCI_IDE_SEL_STS = 0x08;
export const PCI_IDE_SEL_STS_STATE = 0xf;
export const PCI_IDE_SEL_STS_STATE_INSECURE = 0;
export const PCI_IDE_SEL_STS_STATE_SECURE = 2;
export const PCI_IDE_SEL_STS_IDE_FAIL = 0x8000_0000;
export const PCI_IDE_SEL_RID_1 = 0x0c;
export const PCI_IDE_SEL_RID_1_LIMIT = 0x00ff_ff00;
export const PCI_IDE_SEL_RID_2 = 0x10;
export const PCI_IDE_SEL_RID_2_VALID = 0x1;
export const PCI_IDE_SEL_RID_2_BASE = 0x00ff_ff00;
export const PCI_IDE_SEL_RID_2_SEG = 0xff00_0000;

export const PCI_IDE_SEL_ADDR_BLOCK_SIZE = 12;
export const PCI_IDE_SEL_ADDR_1 = (i: number): number => 20 + i * PCI_IDE_SEL_ADDR_BLOCK_SIZE;
export const PCI_IDE_SEL_ADDR_1_VALID = 0x1;
export const PCI_IDE_SEL_ADDR_1_BASE_LOW = 0x000f_ff00;
export const PCI_IDE_SEL_ADDR_1_LIMIT_LOW = 0xfff0_0000;
export const PCI_IDE_SEL_ADDR_2 = (i: number): number => 24 + i * PCI_IDE_SEL_ADDR_BLOCK_SIZE;
export const PCI_IDE_SEL_ADDR_3 = (i: number): number => 28 + i * PCI_IDE_SEL_ADDR_BLOCK_SIZE;
export const PCI_IDE_SEL_BLOCK_SIZE = (associations: number): number => 20 + associations * PCI_IDE_SEL_ADDR_BLOCK_SIZE;

// CXL, as DVSECs numbered by PCI_DVSEC_CXL_{DEVICE,FUNCTION_MAP,PORT,PORT_GPF,DEVICE_GPF,FLEXBUS_PORT,REG_LOCATOR}

export const PCI_DVSEC_CXL_DEVICE = 0;
export const PCI_DVSEC_CXL_CAP = 0xa;
export const PCI_DVSEC_CXL_CACHE_CAPABLE = 1;
export const PCI_DVSEC_CXL_MEM_CAPABLE = 4;
export const PCI_DVSEC_CXL_HDM_COUNT = 0x30;
export const PCI_DVSEC_CXL_CTRL = 0xc;
export const PCI_DVSEC_CXL_MEM_ENABLE = 4;
export const PCI_DVSEC_CXL_RANGE_SIZE_HIGH = (i: number): number => 0x18 + i * 0x10;
export const PCI_DVSEC_CXL_RANGE_SIZE_LOW = (i: number): number => 0x1c + i * 0x10;
export const PCI_DVSEC_CXL_MEM_INFO_VALID = 1;
export const PCI_DVSEC_CXL_MEM_ACTIVE = 2;
export const PCI_DVSEC_CXL_MEM_ACTIVE_TIMEOUT = 0xe000;
export const PCI_DVSEC_CXL_MEM_SIZE_LOW = 0xf000_0000;
export const PCI_DVSEC_CXL_RANGE_BASE_HIGH = (i: number): number => 0x20 + i * 0x10;
export const PCI_DVSEC_CXL_RANGE_BASE_LOW = (i: number): number => 0x24 + i * 0x10;
export const PCI_DVSEC_CXL_MEM_BASE_LOW = 0xf000_0000;

export const CXL_DVSEC_RANGE_MAX = 2;

export const PCI_DVSEC_CXL_FUNCTION_MAP = 2;

export const PCI_DVSEC_CXL_PORT = 3;
export const PCI_DVSEC_CXL_PORT_CTL = 0x0c;
export const PCI_DVSEC_CXL_PORT_CTL_UNMASK_SBR = 0x0000_0001;

export const PCI_DVSEC_CXL_PORT_GPF = 4;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_1_CONTROL = 0x0c;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_1_TMO_BASE = 0xf;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_1_TMO_SCALE = 0xf00;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_2_CONTROL = 0xe;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_2_TMO_BASE = 0xf;
export const PCI_DVSEC_CXL_PORT_GPF_PHASE_2_TMO_SCALE = 0xf00;

export const PCI_DVSEC_CXL_DEVICE_GPF = 5;

export const PCI_DVSEC_CXL_FLEXBUS_PORT = 7;
export const PCI_DVSEC_CXL_FLEXBUS_PORT_STATUS = 0xe;
export const PCI_DVSEC_CXL_FLEXBUS_PORT_STATUS_CACHE = 1;
export const PCI_DVSEC_CXL_FLEXBUS_PORT_STATUS_MEM = 4;

export const PCI_DVSEC_CXL_REG_LOCATOR = 8;
export const PCI_DVSEC_CXL_REG_LOCATOR_BLOCK1 = 0xc;
export const PCI_DVSEC_CXL_REG_LOCATOR_BIR = 7;
export const PCI_DVSEC_CXL_REG_LOCATOR_BLOCK_ID = 0xff00;
export const PCI_DVSEC_CXL_REG_LOCATOR_BLOCK_OFF_LOW = 0xffff_0000;
