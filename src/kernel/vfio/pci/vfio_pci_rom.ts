/**
 * The expansion ROM's image.
 *
 * Images follow each other in the BAR: 55 aa at the start, at 18h a pointer to
 * "PCIR", there at 10h the length in units of 512 bytes and at 15h, bit 7, "the
 * last". A BAR without the first signature counts as full.
 * Source: pci_map_rom and pci_get_rom_size in drivers/pci/rom.c; PCI Firmware
 * Specification 3.0, section 5.1.
 */
import { PCI_ROM_RESOURCE, type VfioPciCoreDevice } from "./vfio_pci_core.ts";

const UNIT = 512;

/** Bytes of the images, at most the BAR's. */
export function vfioPciRomSize(vdev: VfioPciCoreDevice): number {
  const size = Number(vdev.pdev.resources[PCI_ROM_RESOURCE]?.length ?? 0n);
  const read = (off: number, n: number): number => {
    const b = new Uint8Array(n);
    vdev.pdev.barRead(PCI_ROM_RESOURCE, off, b);
    return b.reduceRight((v, x) => v * 256 + x, 0);
  };
  let image = 0;
  for (;;) {
    if (image + 0x1a > size || read(image, 2) !== 0xaa55) break;
    const pcir = image + read(image + 0x18, 2);
    if (pcir + 0x18 > size || read(pcir, 4) !== 0x52494350) break;
    const length = read(pcir + 0x10, 2) * UNIT;
    const last = (read(pcir + 0x15, 1) & 0x80) !== 0;
    image += length;
    if (last || length === 0) break;
  }
  return Math.min(image, size);
}
