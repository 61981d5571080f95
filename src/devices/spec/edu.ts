/**
 * Registers of QEMU's educational device.
 * Source: QEMU, docs/specs/edu.rst, sections "Command line switches", "PCI specs", "MMIO area spec", "IRQ controller", "DMA controller".
 */

export const EDU_VENDOR = 0x1234;
export const EDU_DEVICE = 0x11e8;
export const EDU_REVISION = 0x10;
/** Unclassified. */
export const EDU_CLASS = 0x00ff00;
/** Subsystem of every device of QEMU's that names none: Red Hat, QEMU virtual machine. */
export const QEMU_SUBSYSTEM_VENDOR = 0x1af4;
export const QEMU_SUBSYSTEM_DEVICE = 0x1100;

export const EDU_BAR_SIZE = 0x10_0000n;

/** Offsets in BAR 0. Below 0x80 accesses are of 4 bytes, from there on of 4 or 8. */
export const EDU_ID = 0x00;
/** Reads the inverse of what was written. */
export const EDU_LIVENESS = 0x04;
export const EDU_FACTORIAL = 0x08;
export const EDU_STATUS = 0x20;
export const EDU_IRQ_STATUS = 0x24;
export const EDU_IRQ_RAISE = 0x60;
export const EDU_IRQ_ACK = 0x64;
export const EDU_DMA_SRC = 0x80;
export const EDU_DMA_DST = 0x88;
export const EDU_DMA_COUNT = 0x90;
export const EDU_DMA_CMD = 0x98;

/** Major and minor version, and the magic 0xed. */
export const EDU_ID_VALUE = 0x0100_00ed;

/** EDU_STATUS: a factorial is being computed (read only). */
export const EDU_STATUS_COMPUTING = 0x01;
/** EDU_STATUS: interrupt when it is done. */
export const EDU_STATUS_IRQFACT = 0x80;

/** EDU_IRQ_STATUS: why. */
export const EDU_IRQ_FACTORIAL = 0x001;
export const EDU_IRQ_DMA = 0x100;

/** EDU_DMA_CMD: start; reads 1 until the transfer is over. */
export const EDU_DMA_RUN = 0x1;
/** EDU_DMA_CMD: 0 from RAM to the device, 2 from the device to RAM. */
export const EDU_DMA_TO_PCI = 0x2;
/** EDU_DMA_CMD: interrupt when it is over. */
export const EDU_DMA_IRQ = 0x4;

/** The device's own buffer, in the addresses of the DMA controller (not of the BAR). */
export const EDU_BUFFER = 0x40000n;
export const EDU_BUFFER_SIZE = 4096;

/** Default of the switch `dma_mask`: addresses have 28 bits. */
export const EDU_DMA_MASK = 0x0fff_ffffn;
/** From the write of EDU_DMA_CMD to the transfer, ns. */
export const EDU_DMA_DELAY_NS = 100_000_000;
