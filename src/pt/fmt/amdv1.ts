/**
 * AMD IOMMU version 1 host tables ("AMD I/O Virtualization Technology (IOMMU)
 * Specification", publication 48882, section 2.2.3 "I/O Page Tables for Host
 * Translations", tables 14 and 15).
 *
 *   0 PR present · 6 D dirty · 11:9 next level · 51:12 address
 *   60 FC force coherent · 61 IR read · 62 IW write
 *
 * Next level 1…6 names a table (the spec's mode, one more than our level); 0 is
 * a leaf of the level's own size; 7 is a leaf of another power of two, whose
 * size is the run of ones at the bottom of the address field: a page of 2^n
 * granules has n - 1 of them, and fills 2^(n - 9*level) consecutive entries with
 * one and the same value. The topmost of the six levels holds no leaves, and
 * 512 GiB pages are never used because of a hardware erratum. IR and IW of all
 * levels are ANDed, so tables grant both. The tree starts with three levels.
 */
import type { PtFormat } from "../format.ts";

const PR = 1 << 0;
const D = 1 << 6;
const NEXT_LEVEL = 7 << 9;
const FC = 1 << (60 - 32);
const IR = 1 << (61 - 32);
const IW = 1 << (62 - 32);

export const amdv1: PtFormat = {
  name: "amdv1",
  spec: "AMD IOMMU 48882 2.2.3",
  granuleLg2: 12,
  maxVaLg2: 64,
  maxOaLg2: 52,
  minTopLevel: 1,
  maxTopLevel: 5,
  maxLeafLevel: 4,
  growingTop: true,
  startLevel: 2,
  pageSizeBit: 0,
  nextLevelMask: NEXT_LEVEL,
  nextLevelUnit: 1 << 9,
  brokenSizeLg2: 39,
  tableLo: PR,
  tableHi: IR | IW,
  leafLo: PR,
  leafHi: FC,
  readLo: 0,
  readHi: IR,
  writeLo: 0,
  writeHi: IW,
  readableLo: 0,
  readableHi: IR,
  writableLo: 0,
  writableHi: IW,
  flushedLo: 0,
  snoopLo: 0,
  dirtyLo: D,
  canSignExtend: false,
  canForceWriteable: false,
};

/** The variant the kernel's iommufd selftest builds: 2 KiB granule, 56 bits in, 51 out, fixed top, no FC. */
export const amdv1Mock: PtFormat = {
  ...amdv1,
  name: "amdv1_mock",
  granuleLg2: 11,
  maxVaLg2: 56,
  maxOaLg2: 51,
  maxTopLevel: 4,
  maxLeafLevel: 3,
  growingTop: false,
  leafHi: 0,
};
