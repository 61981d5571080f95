/** QEMU's pci-testdev. Source: docs/specs/pci-testdev of QEMU; ids from its table of PCI ids. */
export const TESTDEV_VENDOR = 0x1b36;
export const TESTDEV_DEVICE = 0x0005;
/** Not classified. */
export const TESTDEV_CLASS = 0x00ff00;
/** BAR 0, memory, bytes. */
export const TESTDEV_BAR_SIZE = 0x1000n;
/** BAR 1, I/O ports, bytes. */
export const TESTDEV_PORT_SIZE = 0x80n;

// The header at the start of either BAR; offsets in bytes.
/** u8: the selected test; write to select. */
export const TESTDEV_TEST = 0x00;
/** u8: bytes of the access that counts. */
export const TESTDEV_WIDTH = 0x01;
/** u32: offset of the access that counts. */
export const TESTDEV_OFFSET = 0x04;
/** u32: value of the access that counts. */
export const TESTDEV_DATA = 0x08;
/** u32: accesses counted since the test was selected. */
export const TESTDEV_COUNT = 0x0c;
/** The test's name, ends with a zero. */
export const TESTDEV_NAME = 0x10;
/** The value that every test counts. */
export const TESTDEV_VALUE = 0xfa;
