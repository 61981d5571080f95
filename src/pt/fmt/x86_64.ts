/**
 * x86-64 paging, as VT-d walks it for its first stage (Intel SDM volume 3,
 * section 4.5 "4-Level Paging and 5-Level Paging"; VT-d 4.1, sections 3.6 and
 * 9.7 "First-Stage Paging Entries"; AMD IOMMU 48882, section 2.2.6).
 *
 *   0 P · 1 RW · 2 U · 5 A · 6 D · 7 PS (leaf above level 0) · 9 ignored
 *   (software) · 51:12 address · 63 XD
 *
 * Devices access as user, and A and D are set beforehand so that hardware has
 * nothing to write back. There is no write-only: a leaf that can be written can
 * be read. VT-d uses it with sign extension, so the lower half of a 48-bit tree
 * ends at 2^47 - 1; the snoop control is in the PASID entry, not here. Bit 9 of
 * a table entry is software's note that it was written back. Leaves: 4 KiB,
 * 2 MiB, 1 GiB.
 */
import type { PtFormat } from "../format.ts";

const P = 1 << 0;
const RW = 1 << 1;
const U = 1 << 2;
const A = 1 << 5;
const D = 1 << 6;
const PS = 1 << 7;
const FLUSHED = 1 << 9;

export const x86_64: PtFormat = {
  name: "x86_64",
  spec: "SDM 3A 4.5, VT-d 4.1 9.7",
  granuleLg2: 12,
  maxVaLg2: 57,
  maxOaLg2: 52,
  minTopLevel: 3,
  maxTopLevel: 4,
  maxLeafLevel: 2,
  growingTop: false,
  startLevel: 0,
  pageSizeBit: PS,
  nextLevelMask: 0,
  nextLevelUnit: 0,
  brokenSizeLg2: 0,
  tableLo: P | RW | U | A,
  tableHi: 0,
  leafLo: P | U | A,
  leafHi: 0,
  readLo: 0,
  readHi: 0,
  writeLo: RW | D,
  writeHi: 0,
  readableLo: P,
  readableHi: 0,
  writableLo: RW,
  writableHi: 0,
  flushedLo: FLUSHED,
  snoopLo: 0,
  dirtyLo: 0,
  canSignExtend: true,
  canForceWriteable: false,
};
