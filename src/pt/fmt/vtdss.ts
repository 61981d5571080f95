/**
 * VT-d second stage ("Intel Virtualization Technology for Directed I/O
 * Architecture Specification", revision 4.1, section 3.7 "Second-Stage
 * Translation" and 9.8 "Second-Stage Paging Entries").
 *
 *   0 R · 1 W · 7 PS (leaf above level 0) · 8 A · 9 D · 10 ignored (software)
 *   11 SNP · 51:12 address
 *
 * There is no present bit: an entry is there when it can be read or written, so
 * a leaf with neither cannot exist. SNP in a leaf makes the access snoop even
 * when the device asks not to. Bit 10 of a table entry is software's note that
 * the entry was written back for a walker that does not snoop. Leaves: 4 KiB,
 * 2 MiB, 1 GiB.
 */
import type { PtFormat } from "../format.ts";

const R = 1 << 0;
const W = 1 << 1;
const PS = 1 << 7;
const D = 1 << 9;
const FLUSHED = 1 << 10;
const SNP = 1 << 11;

export const vtdss: PtFormat = {
  name: "vtdss",
  spec: "VT-d 4.1 3.7, 9.8",
  granuleLg2: 12,
  maxVaLg2: 57,
  maxOaLg2: 52,
  minTopLevel: 2,
  maxTopLevel: 4,
  maxLeafLevel: 2,
  growingTop: false,
  startLevel: 0,
  pageSizeBit: PS,
  nextLevelMask: 0,
  nextLevelUnit: 0,
  brokenSizeLg2: 0,
  tableLo: R | W,
  tableHi: 0,
  leafLo: 0,
  leafHi: 0,
  readLo: R,
  readHi: 0,
  writeLo: W,
  writeHi: 0,
  readableLo: R,
  readableHi: 0,
  writableLo: W,
  writableHi: 0,
  flushedLo: FLUSHED,
  snoopLo: SNP,
  dirtyLo: D,
  canSignExtend: false,
  canForceWriteable: true,
};
