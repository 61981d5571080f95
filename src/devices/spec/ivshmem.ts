/**
 * Registers of QEMU's inter-VM shared memory device, without interrupts.
 * Source: QEMU, docs/specs/ivshmem-spec.rst, sections "Device functionality", "PCI information", "Device registers"
 * (revision 1, ivshmem-plain).
 */

/** Red Hat, Inc. */
export const IVSHMEM_VENDOR = 0x1af4;
export const IVSHMEM_DEVICE = 0x1110;
export const IVSHMEM_REVISION = 1;
/** RAM controller. */
export const IVSHMEM_CLASS = 0x050000;

/** BAR 0: registers. */
export const IVSHMEM_REGISTERS_SIZE = 256n;
/** BAR 2: the shared memory. */
export const IVSHMEM_MEMORY_BAR = 2;
/** As the recorded machine has it. */
export const IVSHMEM_DEFAULT_SIZE = 0x100_0000n;

/** Read and written; has no effect without interrupts. */
export const IVSHMEM_INTR_MASK = 0x00;
/** Cleared by a read. */
export const IVSHMEM_INTR_STATUS = 0x04;
/** This peer's id: 0 without a server. */
export const IVSHMEM_IV_POSITION = 0x08;
/** Writes ring a peer: there is none. */
export const IVSHMEM_DOORBELL = 0x0c;
