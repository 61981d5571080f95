/**
 * Config space at open: which byte belongs to which capability, and the
 * virtual copy of what is emulated.
 *
 * The walk follows both chains. A capability whose length nobody knows is
 * hidden: the pointer that led to it is made to skip it. The first extended
 * capability cannot be skipped (nothing points at it), so its header stays as
 * an anchor with id and version 0.
 *
 * Source: vfio_config_init, vfio_cap_init, vfio_ecap_init in vfio_pci_config.c.
 */
import * as R from "../../../uapi/pci_regs.ts";
import type { PciDev } from "../../pci/pci_dev.ts";
import { CAP_BASIC, CAP_INVALID, msiCapLength, msiPerm } from "./config_perms.ts";
import type { VfioPciCoreDevice } from "./vfio_pci_core.ts";

const NEXT = 1;
const PCI_CAP_SIZEOF = 4;
const CFG_SPACE_SIZE = 256;
/** The highest ids this kernel knows; others are hidden. */
const PCI_CAP_ID_MAX = 0x14;
const PCI_EXT_CAP_ID_MAX = 0x31;

const CAP_LENGTH: ReadonlyMap<number, number> = new Map([
  [R.PCI_CAP_ID_PM, R.PCI_PM_SIZEOF],
  [R.PCI_CAP_ID_AGP, 12],
  [R.PCI_CAP_ID_VPD, 8],
  [R.PCI_CAP_ID_MSIX, R.PCI_CAP_MSIX_SIZEOF],
  [R.PCI_CAP_ID_AF, R.PCI_CAP_AF_SIZEOF],
]);

const EXT_CAP_LENGTH: ReadonlyMap<number, number> = new Map([
  [R.PCI_EXT_CAP_ID_ERR, 0x2c],
  [R.PCI_EXT_CAP_ID_DSN, 12],
  [R.PCI_EXT_CAP_ID_PWR, 16],
  [R.PCI_EXT_CAP_ID_ARI, 8],
  [R.PCI_EXT_CAP_ID_ATS, 8],
  [R.PCI_EXT_CAP_ID_SRIOV, 0x40],
  [R.PCI_EXT_CAP_ID_MCAST, 40],
  [R.PCI_EXT_CAP_ID_PRI, 16],
  [R.PCI_EXT_CAP_ID_LTR, 8],
]);

/** Reads the chains of a function that was just opened into `configMap` and `vconfig`. */
export function vfioConfigInit(vdev: VfioPciCoreDevice): void {
  const pdev = vdev.pdev;
  const map = new Uint8Array(pdev.cfgSize).fill(CAP_INVALID);
  map.fill(CAP_BASIC, 0, R.PCI_STD_HEADER_SIZEOF);
  vdev.configMap = map;
  vdev.vconfig = new Uint8Array(pdev.cfgSize);
  vdev.extendedCaps = false;
  vdev.msiPerm = undefined;
  fill(vdev, 0, R.PCI_STD_HEADER_SIZEOF);
  vdev.bardirty = true;
  const v = view(vdev);
  for (let i = 0; i < 6; i++) vdev.rbar[i] = v.getUint32(R.PCI_BASE_ADDRESS_0 + 4 * i, true);
  vdev.rbar[6] = v.getUint32(R.PCI_ROM_ADDRESS, true);
  if (pdev.isVirtfn) {
    v.setUint16(R.PCI_VENDOR_ID, pdev.vendor, true);
    v.setUint16(R.PCI_DEVICE_ID, pdev.device, true);
    v.setUint8(R.PCI_INTERRUPT_PIN, 0);
  }
  // A function without the memory bit shows it set, as others do after open.
  if (pdev.noCommandMemory) v.setUint16(R.PCI_COMMAND, v.getUint16(R.PCI_COMMAND, true) | R.PCI_COMMAND_MEMORY, true);
  walkCaps(vdev);
  walkExtCaps(vdev);
}

export function vfioConfigFree(vdev: VfioPciCoreDevice): void {
  vdev.vconfig = new Uint8Array(0);
  vdev.configMap = new Uint8Array(0);
  vdev.msiPerm = undefined;
}

