/**
 * Registers of an NVMe controller, as far as they exist without commands.
 * Source: NVM Express Base Specification 1.4c, section 3.1 (Register Definition, the number of each register in brackets), and
 * 4.7, 4.8 (controller and persistent memory regions); values of the read-only ones as QEMU 7.2's controller has them.
 */

/** Red Hat, Inc. */
export const NVME_VENDOR = 0x1b36;
export const NVME_DEVICE = 0x0010;
export const NVME_REVISION = 2;
/** Mass storage, non-volatile memory, NVM Express. */
export const NVME_CLASS = 0x010802;

/** BAR 0: registers, doorbells, then the MSI-X table and its pending bits. */
export const NVME_REGISTERS_SIZE = 0x4000n;
export const NVME_MSIX_VECTORS = 65;
export const NVME_MSIX_TABLE = 0x2000;
export const NVME_MSIX_PBA = 0x3000;
export const NVME_CMB_BAR = 2;
export const NVME_PMR_BAR = 4;
export const NVME_DEFAULT_CMB_SIZE = 0x20_0000n;
export const NVME_DEFAULT_PMR_SIZE = 0x100_0000n;

/** Controller capabilities (3.1.1), 64 bits. */
export const NVME_CAP = 0x00;
/** Version (3.1.2). */
export const NVME_VS = 0x08;
/** Interrupt mask set and clear (3.1.3, 3.1.4). */
export const NVME_INTMS = 0x0c;
export const NVME_INTMC = 0x10;
/** Controller configuration and status (3.1.5, 3.1.6). */
export const NVME_CC = 0x14;
export const NVME_CSTS = 0x1c;
/** Admin queue attributes and base addresses (3.1.8 – 3.1.10). */
export const NVME_AQA = 0x24;
export const NVME_ASQ = 0x28;
export const NVME_ACQ = 0x30;
/** Controller memory buffer: location, size (3.1.11, 3.1.12), memory space control (3.1.16). */
export const NVME_CMBLOC = 0x38;
export const NVME_CMBSZ = 0x3c;
export const NVME_CMBMSC = 0x50;
/** Persistent memory region: capabilities, control, status (3.1.19 – 3.1.21), elasticity, throughput (3.1.22, 3.1.23), memory space control (3.1.24). */
export const NVME_PMRCAP = 0xe00;
export const NVME_PMRCTL = 0xe04;
export const NVME_PMRSTS = 0xe08;
export const NVME_PMREBS = 0xe0c;
export const NVME_PMRSWTP = 0xe10;
export const NVME_PMRMSCL = 0xe14;
export const NVME_PMRMSCU = 0xe18;

/** 2,048 entries a queue, contiguous, 7.5 s to become ready, NVM and no-I/O command sets, pages of 4 to 64 KiB. */
export const NVME_CAP_BASE = 0x0040_1820_0f01_07ffn;
/** CAP.PMRS and CAP.CMBS: there is such a region. */
export const NVME_CAP_PMRS: bigint = 1n << 56n;
export const NVME_CAP_CMBS: bigint = 1n << 57n;
/** 1.4. */
export const NVME_VERSION = 0x0001_0400;

/** CC.EN, CC.SHN. */
export const NVME_CC_EN = 1;
export const NVME_CC_SHN: number = 3 << 14;
/** CSTS.RDY, CSTS.CFS (fatal), CSTS.SHST (2: shutdown complete). */
export const NVME_CSTS_RDY = 1;
export const NVME_CSTS_CFS = 2;
export const NVME_CSTS_SHST_COMPLETE: number = 2 << 2;

/** CMBMSC.CRE: CMBLOC and CMBSZ show their values. */
export const NVME_CMBMSC_CRE = 1;
/** CMBLOC: queues of any page of BAR 2, data and lists anywhere in it. */
export const NVME_CMBLOC_VALUE = 0x62;
/** CMBSZ but for the size: submission queues, lists, reads and writes, in units of 1 MiB. */
export const NVME_CMBSZ_BASE = 0x21d;

/** PMRCAP: readable and writable data in BAR 4, writes flushed by reading PMRSTS, memory space control. */
export const NVME_PMRCAP_VALUE = 0x0100_0898;
/** PMRCTL.EN: the region answers. */
export const NVME_PMRCTL_EN = 1;
