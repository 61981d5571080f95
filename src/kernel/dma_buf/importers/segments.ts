/** Finding bytes of a buffer in a scatter list, and moving them by DMA. */
import { minN } from "../../../lib/addr.ts";
import { dmaRead, dmaWrite } from "../../pci/dma.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import type { SgEntry } from "../mapping.ts";

/**
 * Reads or writes `bytes` at byte `offset` of the buffer, segment by segment: what
 * is one run of the buffer need not be one on the bus. False when a transaction
 * does not arrive, or the segments end before.
 */
export function segmentsDma({ fn }: PciDev, segments: readonly SgEntry[], offset: bigint, bytes: Uint8Array, write: boolean): boolean {
  let skip = offset;
  let done = 0;
  for (const s of segments) {
    if (done === bytes.length) break;
    if (skip >= s.length) {
      skip -= s.length;
      continue;
    }
    const n = Number(minN(s.length - skip, BigInt(bytes.length - done)));
    const part = bytes.subarray(done, done + n);
    if (!(write ? dmaWrite(fn, s.address + skip, part) : dmaRead(fn, s.address + skip, part))) return false;
    done += n;
    skip = 0n;
  }
  return done === bytes.length;
}