const view = (vdev: VfioPciCoreDevice): DataView => new DataView(vdev.vconfig.buffer);

function fill(vdev: VfioPciCoreDevice, from: number, size: number): void {
  for (let i = 0; i < size && from + i < vdev.vconfig.length; i++) vdev.vconfig[from + i] = vdev.pdev.configRead(from + i, 1);
}

function walkCaps(vdev: VfioPciCoreDevice): void {
  const pdev = vdev.pdev;
  const vconfig = vdev.vconfig;
  if ((pdev.configRead(R.PCI_STATUS, 2) & R.PCI_STATUS_CAP_LIST) === 0) return;
  let pos = pdev.configRead(R.PCI_CAPABILITY_LIST, 1);
  let prev = R.PCI_CAPABILITY_LIST;
  let found = 0;
  // Capabilities are dword aligned, which bounds a chain that loops.
  for (let loops = (CFG_SPACE_SIZE - R.PCI_STD_HEADER_SIZEOF) / PCI_CAP_SIZEOF; pos !== 0 && loops > 0; loops--) {
    const cap = pdev.configRead(pos, 1);
    const next = pdev.configRead(pos + NEXT, 1);
    const length = cap !== 0 && cap <= PCI_CAP_ID_MAX ? capLength(vdev, cap, pos) : 0;
    if (length === 0) {
      vconfig[prev] = next;
      pos = next;
      continue;
    }
    vdev.configMap.fill(cap, pos, pos + length);
    fill(vdev, pos, length);
    if (cap === R.PCI_CAP_ID_PM) hidePme(vdev, pos);
    prev = pos + NEXT;
    pos = next;
    found++;
  }
  if (found === 0) {
    const v = view(vdev);
    v.setUint16(R.PCI_STATUS, v.getUint16(R.PCI_STATUS, true) & ~R.PCI_STATUS_CAP_LIST, true);
  }
}

/** Wake events belong to the host. */
function hidePme(vdev: VfioPciCoreDevice, pos: number): void {
  const v = view(vdev);
  v.setUint16(pos + R.PCI_PM_PMC, v.getUint16(pos + R.PCI_PM_PMC, true) & ~R.PCI_PM_CAP_PME_MASK, true);
  const ctrl = v.getUint16(pos + R.PCI_PM_CTRL, true);
  v.setUint16(pos + R.PCI_PM_CTRL, ctrl & ~(R.PCI_PM_CTRL_PME_ENABLE | R.PCI_PM_CTRL_PME_STATUS), true);
}

function capLength(vdev: VfioPciCoreDevice, cap: number, pos: number): number {
  const pdev = vdev.pdev;
  switch (cap) {
    case R.PCI_CAP_ID_MSI: {
      const flags = pdev.configRead(pos + R.PCI_MSI_FLAGS, 2);
      vdev.msiPerm ??= msiPerm(flags);
      return msiCapLength(flags);
    }
    case R.PCI_CAP_ID_PCIX:
      // Version in bits 12–13 of the command word.
      if ((pdev.configRead(pos + 2, 2) & 0x3000) === 0) return 8;
      noteExtended(vdev);
      return 24;
    case R.PCI_CAP_ID_VNDR:
      return pdev.configRead(pos + 2, 1);
    case R.PCI_CAP_ID_EXP: {
      noteExtended(vdev);
      const flags = pdev.configRead(pos + 2, 2);
      // Type 9: an endpoint inside the root complex, which has no link.
      const rcEndpoint = ((flags >> 4) & 0xf) === 9;
      if ((flags & 0xf) === 1) return rcEndpoint ? 0x0c : 20;
      return rcEndpoint ? 0x2c : R.PCI_CAP_EXP_ENDPOINT_SIZEOF_V2;
    }
    case R.PCI_CAP_ID_HT:
      return (pdev.configRead(pos + 3, 1) & 0xe0) !== 0 ? 24 : 28;
    case R.PCI_CAP_ID_SATA:
      return (pdev.configRead(pos + 4, 1) & 0xf) === 0xf ? 16 : 8;
    default:
      return CAP_LENGTH.get(cap) ?? 0;
  }
}

function noteExtended(vdev: VfioPciCoreDevice): void {
  if (vdev.pdev.cfgSize > CFG_SPACE_SIZE) vdev.extendedCaps = vdev.pdev.configRead(CFG_SPACE_SIZE, 4) !== 0;
}

function walkExtCaps(vdev: VfioPciCoreDevice): void {
  if (!vdev.extendedCaps) return;
  const pdev = vdev.pdev;
  const v = view(vdev);
  let pos = CFG_SPACE_SIZE;
  let prev: number | undefined;
  let found = 0;
  for (let loops = (pdev.cfgSize - CFG_SPACE_SIZE) / PCI_CAP_SIZEOF; loops > 0 && pos >= CFG_SPACE_SIZE; loops--) {
    const header = pdev.configRead(pos, 4) >>> 0;
    const cap = header & 0xffff;
    const next = (header >>> 20) & 0xffc;
    let length = cap <= PCI_EXT_CAP_ID_MAX ? extCapLength(pdev, cap, pos) : 0;
    const hidden = length === 0;
    if (hidden) {
      if (prev !== undefined) {
        v.setUint32(prev, (v.getUint32(prev, true) & 0x003f_ffff) | (next << 20), true);
        pos = next;
        continue;
      }
      length = PCI_CAP_SIZEOF;
    }
    vdev.configMap.fill(cap & 0xff, pos, pos + length);
    fill(vdev, pos, length);
    if (hidden) v.setUint32(pos, v.getUint32(pos, true) & 0xffc0_0000, true);
    else found++;
    prev = pos;
    pos = next;
  }
  if (found === 0) v.setUint32(CFG_SPACE_SIZE, 0, true);
}

function extCapLength(pdev: PciDev, cap: number, pos: number): number {
  switch (cap) {
    case R.PCI_EXT_CAP_ID_VNDR:
    case R.PCI_EXT_CAP_ID_DVSEC:
      // Both have a second header with the length in its upper twelve bits.
      return (pdev.configRead(pos + 4, 4) >>> 20) & 0xfff;
    case R.PCI_EXT_CAP_ID_VC:
    case R.PCI_EXT_CAP_ID_VC9:
    case R.PCI_EXT_CAP_ID_MFVC:
      return vcLength(pdev, pos);
    case R.PCI_EXT_CAP_ID_ACS: {
      // Egress control adds a vector of bits.
      if ((pdev.configRead(pos + 4, 1) & 0x20) === 0) return 8;
      const bits = pdev.configRead(pos + 5, 1);
      return 8 + (bits === 0 ? 256 : (bits + 31) & ~31) / 8;
    }
    case R.PCI_EXT_CAP_ID_REBAR:
      return 4 + ((pdev.configRead(pos + 8, 1) & 0xe0) >> 5) * 8;
    case R.PCI_EXT_CAP_ID_DPA:
      return 16 + (pdev.configRead(pos + 4, 1) & 0x1f) + 1;
    case R.PCI_EXT_CAP_ID_TPH: {
      const tph = pdev.configRead(pos + 4, 4) >>> 0;
      // Location 1 (bits 9–10): the steering table is in the capability.
      return (tph & 0x600) === 0x200 ? 12 + ((tph >>> 16) & 0x7ff) * 2 + 2 : 12;
    }
    default:
      return EXT_CAP_LENGTH.get(cap) ?? 0;
  }
}

function vcLength(pdev: PciDev, pos: number): number {
  const extended = pdev.configRead(pos + 4, 4) & 0x7;
  const arbitration = pdev.configRead(pos + 8, 4);
  // Bits 1–3: 32, 64, 128 phases, four bits each.
  const phases = (arbitration & 8) !== 0 ? 128 : (arbitration & 4) !== 0 ? 64 : (arbitration & 2) !== 0 ? 32 : 0;
  const length = 0x10 + (1 + extended) * 0x0c;
  return phases === 0 ? length : ((length + 15) & ~15) + (phases * 4) / 8;
}
